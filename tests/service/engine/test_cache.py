"""The prefix cache: exact at every token, never larger than it may be, the least recently used out first."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from service.engine.cache import EDGE_BYTES, EDGE_TOKENS, TOKEN_BYTES, Edge, PrefixCache

SHAPES = {"h": (2, 3), "c": (1,)}
HIDDEN = 2
ROW_BYTES = 4 * (6 + 1 + HIDDEN) + TOKEN_BYTES
Row = dict[str, npt.NDArray[np.float32]]


def row_after(prefix: Sequence[int]) -> Row:
    """A state that no other prefix has."""
    digest = np.frombuffer(hashlib.sha512(repr(tuple(prefix)).encode()).digest(), np.int32).astype(np.float32)
    return {"h": digest[:6].reshape(2, 3), "c": digest[6:7], "hidden": digest[7 : 7 + HIDDEN]}


def insert(cache: PrefixCache, tokens: Sequence[int], first: int = 0) -> None:
    rows = [row_after(tokens[: t + 1]) for t in range(first, len(tokens))]
    stacked = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    hidden = stacked.pop("hidden")
    places = cache.keep(stacked, hidden)
    for given in (*stacked.values(), hidden):
        given[:] = np.nan  # what the cache keeps is its own
    cache.insert(tokens, first, places)


def found(cache: PrefixCache, tokens: Sequence[int]) -> int:
    """How long the match is; its rows must be those of the prefix."""
    match = cache.longest(tokens)
    if match is None:
        return 0
    expected = row_after(tokens[: match.length])
    assert match.states.keys() == SHAPES.keys()
    for name, values in {**match.states, "hidden": match.hidden}.items():
        assert values.tobytes() == expected[name].tobytes()
    return match.length


def edges(cache: PrefixCache) -> Iterator[tuple[tuple[int, ...], Edge]]:
    """Every edge, and the tokens above it."""
    below: list[tuple[tuple[int, ...], Edge]] = [((), cache._root)]
    while below:
        above, edge = below.pop()
        for first_token, child in edge.children.items():
            assert child.above is edge
            assert child.tokens[0] == first_token
            yield (*above, *edge.tokens.tolist()), child
            below.append(((*above, *edge.tokens.tolist()), child))


def check(cache: PrefixCache, max_bytes: int) -> set[tuple[int, ...]]:
    """Hold the cache to its own rules; returns the prefixes that it holds."""
    everything = list(edges(cache))
    ages = {edge: age for age, edge in enumerate(cache._by_age)}
    assert set(ages) == {edge for _, edge in everything}
    prefixes = set()
    places: list[int] = []
    for above, edge in everything:
        assert 1 <= len(edge.tokens) == len(edge.places) <= EDGE_TOKENS
        assert edge.above is not None
        assert not above or ages[edge] < ages[edge.above]
        prefixes |= {(*above, *edge.tokens[: n + 1].tolist()) for n in range(len(edge))}
        places += edge.places.tolist()
    assert len(set(places)) == len(places) == len(prefixes) == cache.num_tokens
    assert cache.num_bytes == len(prefixes) * ROW_BYTES + len(everything) * EDGE_BYTES <= max_bytes
    if cache._rows is not None:
        assert sorted(places + cache._rows._free) == list(range(cache._rows._num_touched))
        assert cache._rows._num_touched * ROW_BYTES <= max_bytes
    return prefixes


# Texts share trunks longer than an edge, and part from them at any token.
trunks = st.sampled_from([[0] * 150, [0, *[1, 2] * 75], [0, *range(1, 150)]])
texts = st.builds(
    lambda trunk, length, tail: [*trunk[:length], *tail],
    trunks,
    st.integers(1, 150),
    st.lists(st.integers(0, 2), max_size=4),
)


class CacheMachine(RuleBasedStateMachine):
    """Random texts, found and inserted in pieces; the model is the set of all prefixes ever inserted."""

    @initialize(max_rows=st.one_of(st.just(10**6), st.integers(0, 400)))
    def begin(self, max_rows: int) -> None:
        self.max_rows = max_rows
        self.cache = PrefixCache(max_rows * ROW_BYTES)
        self.inserted: set[tuple[int, ...]] = set()

    def held(self) -> set[tuple[int, ...]]:
        return check(self.cache, self.max_rows * ROW_BYTES)

    @rule(text=texts)
    def find(self, text: list[int]) -> None:
        held = self.held()
        assert found(self.cache, text) == max(
            (n for n in range(1, len(text) + 1) if tuple(text[:n]) in held), default=0
        )

    @rule(text=texts, back=st.integers(0, 5), size=st.integers(1, 70))
    def insert_what_is_missing(self, text: list[int], back: int, size: int) -> None:
        first = max(0, found(self.cache, text) - back)
        while first < len(text):
            self.insert_piece(text[: first + size], first)
            first += size

    @rule(text=texts, first=st.integers(0, 150))
    def insert_what_may_hang_in_the_air(self, text: list[int], first: int) -> None:
        if first < len(text):
            self.insert_piece(text, first)

    def insert_piece(self, text: list[int], first: int) -> None:
        if first == 0 or tuple(text[:first]) in self.held():
            self.inserted |= {tuple(text[:n]) for n in range(first + 1, len(text) + 1)}
        insert(self.cache, text, first)

    @invariant()
    def holds_what_was_inserted_and_forgets_nothing_while_there_is_room(self) -> None:
        if hasattr(self, "cache"):
            held = self.held()
            assert held == self.inserted if self.max_rows == 10**6 else held <= self.inserted


TestCacheMachine = CacheMachine.TestCase
TestCacheMachine.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


def bytes_of(num_tokens: int, num_edges: int) -> int:
    return num_tokens * ROW_BYTES + num_edges * EDGE_BYTES


def test_every_prefix_of_a_text_is_found() -> None:
    cache = PrefixCache(10**6)
    insert(cache, [0, 5, 6, 7])
    assert [found(cache, text) for text in ([0], [0, 5], [0, 5, 6, 9], [0, 5, 6, 7, 8], [0, 9])] == [1, 2, 3, 4, 1]
    assert cache.longest([5]) is None
    assert cache.longest([]) is None


def test_least_recently_used_text_is_evicted_first() -> None:
    cache = PrefixCache(bytes_of(3 * 3, 3))
    for text in ([1, 1, 1], [2, 2, 2], [3, 3, 3]):
        insert(cache, text)
    found(cache, [1])
    insert(cache, [4, 4, 4])
    assert [found(cache, [n] * 3) for n in (1, 2, 3, 4)] == [3, 0, 3, 3]


def test_a_text_gives_way_from_its_end() -> None:
    cache = PrefixCache(bytes_of(10, 2))
    insert(cache, [0] * 8)
    insert(cache, [1] * 2)
    insert(cache, [1] * 5, first=2)
    assert found(cache, [0] * 8) == 5
    assert found(cache, [1] * 5) == 5


def test_beginning_that_others_share_outlives_its_branches() -> None:
    cache = PrefixCache(bytes_of(9, 4))
    insert(cache, [0, 0, 0, 1, 1])
    insert(cache, [0, 0, 0, 2, 2])
    insert(cache, [7, 7])
    insert(cache, [8, 8])
    assert found(cache, [0, 0, 0, 1, 1]) == 3
    assert found(cache, [0, 0, 0, 2, 2]) == 5
    assert found(cache, [7, 7]) == found(cache, [8, 8]) == 2


def test_text_larger_than_the_cache_keeps_its_beginning() -> None:
    cache = PrefixCache(bytes_of(150, 2))
    insert(cache, [9, 9])
    insert(cache, [0] * 200)
    assert found(cache, [0] * 200) == 150
    assert found(cache, [9]) == 0


@pytest.mark.parametrize("max_bytes", [0, bytes_of(1, 1) - 1])
def test_cache_without_room_for_one_state_keeps_none(max_bytes: int) -> None:
    cache = PrefixCache(max_bytes)
    insert(cache, [0, 1])
    assert (found(cache, [0, 1]), cache.num_bytes, cache.num_tokens) == (0, 0, 0)


def test_piece_whose_beginning_is_gone_is_not_kept() -> None:
    cache = PrefixCache(10**6)
    insert(cache, [0, 1, 2, 3], first=2)
    assert cache.num_tokens == 0
    insert(cache, [0, 1])
    insert(cache, [0, 1, 2, 3], first=2)
    assert found(cache, [0, 1, 2, 3]) == 4


def test_text_that_comes_piece_by_piece_lies_in_few_edges() -> None:
    cache = PrefixCache(10**6)
    text = [0, *range(200)]
    for first in range(len(text)):
        insert(cache, text[: first + 1], first)
    assert len(list(edges(cache))) == -(-len(text) // EDGE_TOKENS)
    assert found(cache, text) == len(text)


def test_matched_rows_are_the_callers_own() -> None:
    cache = PrefixCache(10**6)
    insert(cache, [0, 1])
    match = cache.longest([0, 1])
    assert match is not None
    for values in (*match.states.values(), match.hidden):
        values[:] = 0
    assert found(cache, [0, 1]) == 2


def test_fewer_tokens_than_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="got 2, expected at least first \\+ rows = 4"):
        PrefixCache(100).insert([0, 1], 1, np.arange(3))


def test_rows_of_no_text_take_room_until_they_are_dropped() -> None:
    cache = PrefixCache(bytes_of(4, 1))
    insert(cache, [0, 1])
    rows = [row_after([7] * n) for n in range(1, 4)]
    states, hidden = {name: np.stack([row[name] for row in rows]) for name in SHAPES}, np.zeros((3, HIDDEN), np.float32)
    places = cache.keep(states, hidden)
    assert (len(places), found(cache, [0, 1]), cache.num_bytes) == (3, 1, bytes_of(4, 1))
    cache.drop(places)
    assert check(cache, bytes_of(4, 1)) == {(0,)}
    insert(cache, [0, 1, 2, 3])
    assert found(cache, [0, 1, 2, 3]) == 4
