"""The two graphs of a bundle, `cell` and `output`, and the step of each family.

Input: `weights`. Output: bytes of .onnx files. Must not know: torch. Plain operators only, no fused recurrent ones, so
that every family can be quantised and rows stay exact.
"""

from meari.export.graphs.cell import cell_graph
from meari.export.graphs.output import output_graph

__all__ = ["cell_graph", "output_graph"]
