"""Ridge regression of the next token's indicator on the state, in one pass over any amount of text, and its
calibration.

Input: chunks of states and the tokens that follow them. Output: weight and bias of a linear readout with calibrated
logits. Must not know: the source of the states.

With states x_i, one-hot targets y_i and their means, sums over i:

    A = sum (x_i - mean x)(x_i - mean x)^T + ridge I        B = sum (x_i - mean x)(y_i - mean y)^T
    weight = (A^-1 B)^T                                     bias = mean y - weight mean x

so the bias is not penalised. Only X^T X and X^T Y are kept, never the states.

The outputs of the regression estimate probabilities but are none. A scale and a shift a token turn them into logits:

    logits_v = scale_v * score_v + shift_v

All scales and shifts are fitted together by cross-entropy on held-out text, a convex problem, on standardised scores z.
A prior with the weight of one observation holds each scale to zero and each shift to the logarithm of the token's share
of the training text: a token that is missing from the held-out text stays as likely as it was.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from meari.models.errors import RidgeError

BLOCK_UNITS = 1024  # rows of the symmetric X^T X that are added at a time, from the diagonal on
MAX_ITERATIONS = 300
MIN_DEVIATION = 1e-9  # for a token that never occurs in the training text, whose scores are all equal


@dataclass
class RidgeSums:
    """Sums over all states so far, in float64; the products of a chunk are float32, so a chunk has a few thousand rows.

    count    [1]       how many states
    states   [N]       sum of x
    targets  [V]       how often each token followed
    squares  [N, N]    X^T X, its upper half alone
    cross    [V, N]    Y^T X
    """

    count: Tensor
    states: Tensor
    targets: Tensor
    squares: Tensor
    cross: Tensor

    @staticmethod
    def zeros(units: int, vocabulary_size: int, device: torch.device) -> "RidgeSums":
        def zero(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float64, device=device)

        size = vocabulary_size
        return RidgeSums(zero(1), zero(units), zero(size), zero(units, units), zero(size, units))

    def tensors(self) -> dict[str, Tensor]:
        """Return the sums by their names; `RidgeSums(**tensors)` restores them."""
        return dict(vars(self))

    @torch.no_grad()
    def add(self, states: Tensor, targets: Tensor) -> None:
        """Add a chunk.

        states   float32 [n, N]
        targets  int64 [n], each in [0, V)
        """
        units = states.shape[1]
        for begin in range(0, units, BLOCK_UNITS):
            block = states[:, begin : begin + BLOCK_UNITS]
            self.squares[begin : begin + BLOCK_UNITS, begin:] += block.t() @ states[:, begin:]
        followed = torch.zeros(self.cross.shape, dtype=states.dtype, device=states.device)
        self.cross += followed.index_add_(0, targets, states)
        self.states += states.sum(0, dtype=torch.float64)
        self.targets += torch.bincount(targets, minlength=len(self.targets))
        self.count += len(targets)

    def solve(self, ridge: float) -> tuple[Tensor, Tensor]:
        """Solve for weight float64 [V, N] and bias float64 [V], by Cholesky.

        Raises RidgeError where rounding leaves the equations without a solution.
        """
        mean_state, mean_target = self.states / self.count, self.targets / self.count
        upper = self.squares.triu()
        matrix = upper + upper.triu(1).t()
        matrix -= torch.outer(self.states, mean_state)
        matrix.diagonal().add_(ridge)
        cross = self.cross - torch.outer(self.targets, mean_state)
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if int(failed):
            raise RidgeError(
                f"model.ridge: got {ridge}, too little for {int(self.count)} states of {len(mean_state)} units: "
                "the equations are singular; expected a larger one, or more text"
            )
        weight = torch.cholesky_solve(cross.t(), factor).t()
        return weight, mean_target - weight @ mean_state


@dataclass(frozen=True)
class Calibration:
    """Scales and shifts of all tokens.

    scale, shift   float64 [V]
    """

    scale: Tensor
    shift: Tensor

    def fold(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Return weight [V, N] and bias [V] of the readout whose outputs are the calibrated logits."""
        return self.scale.unsqueeze(1) * weight, self.scale * bias + self.shift


def calibrate(scores: Tensor, targets: Tensor, counts: Tensor) -> Calibration:
    """Fit scales and shifts.

    scores   floating [n, V]
    targets  int64 [n]
    counts   [V], how often each token came in the training text
    """
    scores = scores.detach().double()
    mean, deviation = scores.mean(0), scores.std(0, correction=0).clamp_min(MIN_DEVIATION)
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
