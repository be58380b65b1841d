"""One file a recurrence: what one step of a layer does to its state, and the same over a whole sequence.

In: input vectors and the state before them. Out: output vectors and the state after them. A cell knows nothing of
tokens, vocabularies or training. `rnn`, `gru` and `lstm` are layers with trained weights that share `Cell`;
`esn` is a whole reservoir model.
"""

from meari.models.cells.cell import Cell
from meari.models.cells.gru import GruCell
from meari.models.cells.lstm import LstmCell
from meari.models.cells.rnn import RnnCell

__all__ = ["Cell", "GruCell", "LstmCell", "RnnCell"]
