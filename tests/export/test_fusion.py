"""Test the fused products of int8 graphs, as loaded by the service, against the exported graphs."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from meari.bundle_format.names import Family, Precision
from meari.export.bundle import build_graphs
from meari.export.weights_from_torch import read_weights
from meari.models.config import RecurrentConfig
from meari.runtime.graphs.bundle_graph import BundleGraph
from meari.runtime.graphs.layers import fuse_products, vectors_of
from meari.runtime.graphs.onnx_graph import RUNTIME_DOMAIN
from tests.export.tiny_models import make_model

MODELS = {
    "two layers": (RecurrentConfig(Family.LSTM, 24, 36, num_layers=2), 700),
    "projection, tied": (RecurrentConfig(Family.GRU, 10, 37, tied=True), 90),
    "layer norm, adaptive": (RecurrentConfig(Family.RNN, 12, 64, layer_norm=True, adaptive_cutoffs=(20, 50)), 60),
}


def _fused(content: bytes) -> BundleGraph:
    graph = BundleGraph(content)
    fuse_products(graph.model.graph, vectors_of(graph.model.graph))
    graph.model.opset_import.add(domain=RUNTIME_DOMAIN, version=1)
    return graph


def _run(content: bytes, inputs: Mapping[str, Any]) -> list[Any]:
    results: list[Any] = ort.InferenceSession(content).run(None, inputs)
    return results


@pytest.mark.parametrize("rows", [1, 5, 33])
@pytest.mark.parametrize("name", MODELS)
def test_fused_products_give_the_same_bits(name: str, rows: int) -> None:
    generator = np.random.default_rng(rows)
    graphs = build_graphs(read_weights(make_model(*MODELS[name])), Precision.INT8)
    for content in (graphs.cell, graphs.output):
        fused = _fused(content)
        operators = [node.op_type for node in fused.model.graph.node]
        assert "MatMulIntegerToFloat" in operators
        assert "MatMulInteger" not in operators
        assert len(operators) < len(BundleGraph(content).model.graph.node)
        inputs: dict[str, Any] = {
            key: generator.normal(size=(rows, *map(int, shape[1:]))).astype(np.float32)
            for key, shape in fused.inputs.items()
        }
        if "token" in inputs:
            inputs["token"] = generator.integers(0, MODELS[name][1], rows)
        plain, quick = _run(content, inputs), _run(fused.model.SerializeToString(), inputs)
        assert all(np.array_equal(left, right) for left, right in zip(plain, quick, strict=True))


def test_float32_graphs_are_not_changed() -> None:
    graphs = build_graphs(read_weights(make_model(*MODELS["two layers"])), Precision.FP32)
    for content in (graphs.cell, graphs.output):
        assert _fused(content).model.graph == BundleGraph(content).model.graph


def test_product_with_another_consumer_is_not_fused() -> None:
    graphs = build_graphs(read_weights(make_model(*MODELS["two layers"])), Precision.INT8)
    graph = BundleGraph(graphs.output).model.graph
    (cast,) = (node for node in graph.node if node.op_type == "Cast")
    graph.output.add(name=cast.output[0])
    before = [node.op_type for node in graph.node]
    fuse_products(graph, vectors_of(graph))
    assert [node.op_type for node in graph.node] == before
