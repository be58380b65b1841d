"""Recurrences, one a file: the effect of one step on the state of a layer, and the same over a whole sequence.

Input: input vectors and the state before them. Output: output vectors and the state after them. Must not know: tokens,
vocabularies, training; `esn`, a whole reservoir model, knows tokens. `rnn`, `gru` and `lstm` are layers with trained
weights that share `Cell`.
"""

from meari.models.cells.cell import Cell
from meari.models.cells.gru import GruCell
from meari.models.cells.lstm import LstmCell
from meari.models.cells.rnn import RnnCell

__all__ = ["Cell", "GruCell", "LstmCell", "RnnCell"]
