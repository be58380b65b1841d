"""Held-out perplexity of graphs, by hand, and the refusal of int8 that costs too much."""

import dataclasses

import numpy as np
import pytest

from export.bundle import build_graphs
from export.errors import PrecisionLost, UnusableRun
from export.perplexity import MOST_TOKENS, check_precision, nats_per_token
from export.precision import Precision
from export.sessions import GraphModel, Graphs, Tokens
from export.weights import ModelWeights
from export.weights_from_torch import read_weights
from models.config import Family, RecurrentConfig
from models.language_model import LanguageModel
from models.text.tokenizer import END_ID
from tests.export.tiny_models import make_model

VOCABULARY_SIZE = 20


@pytest.fixture
def weights() -> ModelWeights:
    return read_weights(make_model(RecurrentConfig(Family.LSTM, 8, 12), VOCABULARY_SIZE))


@pytest.fixture
def held_out() -> Tokens:
    return np.random.default_rng(0).integers(0, VOCABULARY_SIZE, 3001)


def test_model_that_knows_nothing_has_the_vocabulary_as_perplexity(weights: ModelWeights, held_out: Tokens) -> None:
    for affine in weights.output.maps:
        affine.weight[:], affine.bias[:] = 0.0, 0.0
    nats, num_tokens = nats_per_token(build_graphs(weights, Precision.FP32), held_out)
    assert nats == pytest.approx(np.log(VOCABULARY_SIZE), rel=1e-6)
    assert 2900 < num_tokens <= 3000


def test_documents_begin_in_the_initial_state(weights: ModelWeights) -> None:
    """The same document again and again costs the same each time, wherever the streams are cut."""
    document = [END_ID, 3, 4, 5, 6, 7]
    graphs = build_graphs(weights, Precision.FP32)
    ids = np.array(document * 64 * 5 + [END_ID])
    nats, _ = nats_per_token(graphs, ids)
    model = GraphModel(graphs)
    state, costs = model.initial_state(1), []
    for token, target in zip(document, [*document[1:], END_ID], strict=True):
        hidden, state = model.step(np.array([token]), state)
        costs.append(-float(model.logprobs(hidden)[0, target]))
    assert nats == pytest.approx(np.mean(costs), rel=1e-5)


def test_only_the_first_tokens_are_looked_at(weights: ModelWeights) -> None:
    held_out = np.random.default_rng(0).integers(0, VOCABULARY_SIZE, 2 * MOST_TOKENS)
    _, num_tokens = nats_per_token(build_graphs(weights, Precision.FP32), held_out)
    assert MOST_TOKENS - 64 < num_tokens <= MOST_TOKENS


def test_good_int8_passes_with_both_figures(weights: ModelWeights, held_out: Tokens) -> None:
    int8, fp32 = (build_graphs(weights, precision) for precision in (Precision.INT8, Precision.FP32))
    found = check_precision(int8, fp32, held_out)
    assert found is not None
    assert found.perplexity != found.perplexity_fp32
    assert abs(found.loss) < 0.01


def test_bad_int8_is_refused_with_both_figures(weights: ModelWeights, held_out: Tokens) -> None:
    bad_output = build_graphs(
        dataclasses.replace(weights, output=read_weights(_other_model()).output), Precision.INT8
    ).output
    fp32 = build_graphs(weights, Precision.FP32)
    bad = Graphs(Precision.INT8, fp32.cell, bad_output)
    nats, nats_fp32 = nats_per_token(bad, held_out)[0], nats_per_token(fp32, held_out)[0]
    worse, better = (bad, fp32) if nats > nats_fp32 else (Graphs(Precision.INT8, fp32.cell, fp32.output), bad)
    with pytest.raises(PrecisionLost) as failure:
        check_precision(worse, better, held_out)
    for figure in (nats, nats_fp32):
        assert f"{np.exp(figure):.4f}" in str(failure.value)


def test_int8_needs_held_out_text_and_fp32_does_not(weights: ModelWeights) -> None:
    fp32 = build_graphs(weights, Precision.FP32)
    assert check_precision(fp32, fp32, np.zeros(10, np.int64)) is None
    with pytest.raises(UnusableRun, match="10 held-out tokens"):
        check_precision(build_graphs(weights, Precision.INT8), fp32, np.zeros(10, np.int64))


def _other_model() -> LanguageModel:
    return make_model(RecurrentConfig(Family.LSTM, 8, 12), VOCABULARY_SIZE, seed=2)
