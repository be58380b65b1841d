"""The same bundle behind other servers, one a file, each written as its own documentation shows.

Input: BENCH_BUNDLE, BENCH_PORT, BENCH_WORKERS. Output: an HTTP server. Must not know: meari.
"""
