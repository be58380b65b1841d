"""States by prefix: a text that begins like an earlier one starts from the state that was computed then.

Input: token ids, and the state and hidden row after each of them. Output: the longest prefix of a text whose state is
kept. Must not know: sequences. Exact at every token, because a state is kept for every token.

A radix tree: an edge holds up to `EDGE_TOKENS` tokens and the places of the states after each; children differ in their
first token. The tree that holds a prefix holds all shorter ones.

Recency: a text that is found or added renews its whole path, the deepest edge first. So every edge is older than those
above it, and the oldest of all is a leaf, which is evicted from its last token on.

The caches of several models can share one room, in which a busy model uses the space that others do not need. Every
engine's thread calls its own cache; the room's lock guards them all.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
EDGE_TOKENS: Final = 128  # that age together
EDGE_BYTES: Final = 512  # of the Python objects of an edge
PAGE_FLOATS: Final = 128  # a divisor of the usual state sizes, so that one size of page fits all models
PAGE_BYTES: Final = 4 * PAGE_FLOATS
PAGE: Final = np.dtype((np.void, PAGE_BYTES))  # copied as a whole, in half the time of as many floats
ID_BYTES: Final = 8  # of a token, and of the number of a page


@dataclass(frozen=True, eq=False)
class Match:
    """The state after the first `length` tokens, as copies.

    states  state tensor -> float32 [*shape]
    hidden  float32 [hidden_size]
    """

    length: int
    states: dict[str, Floats]
    hidden: Floats


class CacheRoom:
    """Memory of at most `max_bytes` for the states of one or several caches; the least recently used are evicted first.

    Its pages fit every model and are allocated once: memory is touched as it fills, and reused as it empties, also by
    another model. Fresh memory costs many times as much as copying into it.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self.lock = threading.Lock()  # guards the room and all caches in it
        self.by_age: OrderedDict[Edge, PrefixCache] = OrderedDict()  # without the roots; oldest first
        self._pages = np.empty(max_bytes // PAGE_BYTES, PAGE)
        self._free = np.empty(max_bytes // PAGE_BYTES, np.int64)  # the first `_num_free` entries are pages to reuse
        self._num_free = self._num_touched = 0

    def lacking(self, num_bytes: int) -> int:
        """Return by how much `num_bytes` more would exceed the room; negative if they fit."""
        return self.num_bytes + num_bytes - self.max_bytes

    def take(self, num_rows: int, pages_a_row: int) -> Ids:
        """Take unused pages, int64 [rows, pages_a_row]."""
        num = num_rows * pages_a_row
        num_used = min(num, self._num_free)
        self._num_free -= num_used
        fresh = np.arange(self._num_touched, self._num_touched + num - num_used)
        self._num_touched += len(fresh)
        used = self._free[self._num_free : self._num_free + num_used]
        return np.concatenate([used, fresh]).reshape(num_rows, pages_a_row)

    def release(self, pages: Ids) -> None:
        """Give pages back."""
        self._free[self._num_free : self._num_free + pages.size] = pages.ravel()
        self._num_free += pages.size

    def write(self, pages: Ids, rows: Floats) -> None:
        """Copy float32 [rows, *shape] into int64 [rows, pages of a row]."""
        flat = np.ascontiguousarray(rows).reshape(len(rows), math.prod(rows.shape[1:]))
        if missing := pages.shape[1] * PAGE_FLOATS - flat.shape[1]:
            flat = np.pad(flat, ((0, 0), (0, missing)))
        self._pages[pages.ravel()] = flat.ravel().view(PAGE)

    def read(self, pages: Ids, shape: tuple[int, ...]) -> Floats:
        """Copy a row out of its pages, int64 [pages of a row]."""
        return self._pages[pages].view(np.float32)[: math.prod(shape)].reshape(shape)


@dataclass(eq=False, slots=True)
class Edge:
    """The way from one node of the tree to the next; the edges from there are its children.

    tokens  int64 [1 to EDGE_TOKENS]; the root has none
    places  int64 [tokens, pages]: the pages of the state after each token
    """

    tokens: Ids
    places: Ids
    above: Edge | None  # None of the root alone
    children: dict[int, Edge] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tokens)

    def cut(self, length: int) -> Ids:
        """Keep the first `length` tokens; returns the places of the others."""
        dropped = self.places[length:]
        self.tokens, self.places = self.tokens[:length].copy(), self.places[:length].copy()
        return dropped


class PrefixCache:
    """One model's prefixes in a room.

    shapes       state tensor -> shape of a row
    hidden_size  floats of a hidden row; 0 where it is not kept
    """

    def __init__(self, room: CacheRoom, shapes: Mapping[str, tuple[int, ...]], hidden_size: int) -> None:
        self._room = room
        self._shapes = {**shapes, "": (hidden_size,)}
        self._spans: dict[str, slice] = {}  # a row's pages by tensor
        self._num_pages = 0
        for name, shape in self._shapes.items():
            end = self._num_pages - -math.prod(shape) // PAGE_FLOATS
            self._spans[name] = slice(self._num_pages, end)
            self._num_pages = end
        self.bytes_per_token = ID_BYTES + self._num_pages * (PAGE_BYTES + ID_BYTES)
        self._root = Edge(np.empty(0, np.int64), np.empty((0, self._num_pages), np.int64), None)
        self._num_bytes = self._num_tokens = 0

    @property
    def max_tokens(self) -> int:
        """Maximum length of one text, so that it does not evict all others."""
        return self._room.max_bytes * 7 // 8 // (self.bytes_per_token + EDGE_BYTES // EDGE_TOKENS)

    @property
    def num_bytes(self) -> int:
        """Bytes of the room that this model uses."""
        return self._num_bytes

    @property
    def num_tokens(self) -> int:
        """Number of prefixes whose state is kept."""
        return self._num_tokens

    def longest(self, tokens: Sequence[int] | Ids) -> Match | None:
        """Return the longest prefix of `tokens`, which begin with the boundary token, whose state is kept, or None.

        It counts as used now.
        """
        ids = np.asarray(tokens, np.int64)
        with self._room.lock:
            edge, at, length = self._find(ids)
            if not length:
                return None
            self._renew(edge)
            row = edge.places[at - 1]
            states = {name: self._room.read(row[self._spans[name]], shape) for name, shape in self._shapes.items()}
            return Match(length, states, states.pop(""))

    def keep(self, states: Mapping[str, Floats], hidden: Floats) -> Ids:
        """Copy rows that belong to no text yet: `insert` gives them to one, `drop` frees them.

        states   state tensor -> float32 [T, *shape]
        hidden   float32 [T, hidden_size]
        returns  int64 [at most T, pages]: the places of the first rows, as many as fit
        """
        with self._room.lock:
            self._free(len(hidden) * self.bytes_per_token)
            num = min(len(hidden), max(0, -self._room.lacking(0)) // self.bytes_per_token)
            self._count(num * self.bytes_per_token)
            places = self._room.take(num, self._num_pages)
            for name, rows in {**states, "": hidden}.items():
                self._room.write(places[:, self._spans[name]], rows[:num])
            return places

    def drop(self, places: Ids) -> None:
        """Free rows that belong to no text."""
        with self._room.lock:
            self._drop(places)

    def insert(self, tokens: Sequence[int] | Ids, first: int, places: Ids) -> None:
        """Give kept rows to a text, as the states after tokens[: first + 1], tokens[: first + 2], …

        tokens  begin with the boundary token; those past first + T are ignored. A long text is best given as an array
                of int64, which is not copied
        first   number of tokens before the first row; if their states have been evicted, the rows are dropped
        places  int64 [T, pages], as `keep` returned them; the caller must not use them any more

        States that are kept already stay and count as used now.
        """
        end = first + len(places)
        if len(tokens) < end:
            raise ValueError(f"tokens: got {len(tokens)}, expected at least first + rows = {end}")
        ids = np.asarray(tokens[:end], np.int64)
        with self._room.lock:
            self._insert(ids, first, places)

    def clear(self) -> None:
        """Evict all texts of this model, so that the models that stay have the room."""
        while self._root.children:
            with self._room.lock:  # for one edge at a time: other engines run meanwhile
                edge = self._root
                while edge.children:
                    edge = next(iter(edge.children.values()))
                if edge is not self._root:
                    self.evict(edge, len(edge))

    def _insert(self, ids: Ids, first: int, places: Ids) -> None:
        edge, at, length = self._find(ids)
        if length < first:
            self._drop(places)
            return
        self._drop(places[: length - first])
        places = places[length - first :]
        if at < len(edge) and len(places):
            edge = self._split(edge, at)
        self._renew(edge)
        while len(places := self._fitting(places, edge)):
            edge, num = self._append(edge, ids[length:], places)
            length += num
            places = places[num:]

    def _count(self, num_bytes: int) -> None:
        self._num_bytes += num_bytes
        self._room.num_bytes += num_bytes

    def _drop(self, places: Ids) -> None:
        self._room.release(places)
        self._count(-len(places) * self.bytes_per_token)

    def _find(self, tokens: Ids) -> tuple[Edge, int, int]:
        """Walk down along `tokens`; returns the deepest edge, the number of its tokens that agree, and that of all."""
        edge, at, length = self._root, 0, 0
        while at == len(edge) and length < len(tokens):
            child = edge.children.get(int(tokens[length]))
            if child is None:
                break
            edge, at = child, _num_equal(child.tokens, tokens[length : length + EDGE_TOKENS])
            length += at
        return edge, at, length

    def _renew(self, edge: Edge) -> None:
        """Make a path the newest, from its end up: an edge is always older than those above it."""
        while edge.above is not None:
            self._room.by_age[edge] = self
            self._room.by_age.move_to_end(edge)
            edge = edge.above

    def _split(self, edge: Edge, at: int) -> Edge:
        """Cut an edge in two; returns the upper one, still to be renewed. The lower one keeps its children, its age."""
        assert edge.above is not None
        upper = Edge(edge.tokens[:at].copy(), edge.places[:at].copy(), edge.above, {int(edge.tokens[at]): edge})
        edge.above.children[int(edge.tokens[0])] = upper
        edge.above = upper
        edge.tokens, edge.places = edge.tokens[at:].copy(), edge.places[at:].copy()
        self._count(EDGE_BYTES)
        return upper

    def _fitting(self, places: Ids, edge: Edge) -> Ids:
        """Return as many of the rows as fit after `edge`, after evicting others; the rest is dropped."""
        edge_bytes = 0 if self._grows(edge) or not len(places) else EDGE_BYTES
        self._free(edge_bytes, edge)
        lacking = max(0, self._room.lacking(edge_bytes))
        num = max(0, len(places) - -(-lacking // self.bytes_per_token))
        self._drop(places[num:])
        return places[:num]

    def _grows(self, edge: Edge) -> bool:
        """Return True if more tokens can be appended to the edge itself."""
        return edge is not self._root and not edge.children and len(edge) < EDGE_TOKENS

    def _append(self, edge: Edge, tokens: Ids, places: Ids) -> tuple[Edge, int]:
        """Append rows to the newest path, which ends in `edge`: to that edge or to a new child.

        Returns the path's last edge then, and the number of rows that were appended.
        """
        if self._grows(edge):
            num = min(len(places), EDGE_TOKENS - len(edge))
            edge.tokens = np.append(edge.tokens, tokens[:num])
            edge.places = np.append(edge.places, places[:num], axis=0)
        else:
            num = min(len(places), EDGE_TOKENS)
            edge.children[int(tokens[0])] = edge = Edge(tokens[:num].copy(), places[:num].copy(), edge)
            self._renew(edge)
            self._count(EDGE_BYTES)
        self._num_tokens += num
        return edge, num

    def _free(self, num_bytes: int, last: Edge | None = None) -> None:
        """Evict the oldest edges until so many bytes fit, but nothing of the newest path if that ends in `last`."""
        while self._room.by_age and (lacking := self._room.lacking(num_bytes)) > 0:
            oldest, cache = next(iter(self._room.by_age.items()))
            if oldest is last:
                return
            cache.evict(oldest, -(-lacking // cache.bytes_per_token))

    def evict(self, edge: Edge, num_tokens: int) -> None:
        """Drop tokens from the end of a leaf, or all of it; under the room's lock."""
        assert edge.above is not None
        assert not edge.children, "an edge is always older than those above it"
        if num_tokens >= len(edge):
            del self._room.by_age[edge], edge.above.children[int(edge.tokens[0])]
            self._count(-EDGE_BYTES)
        dropped = edge.cut(max(0, len(edge) - num_tokens))
        self._drop(dropped)
        self._num_tokens -= len(dropped)


def _num_equal(left: Ids, right: Ids) -> int:
    """Return the number of first tokens that two non-empty arrays have in common."""
    length = min(len(left), len(right))
    differ = left[:length] != right[:length]
    first = int(differ.argmax())
    return first if differ[first] else length
