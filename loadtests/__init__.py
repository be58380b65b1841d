"""Load tests of a running server.

Input: a URL and thresholds. Output: rows of latencies, an exit code. Must not know: the service behind the HTTP
contract.
"""
