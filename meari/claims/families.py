"""The four families at one number of trained parameters.

In: a family, a vocabulary and sizes. Out: a model config, and a fresh model. Knows nothing of training.

Trained are, in an Elman net, GRU or LSTM, the embedding, the recurrence and the output layer; in the echo state
network the output layer alone. Its number of units, a multiple of the block size, sets the number for all; the others'
hidden size is the one that comes nearest.
"""

from dataclasses import dataclass

from torch import nn

from meari.claims.sizes import Sizes
from meari.models.config import Family, ModelConfig, RecurrentConfig, ReservoirConfig
from meari.models.families import build_model
from meari.models.language_model import LanguageModel

FAMILIES = (Family.RNN, Family.GRU, Family.LSTM, Family.ESN)
THROUGH_TIME = (Family.RNN, Family.GRU, Family.LSTM)  # trained by back-propagation through time
NAMES = {Family.RNN: "Elman", Family.GRU: "GRU", Family.LSTM: "LSTM", Family.ESN: "ESN"}
NUM_GATES = {Family.RNN: 1, Family.GRU: 3, Family.LSTM: 4}
SPECTRAL_RADIUS, LEAK_MIN = 0.5, 0.7  # a short memory serves a language model best, see models/configs
TOLERANCE = 0.02


@dataclass(frozen=True)
class Described:
    """A model in numbers."""

    name: str
    trained_parameters: int
    hidden_size: int


def model_config(family: Family, vocabulary_size: int, sizes: Sizes) -> ModelConfig:
    """The config of a family, its trained parameters within TOLERANCE of every other's."""
    units = _units(vocabulary_size, sizes)
    if family is Family.ESN:
        return reservoir(units, sizes.block_size, SPECTRAL_RADIUS)
    wanted = vocabulary_size * (units + 1)
    best = min(
        range(2, units + 1), key=lambda size: abs(_recurrent_count(family, size, vocabulary_size, sizes) - wanted)
    )
    return RecurrentConfig(family, embedding_size=sizes.embedding_size, hidden_size=best)


def reservoir(units: int, block_size: int, spectral_radius: float, input_scale: float = 1.0) -> ReservoirConfig:
    """An echo state network with the leak rates of the released one."""
    return ReservoirConfig(
        Family.ESN,
        units=units,
        block_size=block_size,
        spectral_radius=spectral_radius,
        leak_min=LEAK_MIN,
        input_scale=input_scale,
    )


def _units(vocabulary_size: int, sizes: Sizes) -> int:
    blocks = round((sizes.parameters / vocabulary_size - 1) / sizes.block_size)
    return sizes.block_size * max(1, blocks)


def _recurrent_count(family: Family, hidden_size: int, vocabulary_size: int, sizes: Sizes) -> int:
    entering = sizes.embedding_size + hidden_size + 2  # two biases a unit
    recurrence = NUM_GATES[family] * hidden_size * entering
    return vocabulary_size * sizes.embedding_size + recurrence + vocabulary_size * (hidden_size + 1)


def fresh_model(family: Family, vocabulary_size: int, sizes: Sizes, seed: int) -> LanguageModel:
    """A model before any training."""
    return build_model(model_config(family, vocabulary_size, sizes), vocabulary_size, seed)


def num_trained(model: nn.Module) -> int:
    """How many numbers of a model learn."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
