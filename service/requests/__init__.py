"""Requests before they are handled: admitted, parsed into frozen structs within their limits, or refused. No Flask."""
