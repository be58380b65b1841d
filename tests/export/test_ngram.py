"""Test n-grams in bundles: against the definition of Kneser–Ney smoothing, and as they are served."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from meari.bundle_format.names import Family, Precision
from meari.errors import BundleError
from meari.export.bundle import MIN_GAIN, NgramOptions, export_bundle, export_smallest, read_run
from meari.export.errors import MixtureMismatch, UnusableRun
from meari.export.graphs import cell_graph, output_graph
from meari.export.mixture import after, check_mixture
from meari.export.ngram import NgramWeights, count_ngrams, fit_shares, history
from meari.export.sessions import GraphModel, Graphs
from meari.export.verification import check_isolation
from meari.export.weights import ModelWeights
from meari.export.weights_from_torch import read_weights
from meari.models.config import ModelConfig, RecurrentConfig
from meari.runtime.bundle import open_bundle
from meari.runtime.engine import Sampling
from tests.export.serving import generate, score, served
from tests.export.tiny_models import RESERVOIRS, VARIANTS, make_model, make_run

SIZE = 7
MODELS: dict[str, ModelConfig] = {
    "rnn": RecurrentConfig(Family.RNN, 8, 20, num_layers=2),
    "gru, learned initial state": RecurrentConfig(Family.GRU, 8, 17, learned_initial_state=True),
    "lstm": RecurrentConfig(Family.LSTM, 8, 16),
    "adaptive": VARIANTS["adaptive"],
    "esn that remembers tokens": RESERVOIRS["recent tokens"],
    "esn with features": RESERVOIRS["expanded"],
}


def made_text(num_documents: int, seed: int = 1) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Make a token file of documents in which the next token depends on the two before."""
    generator = np.random.default_rng(seed)
    ids = [0]
    for _ in range(num_documents):
        for _ in range(generator.integers(0, 12)):
            likely = (3 * ids[-1] + ids[-2] if len(ids) > 1 else 1) % (SIZE - 1) + 1
            ids.append(int(likely if generator.random() < 0.6 else generator.integers(1, SIZE)))
        ids.append(0)
    return np.array(ids, np.int64)


Gram = tuple[int | None, ...]


def padded_grams(ids: list[int], order: int) -> list[Gram]:
    padded: list[Gram] = []
    context: list[int | None] = [None] * (order - 2) + [0]
    for token in ids[1:]:
        padded.append((*context, token))
        context = [None] * (order - 2) + [0] if token == 0 else [*context[1:], token]
    return padded


def kneser_ney(ids: list[int], order: int, min_count: int, min_gain: float) -> Callable[[int, Gram], float]:
    """Return p(token | context) by the definition, from tuples; a context has the oldest token first."""
    padded = padded_grams(ids, order)
    occurrences = {n: Counter(gram[order - n :] for gram in padded) for n in range(1, order + 1)}
    counts: dict[int, Counter[Gram]] = {order: occurrences[order]}
    for n in range(order - 1, 0, -1):
        counts[n] = Counter(gram[1:] for gram in counts[n + 1])
    discounts = {n: discounts_of(Counter(counts[n].values())) for n in counts}
    sums: dict[Gram, int] = defaultdict(int)
    for number in counts.values():
        for gram, count in number.items():
            sums[gram[:-1]] += count

    dropped: set[Gram] = set()

    def kept(gram: Gram) -> float:
        n = len(gram)
        fewest = {1: 1, 2: max(1, min_count - 1)}.get(n, min_count)
        count = counts[n].get(gram, 0)
        is_kept = occurrences[n].get(gram, 0) >= fewest and gram not in dropped
        return count - discounts[n][min(count, 3)] if is_kept else 0.0

    def left(context: Gram) -> float:
        return sums[context] - sum(kept((*context, word)) for word in range(SIZE))

    def probability(token: int, context: Gram) -> float:
        shorter = probability(token, context[1:]) if context else 1 / SIZE
        if not any(kept((*context, word)) for word in range(SIZE)):
            return shorter
        return (kept((*context, token)) + left(context) * shorter) / sums[context]

    def gain(gram: Gram) -> float:
        *context, token = gram
        assert token is not None
        without = (left(tuple(context)) + kept(gram)) * probability(token, tuple(context[1:])) / sums[tuple(context)]
        return occurrences[len(gram)][gram] * math.log(probability(token, tuple(context)) / without)

    for n in range(2, order + 1):
        dropped |= {gram for gram in occurrences[n] if kept(gram) and gain(gram) < min_gain}
    return probability


