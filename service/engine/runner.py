"""A bundle's two graphs under onnxruntime: one step of the cell, and the output layer of some rows.

Enters: token ids and states, hidden rows. Leaves: hidden rows and new states, logits and log-probabilities. It
knows nothing of sequences. onnxruntime takes one thread a session; a Runner belongs to one thread at a time.

Rows must not influence one another. Where the check at load finds that on this CPU they do (`rows_isolated` false),
every row is run alone, so that results stay the same whatever else runs: slower, never different.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
States = dict[str, Floats]  # state tensor -> float32 [rows, *shape]


@dataclass(frozen=True)
class StateTensor:
    """One tensor of the recurrent state, without its batch dimension."""

    name: str
    shape: tuple[int, ...]


class Runner:
    """cell and output are onnxruntime sessions of the bundle's graphs."""

    def __init__(
        self, cell: Any, output: Any, state_tensors: Sequence[StateTensor], vocabulary_size: int, end_id: int
    ) -> None:
        self._cell = cell
        self._output = output
        self.state_tensors = tuple(state_tensors)
        self.vocabulary_size = vocabulary_size
        self.end_id = end_id
        self.rows_isolated = True
        self._cell_outputs = ["hidden", *(f"next_{t.name}" for t in self.state_tensors)]

    @property
    def state_bytes(self) -> int:
        """Size of the state of one sequence."""
        return sum(4 * int(np.prod(t.shape)) for t in self.state_tensors)

    def initial_states(self, rows: int) -> States:
        """The state before anything was read: zeros, float32 [rows, *shape]."""
        return {t.name: np.zeros((rows, *t.shape), np.float32) for t in self.state_tensors}

    def step(self, tokens: npt.NDArray[np.int64], states: Mapping[str, Floats]) -> tuple[Floats, States]:
        """Feed one token to every row.

        tokens   int64 [rows], rows >= 1
        states   float32 [rows, *shape] a tensor
        returns  hidden float32 [rows, hidden_size], and the states after the token, fresh arrays
        """
        if self.rows_isolated or len(tokens) == 1:
            return self._step(tokens, states)
        alone = [
            self._step(tokens[r : r + 1], {k: v[r : r + 1] for k, v in states.items()}) for r in range(len(tokens))
        ]
        joined = {name: np.concatenate([new[name] for _, new in alone]) for name in states}
        return np.concatenate([hidden for hidden, _ in alone]), joined

    def output(self, hidden: Floats) -> tuple[Floats, Floats]:
        """The distribution over the next token for each hidden row.

        hidden   float32 [rows, hidden_size], rows >= 1
        returns  logits and log-probabilities, float32 [rows, vocabulary_size] each
        """
        if self.rows_isolated or len(hidden) == 1:
            return self._distribution(hidden)
        alone = [self._distribution(hidden[r : r + 1]) for r in range(len(hidden))]
        return np.concatenate([logits for logits, _ in alone]), np.concatenate([logprobs for _, logprobs in alone])

    def _step(self, tokens: npt.NDArray[np.int64], states: Mapping[str, Floats]) -> tuple[Floats, States]:
        hidden, *new = self._cell.run(self._cell_outputs, {"token": tokens, **states})
        return hidden, {tensor.name: values for tensor, values in zip(self.state_tensors, new, strict=True)}

    def _distribution(self, hidden: Floats) -> tuple[Floats, Floats]:
        logits, logprobs = self._output.run(["logits", "logprobs"], {"hidden": hidden})
        return logits, logprobs
