"""The recurrent states of the running sequences, one row each, dense.

A row's number is its slot. What a step returns is what the next step takes, so nothing is copied while the same
sequences run; only when some leave or join are the rows gathered anew. Owned by the engine's thread.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

import numpy as np
import numpy.typing as npt

from service.engine.runner import Runner, States
from service.engine.sequence import Sequence, StateRow


class Batch:
    """Running sequences and their states.

    sequences   row i belongs to sequences[i]
    states      state tensor -> float32 [rows, *shape]
    """

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.sequences: list[Sequence] = []
        self.states: States = runner.initial_states(0)

    def __len__(self) -> int:
        return len(self.sequences)

    def change(self, keep: SequenceOf[int], join: SequenceOf[Sequence]) -> None:
        """Keep the rows `keep` (ascending, distinct), drop the others, and append a row for each that joins."""
        if len(keep) == len(self.sequences) and not join:
            return
        fresh = self._runner.initial_states(len(join))
        for row, sequence in enumerate(join):
            if sequence.state is not None:
                for name, values in sequence.state.items():
                    fresh[name][row] = values
                sequence.state = None
        rows = np.asarray(keep, np.int64)
        self.states = {name: np.concatenate([old[rows], fresh[name]]) for name, old in self.states.items()}
        self.sequences = [self.sequences[row] for row in keep] + list(join)

    def step(self) -> npt.NDArray[np.float32]:
        """Feed every sequence its next token; returns the hidden rows, float32 [rows, hidden]."""
        tokens = np.fromiter((s.next_token for s in self.sequences), np.int64, len(self.sequences))
        hidden, self.states = self._runner.step(tokens, self.states)
        for sequence in self.sequences:
            sequence.fed += 1
        return hidden

    def copy_row(self, row: int) -> StateRow:
        """The state of one row as a value of its own."""
        return {name: values[row].copy() for name, values in self.states.items()}
