"""The recurrent states of the sequences that run together, one row each, dense.

A row's number is its slot. What a run returns is what the next one takes, so nothing is copied while the same
sequences run; only when some leave or join are the rows gathered anew. Owned by the engine's thread.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

import numpy as np

from meari.runtime.engine.runner import Runner
from meari.runtime.engine.runs import States
from meari.runtime.engine.sequence import Sequence, StateRow


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

    def keep(self, rows: SequenceOf[int]) -> None:
        """Keep these rows, ascending and distinct, and drop the others."""
        if len(rows) != len(self.sequences):
            self.rearrange(rows, [self.sequences[row] for row in rows])

    def rearrange(self, rows: SequenceOf[int], sequences: list[Sequence]) -> None:
        """Let sequences[i] go on from the state of row rows[i]; a row may be taken more than once."""
        places = np.asarray(rows, np.int64)
        self.states = {name: values[places] for name, values in self.states.items()}
        self.sequences = sequences

    def join(self, sequences: SequenceOf[Sequence]) -> None:
        """Append a row for each."""
        if not sequences:
            return
        fresh = self._runner.initial_states(len(sequences))
        for row, sequence in enumerate(sequences):
            if sequence.state is not None:
                for name, values in sequence.state.items():
                    fresh[name][row] = values
                sequence.state = None
        if self.sequences:
            fresh = {name: np.concatenate([old, fresh[name]]) for name, old in self.states.items()}
        self.states = fresh
        self.sequences = [*self.sequences, *sequences]

    def copy_row(self, row: int) -> StateRow:
        """The state of one row as a value of its own."""
        return {name: values[row].copy() for name, values in self.states.items()}