def discounts_of(number: Counter[int]) -> list[float]:
    if not all(number[n] for n in (1, 2, 3, 4)):
        return [0.0, 0.5, 1.0, 1.5]
    ratio = number[1] / (number[1] + 2 * number[2])
    found = [n - (n + 1) * ratio * number[n + 1] / number[n] for n in (1, 2, 3)]
    return [0.0, *found] if all(0 < d < n for n, d in enumerate(found, 1)) else [0.0, 0.5, 1.0, 1.5]


@pytest.mark.parametrize(("order", "min_count"), [(2, 1), (3, 1), (3, 2), (4, 2), (5, 3)])
@pytest.mark.parametrize("num_documents", [1, 9, 300])
def test_probabilities_are_those_of_the_definition(order: int, min_count: int, num_documents: int) -> None:
    check_probabilities(num_documents, order, min_count, 0.0)


@pytest.mark.parametrize(("order", "min_count", "min_gain"), [(3, 1, 4), (3, 2, 1), (4, 1, 2), (5, 2, 4)])
@pytest.mark.parametrize("num_documents", [40, 300])
def test_ngrams_that_gain_little_are_left_out(order: int, min_count: int, min_gain: float, num_documents: int) -> None:
    check_probabilities(num_documents, order, min_count, min_gain)
    ids = made_text(num_documents)
    kept, all_of_them = (
        count_ngrams(ids, SIZE, 0, order, min_count=min_count, min_gain=each) for each in (min_gain, 0.0)
    )
    assert sum(kept.num_ngrams) < sum(all_of_them.num_ngrams)


def check_probabilities(num_documents: int, order: int, min_count: int, min_gain: float) -> None:
    ids, other = made_text(num_documents), made_text(8, seed=2)
    expected = kneser_ney(ids.tolist(), order, min_count, min_gain)
    ngram = count_ngrams(ids, SIZE, 0, order, min_count=min_count, min_gain=min_gain)
    recent = history(other, 0, ngram.order)
    for place in range(0, len(recent), 5):
        context = tuple(int(number) - 1 if number else None for number in recent[place][::-1])
        found, _ = ngram.probabilities(np.arange(SIZE), np.repeat(recent[place : place + 1], SIZE, axis=0))
        assert abs(found.sum() - 1) < 1e-6
        assert found.min() > 0
        assert found == pytest.approx([expected(token, context) for token in range(SIZE)], rel=2e-3)  # of float16


def test_history_of_a_document_begins_at_its_boundary() -> None:
    ids = np.array([0, 5, 6, 0, 0, 4, 0])
    assert history(ids, 0, 3).tolist() == [[1, 0], [6, 1], [7, 6], [1, 0], [1, 0], [5, 1]]
    assert after(np.array([[7, 6]]), np.array([0])).tolist() == [[1, 7]]


def test_shares_make_the_tokens_likeliest() -> None:
    generator = np.random.default_rng(3)
    network, ngram, lengths = generator.random(4000), generator.random(4000) ** 2, generator.integers(0, 3, 4000)
    shares = fit_shares(network, ngram, lengths, 4)
    for length in range(3):
        here = lengths == length
        grid = np.linspace(0, 0.95, 96)
        gains = [np.log((1 - share) * network[here] + share * ngram[here]).sum() for share in grid]
        assert shares[length] == pytest.approx(grid[np.argmax(gains)], abs=0.02)
    assert 0 <= shares[3] <= 0.95


def test_masked_tokens_are_contexts_but_follow_none() -> None:
    ids = np.concatenate([made_text(40), [3, 4, 5, 3, 4, 6, 0] * 6])
    masked = np.flatnonzero(ids == 4)
    ngram = count_ngrams(ids, SIZE, 0, 3, masked=masked)
    place = len(ids) - 3
    assert ids[place - 1 : place + 1].tolist() == [3, 4]
    recent = history(ids, 0, ngram.order)
    probabilities, lengths = ngram.probabilities(np.array([4, 6]), recent[place - 1 : place + 1])
    learnt, _ = count_ngrams(ids, SIZE, 0, 3).probabilities(np.array([4]), recent[place - 1 : place])
    assert probabilities[0] < 0.05 < 0.5 < learnt[0]
    assert (probabilities[1] > 0.3, lengths[1]) == (True, 2)


def test_text_without_a_pair_that_occurs_often_enough_is_refused() -> None:
    with pytest.raises(UnusableRun, match=r"--ngram: got a text of 3 tokens without a pair"):
        count_ngrams(np.array([0, 1, 2, 0]), SIZE, 0, 3, min_count=3)


def test_too_many_tokens_for_an_order_are_refused_with_the_largest_one() -> None:
    with pytest.raises(UnusableRun, match=r"--ngram: got 5, expected at most 4 for 40,000 tokens"):
        count_ngrams(np.array([0, 7, 0]), 40_000, 0, 5)


