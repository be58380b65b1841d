"""Test the graphs of every family, precision and shape in onnxruntime, against torch and against one another."""

import numpy as np
import onnx
import pytest

from meari.bundle_format.names import Family, Precision
from meari.export.bundle import NO_TOKENS, build_graphs
from meari.export.sessions import GraphModel, Graphs
from meari.export.verification import check_against_torch, check_isolation, check_normalised, check_valid
from meari.export.weights import BlockPattern, RandomPattern, ReservoirLayerWeights, ReservoirWeights
from meari.export.weights_from_torch import read_weights
from meari.models.config import RecurrentConfig, ReservoirConfig
from tests.export.tiny_models import RESERVOIRS, all_models, make_model

SHORT_RUNS = ((1, 200), (3, 60), (16, 20), (64, 5))
MODELS = all_models()


@pytest.fixture(params=MODELS, scope="module")
def graphs_by_precision(request: pytest.FixtureRequest) -> dict[Precision, Graphs]:
    weights = read_weights(make_model(*MODELS[request.param]))
    return {precision: build_graphs(weights, precision) for precision in Precision}


@pytest.mark.parametrize("name", MODELS)
def test_fp32_graphs_give_the_logprobs_of_torch(name: str) -> None:
    model = make_model(*MODELS[name])
    graphs = build_graphs(read_weights(model), Precision.FP32)
    agreement = check_against_torch(graphs, model, NO_TOKENS, SHORT_RUNS)
    assert agreement.max_logprob_difference < 2e-5
    assert agreement.num_distributions == sum(batch * steps for batch, steps in SHORT_RUNS)


@pytest.mark.parametrize("precision", Precision)
def test_rows_do_not_depend_on_their_batch(graphs_by_precision: dict[Precision, Graphs], precision: Precision) -> None:
    check_isolation(graphs_by_precision[precision])


@pytest.mark.parametrize("precision", Precision)
def test_graphs_are_valid_with_a_free_batch_dimension(
    graphs_by_precision: dict[Precision, Graphs], precision: Precision
) -> None:
    graphs = graphs_by_precision[precision]
    check_valid(graphs)
    for content in (graphs.cell, graphs.output):
        graph = onnx.load_model_from_string(content).graph
        for value in (*graph.input, *graph.output):
            assert value.type.tensor_type.shape.dim[0].dim_param == "batch"


def test_int8_is_close_to_fp32_and_sums_to_one(graphs_by_precision: dict[Precision, Graphs]) -> None:
    generator = np.random.default_rng(0)
    opened = {precision: GraphModel(graphs) for precision, graphs in graphs_by_precision.items()}
    states = {precision: model.initial_state(8) for precision, model in opened.items()}
    hidden = {}
    for _ in range(30):
        tokens = generator.integers(0, opened[Precision.FP32].vocabulary_size, 8)
        for precision, model in opened.items():
            hidden[precision], states[precision] = model.step(tokens, states[precision])
    logprobs = {precision: model.logprobs(hidden[precision]) for precision, model in opened.items()}
    check_normalised(logprobs[Precision.INT8])
    expected = np.exp(logprobs[Precision.FP32].astype(np.float64))
    divergence = (expected * (logprobs[Precision.FP32] - logprobs[Precision.INT8])).sum(axis=1)
    assert divergence.max() < 0.02  # nats


@pytest.mark.parametrize("name", [name for name in MODELS if not name.startswith("esn")])
def test_int8_weights_are_constant_matrices(name: str) -> None:
    graphs = build_graphs(read_weights(make_model(*MODELS[name])), Precision.INT8)
    for content in (graphs.cell, graphs.output):
        graph = onnx.load_model_from_string(content).graph
        constants = {constant.name: constant for constant in graph.initializer}
        products = [node for node in graph.node if node.op_type == "MatMulInteger"]
        assert products
        for node in products:
            weight = constants[node.input[1]]
            assert len(weight.dims) == 2
            assert weight.data_type == onnx.TensorProto.INT8
        assert not any(node.op_type in {"Gemm", "MatMul"} for node in graph.node)


def test_small_vocabulary_folds_the_embedding_and_input_product_into_a_table() -> None:
    operators = _operators(make_model(RecurrentConfig(Family.LSTM, 128, 64), 30))
    assert operators.count("Gemm") == 1
    large = _operators(make_model(RecurrentConfig(Family.LSTM, 8, 64), 400))
    assert large.count("Gemm") == 2


def test_projection_is_folded_only_if_the_result_is_smaller() -> None:
    small = build_graphs(read_weights(make_model(RecurrentConfig(Family.RNN, 30, 40, tied=True), 10)), Precision.FP32)
    large = build_graphs(read_weights(make_model(RecurrentConfig(Family.RNN, 10, 40, tied=True), 90)), Precision.FP32)
    assert len(small.output) < len(large.output)
    assert [len(onnx.load_model_from_string(graphs.output).graph.node) for graphs in (small, large)] == [2, 3]


@pytest.mark.parametrize("name", ["blocks", "random"])
def test_reservoir_stays_sparse_in_the_graph(name: str) -> None:
    weights = read_weights(make_model(RESERVOIRS[name], 40)).cell
    assert isinstance(weights, ReservoirWeights)
    pattern = weights.layers[0].pattern
    num_weights = pattern.blocks.size if isinstance(pattern, BlockPattern) else 2 * pattern.weights.size
    graph = onnx.load_model_from_string(
        build_graphs(read_weights(make_model(RESERVOIRS[name], 40)), Precision.FP32).cell
    )
    stored = sum(int(np.prod(constant.dims)) for constant in graph.graph.initializer)
    units = RESERVOIRS[name].units
    assert isinstance(weights.entering, np.ndarray)
    assert stored < weights.entering.size + num_weights + 3 * units
    assert stored < weights.entering.size + units * units


def test_step_of_a_random_reservoir_matches_a_step_worked_by_hand() -> None:
    config = ReservoirConfig(Family.ESN, units=3, block_size=1)
    weights = read_weights(make_model(config, 4))
    pattern = RandomPattern(np.array([[1, 2], [0, 2], [0, 1]]), np.array([[1, 2], [3, 4], [5, 6]], np.float32))
    layer = ReservoirLayerWeights(pattern, None, np.full(3, 0.5, np.float32), np.zeros(3, np.float32))
    by_hand = ReservoirWeights(np.zeros((4, 3), np.float32), (layer,))
    graphs = build_graphs(type(weights)(by_hand, weights.output), Precision.FP32)
    s = np.array([[0.1, 0.2, 0.3]], np.float32)
    hidden, _ = GraphModel(graphs).step(np.array([0]), {"s0": s})
    sums = np.array([0.2 + 2 * 0.3, 3 * 0.1 + 4 * 0.3, 5 * 0.1 + 6 * 0.2])
    np.testing.assert_allclose(hidden[0], 0.5 * s[0] + 0.5 * np.tanh(sums), rtol=1e-6)


def _operators(model: object) -> list[str]:
    graphs = build_graphs(read_weights(model), Precision.FP32)  # type: ignore[arg-type]
    return [node.op_type for node in onnx.load_model_from_string(graphs.cell).graph.node]
