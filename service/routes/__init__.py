"""HTTP routes, one blueprint per concern: each reads a request, calls the parts of the service and writes the answer."""
