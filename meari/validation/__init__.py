"""JSON → msgspec structs, and for each value that does not fit: the field, what came and what was expected. No HTTP."""
