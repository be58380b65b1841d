"""From the scores of a regression to probabilities.

In: scores of held-out text, the tokens that really came, and how often each token comes at all. Out: a scale and a
shift a token, with which the scores become logits. Knows nothing of reservoirs.

    logits_v = scale_v * score_v + shift_v

All of them are fitted together by cross-entropy, a convex problem, on standardised scores z. There a scale is held to
zero and a shift to the logarithm of the token's share of the training text, each with the force of one observation:
a token that the held-out text happens to lack stays as likely as it was.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

MAX_ITERATIONS = 300
LEAST_DEVIATION = 1e-9  # of the scores of a token that never came in the training text: they are all the same


@dataclass(frozen=True)
class Calibration:
    """scale, shift   float64 [V]"""

    scale: Tensor
    shift: Tensor

    def fold(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Weight [V, N] and bias [V] of the readout whose outputs are the calibrated logits."""
        return self.scale.unsqueeze(1) * weight, self.scale * bias + self.shift


def calibrate(scores: Tensor, targets: Tensor, counts: Tensor) -> Calibration:
    """Fit scales and shifts.

    scores   floating [n, V]
    targets  int64 [n]
    counts   [V], how often each token came in the training text
    """
    scores = scores.detach().double()
    mean, deviation = scores.mean(0), scores.std(0, correction=0).clamp_min(LEAST_DEVIATION)
    standard = (scores - mean) / deviation
    prior = ((counts.double() + 1) / (counts.double().sum() + len(counts))).log()
    slope = torch.zeros_like(prior, requires_grad=True)
    shift = prior.clone().requires_grad_()
    search = torch.optim.LBFGS([slope, shift], max_iter=MAX_ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        search.zero_grad()
        held = (slope.square().sum() + (shift - prior).square().sum()) / (2 * len(targets))
        value = functional.cross_entropy(slope * standard + shift, targets) + held
        value.backward()  # type: ignore[no-untyped-call]
        return value

    search.step(loss)  # type: ignore[no-untyped-call]
    scale = slope.detach() / deviation
    return Calibration(scale, shift.detach() - scale * mean)
