"""A bundle under onnxruntime: steps of the cell, and the output layer and a token for some of the rows.

Input: token ids, states, which distributions are wanted. Output: states, hidden rows, tokens, log-probabilities. Must
not know: sequences. A Runner belongs to one thread at a time, and a session computes in one thread.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from meari.runtime.graphs.sampler import NUM_LIMITS

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]

States = dict[str, Floats]  # state tensor -> float32 [rows, *shape]
StateRow = dict[str, Floats]  # state tensor -> float32 [*shape], a copy that nobody else holds

FLAGS: Final = (np.array(False), np.array(True))  # noqa: FBT003 (the values themselves)
NO_IDS: Final = np.empty(0, np.int64)
NO_FLOATS: Final = np.empty((0, 0), np.float32)
NO_HIDDEN: Final = np.empty((0, 0, 0), np.float32)
NO_SLICE: Final = np.empty((1, 0), np.int64)
SLICE_FLOATS: Final = 640_000  # of the distributions that a run holds at once
MIN_SLICE: Final = 64  # rows that share one reading of the output layer's weights


@dataclass(frozen=True)
class StateTensor:
    """One tensor of the recurrent state, without its batch dimension."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class Choices:
    """How the tokens of some rows are chosen.

    inverse_temperatures  float32 [rows, 1]; 0: the likeliest token is taken
    limits                float32 [rows, 3]: min_p, top_p, top_k
    samples, likeliest    whether any row is sampled, whether the likeliest token is taken in any
    num_ranked            the largest top_k, 0: none
    unranked              whether any sampled row has no top_k; the next three are of such rows
    tempered              whether any has a temperature or a barred token
    min_p, nucleus        whether any has a min_p, a top_p
    bars                  int64 [rows, 1], a token that is not taken, or -1; None where no row has one
    """

    inverse_temperatures: Floats
    limits: Floats
    samples: bool = False
    likeliest: bool = False
    num_ranked: int = 0
    unranked: bool = False
    tempered: bool = False
    min_p: bool = False
    nucleus: bool = False
    bars: Ids | None = None

    @classmethod
    @lru_cache(maxsize=64)
    def likeliest_of(cls, num_rows: int) -> Choices:
        """Take the likeliest token in every row."""
        return cls(
            inverse_temperatures=np.zeros((num_rows, 1), np.float32),
            limits=np.zeros((num_rows, NUM_LIMITS), np.float32),
        )

    def after(self, num_rows: int) -> Choices:
        """Return the choices for so many rows more, which come first and have given targets."""
        first = Choices.likeliest_of(num_rows)
        bars = None if self.bars is None else np.concatenate([np.full((num_rows, 1), -1), self.bars])
        return replace(
            self,
            inverse_temperatures=np.concatenate([first.inverse_temperatures, self.inverse_temperatures]),
            limits=np.concatenate([first.limits, self.limits]),
            bars=bars,
        )

    def of_rows(self, rows: Ids) -> Choices:
        """Return the choices of some rows, int64 [chosen]; a row may be taken more than once."""
        return replace(
            self,
            inverse_temperatures=self.inverse_temperatures[rows],
            limits=self.limits[rows],
            bars=None if self.bars is None else self.bars[rows],
        )

    @cached_property
    def feeds(self) -> dict[str, Any]:
        """The inputs of a graph."""
        return {
            "inverse_temperatures": self.inverse_temperatures,
            "limits": self.limits,
            "bars": np.full((len(self.limits), 1), -1) if self.bars is None else self.bars,
            "num_ranked": np.array([max(1, self.num_ranked)]),
            "want_samples": FLAGS[self.samples],
            "want_likeliest": FLAGS[self.likeliest],
            "want_ranked": FLAGS[self.num_ranked > 0],
            "want_unranked": FLAGS[self.unranked],
            "want_tempered": FLAGS[self.tempered],
            "want_bars": FLAGS[self.bars is not None],
            "want_min_p": FLAGS[self.min_p],
            "want_nucleus": FLAGS[self.nucleus],
        }


