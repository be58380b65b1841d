"""The four families at one number of trained parameters, and the multiply-adds of their trainings.

Input: a family, a vocabulary and sizes. Output: a model config, a fresh model; numbers of multiply-adds, counted from
sizes alone, so that they do not depend on the kernels. Must not know: training, measured times.

Trained parameters are, in an Elman net, GRU or LSTM, the embedding, the recurrence and the output layer; in the echo
state network the output layer alone. Its number of units, a multiple of the block size, sets the number for all; each
other family has the hidden size that comes nearest.

Multiply-adds count products of matrices; elementwise work, table look-ups and decompositions are left out.

    V  vocabulary   E  embedding   H  units   g  blocks of rows in a cell: Elman 1, GRU 3, LSTM 4
    T  tokens in a series   B  series side by side   K  units in a block of the reservoir

Back-propagation through time, a step. Each product costs as much again for the gradient of its weights and for that of
its input; the state at the beginning of a chunk has no gradient:

    B (T (3 g E H + 3 g H² + 3 V H) - g H²)

Echo state network, a step. The reservoir runs forward alone, and the readout's input has no gradient; whitening turns
the weights and their gradient into r leading directions and back:

    B T (K H + 2 V H) + 4 V H r + V H

and once, before the first step, r directions are found on a sample of S tokens, of which S' are not warm-up:

    4 S K H + 6 S' H r + 2 H r²

In one pass. X^T X is summed in bands from its diagonal on, and the targets select rows, which is not a product; the
last tokens, n', are scored once for calibration:

    n (K H + bands) + n' (K H + V H) + V H² + V H          bands = sum of width (H - begin)
"""

from dataclasses import dataclass

from torch import nn

from meari.bundle_format.names import Family
from meari.claims.sizes import Sizes
from meari.models.cells import NUM_GATES
from meari.models.cells.reservoir.gated_readout import NUM_DIRECTIONS
from meari.models.config import ModelConfig, RecurrentConfig, ReservoirConfig
from meari.models.families import build_model
from meari.models.language_model import LanguageModel
from meari.models.readout.ridge import BLOCK_UNITS
from meari.models.readout.softmax import NUM_PASSES, SAMPLE_TOKENS
from meari.models.readout.states import MAX_ROWS, MIN_PIECE_TOKENS, WARMUP_TOKENS

FAMILIES = (Family.RNN, Family.GRU, Family.LSTM, Family.ESN)
THROUGH_TIME = (Family.RNN, Family.GRU, Family.LSTM)  # trained by back-propagation through time
NAMES = {Family.RNN: "Elman", Family.GRU: "GRU", Family.LSTM: "LSTM", Family.ESN: "ESN"}
SPECTRAL_RADIUS, LEAK_MIN = 0.5, 0.7  # a short memory serves a language model best, see models/configs
TOLERANCE = 0.02


@dataclass(frozen=True)
class ModelSummary:
    """A model in numbers."""

    name: str
    trained_parameters: int
    hidden_size: int


def model_config(family: Family, vocabulary_size: int, sizes: Sizes) -> ModelConfig:
    """Return the config of a family, its trained parameters within TOLERANCE of every other's."""
    units = _units(vocabulary_size, sizes)
    if family is Family.ESN:
        return reservoir(units, sizes.block_size, SPECTRAL_RADIUS)
    wanted = vocabulary_size * (units + 1)
    best = min(
        range(2, units + 1), key=lambda size: abs(_recurrent_count(family, size, vocabulary_size, sizes) - wanted)
    )
    return RecurrentConfig(family, embedding_size=sizes.embedding_size, hidden_size=best)


def reservoir(units: int, block_size: int, spectral_radius: float, input_scale: float = 1.0) -> ReservoirConfig:
    """Return an echo state network with the leak rates of the released one."""
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
    """Make an untrained model."""
    return build_model(model_config(family, vocabulary_size, sizes), vocabulary_size, seed)


def num_trained(model: nn.Module) -> int:
    """Count the trained parameters of a model."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


@dataclass(frozen=True)
class NetSizes:
    """Sizes V, E, H and K of the formulas; embedding and block are 0 for a family without them."""

    vocabulary: int
    units: int
    embedding: int = 0
    block: int = 0


def through_time(family: Family, net: NetSizes, batch_size: int, length: int) -> int:
    """Count one step of back-propagation through time."""
    rows = NUM_GATES[family] * net.units
    token = 3 * rows * net.embedding + 3 * rows * net.units + 3 * net.vocabulary * net.units
    return batch_size * (length * token - rows * net.units)


def readout_step(net: NetSizes, num_directions: int, batch_size: int, length: int) -> int:
    """Count one gradient step of the readout of an echo state network."""
    readout = net.vocabulary * net.units
    return batch_size * length * (net.block * net.units + 2 * readout) + 4 * readout * num_directions + readout


def whitening_setup(net: NetSizes, num_tokens: int) -> tuple[int, int]:
    """Return the multiply-adds of finding the leading directions, and the number of directions."""
    targets = min(num_tokens, SAMPLE_TOKENS) - 1
    num_rows = min(MAX_ROWS, max(1, targets // MIN_PIECE_TOKENS))
    read = targets // num_rows
    seen = read - (WARMUP_TOKENS if num_rows > 1 else 0)
    num_directions = max(1, min(NUM_DIRECTIONS, net.units // 2, num_rows * seen // 2))
    runs = NUM_PASSES + 2  # one for the moments, one more for the eigenvectors within the directions
    reading = runs * num_rows * read * net.block * net.units
    products = (runs - 1) * num_rows * seen * 2 * net.units * num_directions
    return reading + products + 2 * net.units * num_directions**2, num_directions


def one_pass(net: NetSizes, num_fitted: int, num_calibrated: int) -> int:
    """Count ridge regression on `num_fitted` tokens and calibration on the following ones."""
    begins = range(0, net.units, BLOCK_UNITS)
    bands = sum(min(BLOCK_UNITS, net.units - begin) * (net.units - begin) for begin in begins)
    readout = net.vocabulary * net.units
    run = net.block * net.units
    solving = readout * net.units + readout
    return num_fitted * (run + bands) + num_calibrated * (run + readout) + solving
