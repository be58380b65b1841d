"""From the scores of a regression to probabilities.

In: scores of held-out text, the tokens that really came, and how often each token comes at all. Out: a scale and a
shift a token, with which the scores become logits. Knows nothing of reservoirs.

    logits = scale * scores + shift

Both are fitted by cross-entropy, a convex problem. A shift is held to the logarithm of the token's share of the
training text with the force of one observation, so that a token which the held-out text happens to lack stays possible.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

MAX_ITERATIONS = 200


@dataclass(frozen=True)
class Calibration:
    """scale float64 [], shift float64 [V]"""

    scale: Tensor
    shift: Tensor

    def fold(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Weight [V, N] and bias [V] of the readout whose outputs are the calibrated logits."""
        return self.scale * weight, self.scale * bias + self.shift


def calibrate(scores: Tensor, targets: Tensor, counts: Tensor) -> Calibration:
    """Fit scale and shift.

    scores   floating [n, V]
    targets  int64 [n]
    counts   [V], how often each token came in the training text
    """
    scores = scores.detach().double()
    prior = ((counts.double() + 1) / (counts.double().sum() + len(counts))).log()
    scale = torch.zeros((), dtype=torch.float64, device=scores.device, requires_grad=True)
    shift = prior.clone().requires_grad_()
    search = torch.optim.LBFGS([scale, shift], max_iter=MAX_ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        search.zero_grad()
        held = (shift - prior).square().sum() / (2 * len(targets))
        value = functional.cross_entropy(scale * scores + shift, targets) + held
        value.backward()  # type: ignore[no-untyped-call]
        return value

    search.step(loss)  # type: ignore[no-untyped-call]
    return Calibration(scale.detach(), shift.detach())
