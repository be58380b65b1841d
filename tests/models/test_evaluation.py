"""Test held-out figures against hand-worked values and a step-by-step evaluation."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from meari.bundle_format.names import Document, Family
from meari.models import evaluation
from meari.models.config import RecurrentConfig
from meari.models.errors import NotFinite
from meari.models.evaluation import document_rows, evaluate, quick_nats_per_token, segment_rows, total_nats
from meari.models.families import RecurrentLanguageModel
from meari.models.figures import figures
from meari.models.language_model import LanguageModel
from meari.models.text.token_file import TokenCounts, TokenFile

VOCABULARY = 11


def token_file(ids: list[int] | np.ndarray, unit: Document, characters: int = 10, size: int = 20) -> TokenFile:
    row = np.asarray(ids, dtype=np.uint16)
    counts = TokenCounts(unit, "uint16", len(row), int((row == 0).sum()) - 1, characters, size)
    return TokenFile(Path("x.tokens"), row, counts)


def random_ids(num_tokens: int, mean_length: int = 9) -> np.ndarray:
    generator = np.random.default_rng(0)
    ids = generator.integers(1, VOCABULARY, num_tokens)
    ids[generator.random(num_tokens) < 1 / mean_length] = 0
    ids[[0, -1]] = 0
    ids[1:-1][(ids[1:-1] == 0) & (ids[:-2] == 0)] = 1  # no empty documents
    return ids.astype(np.uint16)


def make_model(family: str = "lstm") -> RecurrentLanguageModel:
    torch.manual_seed(0)
    return RecurrentLanguageModel(RecurrentConfig(Family(family), 5, 9, 2), VOCABULARY).eval()


@torch.no_grad()
def nats_by_steps(model: LanguageModel, ids: np.ndarray, *, counts_ends: bool = True) -> float:
    """Return -ln P of a row of ids after the first one, computed step by step as a slow reference."""
    state, nats = model.initial_state(1), 0.0
    for token, target in zip(ids[:-1].tolist(), ids[1:].tolist(), strict=True):
        hidden, state = model.step(torch.tensor([token]), state)
        if target or counts_ends:
            nats -= float(torch.log_softmax(model.logits(hidden).double(), -1)[0, target])
    return nats


def test_perplexity_of_a_uniform_model_is_its_vocabulary_size() -> None:
    model = make_model()
    for parameter in model.parameters():
        parameter.data.zero_()
    measured = evaluate(model, token_file([0, 3, 4, 5, 0], Document.FILE, characters=3, size=6))
    assert measured.num_tokens == 4
    assert measured.nats_per_token == pytest.approx(math.log(VOCABULARY), rel=1e-6)
    assert measured.perplexity == pytest.approx(VOCABULARY, rel=1e-6)
    assert measured.nats_per_char == pytest.approx(4 * math.log(VOCABULARY) / 3, rel=1e-6)
    assert measured.bits_per_char == pytest.approx(4 * math.log2(VOCABULARY) / 3, rel=1e-6)
    assert measured.bits_per_byte == pytest.approx(4 * math.log2(VOCABULARY) / 6, rel=1e-6)
    assert measured.bits_per_char_with_ends == pytest.approx(4 * math.log2(VOCABULARY) / 4, rel=1e-6)
    assert measured.num_ends == 1


@pytest.mark.parametrize("unit", list(Document))
def test_untrained_ends_are_left_out_of_all_figures(unit: Document) -> None:
    model, ids = make_model(), random_ids(400)
    tokens = token_file(ids, unit)
    rows = [ids] if unit is Document.FILE else [row.ids for row in document_rows(ids)]
    with_ends, without = evaluate(model, tokens), evaluate(model, tokens, counts_ends=False)
    assert without.num_tokens == with_ends.num_tokens - tokens.num_documents == int((ids != 0).sum())
    expected = sum(nats_by_steps(model, row, counts_ends=False) for row in rows)
    assert without.nats_per_token * without.num_tokens == pytest.approx(expected, rel=1e-6)
    assert without.num_ends == 0
    assert without.bits_per_char_with_ends == without.bits_per_char


@pytest.mark.parametrize("family", ["rnn", "gru", "lstm"])
def test_file_is_one_stream_from_the_boundary_token(family: str) -> None:
    model, ids = make_model(family), random_ids(300)
    expected = nats_by_steps(model, ids)
    assert evaluate(model, token_file(ids, Document.FILE)).nats_per_token * 299 == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("unit", [Document.LINE, Document.PARAGRAPH])
def test_every_line_starts_from_the_initial_state(unit: Document) -> None:
    model, ids = make_model(), random_ids(400)
    borders = np.flatnonzero(ids == 0)
    expected = sum(nats_by_steps(model, ids[a : b + 1]) for a, b in itertools.pairwise(borders))
    measured = evaluate(model, token_file(ids, unit))
    assert measured.num_tokens == 399
    assert measured.nats_per_token * 399 == pytest.approx(expected, rel=1e-6)


def test_documents_do_not_depend_on_the_window_size(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = random_ids(500)
    expected = sorted(tuple(row.ids.tolist()) for row in document_rows(ids))
    monkeypatch.setattr(evaluation, "WINDOW_TOKENS", 7)
    assert sorted(tuple(row.ids.tolist()) for row in document_rows(ids)) == expected
    assert sum(len(row) - 1 for row in expected) == 499


def test_segments_count_every_target_once() -> None:
    ids = random_ids(1000)
    rows = segment_rows(ids, 7, 50)
    counted = np.concatenate([row.ids[1 + row.num_warmup :] for row in rows])
    assert counted.tolist() == ids[1:].tolist()


def test_quick_figure_of_a_stream_is_close_to_the_exact_one() -> None:
    model, ids = make_model(), random_ids(6000)
    tokens = token_file(ids, Document.FILE)
    assert quick_nats_per_token(model, tokens) == pytest.approx(evaluate(model, tokens).nats_per_token, abs=1e-4)


def test_quick_figure_uses_whole_documents_from_the_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = make_model(), random_ids(2000)
    tokens = token_file(ids, Document.LINE)
    assert quick_nats_per_token(model, tokens) == pytest.approx(evaluate(model, tokens).nats_per_token, rel=1e-6)
    monkeypatch.setattr(evaluation, "QUICK_TOKENS", 100)
    end = int(np.flatnonzero(ids[:101] == 0)[-1])
    nats, num_tokens = total_nats(model, document_rows(ids[: end + 1]))
    assert quick_nats_per_token(model, tokens) == pytest.approx(nats / num_tokens, rel=1e-6)


def test_long_document_is_evaluated_in_pieces_of_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = make_model(), random_ids(300)
    exact = evaluate(model, token_file(ids, Document.FILE))
    monkeypatch.setattr(evaluation, "BATCH_TOKENS", 16)
    lengths: list[int] = []
    forward = model.forward

    def watched(tokens: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        lengths.append(tokens.numel())
        return forward(tokens, state)

    monkeypatch.setattr(model, "forward", watched)
    again = evaluate(model, token_file(ids, Document.FILE))
    assert again.nats_per_token == pytest.approx(exact.nats_per_token, rel=1e-6)
    assert max(lengths) == 16


def test_evaluation_restores_the_training_mode() -> None:
    model = make_model().train()
    evaluate(model, token_file([0, 1, 0], Document.FILE))
    assert model.training


def test_figures_that_are_not_finite_are_refused() -> None:
    with pytest.raises(NotFinite):
        figures(math.nan, 1, 1, 1, 0)
    model = make_model()
    model.embedding.weight.data.fill_(math.nan)
    with pytest.raises(NotFinite, match="learning_rate"):
        quick_nats_per_token(model, token_file([0, 1, 0], Document.FILE))
