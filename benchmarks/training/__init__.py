"""Benchmarks of training: speed beside a plain PyTorch loop, and the effect of each setting.

Input: sizes, a text. Output: records as JSON and a page. Must not know: serving.
"""
