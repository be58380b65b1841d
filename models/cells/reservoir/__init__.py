"""The fixed parts of an echo state network, each a module of buffers without a gradient.

`matrix` is a sparse product, `token_input` what enters the first layer, `layer` a layer of leaky units and `expansion`
what stands between states and readout. Each has two forms that agree: the equations as written, and a fast one.
"""

from meari.models.cells.reservoir.layer import Expansion, ReservoirLayer, SparseMatrix
from meari.models.cells.reservoir.token_input import RecentTokens, TokenRows

__all__ = ["Expansion", "RecentTokens", "ReservoirLayer", "SparseMatrix", "TokenRows"]