@pytest.mark.parametrize("precision", Precision)
@pytest.mark.parametrize("name", MODELS)
def test_graphs_mix_network_and_ngrams_and_keep_rows_apart(name: str, precision: Precision) -> None:
    config, size = MODELS[name], 70
    weights = read_weights(make_model(config, size))
    ids = np.concatenate([made_text(300), made_text(50, seed=5)[1:]]) * 9 % size
    ngram = count_ngrams(ids, size, 0, 4).with_shares(np.array([0.1, 0.3, 0.2, 0.4], np.float32))
    alone, mixed = (graphs_of(weights, precision, each) for each in (None, ngram))
    check_mixture(mixed, alone, ngram, ids)
    check_isolation(mixed)
    with pytest.raises(MixtureMismatch, match="differ from the mixture"):
        check_mixture(mixed, alone, ngram.with_shares(ngram.shares + np.float32(0.01)), ids)


@pytest.mark.parametrize("size", [70, 300])
def test_network_alone_begins_a_text_where_nobody_has_seen_a_beginning(size: int) -> None:
    """The training text was one stream: 3 tokens must have come after the boundary."""
    weights = read_weights(make_model(MODELS["lstm"], size))
    ids = made_text(300) * 9 % size
    ngram = count_ngrams(ids, size, 0, 4).with_shares(np.array([0.1, 0.3, 0.2, 0.4], np.float32))
    ngram = replace(ngram, knows_beginning=False)
    alone, mixed = (graphs_of(weights, Precision.FP32, each) for each in (None, ngram))
    check_mixture(mixed, alone, ngram, ids)
    check_isolation(mixed)
    with pytest.raises(MixtureMismatch, match="differ from the mixture"):
        check_mixture(mixed, alone, replace(ngram, knows_beginning=True), ids)
    differences = []
    opened = [GraphModel(graphs) for graphs in (alone, mixed)]
    states = [model.initial_state(1) for model in opened]
    for token in [0, 9, 18, 27, 36, 0, 9]:
        logprobs = []
        for number, model in enumerate(opened):
            hidden, states[number] = model.step(np.array([token]), states[number])
            logprobs.append(model.logprobs(hidden))
        differences.append(float(np.abs(logprobs[0] - logprobs[1]).max()))
    assert [difference > 1e-5 for difference in differences] == [False, False, False, True, True, True, True]


def test_length_that_is_rarely_found_gets_the_mean_share() -> None:
    network, ngram, lengths = np.full(1000, 0.3), np.full(1000, 0.3), np.array([0] + [1] * 999)
    ngram[0], ngram[1:500] = 0.9, 0.5
    shares = fit_shares(network, ngram, lengths, 3)
    assert shares[0] < shares[1] + 0.1
    assert shares[2] == pytest.approx(shares[1], abs=0.01)
    assert fit_shares(network[:0], ngram[:0], lengths[:0], 3).tolist() == [0.0, 0.0, 0.0]


def graphs_of(weights: ModelWeights, precision: Precision, ngram: NgramWeights | None) -> Graphs:
    return Graphs(precision, cell_graph(weights.cell, precision, ngram), output_graph(weights.output, precision, ngram))


@pytest.fixture(params=["", "o"], ids=["whole text", "with a loss mask"], scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "tiny", MODELS["lstm"], loss_mask=request.param)


@pytest.fixture(params=Precision, scope="module")
def bundle(run: Path, request: pytest.FixtureRequest) -> Path:
    folder = run.parent / "bundles" / f"tiny-{request.param}"
    export_bundle(run, folder, request.param, ngram=NgramOptions(3))
    return folder


def test_bundle_serves_the_mixture_wherever_a_text_is_cut(run: Path, bundle: Path) -> None:
    found = read_run(run)
    assert found.train is not None
    network, size = found.checkpoint.model, found.checkpoint.model.vocabulary_size
    shares = open_bundle(bundle, max_slots=4).manifest.figures["ngram"]["shares"]
    ids, masked = found.train.ids.astype(np.int64), found.train.masked
    ngram = count_ngrams(ids, size, 0, 3, masked=masked, min_gain=MIN_GAIN)
    ngram = replace(ngram.with_shares(np.array(shares, np.float32)), knows_beginning=found.has_ends)
    text = [5, 2, 7, 3, 1, 9, 4, 4, 5]
    with served(bundle) as model, torch.inference_mode():
        (whole,) = score(model, [text], add_end=False)
        hidden, _ = network(torch.tensor([[0, *text[:-1]]]), network.initial_state(1))
        alone = network.logits(hidden[0]).softmax(-1).numpy()[np.arange(len(text)), text]
        recent = history(np.array([0, *text]), 0, 3)
        of_ngram, lengths = ngram.probabilities(np.array(text), recent)
        share = ngram.share(lengths, recent)
        expected = np.log((1 - share) * alone + share * of_ngram)
        assert whole.logprobs == pytest.approx(expected, abs=2e-4 if "fp32" in bundle.name else 0.2)
        for cut in range(1, len(text)):
            (rest,) = score(model, [text[cut:]], text[:cut], add_end=False)
            assert list(rest.logprobs) == list(whole.logprobs[cut:])


