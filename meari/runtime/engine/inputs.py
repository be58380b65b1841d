"""What a run of the engine's graphs is asked for: distributions, and how tokens are chosen.

Input: arrays with a row for each token to choose. Output: inputs of the graphs (graphs/engine_graphs.py). Must not
know: sessions, sequences.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from meari.runtime.graphs.sampler import NUM_LIMITS

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
NO_BARS: Final = np.empty((0, 1), np.int64)
FLAGS: Final = (np.array(False), np.array(True))  # noqa: FBT003 (the values themselves)


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

    def feeds(self) -> dict[str, Any]:
        """Return the inputs of a graph."""
        return {
            "inverse_temperatures": self.inverse_temperatures,
            "limits": self.limits,
            "bars": NO_BARS if self.bars is None else self.bars,
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

    @property
    def outputs(self) -> tuple[str, ...]:
        """The outputs of the graph that are wanted of the rows."""
        wanted = {
            ("picked", "picked_logprob"): True,
            ("logits",): self.logits,
            ("logprobs",): self.logprobs,
            ("rank",): self.ranks,
            ("best", "best_logprobs"): self.num_best > 0,
        }
        return tuple(name for names, is_wanted in wanted.items() if is_wanted for name in names)


@dataclass(frozen=True, eq=False)
class WriteInputs:
    """The random numbers of a run in which every step chooses its own tokens, and how it does so.

    uniforms  float32 [steps, rows, 1], in [0, 1)
    redraws   float32 [steps, rows, redraws], likewise, where a row has a top_p
    """

    uniforms: Floats
    redraws: Floats
    choices: Choices