@dataclass(frozen=True, eq=False)
class ReadInputs:
    """The distributions that a run computes, and the tokens to take from them.

    places            int64 [rows]: step * batch + row, or past all of these a row of `more_hidden`
    targets           int64 [rows, 1]: the token whose log-probability is wanted, or -1: choose one
    uniforms          float32 [rows, 1], in [0, 1), for rows that are sampled
    redraws           float32 [rows, redraws], likewise, where a row has a top_p
    choices           how tokens are chosen; None where all targets are given
    logprobs, logits  whether those of all tokens are wanted
    ranks             whether the ranks of the picked tokens are wanted
    num_best          number of the likeliest tokens that are wanted
    """

    places: Ids
    targets: Ids
    uniforms: Floats
    redraws: Floats
    choices: Choices | None = None
    logprobs: bool = False
    logits: bool = False
    ranks: bool = False
    num_best: int = 0

    @classmethod
    def for_targets(
        cls, places: Ids, targets: Ids, *, whole: bool = False, ranks: bool = False, num_best: int = 0
    ) -> ReadInputs:
        """Ask for the log-probabilities of given targets, int64 [rows] each; nothing is chosen.

        whole  whether logits and log-probabilities of all tokens are wanted
        """
        zeros = np.zeros((len(places), 1), np.float32)
        targets = targets[:, None]
        return cls(places, targets, zeros, zeros, logprobs=whole, logits=whole, ranks=ranks, num_best=num_best)

    @cached_property
    def feeds(self) -> dict[str, Any]:
        """The inputs of a graph, but for its slices."""
        choices = self.choices or Choices.likeliest_of(len(self.places))
        return {
            **choices.feeds,
            "rows": self.places,
            "targets": self.targets,
            "uniforms": self.uniforms,
            "redraws": self.redraws,
            "num_best": np.array([max(1, self.num_best)]),
            "want_tokens": FLAGS[self.choices is not None],
            "want_logits": FLAGS[self.logits],
            "want_logprobs": FLAGS[self.logprobs],
            "want_ranks": FLAGS[self.ranks],
            "want_best": FLAGS[self.num_best > 0],
        }

    @property
    def outputs(self) -> tuple[str, ...]:
        """The outputs of the graph that are wanted of the rows."""
        names = ["picked", "picked_logprob"]
        names += ["logits"] * self.logits + ["logprobs"] * self.logprobs + ["rank"] * self.ranks
        return (*names, "best", "best_logprobs") if self.num_best else tuple(names)


@dataclass(frozen=True, eq=False)
class WriteInputs:
    """The random numbers of a run in which every step chooses its own tokens, and how it does so.

    uniforms  float32 [steps, rows, 1], in [0, 1)
    redraws   float32 [steps, rows, redraws], likewise, where a row has a top_p
    """

    uniforms: Floats
    redraws: Floats
    choices: Choices


@dataclass(frozen=True, eq=False)
class RunResult:
    """The result of a run; arrays that were not asked for are empty.

    states           state tensor -> float32 [steps, batch, *shape], after every step
    hidden           float32 [steps, batch, H]
    picked           int64 [rows], of a writing run [steps, rows]
    picked_logprobs  float32, likewise
    logits, logprobs float32 [rows, V]
    ranks            int64 [rows], of the picked tokens
    best             int64 [rows, k], the likeliest tokens, likeliest first, and their log-probabilities, float32
    """

    states: States
    hidden: Floats = field(default_factory=lambda: NO_HIDDEN)
    picked: Ids = field(default_factory=lambda: NO_IDS)
    picked_logprobs: Floats = field(default_factory=lambda: NO_FLOATS)
    logits: Floats = field(default_factory=lambda: NO_FLOATS)
    logprobs: Floats = field(default_factory=lambda: NO_FLOATS)
    ranks: Ids = field(default_factory=lambda: NO_IDS)
    best: Ids = field(default_factory=lambda: NO_IDS)
    best_logprobs: Floats = field(default_factory=lambda: NO_FLOATS)

    def state_after(self, step: int, row: int) -> StateRow:
        """Copy the state of one row after a step."""
        return {name: values[step, row].copy() for name, values in self.states.items()}


NOTHING: Final = ReadInputs.for_targets(NO_IDS, NO_IDS)
TABLES: Final = ("logits", "logprobs", "best", "best_logprobs")  # outputs of the graph that are no columns
FIELDS: Final = {"picked_logprob": "picked_logprobs", "rank": "ranks"}  # others have the graph's names


@dataclass(frozen=True, eq=False)
class Sessions:
    """onnxruntime's sessions of the two engine graphs, and options of a run that keeps only shared buffers."""

    reader: Any
    writer: Any
    giving_back: Any = None


