"""HTTP routes, one blueprint a concern. Each reads a request, asks the parts of the service, and writes the answer."""
