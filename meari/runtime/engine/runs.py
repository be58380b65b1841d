"""What a run of the graphs is asked for, and what comes of it: values, without the runtime."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from meari.runtime.graphs.sampler import NUM_LIMITS

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
States = dict[str, Floats]  # state tensor -> float32 [rows, *shape]


@dataclass(frozen=True)
class StateTensor:
    """One tensor of the recurrent state, without its batch dimension."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Asked:
    """Which distributions a run is asked for, and what to take from them.

    places   int64 [rows]: step * batch + row, or past all of these a row of `more_hidden`
    targets  int64 [rows, 1]: the token whose log-probability is wanted, or -1: sample one
    uniforms, inverse_temperatures   float32 [rows, 1], for rows that are sampled
    limits                           float32 [rows, 3]: min_p, top_p, top_k
    """

    places: Ids
    targets: Ids
    uniforms: Floats
    inverse_temperatures: Floats
    limits: Floats
    samples: bool = False  # whether any row is sampled, has a temperature, min_p, top_p
    tempered: bool = False
    limited: bool = False
    masses: bool = False
    whole: bool = False  # whether logits and log-probabilities of all tokens are wanted
    bars: Ids | None = None  # int64 [rows, 1], a token that is not sampled, or -1; None where no row has one

    @classmethod
    def of(cls, places: Ids, targets: Ids, whole: bool = False) -> Asked:
        """Log-probabilities of given targets, int64 [rows] each; nothing is sampled."""
        nothing = np.zeros((len(places), 1), np.float32)
        return cls(
            places, targets[:, None], nothing, nothing, np.zeros((len(places), NUM_LIMITS), np.float32), whole=whole
        )

    def row(self, number: int) -> Asked:
        """Row `number` alone, to be found in the first row of `more_hidden` beside one row of the cell."""
        one = slice(number, number + 1)
        return replace(
            self,
            places=np.ones(1, np.int64),
            targets=self.targets[one],
            uniforms=self.uniforms[one],
            inverse_temperatures=self.inverse_temperatures[one],
            limits=self.limits[one],
            bars=None if self.bars is None else self.bars[one],
        )


@dataclass(frozen=True, eq=False)
class Written:
    """How tokens are taken when every step samples its own.

    uniforms                             float32 [steps, rows, 1]
    inverse_temperatures                 float32 [rows, 1]
    limits                               float32 [rows, 3]
    draws                                false: the likeliest tokens are taken
    bars                                 int64 [rows, 1], a token that is not taken, or -1; None where no row has one
    """

    uniforms: Floats
    inverse_temperatures: Floats
    limits: Floats
    draws: bool
    tempered: bool
    limited: bool
    bars: Ids | None = None

    def row(self, row: int) -> Written:
        """Of one row alone."""
        one = slice(row, row + 1)
        return replace(
            self,
            uniforms=self.uniforms[:, one],
            inverse_temperatures=self.inverse_temperatures[one],
            limits=self.limits[one],
            bars=None if self.bars is None else self.bars[one],
        )


@dataclass(frozen=True, eq=False)
class Ran:
    """What came of a run; arrays that were not asked for are None.

    states           state tensor -> float32 [steps, batch, *shape], after every step
    hidden           float32 [steps, batch, H]
    picked           int64 [rows]
    picked_logprobs  float32 [rows]
    mass_from, mass  float32 [rows]
    logits, logprobs float32 [rows, V]
    """

    states: States
    hidden: Floats | None = None
    picked: Ids | None = None
    picked_logprobs: Floats | None = None
    mass_from: Floats | None = None
    mass: Floats | None = None
    logits: Floats | None = None
    logprobs: Floats | None = None


NOTHING: Final = Asked.of(np.empty(0, np.int64), np.empty(0, np.int64))