class Runner:
    """See the head of this file.

    hidden_states  the state tensors that the hidden vector is a copy of, one after the other, or none
    max_slice     rows whose distributions are in memory at the same time
    run_seconds   CPU time of all runs

    fixed_step_seconds  CPU time of a writing step that does not depend on its rows; 0.0 if it is not known
    keeps_buffers       whether large runs keep what they took, for runs as large that follow
    """

    def __init__(
        self,
        sessions: Sessions,
        state_tensors: Sequence[StateTensor],
        hidden_size: int,
        vocabulary_size: int,
        end_id: int,
    ) -> None:
        self.sessions = sessions
        self.state_tensors = tuple(state_tensors)
        self.hidden_size = hidden_size
        self.vocabulary_size = vocabulary_size
        self.end_id = end_id
        self.hidden_states: tuple[str, ...] = ()
        self.run_seconds = self.fixed_step_seconds = 0.0
        self.keeps_buffers = False
        self._next = [f"next.{tensor.name}" for tensor in self.state_tensors]
        self._no_hidden = np.empty((0, hidden_size), np.float32)
        self.max_slice = max(MIN_SLICE, SLICE_FLOATS // vocabulary_size)
        self._unused = {"more_hidden": self._no_hidden, "slices": NO_SLICE, **NOTHING.feeds}

    @property
    def state_bytes(self) -> int:
        """Size of the state of one sequence."""
        return sum(4 * int(np.prod(t.shape)) for t in self.state_tensors)

    @property
    def cached_hidden_size(self) -> int:
        """Floats of the hidden vector that a prefix cache keeps beside the state: none where the state holds it."""
        return 0 if self.hidden_states else self.hidden_size

    def hidden_in(self, states: Mapping[str, Floats]) -> Floats:
        """Return the hidden vector that a sequence's state holds, float32 [H]."""
        return np.concatenate([states[name] for name in self.hidden_states])

    def initial_states(self, rows: int) -> States:
        """Return the state before the first token: zeros, float32 [rows, *shape]."""
        return {t.name: np.zeros((rows, *t.shape), np.float32) for t in self.state_tensors}

    def run(
        self,
        tokens: Ids,
        states: Mapping[str, Floats],
        inputs: ReadInputs = NOTHING,
        *,
        more_hidden: Floats | None = None,
        want_hidden: bool = False,
    ) -> RunResult:
        """Feed tokens, and compute some of the distributions.

        tokens       int64 [steps, batch], steps and batch >= 1
        states       float32 [batch, *shape] a tensor, before the first step
        more_hidden  float32 [more, H], hidden rows whose distribution is wanted beside those computed here
        """
        num_rows = len(inputs.places)
        of_rows = inputs.outputs if num_rows else ()
        names = [*self._next, *(["hidden"] if want_hidden else []), *of_rows]
        feeds = {**self._unused, "tokens": tokens}
        if more_hidden is not None:
            feeds["more_hidden"] = more_hidden
        if num_rows:
            feeds |= {**inputs.feeds, "slices": _slices(num_rows, self.max_slice)}
        for name, values in states.items():
            feeds[f"state.{name}"] = values
        found = dict(zip(names, self._run(self.sessions.reader, names, feeds), strict=True))
        return RunResult(
            states={tensor.name: found[f"next.{tensor.name}"] for tensor in self.state_tensors},
            **({"hidden": found["hidden"]} if want_hidden else {}),
            **{FIELDS.get(name, name): _of_rows(found[name], num_rows, name) for name in of_rows},
        )

    def write(self, tokens: Ids, states: Mapping[str, Floats], inputs: WriteInputs) -> RunResult:
        """Feed each row its token, then the token that was sampled, and so on.

        tokens   int64 [rows]
        states   float32 [rows, *shape] a tensor
        returns  `picked` and `picked_logprobs` as [steps, rows]
        """
        feeds = {
            "token": tokens,
            "uniforms": inputs.uniforms,
            "redraws": inputs.redraws,
            **inputs.choices.feeds,
            **{f"state.{name}": values for name, values in states.items()},
        }
        *new, picked, logprobs = self._run(self.sessions.writer, [*self._next, "picked", "picked_logprob"], feeds)
        return RunResult(
            {tensor.name: values for tensor, values in zip(self.state_tensors, new, strict=True)},
            picked=picked[:, :, 0],
            picked_logprobs=logprobs[:, :, 0],
        )

    def _run(self, session: Any, names: list[str], feeds: dict[str, Any]) -> list[Any]:
        started = time.thread_time()
        found: list[Any] = session.run(names, feeds, None if self.keeps_buffers else self.sessions.giving_back)
        self.run_seconds += time.thread_time() - started
        return found

    def runs_boundary_token(self) -> bool:
        """Run the boundary token alone in both graphs; returns whether the results are finite."""
        end, states, half = np.array([self.end_id]), self.initial_states(1), np.full((1, 1), 0.5, np.float32)
        choices = replace(
            Choices.likeliest_of(1), inverse_temperatures=np.ones((1, 1), np.float32), samples=True, unranked=True
        )
        inputs = ReadInputs(np.zeros(1, np.int64), np.array([[-1]]), half, half, choices)
        settings = WriteInputs(half[None], half[None], choices)
        runs = self.run(end[None], states, inputs), self.write(end, states, settings)
        found = [values for run in runs for values in (run.picked_logprobs, *run.states.values())]
        return all(bool(np.isfinite(values).all()) for values in found)


@lru_cache(maxsize=64)
def _slices(num_rows: int, max_size: int) -> Ids:
    """Return the numbers of the rows in slices of one size, int64 [slices, size]; the last one repeated at the end."""
    num_slices = -(-num_rows // max_size)
    size = -(-num_rows // num_slices)
    return np.minimum(np.arange(num_slices * size), num_rows - 1).reshape(num_slices, size)


def _of_rows(values: npt.NDArray[Any], num_rows: int, name: str) -> npt.NDArray[Any]:
    """Return an output of slices, [slices, size, width], as [rows, width], and a column as [rows]."""
    rows = values.reshape(-1, values.shape[2])[:num_rows]
    return rows if name in TABLES else rows[:, 0]
