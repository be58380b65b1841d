"""Weights of a torch model, read into plain arrays.

Input: a `LanguageModel` on any device. Output: `ModelWeights`. Must not know: ONNX.
"""

import numpy as np
from torch import Tensor, nn

from meari.export.errors import UnusableRun
from meari.export.weights import (
    AdaptiveWeights,
    Affine,
    BlockPattern,
    ExpansionWeights,
    Floats,
    LayerWeights,
    ModelWeights,
    NormWeights,
    OutputWeights,
    RandomPattern,
    RecentTokensWeights,
    RecurrentWeights,
    ReservoirLayerWeights,
    ReservoirWeights,
    Sparse,
)
from meari.models.cells import Cell, LstmCell
from meari.models.cells.esn import EchoStateNetwork
from meari.models.cells.reservoir import SparseMatrix, TokenRows
from meari.models.choices import Pattern
from meari.models.families import RecurrentLanguageModel
from meari.models.language_model import LanguageModel
from meari.models.output_layer import AdaptiveSoftmax


def read_weights(model: LanguageModel) -> ModelWeights:
    """Copy all weights out of a model. Raises UnusableRun for a model of another kind."""
    if isinstance(model, RecurrentLanguageModel):
        return ModelWeights(_recurrent(model), _recurrent_output(model))
    if isinstance(model, EchoStateNetwork):
        return ModelWeights(_reservoir(model), _reservoir_output(model))
    raise UnusableRun(f"got a model of class {type(model).__name__}, expected an rnn, gru, lstm or esn")


def _floats(tensor: Tensor) -> Floats:
    return tensor.detach().cpu().numpy().astype(np.float32)


def _recurrent(model: RecurrentLanguageModel) -> RecurrentWeights:
    layers = tuple(_layer(model, index) for index in range(len(model.cells)))
    return RecurrentWeights(model.family, _floats(model.embedding.weight), layers)


def _layer(model: RecurrentLanguageModel, index: int) -> LayerWeights:
    cell: Cell = model.cells[index]
    weights = dict(cell.kernel.named_parameters())
    initial = [model.initial[f"{name}{index}"] for name in cell.state_names] if model.initial else []
    mogrifiers = list(cell.mogrifiers.parameters()) if isinstance(cell, LstmCell) else []
    return LayerWeights(
        input=_floats(weights["weight_ih_l0"]).T,
        state=_floats(weights["weight_hh_l0"]).T,
        input_bias=_floats(weights["bias_ih_l0"]),
        state_bias=_floats(weights["bias_hh_l0"]),
        initial=tuple(map(_floats, initial)),
        norm=_norm(model.norms[index]) if model.norms else None,
        mogrifiers=tuple(_floats(weight).T for weight in mogrifiers),
    )


def _norm(norm: nn.Module) -> NormWeights:
    assert isinstance(norm, nn.LayerNorm)
    return NormWeights(_floats(norm.weight), _floats(norm.bias), norm.eps)


def _recurrent_output(model: RecurrentLanguageModel) -> OutputWeights:
    if model.adaptive is not None:
        return _adaptive(model.adaptive)
    if model.output is not None:
        return OutputWeights((_affine(model.output),))
    assert model.output_bias is not None
    tied = Affine(_floats(model.embedding.weight).T, _floats(model.output_bias))
    if model.projection is None:
        return OutputWeights((tied,))
    return OutputWeights((_affine(model.projection), tied))


def _adaptive(softmax: AdaptiveSoftmax) -> OutputWeights:
    clusters = []
    for cluster in softmax.layers.tail:
        narrowing, widening = (_floats(weight).T for weight in cluster.parameters())
        clusters.append((narrowing, widening))
    rank = softmax.rank.cpu().numpy().copy()
    return OutputWeights((_affine(softmax.layers.head),), adaptive=AdaptiveWeights(tuple(clusters), rank))


def _affine(linear: nn.Linear) -> Affine:
    weight = _floats(linear.weight).T
    bias: Tensor | None = linear.bias
    return Affine(weight, np.zeros(weight.shape[1], dtype=np.float32) if bias is None else _floats(bias))


def _reservoir(model: EchoStateNetwork) -> ReservoirWeights:
    entering = model.entering
    return ReservoirWeights(
        _floats(entering.rows)
        if isinstance(entering, TokenRows)
        else RecentTokensWeights(_floats(entering.embedding), _floats(entering.weights)),
        tuple(
            ReservoirLayerWeights(
                _sparse(layer.matrix),
                None if layer.below is None else _sparse(layer.below),
                _floats(layer.leak),
                _floats(layer.bias),
            )
            for layer in model.reservoir_layers
        ),
    )


def _sparse(matrix: SparseMatrix) -> Sparse:
    if matrix.pattern is Pattern.BLOCK:
        return BlockPattern(_floats(matrix.blocks))
    return RandomPattern(matrix.in_index.cpu().numpy(), _floats(matrix.in_weight))


def _reservoir_output(model: EchoStateNetwork) -> OutputWeights:
    expansion = None
    if model.expansion is not None:
        sources = model.expansion.sources.cpu().numpy()
        expansion = ExpansionWeights(
            sources, _floats(model.expansion.weights), _floats(model.expansion.bias).squeeze(1)
        )
    if model.gated is not None:
        weight, bias = model.gated.folded_factors()
        factors = Affine(_floats(weight).T, _floats(bias))
        return OutputWeights((factors, _affine(model.gated.output)), expansion=expansion, gated=True)
    narrowing = () if model.narrowing is None else (_affine(model.narrowing),)
    return OutputWeights((*narrowing, _affine(model.readout)), expansion=expansion)
