"""Reasons why a graph cannot be opened or run, in words of our own.

Enters: an exception of onnxruntime. Leaves: a reason that a client may read. The runtime's own text has paths of its
source and changes with its versions; it stays the cause of the error, for the log.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["graph_problem"]

OTHERWISE: Final = "the graph is not valid ONNX, or does not fit the inputs that it gets"
_REASONS: Final = tuple(
    (re.compile(pattern), words)
    for pattern, words in (
        (r"No Op registered for (\w+) with domain_version of (\d+)", "operator {0} is not known in operator set {1}"),
        (r"Fatal error: (?:[\w.]*:)?(\w+)\(-?\d+\) is not a registered", "operator {0} is not known"),
        (r"Could not find an implementation for (?:\w+:)?(\w+)\(\d+\)", "operator {0} cannot be run on this CPU"),
        (r"[Oo]pset (\d+) is under development", "operator set {0} is newer than this onnxruntime knows"),
        (r"IR version: (\d+), max supported IR version: (\d+)", "ONNX IR version: got {0}, expected at most {1}"),
        (r"Node input '([^']{1,100})' is not a graph input", "a node takes {0!r}, which nothing gives"),
        (r"Type Error: .*operator \((\w+)\)", "operator {0} gets an input of a wrong type"),
        (r"Unrecognized attribute: (\w+) for operator (\w+)", "operator {1} has no attribute {0!r}"),
        (r"No opset import for domain '([^']{0,100})'", "operators of {0!r} are not known"),
        (r"Tensor '([^']{1,100})' does not have valid data type", "tensor {0!r} has no type that is known"),
        (
            r"Initializer '([^']{1,100})': raw_data size \((\d+) bytes\).* \((\d+) bytes\)",
            "tensor {0!r}: got {1} bytes, expected the {2} of its shape",
        ),
        (r"not acyclic", "its nodes wait for one another in a circle"),
        (r"schema\((?:[\w.]*::)?(\w+):\d+\) has (input|output) size", "operator {0} has a wrong number of {1}s"),
        (r"running (\w+) node", "operator {0} fails on the inputs that it gets"),
        (r"[Pp]rotobuf parsing failed|No graph was found", "not an ONNX file, or a damaged one"),
    )
)


def graph_problem(error: Exception) -> str:
    """The reason, with the operator where there is one."""
    for pattern, words in _REASONS:
        found = pattern.search(str(error))
        if found is not None:
            return words.format(*found.groups())
    return "there is not enough memory for it" if isinstance(error, MemoryError) else OTHERWISE
