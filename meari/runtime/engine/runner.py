"""A bundle under onnxruntime: some steps of the cell, and the output layer and a token for some of the rows.

Enters: token ids, states, which distributions are wanted. Leaves: states, hidden rows, tokens, log-probabilities. It
knows nothing of sequences. onnxruntime takes one thread a session; a Runner belongs to one thread at a time.

Rows must not influence one another. Where the check at load finds that on this CPU they do (`rows_isolated` false),
every row is run alone, so that results stay the same whatever else runs: slower, never different.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from meari.runtime.engine.runs import NOTHING, Asked, Floats, Ids, Ran, States, StateTensor, Written
from meari.runtime.graphs.reader import WANTS
from meari.runtime.graphs.sampler import NUM_LIMITS, is_small

NO_BARS: Final = np.empty((0, 1), np.int64)
TRUE: Final = np.array(True)
FALSE: Final = np.array(False)


@dataclass(frozen=True, eq=False)
class Sessions:
    """onnxruntime's sessions of the two graphs in runtime/graphs: reader.py and writer.py."""

    reader: Any
    writer: Any


class Runner:
    """See the head of this file."""

    def __init__(
        self,
        sessions: Sessions,
        state_tensors: Sequence[StateTensor],
        hidden_size: int,
        vocabulary_size: int,
        end_id: int,
    ) -> None:
        self._reader, self._writer = sessions.reader, sessions.writer
        self.state_tensors = tuple(state_tensors)
        self.hidden_size = hidden_size
        self.vocabulary_size = vocabulary_size
        self.end_id = end_id
        self.rows_isolated = True
        self.sorts = is_small(vocabulary_size)  # whether the graph applies top_p and top_k
        self.hidden_state: str | None = None  # the state tensor that the hidden vector is a copy of, if there is one
        self._next = [f"next.{tensor.name}" for tensor in self.state_tensors]
        self._no_hidden = np.empty((0, hidden_size), np.float32)
        self._unused = {
            "more_hidden": self._no_hidden,
            "rows": np.empty(0, np.int64),
            "targets": np.empty((0, 1), np.int64),
            "uniforms": np.empty((0, 1), np.float32),
            "inverse_temperatures": np.empty((0, 1), np.float32),
            "limits": np.empty((0, NUM_LIMITS), np.float32),
            "bars": NO_BARS,
            **dict.fromkeys(WANTS, FALSE),
        }

    @property
    def state_bytes(self) -> int:
        """Size of the state of one sequence."""
        return sum(4 * int(np.prod(t.shape)) for t in self.state_tensors)

    @property
    def cached_hidden_size(self) -> int:
        """How much of the hidden vector a prefix cache keeps beside the state: nothing where that is a part of it."""
        return 0 if self.hidden_state is not None else self.hidden_size

    def initial_states(self, rows: int) -> States:
        """The state before anything was read: zeros, float32 [rows, *shape]."""
        return {t.name: np.zeros((rows, *t.shape), np.float32) for t in self.state_tensors}

    def run(
        self,
        tokens: Ids,
        states: Mapping[str, Floats],
        asked: Asked = NOTHING,
        *,
        more_hidden: Floats | None = None,
        want_hidden: bool = False,
    ) -> Ran:
        """Feed tokens, and look at some of the distributions.

        tokens       int64 [steps, batch], steps and batch >= 1
        states       float32 [batch, *shape] a tensor, before the first step
        more_hidden  float32 [more, H], hidden rows whose distribution is asked for beside those made here
        """
        more = self._no_hidden if more_hidden is None else more_hidden
        if self.rows_isolated or (tokens.size == 1 and len(asked.places) <= 1):
            return self._run(tokens, states, asked, more, want_hidden)
        return self._run_alone(tokens, states, asked, more, want_hidden)

    def step(self, tokens: Ids, states: Mapping[str, Floats]) -> tuple[Floats, States]:
        """Feed one token to every row, int64 [rows]; returns hidden float32 [rows, H] and the states after it."""
        ran = self.run(tokens[None], states, want_hidden=True)
        assert ran.hidden is not None
        return ran.hidden[0], {name: values[0] for name, values in ran.states.items()}

    def output(self, hidden: Floats) -> tuple[Floats, Floats]:
        """Logits and log-probabilities, float32 [rows, V] each, of hidden rows [rows, H]."""
        places = 1 + np.arange(len(hidden))
        asked = Asked.of(places, np.zeros(len(hidden), np.int64), whole=True)
        ran = self.run(np.zeros((1, 1), np.int64), self.initial_states(1), asked, more_hidden=hidden)
        assert ran.logits is not None
        assert ran.logprobs is not None
        return ran.logits, ran.logprobs

    def write(self, tokens: Ids, states: Mapping[str, Floats], draw: Written) -> Ran:
        """Feed each row its token, then what was sampled, and so on.

        tokens   int64 [rows]
        states   float32 [rows, *shape] a tensor
        returns  `picked` and `picked_logprobs` as [steps, rows]
        """
        if self.rows_isolated or len(tokens) == 1:
            return self._write(tokens, states, draw)
        lone = [
            self._write(tokens[r : r + 1], {k: v[r : r + 1] for k, v in states.items()}, draw.row(r))
            for r in range(len(tokens))
        ]
        return Ran(
            {name: np.concatenate([ran.states[name] for ran in lone], axis=1) for name in states},
            picked=np.concatenate([ran.picked for ran in lone if ran.picked is not None], axis=1),
            picked_logprobs=np.concatenate([r.picked_logprobs for r in lone if r.picked_logprobs is not None], axis=1),
        )

    def _write(self, tokens: Ids, states: Mapping[str, Floats], draw: Written) -> Ran:
        feeds = {
            "token": tokens,
            "uniforms": draw.uniforms,
            "inverse_temperatures": draw.inverse_temperatures,
            "limits": draw.limits,
            "want_samples": TRUE if draw.draws else FALSE,
            "want_tempered": TRUE if draw.tempered else FALSE,
            "want_limits": TRUE if draw.limited else FALSE,
            "bars": NO_BARS if draw.bars is None else draw.bars,
            "want_bars": FALSE if draw.bars is None else TRUE,
        }
        for name, values in states.items():
            feeds[f"state.{name}"] = values
        *new, picked, logprobs = self._writer.run([*self._next, "picked", "picked_logprob"], feeds)
        return Ran(
            {tensor.name: values for tensor, values in zip(self.state_tensors, new, strict=True)},
            picked=picked[:, :, 0],
            picked_logprobs=logprobs[:, :, 0],
        )

    def _run(self, tokens: Ids, states: Mapping[str, Floats], asked: Asked, more: Floats, want_hidden: bool) -> Ran:
        names = list(self._next)
        if want_hidden:
            names.append("hidden")
        any_rows = len(asked.places) > 0
        if any_rows:
            names += ("picked", "picked_logprob")
            if asked.masses:
                names += ("mass_from", "mass")
            if asked.whole:
                names += ("logits", "logprobs")
        feeds = {**self._unused, "tokens": tokens, "more_hidden": more}
        if any_rows:
            feeds |= {
                "rows": asked.places,
                "targets": asked.targets,
                "uniforms": asked.uniforms,
                "inverse_temperatures": asked.inverse_temperatures,
                "limits": asked.limits,
                "want_rows": TRUE,
                "want_samples": TRUE if asked.samples else FALSE,
                "want_tempered": TRUE if asked.tempered else FALSE,
                "want_limits": TRUE if asked.limited else FALSE,
                "bars": NO_BARS if asked.bars is None else asked.bars,
                "want_bars": FALSE if asked.bars is None else TRUE,
                "want_masses": TRUE if asked.masses else FALSE,
            }
        for name, values in states.items():
            feeds[f"state.{name}"] = values
        found = dict(zip(names, self._reader.run(names, feeds), strict=True))
        return Ran(
            states={tensor.name: found[f"next.{tensor.name}"] for tensor in self.state_tensors},
            hidden=found.get("hidden"),
            logits=found.get("logits"),
            logprobs=found.get("logprobs"),
            **{field: found[name][:, 0] for field, name in _COLUMNS if name in found},
        )

    def _run_steps(self, tokens: Ids, states: States, more: Floats) -> Ran:
        """Tokens of one row, int64 [steps, 1], each in a run of its own."""
        runs = []
        for step in range(len(tokens)):
            runs.append(self._run(tokens[step : step + 1], states, NOTHING, more, True))
            states = {name: values[0] for name, values in runs[-1].states.items()}
        hidden = np.concatenate([ran.hidden for ran in runs if ran.hidden is not None])
        return Ran({name: np.concatenate([ran.states[name] for ran in runs]) for name in states}, hidden)

    def _run_alone(
        self, tokens: Ids, states: Mapping[str, Floats], asked: Asked, more: Floats, want_hidden: bool
    ) -> Ran:
        """The same with every row and step by itself: first the cell, then each distribution that is asked for."""
        lone = [
            self._run_steps(tokens[:, row : row + 1], {k: v[row : row + 1] for k, v in states.items()}, more)
            for row in range(tokens.shape[1])
        ]
        hidden = np.concatenate([ran.hidden for ran in lone if ran.hidden is not None], axis=1)
        new = {name: np.concatenate([ran.states[name] for ran in lone], axis=1) for name in states}
        rows = np.concatenate([hidden.reshape(-1, self.hidden_size), more])[asked.places]
        dummy, start = np.zeros((1, 1), np.int64), self.initial_states(1)
        seen = [
            self._run(dummy, start, asked.row(number), rows[number : number + 1], False) for number in range(len(rows))
        ]
        fields = ("picked", "picked_logprobs", "mass_from", "mass", "logits", "logprobs")
        parts = {field: [getattr(ran, field) for ran in seen] for field in fields if seen}
        joined = {field: np.concatenate(values) for field, values in parts.items() if values[0] is not None}
        return Ran(new, hidden if want_hidden else None, **joined)


_COLUMNS: Final = (
    ("picked", "picked"),
    ("picked_logprobs", "picked_logprob"),
    ("mass_from", "mass_from"),
    ("mass", "mass"),
)