def test_generation_from_a_mixture_is_the_likeliest_by_its_scores(bundle: Path) -> None:
    words = range(1, open_bundle(bundle, max_slots=4).manifest.sizes["vocabulary"])
    with served(bundle) as model:
        written = generate(model, [5, 2], 8, Sampling(temperature=0.0))
        for count, token in enumerate(written.token_ids):
            context = [5, 2, *written.token_ids[:count]]
            choices = score(model, [[each] for each in words], context, add_end=False)
            best = max(words, key=lambda each: choices[each - 1].logprobs[0])
            assert token in (0, best)


def test_cached_prompt_keeps_its_hidden_vector_in_the_state(bundle: Path) -> None:
    opened = open_bundle(bundle, max_slots=4)
    assert opened.runner.hidden_states == ("h0", "last_tokens")
    assert opened.runner.cached_hidden_size == 0
    with served(bundle) as first:
        fresh = generate(first, [5, 2, 7, 3], 6, Sampling(temperature=0.0))
        again = generate(first, [5, 2, 7, 3], 6, Sampling(temperature=0.0))
        assert first.engine.stats().cached_tokens >= 4
    assert (again.token_ids, again.logprobs) == (fresh.token_ids, fresh.logprobs)


def test_figures_improve_and_are_the_mixtures(run: Path, bundle: Path, tmp_path: Path) -> None:
    manifest = open_bundle(bundle, max_slots=4).manifest
    plain = export_bundle(run, tmp_path / "plain", manifest.precision).description.held_out["validation"]
    figures = manifest.figures
    assert figures["ngram"]["order"] == 3
    assert figures["validation"]["nats_per_token"] < plain.served.nats_per_token - 0.5  # an untrained network
    assert figures["checkpoint"]["validation"]["nats_per_token"] == pytest.approx(plain.checkpoint.nats_per_token)
    assert figures["ngram"]["without"]["validation"] == plain.served.to_json()
    assert figures["precision_check"]["relative_loss"] == plain.loss
    card = (bundle / "README.md").read_text("utf-8")
    assert f"| validation, without its n-grams | {plain.served.nats_per_token:.4f} |" in card


def test_ngrams_that_improve_too_little_are_left_out(run: Path, tmp_path: Path) -> None:
    told: list[str] = []
    options = NgramOptions(3, min_improvement=0.99)
    found = export_bundle(run, tmp_path / "tried", Precision.FP32, ngram=options, tell=told.append)
    plain = export_bundle(run, tmp_path / "plain", Precision.FP32)
    assert found.description.ngram is None
    assert any("off the nats of held-out text: they are left out" in line for line in told)
    for name in ("cell.onnx", "output.onnx"):
        assert (found.folder / name).read_bytes() == (plain.folder / name).read_bytes()


def test_smallest_bundle_has_ngrams_where_they_improve_enough(run: Path, tmp_path: Path) -> None:
    found = export_smallest(run, tmp_path / "with").description
    assert found.ngram is not None
    assert found.precision is Precision.INT8
    copy = make_copy_without_tokens(run, tmp_path)
    assert export_smallest(copy, tmp_path / "without").description.ngram is None


def test_run_without_its_tokens_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UnusableRun, match=r"--ngram: got a run without its training text"):
        export_bundle(
            make_copy_without_tokens(run, tmp_path), tmp_path / "bundle", Precision.FP32, ngram=NgramOptions(3)
        )
    assert not (tmp_path / "bundle").exists()


def make_copy_without_tokens(run: Path, folder: Path) -> Path:
    copy = folder / "run"
    (copy / "best").mkdir(parents=True)
    for path in (run / "best").iterdir():
        (copy / "best" / path.name).write_bytes(path.read_bytes())
    (copy / "config.json").write_bytes((run / "config.json").read_bytes())
    (copy / "figures.json").write_bytes((run / "figures.json").read_bytes())
    return copy


def test_damaged_size_of_the_remembered_tokens_is_named(bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "damaged"
    copy.mkdir()
    for path in bundle.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    manifest = (copy / "manifest.json").read_text()
    assert '"last_tokens"' in manifest
    (copy / "manifest.json").write_text(manifest.replace('"last_tokens"', '"other_tokens"'))
    with pytest.raises(BundleError, match=r"manifest.json: state: got .*other_tokens.*last_tokens"):
        open_bundle(copy, max_slots=4)
