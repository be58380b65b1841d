"""Test the prefix cache: exact states at every token, bounded memory, least recently used eviction."""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from meari.runtime.engine.cache import EDGE_BYTES, EDGE_TOKENS, ID_BYTES, PAGE_BYTES, CacheRoom, Edge, PrefixCache

SHAPES = {"h": (2, 67), "c": (1,)}  # a tensor that partly fills two pages
HIDDEN = 2
ROW_PAGES = 2 + 1 + 1
ROW_BYTES = ID_BYTES + ROW_PAGES * (PAGE_BYTES + ID_BYTES)
Row = dict[str, npt.NDArray[np.float32]]


def row_after(prefix: Sequence[int]) -> Row:
    """Return a state that is unique to the prefix."""
    digest = hashlib.shake_128(repr(tuple(prefix)).encode()).digest(4 * 137)
    values = np.frombuffer(digest, np.int32).astype(np.float32)
    return {"h": values[:134].reshape(2, 67), "c": values[134:135], "hidden": values[135:]}


def cache_of(max_bytes: int) -> PrefixCache:
    return PrefixCache(CacheRoom(max_bytes), SHAPES, HIDDEN)


def insert(cache: PrefixCache, tokens: Sequence[int], first: int = 0) -> None:
    rows = [row_after(tokens[: t + 1]) for t in range(first, len(tokens))]
    stacked = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    hidden = stacked.pop("hidden")
    places = cache.keep(stacked, hidden)
    for given in (*stacked.values(), hidden):
        given[:] = np.nan  # the cache must hold copies
    cache.insert(tokens, first, places)


def found(cache: PrefixCache, tokens: Sequence[int]) -> int:
    """Return the length of the match; check that its rows are those of the prefix."""
    match = cache.longest(tokens)
    if match is None:
        return 0
    expected = row_after(tokens[: match.length])
    assert match.states.keys() == SHAPES.keys()
    for name, values in {**match.states, "hidden": match.hidden}.items():
        assert values.tobytes() == expected[name].tobytes()
    return match.length


def edges(cache: PrefixCache) -> Iterator[tuple[tuple[int, ...], Edge]]:
    """Yield every edge with the tokens above it."""
    below: list[tuple[tuple[int, ...], Edge]] = [((), cache._root)]
    while below:
        above, edge = below.pop()
        for first_token, child in edge.children.items():
            assert child.above is edge
            assert child.tokens[0] == first_token
            yield (*above, *edge.tokens.tolist()), child
            below.append(((*above, *edge.tokens.tolist()), child))


def check(cache: PrefixCache) -> set[tuple[int, ...]]:
    """Check the invariants of a cache; return its prefixes."""
    everything = list(edges(cache))
    by_age = cache._room.by_age
    ages = {edge: age for age, edge in enumerate(by_age)}
    assert {edge for edge, owner in by_age.items() if owner is cache} == {edge for _, edge in everything}
    prefixes = set()
    for above, edge in everything:
        assert 1 <= len(edge.tokens) == len(edge.places) <= EDGE_TOKENS
        assert edge.above is not None
        assert not above or ages[edge] < ages[edge.above]
        prefixes |= {(*above, *edge.tokens[: n + 1].tolist()) for n in range(len(edge))}
    assert len(prefixes) == cache.num_tokens
    assert cache.num_bytes == len(prefixes) * ROW_BYTES + len(everything) * EDGE_BYTES
    return prefixes


def check_room(room: CacheRoom, caches: Sequence[PrefixCache]) -> None:
    """Check the invariants of the memory: each page has at most one owner, and its bytes are those of its caches."""
    assert room.num_bytes == sum(cache.num_bytes for cache in caches) <= room.max_bytes
    held = [edge.places.ravel() for cache in caches for _, edge in edges(cache)]
    pages = np.sort(np.concatenate([*held, room._free[: room._num_free]]))
    assert np.array_equal(pages, np.arange(room._num_touched))
    assert room._num_touched <= len(room._pages)


# Texts share prefixes longer than an edge and diverge at any token.
trunks = st.sampled_from([[0] * 150, [0, *[1, 2] * 75], [0, *range(1, 150)]])
texts = st.builds(
    lambda trunk, length, tail: [*trunk[:length], *tail],
    trunks,
    st.integers(1, 150),
    st.lists(st.integers(0, 2), max_size=4),
)


MANY_ROWS = 10**5
which_cache = st.sampled_from([0, 1])


