"""From the bytes of a request to a frozen struct within its limits, or to an error that names the field."""
