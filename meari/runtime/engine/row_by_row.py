"""A runner for a CPU on which rows influence one another.

Input, output: those of a Runner. Must not know: sequences. A Runner belongs to one thread at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from meari.runtime.engine.runner import (
    NO_HIDDEN,
    NOTHING,
    Floats,
    Ids,
    ReadInputs,
    Runner,
    RunResult,
    States,
    WriteInputs,
)

__all__ = ["RowByRowRunner"]


class RowByRowRunner(Runner):
    """A runner for a CPU on which rows influence one another: every row and step is run alone.

    It is slower, but results still do not depend on what else runs.
    """

    @classmethod
    def replacing(cls, runner: Runner) -> RowByRowRunner:
        """Make a runner of the same sessions."""
        other = cls(runner.sessions, runner.state_tensors, runner.hidden_size, runner.vocabulary_size, runner.end_id)
        other.hidden_states = runner.hidden_states
        return other

    def run(
        self,
        tokens: Ids,
        states: Mapping[str, Floats],
        inputs: ReadInputs = NOTHING,
        *,
        more_hidden: Floats | None = None,
        want_hidden: bool = False,
    ) -> RunResult:
        """Run the cell for each row and step, then the output layer for each distribution."""
        rows = [self._run_row(tokens[:, [row]], _row_of(states, row)) for row in range(tokens.shape[1])]
        hidden = np.concatenate([result.hidden for result in rows], axis=1)
        new = {name: np.concatenate([result.states[name] for result in rows], axis=1) for name in states}
        more = self._no_hidden if more_hidden is None else more_hidden
        wanted = np.concatenate([hidden.reshape(-1, self.hidden_size), more])[inputs.places]
        token, state, run = np.zeros((1, 1), np.int64), self.initial_states(1), super().run
        outputs = [run(token, state, _one_output(inputs, row), more_hidden=wanted[[row]]) for row in range(len(wanted))]
        of_rows = [name for name in vars(RunResult(new)) if name not in ("states", "hidden") and outputs]
        joined = {name: np.concatenate([getattr(one, name) for one in outputs]) for name in of_rows}
        return RunResult(new, hidden if want_hidden else NO_HIDDEN, **joined)

    def write(self, tokens: Ids, states: Mapping[str, Floats], inputs: WriteInputs) -> RunResult:
        """Write the tokens of each row."""
        rows = []
        for row in range(len(tokens)):
            one = WriteInputs(
                inputs.uniforms[:, [row]], inputs.redraws[:, [row]], inputs.choices.of_rows(np.array([row]))
            )
            rows.append(super().write(tokens[[row]], _row_of(states, row), one))
        return RunResult(
            {name: np.concatenate([result.states[name] for result in rows], axis=1) for name in states},
            picked=np.concatenate([result.picked for result in rows], axis=1),
            picked_logprobs=np.concatenate([result.picked_logprobs for result in rows], axis=1),
        )

    def _run_row(self, tokens: Ids, states: States) -> RunResult:
        """Feed the tokens of one row, int64 [steps, 1], each in a run of its own."""
        steps = []
        for step in range(len(tokens)):
            steps.append(super().run(tokens[[step]], states, want_hidden=True))
            states = {name: values[0] for name, values in steps[-1].states.items()}
        new = {name: np.concatenate([result.states[name] for result in steps]) for name in states}
        return RunResult(new, np.concatenate([result.hidden for result in steps]))


def _row_of(states: Mapping[str, Floats], row: int) -> States:
    return {name: values[[row]] for name, values in states.items()}


def _one_output(inputs: ReadInputs, row: int) -> ReadInputs:
    """Ask for one distribution, of the first row of `more_hidden` beside one row of the cell."""
    return replace(
        inputs,
        places=np.ones(1, np.int64),
        targets=inputs.targets[[row]],
        uniforms=inputs.uniforms[[row]],
        redraws=inputs.redraws[[row]],
        choices=None if inputs.choices is None else inputs.choices.of_rows(np.array([row])),
    )
