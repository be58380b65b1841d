"""Measurements in process, without HTTP: onnxruntime alone, meari's engine, and single parts of it.

Input: a bundle. Output: one JSON object a program; the benchmark starts as many of them at once as it needs.
Must not know: servers.
"""
