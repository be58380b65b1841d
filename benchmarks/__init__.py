"""Benchmarks: meari beside other servers, training speed, and the time of a bundle's step. Not part of the wheel.

Input: bundles and options of the command line. Output: pages in docs/benchmarks/. Must not know: load tests.
"""
