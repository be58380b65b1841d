"""Recurrences, one a file: the effect of one step on the state of a layer, and the same over a whole sequence.

Input: input vectors and the state before them. Output: output vectors and the state after them. Must not know: tokens,
vocabularies, training; `esn`, a whole reservoir model, knows tokens. `rnn`, `gru` and `lstm` are layers with trained
weights that share `Cell`.
"""

from meari.bundle_format.names import Family
from meari.models.cells.cell import Cell
from meari.models.cells.gru import GruCell
from meari.models.cells.lstm import LstmCell
from meari.models.cells.rnn import RnnCell

__all__ = ["NUM_GATES", "Cell", "GruCell", "LstmCell", "RnnCell"]

# Blocks of rows in the weights of a trained family's cell.
NUM_GATES = {Family.RNN: RnnCell.num_gates, Family.GRU: GruCell.num_gates, Family.LSTM: LstmCell.num_gates}
