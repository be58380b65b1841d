"""Reads the weights of a torch model into plain arrays.

In: a `LanguageModel` on any device. Out: `ModelWeights`. Knows nothing of ONNX.
"""

import numpy as np
from torch import Tensor, nn

from export.errors import UnusableRun
from export.weights import (
    Affine,
    BlockPattern,
    Floats,
    LayerWeights,
    ModelWeights,
    OutputWeights,
    RandomPattern,
    RecurrentWeights,
    ReservoirWeights,
)
from models.cells import Cell
from models.cells.esn import EchoStateNetwork
from models.choices import Pattern
from models.language_model import LanguageModel, RecurrentLanguageModel


def read_weights(model: LanguageModel) -> ModelWeights:
    """Copy all weights out of a model. Raises UnusableRun for a model of another kind."""
    if isinstance(model, RecurrentLanguageModel):
        return ModelWeights(_recurrent(model), _recurrent_output(model))
    if isinstance(model, EchoStateNetwork):
        return ModelWeights(_reservoir(model), OutputWeights((_affine(model.readout),)))
    raise UnusableRun(f"got a model of class {type(model).__name__}, expected an rnn, gru, lstm or esn")


def _floats(tensor: Tensor) -> Floats:
    return tensor.detach().cpu().numpy().astype(np.float32)


def _recurrent(model: RecurrentLanguageModel) -> RecurrentWeights:
    layers = tuple(_layer(cell) for cell in model.cells)
    return RecurrentWeights(model.family, _floats(model.embedding.weight), layers)


def _layer(cell: Cell) -> LayerWeights:
    weights = dict(cell.kernel.named_parameters())
    return LayerWeights(
        input=_floats(weights["weight_ih_l0"]).T,
        state=_floats(weights["weight_hh_l0"]).T,
        input_bias=_floats(weights["bias_ih_l0"]),
        state_bias=_floats(weights["bias_hh_l0"]),
    )


def _recurrent_output(model: RecurrentLanguageModel) -> OutputWeights:
    if model.output is not None:
        return OutputWeights((_affine(model.output),))
    assert model.output_bias is not None
    tied = Affine(_floats(model.embedding.weight).T, _floats(model.output_bias))
    if model.projection is None:
        return OutputWeights((tied,))
    return OutputWeights((_affine(model.projection), tied))


def _affine(linear: nn.Linear) -> Affine:
    weight = _floats(linear.weight).T
    bias: Tensor | None = linear.bias
    return Affine(weight, np.zeros(weight.shape[1], dtype=np.float32) if bias is None else _floats(bias))


def _reservoir(model: EchoStateNetwork) -> ReservoirWeights:
    pattern: BlockPattern | RandomPattern
    if model.pattern is Pattern.BLOCK:
        pattern = BlockPattern(_floats(model.blocks))
    else:
        pattern = RandomPattern(model.in_index.cpu().numpy(), _floats(model.in_weight))
    return ReservoirWeights(pattern, _floats(model.input_weights), _floats(model.leak), _floats(model.bias))
