"""Test held-out figures of graphs against hand-worked values and torch, and the refusal of inaccurate int8 graphs."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from meari.bundle_format.names import Document, Family, Precision
from meari.export import perplexity
from meari.export.bundle import build_graphs
from meari.export.errors import PrecisionLost, UnusableRun
from meari.export.ngram import count_ngrams
from meari.export.perplexity import HeldOutFigures, check_precision, measure_graphs, measure_mixture
from meari.export.sessions import Graphs
from meari.export.weights import ModelWeights
from meari.export.weights_from_torch import read_weights
from meari.models.config import RecurrentConfig
from meari.models.evaluation import evaluate
from meari.models.language_model import LanguageModel
from meari.models.text.token_file import TokenCounts, TokenFile
from tests.export.tiny_models import make_model

VOCABULARY_SIZE = 20


@pytest.fixture
def model() -> LanguageModel:
    return make_model(RecurrentConfig(Family.LSTM, 8, 12), VOCABULARY_SIZE)


@pytest.fixture
def weights(model: LanguageModel) -> ModelWeights:
    return read_weights(model)


def token_file(unit: str = "line", num_tokens: int = 3001) -> TokenFile:
    ids = np.random.default_rng(0).integers(0, VOCABULARY_SIZE, num_tokens).astype(np.uint16)
    ids[[0, -1]] = 0
    num_documents = int((ids == 0).sum()) - 1
    return TokenFile(Path("x"), ids, TokenCounts(Document(unit), "uint16", num_tokens, num_documents, 2500, 5000))


def test_perplexity_of_a_uniform_model_is_its_vocabulary_size(weights: ModelWeights) -> None:
    for affine in weights.output.maps:
        affine.weight[:], affine.bias[:] = 0.0, 0.0
    found = measure_graphs(build_graphs(weights, Precision.FP32), token_file(), counts_ends=True)
    assert found.perplexity == pytest.approx(VOCABULARY_SIZE, rel=1e-6)
    assert found.num_tokens == 3000


@pytest.mark.parametrize("unit", ["line", "paragraph", "file"])
@pytest.mark.parametrize("counts_ends", [True, False])
def test_float32_graphs_give_the_figures_of_evaluate(
    model: LanguageModel, weights: ModelWeights, unit: str, counts_ends: bool
) -> None:
    tokens = token_file(unit)
    found = measure_graphs(build_graphs(weights, Precision.FP32), tokens, counts_ends=counts_ends)
    expected = evaluate(model, tokens, counts_ends=counts_ends)
    assert found.to_json() == pytest.approx(expected.to_json(), rel=1e-6)
    assert found.num_tokens == 3000 - (0 if counts_ends else tokens.num_documents)


def test_long_stream_in_pieces_gives_nearly_the_same_figures(
    weights: ModelWeights, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs = build_graphs(weights, Precision.FP32)
    whole = measure_graphs(graphs, token_file("file"), counts_ends=True)
    monkeypatch.setattr(perplexity, "MAX_STREAM_TOKENS", 1000)
    pieces = measure_graphs(graphs, token_file("file"), counts_ends=True)
    assert pieces.num_tokens == whole.num_tokens
    assert pieces.nats_per_token == pytest.approx(whole.nats_per_token, rel=1e-4)


@pytest.mark.parametrize("unit", ["line", "file"])
@pytest.mark.parametrize("precision", Precision)
def test_mixture_and_its_network_are_measured_in_one_pass_with_the_figures_of_two(
    weights: ModelWeights, unit: str, precision: Precision
) -> None:
    tokens = token_file(unit)
    ngram = count_ngrams(tokens.ids.astype(np.int64), VOCABULARY_SIZE, 0, 3)
    ngram = ngram.with_shares(np.array([0.1, 0.3, 0.2], np.float32))
    mixed, alone = build_graphs(weights, precision, ngram), build_graphs(weights, precision)
    both = measure_mixture(mixed, alone, tokens, counts_ends=True)
    assert both == tuple(measure_graphs(graphs, tokens, counts_ends=True) for graphs in (mixed, alone))
    assert both[0].nats_per_token < both[1].nats_per_token - 0.05


def test_accurate_int8_graphs_pass(model: LanguageModel, weights: ModelWeights) -> None:
    tokens = token_file()
    served = measure_graphs(build_graphs(weights, Precision.INT8), tokens, counts_ends=True)
    found = HeldOutFigures(served, evaluate(model, tokens))
    check_precision(Precision.INT8, found)
    assert found.served.perplexity != found.checkpoint.perplexity
    assert abs(found.loss) < 0.01


def test_inaccurate_int8_graphs_are_refused_with_both_figures(model: LanguageModel, weights: ModelWeights) -> None:
    other = read_weights(make_model(RecurrentConfig(Family.LSTM, 8, 12), VOCABULARY_SIZE, seed=2)).output
    bad_output = build_graphs(dataclasses.replace(weights, output=other), Precision.INT8).output
    bad = Graphs(Precision.INT8, build_graphs(weights, Precision.FP32).cell, bad_output)
    one = measure_graphs(bad, token_file(), counts_ends=True)
    better, worse = sorted((one, evaluate(model, token_file())), key=lambda figures: figures.perplexity)
    with pytest.raises(PrecisionLost) as failure:
        check_precision(Precision.INT8, HeldOutFigures(served=worse, checkpoint=better))
    for figures in (better, worse):
        assert f"{figures.perplexity:.4f}" in str(failure.value)
    check_precision(Precision.FP32, HeldOutFigures(served=worse, checkpoint=better))
    with pytest.raises(PrecisionLost, match="bundle without its n-grams has perplexity"):
        check_precision(Precision.INT8, HeldOutFigures(served=better, checkpoint=better, without_ngram=worse))


def test_only_int8_needs_held_out_text(model: LanguageModel, weights: ModelWeights) -> None:
    check_precision(Precision.FP32, None)
    with pytest.raises(UnusableRun, match="got 0 held-out tokens"):
        check_precision(Precision.INT8, None)
    few = token_file(num_tokens=10)
    found = HeldOutFigures(
        measure_graphs(build_graphs(weights, Precision.INT8), few, counts_ends=True), evaluate(model, few)
    )
    with pytest.raises(UnusableRun, match="got 9 held-out tokens"):
        check_precision(Precision.INT8, found)
