"""Benchmarks: meari beside other servers, training speed, and the time of a bundle's step. Not part of the wheel."""
