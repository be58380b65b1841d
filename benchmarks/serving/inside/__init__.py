"""Measured in process, without HTTP: the limit that onnxruntime sets, meari's engine, and single parts of it.

Each module is a program that prints one JSON object; the benchmark starts as many of them as it needs at once.
"""
