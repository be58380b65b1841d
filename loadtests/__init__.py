"""Load tests with Locust. Input: HTTP requests. Output: rows of latencies. Must not know: the service's code."""
