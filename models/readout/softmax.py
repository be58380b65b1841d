"""The softmax readout: trained by cross-entropy in the same loop as every other model; only its optimizer is special.

In: a reservoir, its training text, a config. Out: an optimizer. Knows nothing of the loop.
"""

from meari.models.cells.esn import EchoStateNetwork
from meari.models.config import TrainingConfig
from meari.models.readout.optimizer import ReadoutAdamW
from meari.models.readout.states import Ids
from meari.models.readout.whitening import measure_whitening

BETAS = (0.9, 0.99)
SAMPLE_SEED = 0  # of the directions that the search for the leading ones starts with; the result hardly depends on it


def readout_optimizer(model: EchoStateNetwork, ids: Ids, config: TrainingConfig) -> ReadoutAdamW:
    """AdamW for the readout, whitened on a sample of the training text.

    ids   the row of training tokens
    """
    first = model.readout if model.narrowing is None else model.narrowing
    return ReadoutAdamW(
        first,
        lambda: measure_whitening(model, ids, SAMPLE_SEED),
        lr=config.learning_rate,
        betas=BETAS,
        weight_decay=config.weight_decay,
        behind=None if model.narrowing is None else model.readout,
    )
