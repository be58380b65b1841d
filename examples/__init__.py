"""Worked examples, one file a page of docs/: each makes its own text, trains its own small models and prints a table.

They know of meari what a user knows: the command line and HTTP. `python examples/NAME.py` runs one.
"""
