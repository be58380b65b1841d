"""Whether rows influence one another, found out by trying.

onnxruntime may take other kernels for other numbers of rows, and a graph may hold something that goes over all of them.
So random rows are run together, in parts, and in the several ways in which the engine may come to run them: all of it
must give the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from meari.runtime.engine.runner import Runner
from meari.runtime.engine.runs import Asked, Floats, Ids, Ran, States, Written

__all__ = ["rows_are_isolated"]

Array = npt.NDArray[Any]
STEPS: Final = 2
MANY_STEPS: Final = 8  # of as many rows as there may be: what needs no state is computed for all of them together


@dataclass(frozen=True, eq=False)
class _Rows:
    """What is run.

    tokens   int64 [STEPS, rows]
    states   state tensor -> float32 [rows, *shape]
    draws    float32 [rows, 6]: uniform numbers for both steps, an inverse temperature, min_p, top_p and top_k
    """

    tokens: Ids
    states: States
    draws: Floats

    def part(self, rows: slice) -> _Rows:
        """Some of them."""
        return _Rows(self.tokens[:, rows], {k: v[rows] for k, v in self.states.items()}, self.draws[rows])


def rows_are_isolated(runner: Runner, max_rows: int, sizes: Sequence[int]) -> bool:
    """True when a row's results are the same bits in batches of `max_rows` and of every size of `sizes`, at every place
    tried, in runs of one step and of several, read or written.
    """
    if not _steps_are_isolated(runner, max_rows):
        return False
    random = np.random.default_rng(0)
    everything = _rows_as_they_meet(runner, random, max_rows)
    read, written = _read(runner, everything, 0), _write(runner, everything, by_step=False)
    for size in sizes:
        by_step = size % 2 == 1
        for first in {0, max_rows - size, int(random.integers(0, max_rows - size + 1))}:
            rows = slice(first, first + size)
            if not _equal(_read(runner, everything.part(rows), 1, by_step=by_step), read, rows):
                return False
        if not _equal(_write(runner, everything.part(rows), by_step=by_step), written, rows):
            return False
    return True


def _steps_are_isolated(runner: Runner, num_rows: int) -> bool:
    """Whether many steps in one run are those of single runs."""
    tokens = np.random.default_rng(1).integers(0, runner.vocabulary_size, (MANY_STEPS, num_rows))
    states = runner.initial_states(num_rows)
    ran = runner.run(tokens, states, want_hidden=True)
    assert ran.hidden is not None
    for step, step_tokens in enumerate(tokens):
        hidden, states = runner.step(step_tokens, states)
        found = {name: values[step] for name, values in ran.states.items()}
        if not _equal([ran.hidden[step], *found.values()], [hidden, *states.values()], slice(None)):
            return False
    return True


def _equal(part: list[Array], everything: list[Array], rows: slice) -> bool:
    return all(np.array_equal(got, want[rows]) for got, want in zip(part, everything, strict=True))


def _rows_as_they_meet(runner: Runner, random: np.random.Generator, num_rows: int) -> _Rows:
    """Rows of which some have read more than others."""
    states, mixed = runner.initial_states(num_rows), runner.initial_states(num_rows)
    tokens = random.integers(0, runner.vocabulary_size, (3 + STEPS, num_rows))
    for age, step_tokens in enumerate(tokens[:3]):
        _, states = runner.step(step_tokens, states)
        for name, values in states.items():
            mixed[name][age::3] = values[age::3]
    draws = random.random((num_rows, 6), np.float32) * (1, 1, 1, 0.5, 0.5, runner.vocabulary_size)
    draws += (0, 0, 0.5, 0, 0.5, 1)
    return _Rows(tokens[3:], mixed, draws.astype(np.float32))


def _read(runner: Runner, rows: _Rows, first_asked: int, *, by_step: bool = False) -> list[Array]:
    """What there is after two steps of reading: arrays of [rows, …].

    first_asked  distributions are computed from this step on
    by_step      in a run for each step rather than in one for both
    """
    tokens, states = rows.tokens, rows.states
    if by_step:
        _, states = runner.step(tokens[0], states)
        tokens, first_asked = tokens[1:], 0
    asked = _asked(rows, range(first_asked, len(tokens)), rows.draws[:, :1])
    ran = runner.run(tokens, states, asked, want_hidden=True)
    assert ran.hidden is not None
    found = [ran.picked, ran.picked_logprobs, ran.mass_from, ran.mass, ran.logits, ran.logprobs]
    last = -len(rows.draws)
    return [ran.hidden[-1], *_last(ran), *(array[last:] for array in found if array is not None)]


def _write(runner: Runner, rows: _Rows, *, by_step: bool) -> list[Array]:
    """What there is after two steps of writing: arrays of [rows, …].

    by_step  in a run of the other graph for each step, as it is done where some of the rows want more
    """
    if not by_step:
        uniforms = rows.draws[:, :STEPS].T[:, :, None]
        ran = runner.write(
            rows.tokens[0], rows.states, Written(uniforms, *_choice(rows), True, True, True, _bars(rows))
        )
        assert ran.picked is not None
        assert ran.picked_logprobs is not None
        return [*ran.picked, *ran.picked_logprobs, *_last(ran)]
    token, states = rows.tokens[0], rows.states
    picked: list[Array] = []
    logprobs: list[Array] = []
    for step in range(STEPS):
        ran = runner.run(token[None], states, _asked(rows, range(1), rows.draws[:, step : step + 1]))
        assert ran.picked is not None
        assert ran.picked_logprobs is not None
        token, states = ran.picked, {name: values[-1] for name, values in ran.states.items()}
        picked.append(ran.picked)
        logprobs.append(ran.picked_logprobs)
    return [*picked, *logprobs, *states.values()]


def _asked(rows: _Rows, steps: range, uniforms: Floats) -> Asked:
    """All distributions of some steps of a run, sampled with these numbers."""
    num_rows = len(rows.draws)
    places = np.concatenate([step * num_rows + np.arange(num_rows) for step in steps])
    numbers, inverse, limits = (np.tile(columns, (len(steps), 1)) for columns in (uniforms, *_choice(rows)))
    bars = np.tile(_bars(rows), (len(steps), 1))
    return Asked(places, np.full((len(places), 1), -1), numbers, inverse, limits, True, True, True, True, True, bars)


def _choice(rows: _Rows) -> tuple[Floats, Floats]:
    """Inverse temperatures, float32 [rows, 1], and limits, [rows, 3]."""
    return rows.draws[:, 2:3], rows.draws[:, 3:]


def _bars(rows: _Rows) -> Ids:
    """Tokens that are not taken, int64 [rows, 1]: of every other row or so the first one."""
    return np.where(rows.draws[:, 2:3] < 1, 0, -1)


def _last(ran: Ran) -> list[Floats]:
    """The states after the last step."""
    return [values[-1] for values in ran.states.values()]
