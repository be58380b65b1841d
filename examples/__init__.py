"""Worked examples for the pages of docs/: each script makes its own text, trains small models and prints a table.

`python examples/NAME.py` runs one. Must not know: anything of meari beyond the command line and HTTP.
"""
