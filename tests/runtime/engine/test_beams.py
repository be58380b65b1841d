"""Test beam search against an exhaustive search and a plain beam search.

The models are tables from a prefix to the logprobs of the next token. Ties are frequent on purpose.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meari.bundle_format.names import TokenizerKind
from meari.runtime.engine.beams import BeamSearch, Hypothesis
from meari.runtime.engine.calls import Finish
from meari.runtime.engine.sampling import likeliest, on_grid
from meari.runtime.text.detokenizer import StopPatterns, TextEnd, matcher_factory
from meari.runtime.text.tokenizer import Vocabulary

END = 0
Floats = npt.NDArray[np.float32]
Model = Callable[[tuple[int, ...]], Floats]


def normalised(weights: npt.NDArray[np.float64]) -> Floats:
    """Return the logprobs of weights, some of which may be 0."""
    with np.errstate(divide="ignore"):
        logprobs: Floats = np.log(weights / weights.sum()).astype(np.float32)
    return logprobs


@dataclass(frozen=True)
class Table:
    """Random model: each prefix has its own distribution, made of few different weights."""

    size: int
    seed: int
    weights: tuple[float, ...]

    def __call__(self, prefix: tuple[int, ...]) -> Floats:
        random = np.random.default_rng([self.seed, len(prefix), *prefix])
        weights = random.choice(self.weights, self.size)
        return normalised(weights if weights.any() else np.ones(self.size))


@dataclass
class Pair:
    """Stop matcher that matches two given consecutive tokens."""

    pair: tuple[int, int]
    last: int = -1

    def __call__(self, token: int, /) -> bool:
        self.last, before = token, self.last
        return (before, token) == self.pair

    def fork(self) -> Pair:
        return Pair(self.pair, self.last)


@dataclass
class SearchSettings:
    """Parameters of a search."""

    model: Model
    num_beams: int
    num_results: int
    max_tokens: int
    pair: tuple[int, int] | None = None

    def finish_of(self, tokens: tuple[int, ...]) -> Finish | None:
        if tokens[-1] == END:
            return Finish.END
        if self.pair is not None and tokens[-2:] == self.pair:
            return Finish.STOP
        return Finish.LENGTH if len(tokens) == self.max_tokens else None


@dataclass(order=True)
class Candidate:
    """Candidate ordered by score, then by the rank of its parent, then by its token."""

    loss: float
    parent: int
    token: int
    tokens: tuple[int, ...] = field(compare=False)


Found = list[tuple[tuple[int, ...], float, Finish]]


def search(wanted: SearchSettings, num_steps: int | None = None) -> tuple[BeamSearch, int]:
    """Run a search to its end or for `num_steps`; return the search and the number of computed rows."""
    pair = wanted.pair
    stop = None if pair is None else (lambda: Pair(pair))
    beams = BeamSearch(wanted.num_beams, wanted.num_results, wanted.max_tokens, END, None, stop)
    prefixes: list[tuple[int, ...]] = [()]
    num_rows = 0
    for _ in range(num_steps if num_steps is not None else wanted.max_tokens):
        num_rows += len(prefixes)
        going_on = beams.advance(np.stack([wanted.model(prefix) for prefix in prefixes]))
        for row, hypothesis in beams.just_finished:
            assert tuple(hypothesis.token_ids[:-1]) == prefixes[row]
        prefixes = [(*prefixes[row], token) for row, token in going_on]
        assert len(prefixes) <= wanted.num_beams
        if not prefixes:
            break
    return beams, num_rows


def found(hypotheses: list[Hypothesis]) -> Found:
    """Return tokens, score and finish of each result; check that the score is the sum of the logprobs."""
    listed = []
    for hypothesis in hypotheses:
        assert hypothesis.finish is not None
        assert hypothesis.score == sum(hypothesis.logprobs)
        listed.append((tuple(hypothesis.token_ids), hypothesis.score, hypothesis.finish))
    return listed


def score(model: Model, tokens: tuple[int, ...]) -> float:
    return float(sum(on_grid(model(tokens[:n]))[token] for n, token in enumerate(tokens)))


def exhaustive(wanted: SearchSettings) -> Found:
    """Score all finished sequences and return the best ones."""
    finished = []
    size = len(wanted.model(()))
    for length in range(1, wanted.max_tokens + 1):
        for tokens in itertools.product(range(size), repeat=length):
            finish = wanted.finish_of(tokens)
            if finish is not None and all(wanted.finish_of(tokens[:n]) is None for n in range(1, length)):
                losses = [-score(wanted.model, tokens[:n]) for n in range(length, 0, -1)]
                finished.append((losses[0], length, losses[1:], tokens, finish))
    best = sorted(finished)[: wanted.num_results]
    return [(tokens, -loss, finish) for loss, _, _, tokens, finish in best if loss < np.inf]


def plain_beam_search(wanted: SearchSettings) -> Found:
    """Run a beam search that keeps all finished results until the end."""
    live: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    finished: Found = []
    for _ in range(wanted.max_tokens):
        candidates = sorted(
            Candidate(-(so_far + float(value)), rank, token, (*tokens, token))
            for rank, (tokens, so_far) in enumerate(live)
            for token, value in enumerate(on_grid(wanted.model(tokens)))
            if value > -np.inf
        )
        live = []
        for one in candidates:
            finish = wanted.finish_of(one.tokens)
            if len(live) == wanted.num_beams:
                break
            if finish is None:
                live.append((one.tokens, -one.loss))
            else:
                finished.append((one.tokens, -one.loss, finish))
    return sorted(finished, key=lambda entry: -entry[1])[: wanted.num_results]


tables = st.builds(
    lambda size, seed, weights: cache(Table(size, seed, tuple(weights)).__call__),
    st.integers(2, 4),
    st.integers(0, 2**32),
    st.lists(st.sampled_from([0.0, 1.0, 1.0, 2.0, 3.0, 1e-4, 1e-12, 1e4]), min_size=1, max_size=4),
)
pairs = st.none() | st.tuples(st.integers(1, 3), st.integers(1, 3))


@settings(max_examples=150, deadline=None)
@given(tables, st.integers(1, 3), st.integers(1, 12), pairs)
def test_search_with_enough_beams_is_exhaustive(
    model: Model, max_tokens: int, num_results: int, pair: tuple[int, int] | None
) -> None:
    wanted = SearchSettings(model, 4**3, num_results, max_tokens, pair)
    assert found(search(wanted)[0].results(Finish.TIMEOUT)) == exhaustive(wanted)


@settings(max_examples=300, deadline=None)
@given(tables, st.integers(1, 6), st.integers(1, 8), st.data(), pairs)
def test_search_with_few_beams_equals_a_plain_beam_search(
    model: Model, num_beams: int, max_tokens: int, data: st.DataObject, pair: tuple[int, int] | None
) -> None:
    wanted = SearchSettings(model, num_beams, data.draw(st.integers(1, num_beams)), max_tokens, pair)
    assert found(search(wanted)[0].results(Finish.TIMEOUT)) == plain_beam_search(wanted)


def certain(*rows: dict[int, float]) -> Model:
    """Make a model with one distribution for each prefix length; unnamed tokens share the remaining probability."""

    def model(prefix: tuple[int, ...]) -> Floats:
        named = rows[min(len(prefix), len(rows) - 1)]
        weights = np.full(6, (1 - sum(named.values())) / (6 - len(named)))
        weights[list(named)] = list(named.values())
        return normalised(weights)

    return model


def test_search_finds_a_better_sequence_than_greedy_sampling() -> None:
    def model(prefix: tuple[int, ...]) -> Floats:
        if not prefix:
            return normalised(np.array([0.0, 0.6, 0.4]))
        return normalised(np.array([0.5, 0.25, 0.25]) if prefix == (1,) else np.array([0.9, 0.05, 0.05]))

    greedy, _ = search(SearchSettings(model, 1, 1, 2))
    wide, _ = search(SearchSettings(model, 2, 2, 2))
    assert found(greedy.results(Finish.TIMEOUT))[0][0] == (1, END)
    best, second = found(wide.results(Finish.TIMEOUT))
    assert (best[0], second[0]) == ((2, END), (1, END))
    assert np.exp([best[1], second[1]]) == pytest.approx([0.36, 0.3])


def test_search_ends_when_no_hypothesis_can_beat_the_results() -> None:
    wanted = SearchSettings(certain({END: 0.9}), 4, 1, 1000)
    beams, num_rows = search(wanted)
    assert num_rows == 1
    assert found(beams.results(Finish.TIMEOUT)) == [((END,), score(wanted.model, (END,)), Finish.END)]


def test_ties_are_broken_by_parent_then_by_token() -> None:
    beams = BeamSearch(3, 3, 5, END, None, None)
    flat = normalised(np.array([0.0, 1.0, 1.0, 1.0, 1.0]))
    assert beams.advance(flat[None]) == [(0, 1), (0, 2), (0, 3)]
    assert beams.advance(np.stack([flat] * 3)) == [(0, 1), (0, 2), (0, 3)]
    assert [h.token_ids for h in beams.results(Finish.TIMEOUT)] == [[1, 1], [1, 2], [1, 3]]


def test_live_hypotheses_fill_up_missing_results() -> None:
    wanted = SearchSettings(certain({END: 0.3, 1: 0.5}, {END: 0.01, 2: 0.7}), 2, 2, 9)
    beams, _ = search(wanted, num_steps=2)
    hypotheses = beams.results(Finish.TIMEOUT)
    assert [(h.token_ids, h.finish) for h in hypotheses] == [([1, 2], Finish.TIMEOUT), ([END], Finish.END)]
    assert hypotheses[0].row == 0


def test_new_search_has_one_hypothesis_without_tokens() -> None:
    (hypothesis,) = BeamSearch(2, 2, 5, END, None, None).results(Finish.CANCELLED)
    assert (hypothesis.token_ids, hypothesis.finish, hypothesis.score) == ([], Finish.CANCELLED, 0.0)


def test_alternatives_belong_to_the_position_of_each_token() -> None:
    rows = [{1: 0.5, 2: 0.3}, {END: 0.7, 3: 0.2}]
    beams = BeamSearch(2, 1, 5, END, 2, None)
    model = certain(*rows)
    going_on = beams.advance(model(())[None])
    beams.advance(np.stack([model((token,)) for _, token in going_on]))
    best = beams.results(Finish.TIMEOUT)[0]
    assert best.token_ids == [1, END]
    assert [ids for ids, _ in best.alternatives] == [[1, 2], [END, 3]]
    assert np.exp([logprobs for _, logprobs in best.alternatives]) == pytest.approx(np.array([[0.5, 0.3], [0.7, 0.2]]))


def test_stop_matcher_is_asked_about_few_candidates() -> None:
    fed = []

    class Always:
        def __call__(self, token: int, /) -> bool:
            fed.append(token)
            return True

        def fork(self) -> Always:
            return self

    beams = BeamSearch(4, 3, 5, END, None, Always)
    flat = normalised(np.ones(10_000))
    assert beams.advance(flat[None]) == []
    assert fed == [1, 2]  # the end token is the third candidate
    assert [h.finish for h in beams.results(Finish.TIMEOUT)] == [Finish.END, Finish.STOP, Finish.STOP]


def test_unlikely_end_token_finishes_no_hypothesis() -> None:
    wanted = SearchSettings(certain({END: 0.01, 1: 0.5, 2: 0.4}), 2, 2, 3)
    beams, _ = search(wanted)
    assert [h.token_ids for h in beams.results(Finish.TIMEOUT)] == [[1, 1, 1], [1, 1, 2]]


def test_fork_of_a_stop_matcher_is_independent() -> None:
    texts = ("", "", "하나", "둘")
    vocabulary = Vocabulary(TokenizerKind.WORD, texts, tuple(text.encode() for text in texts), None, 0)
    make = matcher_factory(StopPatterns.of(("하나 둘",), str), vocabulary, TextEnd())
    assert make is not None
    matcher = make()
    assert not matcher(2)
    fork = matcher.fork()
    assert not fork(2)
    assert matcher(3)
    assert fork(3)
    assert not make()(3)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 5), st.integers(1, 60), st.integers(1, 70), st.integers(0, 2**32))
def test_likeliest_matches_a_full_sort(num_rows: int, size: int, count: int, seed: int) -> None:
    logprobs = np.random.default_rng(seed).integers(-9, 0, (num_rows, size)).astype(np.float32)
    expected = np.argsort(-logprobs, axis=1, kind="stable")[:, :count]
    assert (likeliest(logprobs, count) == expected).all()