class CacheMachine(RuleBasedStateMachine):
    """Find and insert random texts in pieces, in the caches of two models that share memory and no tokens.

    The reference is the set of all prefixes ever inserted.
    """

    @initialize(max_rows=st.one_of(st.just(MANY_ROWS), st.integers(0, 400)))
    def begin(self, max_rows: int) -> None:
        self.is_roomy = max_rows == MANY_ROWS
        self.room = CacheRoom(max_rows * ROW_BYTES)
        self.caches = [PrefixCache(self.room, SHAPES, HIDDEN) for _ in range(2)]
        self.inserted: list[set[tuple[int, ...]]] = [set(), set()]

    @rule(text=texts, which=which_cache)
    def find(self, text: list[int], which: int) -> None:
        text = own(text, which)
        held = check(self.caches[which])
        expected = max((n for n in range(1, len(text) + 1) if tuple(text[:n]) in held), default=0)
        assert found(self.caches[which], text) == expected

    @rule(text=texts, which=which_cache, back=st.integers(0, 5), size=st.integers(1, 70))
    def insert_what_is_missing(self, text: list[int], which: int, back: int, size: int) -> None:
        text = own(text, which)
        first = max(0, found(self.caches[which], text) - back)
        while first < len(text):
            self.insert_piece(which, text[: first + size], first)
            first += size

    @rule(text=texts, which=which_cache, first=st.integers(0, 150))
    def insert_what_may_hang_in_the_air(self, text: list[int], which: int, first: int) -> None:
        if first < len(text):
            self.insert_piece(which, own(text, which), first)

    def insert_piece(self, which: int, text: list[int], first: int) -> None:
        if first == 0 or tuple(text[:first]) in check(self.caches[which]):
            self.inserted[which] |= {tuple(text[:n]) for n in range(first + 1, len(text) + 1)}
        insert(self.caches[which], text, first)

    @invariant()
    def holds_what_was_inserted_and_forgets_nothing_while_there_is_room(self) -> None:
        if not hasattr(self, "caches"):
            return
        check_room(self.room, self.caches)
        for cache, inserted in zip(self.caches, self.inserted, strict=True):
            assert check(cache) == inserted if self.is_roomy else check(cache) <= inserted


def own(text: list[int], which: int) -> list[int]:
    """Map a text to one model's tokens."""
    return [token + 1000 * which for token in text]


TestCacheMachine = CacheMachine.TestCase
TestCacheMachine.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


def bytes_of(num_tokens: int, num_edges: int) -> int:
    return num_tokens * ROW_BYTES + num_edges * EDGE_BYTES


def test_every_prefix_of_a_text_is_found() -> None:
    cache = cache_of(10**6)
    insert(cache, [0, 5, 6, 7])
    assert [found(cache, text) for text in ([0], [0, 5], [0, 5, 6, 9], [0, 5, 6, 7, 8], [0, 9])] == [1, 2, 3, 4, 1]
    assert cache.longest([5]) is None
    assert cache.longest([]) is None


def test_least_recently_used_text_is_evicted_first() -> None:
    cache = cache_of(bytes_of(3 * 3, 3))
    for text in ([1, 1, 1], [2, 2, 2], [3, 3, 3]):
        insert(cache, text)
    found(cache, [1])
    insert(cache, [4, 4, 4])
    assert [found(cache, [n] * 3) for n in (1, 2, 3, 4)] == [3, 0, 3, 3]


def test_text_is_evicted_from_its_end() -> None:
    cache = cache_of(bytes_of(10, 2))
    insert(cache, [0] * 8)
    insert(cache, [1] * 2)
    insert(cache, [1] * 5, first=2)
    assert found(cache, [0] * 8) == 5
    assert found(cache, [1] * 5) == 5


def test_shared_prefix_is_evicted_after_its_branches() -> None:
    cache = cache_of(bytes_of(9, 4))
    insert(cache, [0, 0, 0, 1, 1])
    insert(cache, [0, 0, 0, 2, 2])
    insert(cache, [7, 7])
    insert(cache, [8, 8])
    assert found(cache, [0, 0, 0, 1, 1]) == 3
    assert found(cache, [0, 0, 0, 2, 2]) == 5
    assert found(cache, [7, 7]) == found(cache, [8, 8]) == 2


def test_text_larger_than_the_cache_keeps_its_beginning() -> None:
    cache = cache_of(bytes_of(150, 2))
    insert(cache, [9, 9])
    insert(cache, [0] * 200)
    assert found(cache, [0] * 200) == 150
    assert found(cache, [9]) == 0


@pytest.mark.parametrize("max_bytes", [0, bytes_of(1, 1) - 1])
def test_cache_smaller_than_one_state_stays_empty(max_bytes: int) -> None:
    cache = cache_of(max_bytes)
    insert(cache, [0, 1])
    assert (found(cache, [0, 1]), cache.num_bytes, cache.num_tokens) == (0, 0, 0)


