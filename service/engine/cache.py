"""States by prefix: where a text that begins like an earlier one can go on instead of beginning anew.

Enters: token ids, and the state and hidden row after each of them. Leaves: the longest prefix of a text whose state is
there. Exact at every token, because a state is kept for every token.

A radix tree: an edge holds up to `EDGE_TOKENS` tokens and says where the state after each of them lies; children are
told apart by their first token. With a prefix all shorter ones are there.

Recency: a text that is found or added makes its whole path new, the deepest edge first. So every edge is older than
those above it, and the oldest of all is a leaf; it gives way from its last token on. Owned by the engine's thread.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
EDGE_TOKENS: Final = 128  # they age together
EDGE_BYTES: Final = 512  # of an edge's objects
TOKEN_BYTES: Final = 16  # its id, and where its state lies


@dataclass(frozen=True, eq=False)
class Match:
    """What stands after the first `length` tokens: copies.

    states  state tensor -> float32 [*shape]
    hidden  float32 [hidden_size]
    """

    length: int
    states: dict[str, Floats]
    hidden: Floats


class Rows:
    """Room for the states of `capacity` tokens, set aside once: it is touched as it fills and used again as it empties.

    Fresh memory costs many times what copying into it does, and pieces of many sizes would leave gaps.
    """

    def __init__(self, capacity: int, states: Mapping[str, Floats], hidden: Floats) -> None:
        self._states = {name: np.empty((capacity, *rows.shape[1:]), np.float32) for name, rows in states.items()}
        self._hidden = np.empty((capacity, hidden.shape[1]), np.float32)
        self._free: list[int] = []
        self._num_touched = 0

    def put(self, states: Mapping[str, Floats], hidden: Floats) -> Ids:
        """Copy rows in; returns where they lie."""
        places = self._free[max(0, len(self._free) - len(hidden)) :]
        del self._free[len(self._free) - len(places) :]
        num_fresh = len(hidden) - len(places)
        places += range(self._num_touched, self._num_touched + num_fresh)
        self._num_touched += num_fresh
        at = np.array(places, np.int64)
        for name, rows in states.items():
            self._states[name][at] = rows
        self._hidden[at] = hidden
        return at

    def get(self, place: int, length: int) -> Match:
        """A copy of what lies there, which stands after `length` tokens."""
        states = {name: rows[place].copy() for name, rows in self._states.items()}
        return Match(length, states, self._hidden[place].copy())

    def drop(self, places: Ids) -> None:
        """Let others have these places."""
        self._free += places.tolist()


@dataclass(eq=False, slots=True)
class Edge:
    """From one node of the tree to the next; the edges that go on from there are its children.

    tokens  int64 [1 to EDGE_TOKENS], none of the root
    places  int64, of the same length: where the state after each of them lies
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
    """At most `max_bytes` of states, the least recently used out first."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._root = Edge(np.empty(0, np.int64), np.empty(0, np.int64), None)
        self._by_age: OrderedDict[Edge, None] = OrderedDict()  # without the root; oldest first
        self._rows: Rows | None = None  # its sizes are those of the first rows that come
        self._bytes_per_token = TOKEN_BYTES
        self._num_bytes = self._num_tokens = 0

    def most_tokens(self, row_bytes: int) -> int:
        """Of one text, whose states take so many bytes each: it shall not drive out all others."""
        return self._max_bytes * 7 // 8 // (row_bytes + TOKEN_BYTES + EDGE_BYTES // EDGE_TOKENS)

    @property
    def num_bytes(self) -> int:
        """What is held."""
        return self._num_bytes

    @property
    def num_tokens(self) -> int:
        """For how many prefixes a state is held."""
        return self._num_tokens

    def longest(self, tokens: Sequence[int] | Ids) -> Match | None:
        """The longest prefix of `tokens`, which begin with the boundary token, whose state is there; None without one.

        It counts as used now.
        """
        edge, at, length = self._find(np.asarray(tokens, np.int64))
        if self._rows is None or not length:
            return None
        self._renew(edge)
        return self._rows.get(int(edge.places[at - 1]), length)

    def keep(self, states: Mapping[str, Floats], hidden: Floats) -> Ids:
        """Copy rows that no text has yet: `insert` gives them to one, `drop` lets go of them.

        states   state tensor -> float32 [T, *shape]
        hidden   float32 [T, hidden_size]
        returns  int64 [at most T], where they lie: the first ones, as many as there is room for
        """
        if self._rows is None:
            self._bytes_per_token += hidden[0].nbytes + sum(rows[0].nbytes for rows in states.values())
            self._rows = Rows(self._max_bytes // self._bytes_per_token, states, hidden)
        self._free(len(hidden) * self._bytes_per_token)
        num = min(len(hidden), (self._max_bytes - self._num_bytes) // self._bytes_per_token)
        self._num_bytes += num * self._bytes_per_token
        return self._rows.put({name: rows[:num] for name, rows in states.items()}, hidden[:num])

    def drop(self, places: Ids) -> None:
        """Let go of rows that no text has."""
        if self._rows is not None:
            self._rows.drop(places)
            self._num_bytes -= len(places) * self._bytes_per_token

    def insert(self, tokens: Sequence[int] | Ids, first: int, places: Ids) -> None:
        """Give kept rows to a text: they stand after tokens[: first + 1], tokens[: first + 2], …

        tokens  begin with the boundary token; those past first + T are not looked at. A long text is best given as an
                array of int64, which is taken as it is
        first   how many of them were read before the first row. Where their states are gone, the rows are dropped
        places  int64 [T], as `keep` returned them; they are the caller's no more

        What is there already stays and counts as used now.
        """
        end = first + len(places)
        if len(tokens) < end:
            raise ValueError(f"tokens: got {len(tokens)}, expected at least first + rows = {end}")
        ids = np.asarray(tokens[:end], np.int64)
        edge, at, length = self._find(ids)
        if length < first:
            self.drop(places)
            return
        self.drop(places[: length - first])
        places = places[length - first :]
        if at < len(edge) and len(places):
            edge = self._split(edge, at)
        self._renew(edge)
        while len(places := self._fitting(places, edge)):
            edge, num = self._append(edge, ids[length:], places)
            length += num
            places = places[num:]

    def _find(self, tokens: Ids) -> tuple[Edge, int, int]:
        """Walk down along `tokens`; returns the deepest edge, how many of its tokens agree, and how many in all."""
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
            self._by_age[edge] = None
            self._by_age.move_to_end(edge)
            edge = edge.above

    def _split(self, edge: Edge, at: int) -> Edge:
        """Cut an edge in two; returns the upper one, still to be renewed. The lower one keeps its children, its age."""
        assert edge.above is not None
        upper = Edge(edge.tokens[:at].copy(), edge.places[:at].copy(), edge.above, {int(edge.tokens[at]): edge})
        edge.above.children[int(edge.tokens[0])] = upper
        edge.above = upper
        edge.tokens, edge.places = edge.tokens[at:].copy(), edge.places[at:].copy()
        self._num_bytes += EDGE_BYTES
        return upper

    def _fitting(self, places: Ids, edge: Edge) -> Ids:
        """As many of the rows as there is room for beside what they need to follow `edge`; the others are dropped."""
        edge_bytes = 0 if self._grows(edge) or not len(places) else EDGE_BYTES
        self._free(edge_bytes, edge)
        lacking = max(0, self._num_bytes + edge_bytes - self._max_bytes)
        num = max(0, len(places) - -(-lacking // self._bytes_per_token))
        self.drop(places[num:])
        return places[:num]

    def _grows(self, edge: Edge) -> bool:
        """Whether more tokens can be put to the edge itself."""
        return edge is not self._root and not edge.children and len(edge) < EDGE_TOKENS

    def _append(self, edge: Edge, tokens: Ids, places: Ids) -> tuple[Edge, int]:
        """Put rows after the newest path, which ends in `edge`: to that edge or to one that follows it.

        Returns the path's last edge then, and how many of the rows it took.
        """
        if self._grows(edge):
            num = min(len(places), EDGE_TOKENS - len(edge))
            edge.tokens, edge.places = np.append(edge.tokens, tokens[:num]), np.append(edge.places, places[:num])
        else:
            num = min(len(places), EDGE_TOKENS)
            edge.children[int(tokens[0])] = edge = Edge(tokens[:num].copy(), places[:num].copy(), edge)
            self._renew(edge)
            self._num_bytes += EDGE_BYTES
        self._num_tokens += num
        return edge, num

    def _free(self, num_bytes: int, last: Edge | None = None) -> None:
        """Evict the oldest until so many bytes fit, but nothing of the newest path where that ends in `last`."""
        while self._by_age and (lacking := self._num_bytes + num_bytes - self._max_bytes) > 0:
            oldest = next(iter(self._by_age))
            if oldest is last:
                return
            self._evict(oldest, -(-lacking // self._bytes_per_token))

    def _evict(self, edge: Edge, num_tokens: int) -> None:
        """Drop so many tokens from the end of a leaf, or all of it."""
        assert edge.above is not None
        assert not edge.children, "an edge is always older than those above it"
        if num_tokens >= len(edge):
            del self._by_age[edge], edge.above.children[int(edge.tokens[0])]
            self._num_bytes -= EDGE_BYTES
        dropped = edge.cut(max(0, len(edge) - num_tokens))
        self.drop(dropped)
        self._num_tokens -= len(dropped)


def _num_equal(left: Ids, right: Ids) -> int:
    """How many first tokens two arrays, not empty, have in common."""
    length = min(len(left), len(right))
    differ = left[:length] != right[:length]
    first = int(differ.argmax())
    return first if differ[first] else length
