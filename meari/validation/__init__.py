"""JSON → msgspec structs, and for what does not fit the field, what came and what was expected. No HTTP."""