def test_piece_without_its_prefix_is_not_kept() -> None:
    cache = cache_of(10**6)
    insert(cache, [0, 1, 2, 3], first=2)
    assert cache.num_tokens == 0
    insert(cache, [0, 1])
    insert(cache, [0, 1, 2, 3], first=2)
    assert found(cache, [0, 1, 2, 3]) == 4


def test_text_inserted_in_pieces_has_few_edges() -> None:
    cache = cache_of(10**6)
    text = [0, *range(200)]
    for first in range(len(text)):
        insert(cache, text[: first + 1], first)
    assert len(list(edges(cache))) == -(-len(text) // EDGE_TOKENS)
    assert found(cache, text) == len(text)


def test_matched_rows_are_copies() -> None:
    cache = cache_of(10**6)
    insert(cache, [0, 1])
    match = cache.longest([0, 1])
    assert match is not None
    for values in (*match.states.values(), match.hidden):
        values[:] = 0
    assert found(cache, [0, 1]) == 2


def test_fewer_tokens_than_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="got 2, expected at least first \\+ rows = 4"):
        cache_of(100).insert([0, 1], 1, np.zeros((3, ROW_PAGES), np.int64))


def test_rows_without_a_text_use_memory_until_they_are_dropped() -> None:
    cache = cache_of(bytes_of(4, 1))
    insert(cache, [0, 1])
    rows = [row_after([7] * n) for n in range(1, 4)]
    states = {name: np.stack([row[name] for row in rows]) for name in SHAPES}
    hidden = np.zeros((3, HIDDEN), np.float32)
    places = cache.keep(states, hidden)
    assert (len(places), found(cache, [0, 1]), cache.num_bytes) == (3, 1, bytes_of(4, 1))
    cache.drop(places)
    assert check(cache) == {(0,)}
    insert(cache, [0, 1, 2, 3])
    assert found(cache, [0, 1, 2, 3]) == 4


def test_active_model_takes_the_memory_of_an_idle_one() -> None:
    room = CacheRoom(bytes_of(200, 3))
    idle, busy = (PrefixCache(room, SHAPES, HIDDEN) for _ in range(2))
    insert(idle, [0] * 100)
    insert(busy, [1] * 190)
    assert (found(idle, [0] * 100), found(busy, [1] * 190)) == (10, 190)
    insert(idle, [2] * 50)
    assert (found(idle, [2] * 50), found(busy, [1] * 190)) == (50, 150)
    check_room(room, [idle, busy])


def test_engines_use_shared_memory_concurrently() -> None:
    room = CacheRoom(bytes_of(300, 20))
    caches = [PrefixCache(room, SHAPES, HIDDEN) for _ in range(4)]
    problems: list[BaseException] = []

    def work(cache: PrefixCache, which: int) -> None:
        try:
            for round_ in range(150):
                text = own([round_ % 7] * (20 + round_), which)
                insert(cache, text, found(cache, text))
                found(cache, text)
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=work, args=(cache, which)) for which, cache in enumerate(caches)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    for cache in caches:
        check(cache)
    check_room(room, caches)


def test_cleared_model_leaves_the_room_to_the_others() -> None:
    room = CacheRoom(bytes_of(200, 6))
    gone, stays = (PrefixCache(room, SHAPES, HIDDEN) for _ in range(2))
    for text in ([0] * 150, [0, 1, 2], [3]):
        insert(gone, text)
    insert(stays, [1] * 20)
    gone.clear()
    assert (gone.num_bytes, gone.num_tokens, room.num_bytes) == (0, 0, stays.num_bytes)
    assert (found(gone, [0] * 150), found(stays, [1] * 20)) == (0, 20)
    check_room(room, [gone, stays])


def test_models_come_and_go_while_others_use_the_room() -> None:
    room = CacheRoom(bytes_of(120, 20))
    caches = [PrefixCache(room, SHAPES, HIDDEN) for _ in range(2)]
    swapped = threading.Event()

    def work(cache: PrefixCache, which: int) -> None:
        for round_ in itertools.count():
            insert(cache, own([round_ % 7] * (20 + round_ % 50), which))
            if swapped.is_set():
                return

    threads = [threading.Thread(target=work, args=(cache, which)) for which, cache in enumerate(caches)]
    for thread in threads:
        thread.start()
    for round_ in range(60):
        new = PrefixCache(room, SHAPES, HIDDEN)
        insert(new, [round_ % 7] * 40)
        new.clear()
        assert new.num_bytes == 0
    swapped.set()
    for thread in threads:
        thread.join()
    check_room(room, caches)
