"""Load tests: HTTP requests → rows of latencies. Knows the HTTP contract, not the service."""
