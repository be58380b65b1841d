"""Parts of an echo state network: fixed ones, each a module of buffers without a gradient, and a trained readout.

Input: token ids or states. Output: drives, states and features. Must not know: text, the training of the readout.

`weights` draws matrices, `token_input` drives the first layer, `layer` holds the sparse product, a layer of leaky units
and the expansion in front of the readout, `gated_readout` a trained readout with products. Each fixed part has two
forms that agree: the equations, and a fast one.
"""

from meari.models.cells.reservoir.gated_readout import GatedReadout
from meari.models.cells.reservoir.layer import Expansion, ReservoirLayer, SparseMatrix
from meari.models.cells.reservoir.token_input import RecentTokens, TokenRows

__all__ = ["Expansion", "GatedReadout", "RecentTokens", "ReservoirLayer", "SparseMatrix", "TokenRows"]
