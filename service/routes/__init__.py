"""HTTP routes, one blueprint per concern: each reads a request, calls parts of the service and writes the answer."""
