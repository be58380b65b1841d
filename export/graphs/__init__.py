"""One file a family: what one step writes into the graph; `cell` and `output` put a bundle's two graphs
together.

In: `weights`. Out: bytes of .onnx files. Plain operators only, no fused recurrent ones, so that every family
can be quantised and rows stay exact.
"""

from meari.export.graphs.cell import cell_graph
from meari.export.graphs.output import output_graph

__all__ = ["cell_graph", "output_graph"]
