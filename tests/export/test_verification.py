"""Test that the checks of finished graphs find errors."""

import copy
import dataclasses

import numpy as np
import onnx_ir as ir
import pytest
import torch

from meari.bundle_format.names import Family, Precision
from meari.export.bundle import NO_TOKENS, build_graphs
from meari.export.errors import InvalidGraph, NotIsolated, NotNormalised, TorchMismatch
from meari.export.graph import GraphBuilder
from meari.export.sessions import Graphs
from meari.export.verification import (
    TORCH_TOLERANCE,
    check_against_torch,
    check_isolation,
    check_normalised,
    check_valid,
)
from meari.export.weights import ModelWeights, RecurrentWeights
from meari.export.weights_from_torch import read_weights
from meari.models.config import RecurrentConfig
from meari.models.language_model import LanguageModel
from tests.export.tiny_models import make_model

RUNS = ((1, 40), (4, 10))


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return make_model(RecurrentConfig(Family.GRU, embedding_size=8, hidden_size=16), 30)


@pytest.fixture
def weights(model: LanguageModel) -> ModelWeights:
    return read_weights(model)


def test_changed_weight_of_the_cell_is_found(model: LanguageModel, weights: ModelWeights) -> None:
    assert isinstance(weights.cell, RecurrentWeights)
    weights.cell.layers[0].state[3, 5] += 0.01
    with pytest.raises(TorchMismatch, match=r"expected at most 0\.0001"):
        check_against_torch(build_graphs(weights, Precision.FP32), model, NO_TOKENS, RUNS)


def test_changed_weight_of_the_output_layer_is_found(model: LanguageModel, weights: ModelWeights) -> None:
    weights.output.maps[0].bias[7] += 0.001
    with pytest.raises(TorchMismatch):
        check_against_torch(build_graphs(weights, Precision.FP32), model, NO_TOKENS, RUNS)


def test_weights_that_are_not_finite_are_found(model: LanguageModel, weights: ModelWeights) -> None:
    graphs = build_graphs(weights, Precision.FP32)
    weights.output.maps[0].weight[0, 0] = np.nan
    with pytest.raises(InvalidGraph, match=r"map0\.weight: has numbers that float32 cannot hold"):
        build_graphs(weights, Precision.FP32)
    broken = copy.deepcopy(model)
    with torch.no_grad():
        next(broken.parameters())[:] = np.nan
    with pytest.raises(TorchMismatch):
        check_against_torch(graphs, broken, NO_TOKENS, RUNS)


def test_rounding_error_of_torch_itself_is_tolerated() -> None:
    large = make_model(RecurrentConfig(Family.GRU, embedding_size=8, hidden_size=16), 30)
    with torch.no_grad():
        for name, parameter in large.named_parameters():
            if name.startswith("output"):
                parameter.mul_(20_000)  # float32 cannot represent logits of this size to 1e-4
    agreement = check_against_torch(build_graphs(read_weights(large), Precision.FP32), large, NO_TOKENS, RUNS)
    assert agreement.max_logprob_difference > TORCH_TOLERANCE


def test_gates_in_another_order_are_found(model: LanguageModel, weights: ModelWeights) -> None:
    assert isinstance(weights.cell, RecurrentWeights)
    (layer,) = weights.cell.layers
    swapped = dataclasses.replace(layer, state=np.roll(layer.state, layer.hidden_size, axis=1))
    cell = dataclasses.replace(weights.cell, layers=(swapped,))
    with pytest.raises(TorchMismatch):
        check_against_torch(build_graphs(ModelWeights(cell, weights.output), Precision.FP32), model, NO_TOKENS, RUNS)


def test_held_out_text_is_compared(model: LanguageModel, weights: ModelWeights) -> None:
    held_out = np.random.default_rng(0).integers(0, 30, 500)
    agreement = check_against_torch(build_graphs(weights, Precision.FP32), model, held_out, RUNS)
    assert agreement.num_distributions == 80


def test_shared_activation_scale_of_a_batch_is_found(weights: ModelWeights) -> None:
    graphs = build_graphs(weights, Precision.FP32)
    with pytest.raises(NotIsolated, match="logprobs of a row depends on the batch"):
        check_isolation(Graphs(Precision.INT8, graphs.cell, _dynamic_quantisation_graph()))


def test_probabilities_that_do_not_sum_to_one_are_found() -> None:
    uniform = np.full((2, 4), np.log(0.25), np.float32)
    assert check_normalised(uniform) < 1e-6
    uniform[1, 2] += 1e-4
    with pytest.raises(NotNormalised, match="expected at most 1e-05"):
        check_normalised(uniform)


def test_invalid_onnx_graph_is_found(weights: ModelWeights) -> None:
    graph = GraphBuilder("wrong")
    x = graph.input("hidden", ir.DataType.FLOAT, [16])
    graph.output("logprobs", graph.op("NoSuchOperator", x), [16])
    with pytest.raises(InvalidGraph, match=r"output\.onnx"):
        check_valid(Graphs(Precision.FP32, build_graphs(weights, Precision.FP32).cell, graph.to_bytes()))


def test_read_weights_returns_copies(model: LanguageModel) -> None:
    weights = read_weights(model)
    before = weights.output.maps[0].bias.copy()
    weights.output.maps[0].bias[:] = 5.0
    np.testing.assert_array_equal(read_weights(model).output.maps[0].bias, before)


def _dynamic_quantisation_graph() -> bytes:
    graph = GraphBuilder("output")
    weight = np.random.default_rng(0).integers(-63, 64, (16, 30)).astype(np.int8)
    x = graph.input("hidden", ir.DataType.FLOAT, [16])
    values, scale, zero_point = graph._tape.op_multi_out("DynamicQuantizeLinear", [x], num_outputs=3)
    exact = graph.op("MatMulInteger", values, graph.constant("weight", weight), zero_point)
    logits = graph.op("Mul", graph.op("Cast", exact, to=1), scale)
    graph.output("logits", logits, [30])
    graph.output("logprobs", graph.op("LogSoftmax", logits, axis=-1), [30])
    return graph.to_bytes()
