"""Softmax readout of a reservoir: trained by cross-entropy in the same loop as every other model, by AdamW in whitened
coordinates.

Input: a reservoir, its training text, a config; gradients of the readout's weight and bias. Output: an optimizer, which
moves them in place. Must not know: the training loop.

States of reservoir units have different means and sizes and are strongly correlated: a few directions hold most of the
variance. With m and d the mean and deviation of each unit, and U the r leading eigenvectors of the correlations, the
readout W acts on whitened states through coordinates Z,

    W = Z P D        D = diag(1 / d),   P = g I + U diag(gains - g) U^T,   gains = 1 / sqrt(eigenvalue + DAMPING),

where g is the gain of the mean of the other eigenvalues, and the bias is c = bias' - W m. P costs 4 N r products for
each token of the vocabulary, a small part of the cost of the gradient.

The reservoir is fixed, so its states are measured once, and each step is taken in coordinates in which they vary
evenly. The weight is always the finished one: nothing has to be folded later. Everything that the next step depends on
is in `state`, as named tensors.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from meari.models.cells.esn import EchoStateNetwork
from meari.models.cells.reservoir.gated_readout import NUM_DIRECTIONS, Whitening
from meari.models.config import TrainingConfig
from meari.models.readout.states import Ids, state_chunks

SAMPLE_TOKENS = 32_768
NUM_PASSES = 2  # of subspace iteration over the sample
DAMPING = 0.01  # of the mean eigenvalue, which is one
MIN_DEVIATION = 1e-4  # a unit that hardly varies is not amplified
SAMPLE_PIECES = 64
EPSILON = 1e-10
_WHITENING = ("mean", "deviation", "directions", "gains")
BETAS = (0.9, 0.99)
SAMPLE_SEED = 0  # seed of the start vectors of the search for the leading directions; it hardly affects the result


@torch.no_grad()
def measure_whitening(model: EchoStateNetwork, ids: Ids, seed: int) -> Whitening:
    """Run a sample of the training text and find the leading directions by randomised subspace iteration.

    Source: Halko, Martinsson and Tropp, "Finding structure with randomness", 2011.
    """
    sample = _sample(ids)
    mean, deviation, num_states = _moments(model, sample)
    units = len(mean)
    rank = max(1, min(NUM_DIRECTIONS, units // 2, num_states // 2))
    start = np.random.default_rng(seed).standard_normal((units, rank)).astype(np.float32)
    directions = torch.linalg.qr(torch.from_numpy(start).to(mean.device))[0]
    for _ in range(NUM_PASSES):
        directions = torch.linalg.qr(_correlated(model, sample, mean, deviation, directions))[0]
    # Find the eigenvectors of the correlations within that space.
    within = directions.t() @ _correlated(model, sample, mean, deviation, directions) / num_states
    values, turn = torch.linalg.eigh((within + within.t()) / 2)
    # The layout is the same when fresh and when restored: products of another layout round differently.
    leading = (directions @ turn).contiguous()
    return Whitening(mean, deviation, leading, _gains(values.clamp_min(0.0), units))


def whiten_gated_readout(model: EchoStateNetwork, ids: Ids) -> None:
    """Let a gated readout count states in coordinates that are measured on a sample of the row of training tokens."""
    if model.gated is not None:
        model.gated.whiten(measure_whitening(model, ids, SAMPLE_SEED))


def _correlated(model: EchoStateNetwork, ids: Ids, mean: Tensor, deviation: Tensor, directions: Tensor) -> Tensor:
    """Return the product of the states' correlations and the directions, float32 [N, r], times the number of states."""
    product = torch.zeros_like(directions)
    for states, _ in state_chunks(model, ids):
        standard = (states - mean) / deviation
        product.addmm_(standard.t(), standard @ directions)
    return product


def _sample(ids: Ids) -> Ids:
    """Return evenly spread pieces of the training text, at most SAMPLE_TOKENS in all."""
    if len(ids) <= SAMPLE_TOKENS:
        return ids
    length = SAMPLE_TOKENS // SAMPLE_PIECES
    begins = np.linspace(0, len(ids) - length, SAMPLE_PIECES).astype(np.int64)
    pieces = [np.asarray(ids[begin : begin + length]) for begin in begins]
    return np.concatenate(pieces)


def _moments(model: EchoStateNetwork, ids: Ids) -> tuple[Tensor, Tensor, int]:
    """Return mean and deviation of each unit, float32 [N], and the number of states."""
    size = model.readout_inputs
    sums = torch.zeros(2, size, dtype=torch.float64, device=model.device)
    num_states = 0
    for states, _ in state_chunks(model, ids):
        exact = states.double()
        sums += torch.stack((exact.sum(0), exact.square().sum(0)))
        num_states += len(states)
    mean = sums[0] / num_states
    variance = (sums[1] / num_states - mean.square()).clamp_min(0.0)
    return mean.float(), variance.sqrt().clamp_min(MIN_DEVIATION).float(), num_states


def _gains(values: Tensor, units: int) -> Tensor:
    """Return one over the root of each eigenvalue, and of the mean of the other eigenvalues."""
    rest = ((units - values.sum()) / max(1, units - len(values))).clamp_min(0.0)
    return torch.cat((values, rest.reshape(1))).add(DAMPING).rsqrt()


class ReadoutAdamW(torch.optim.Optimizer):
    """AdamW over one linear layer whose inputs are the states of a reservoir.

    readout        its weight float32 [V, N] and bias float32 [V]; the weight is zero before the first step
    behind         of a low-rank readout: the second layer, whose inputs are not states: plain AdamW
    measure        makes the whitening; called once, at the first step of a run
    betas          decay of the gradient's two moments
    weight_decay   pull towards zero, in the whitened coordinates; not on the bias

    state[weight]  step, coordinates, exp_avg, exp_avg_sq float32 [V, N], and the whitening's tensors
    state[bias]    step, coordinates (the bias that counts from the mean state), exp_avg, exp_avg_sq float32 [V]
    """

    def __init__(
        self,
        readout: nn.Linear,
        measure: Callable[[], Whitening],
        *,
        lr: float,
        betas: tuple[float, float],
        weight_decay: float,
        behind: nn.Linear | None = None,
    ) -> None:
        self._measure = measure
        self._whitening: Whitening | None = None
        groups = [
            {"params": [readout.weight], "weight_decay": weight_decay},
            {"params": [readout.bias], "weight_decay": 0.0},
        ]
        if behind is not None:
            groups += [{"params": [behind.weight], "weight_decay": 0.0}, {"params": [behind.bias], "weight_decay": 0.0}]
        super().__init__(groups, {"lr": lr, "betas": betas})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move all weights by one step; each needs a gradient."""
        assert closure is None, "a step takes the gradients that are there"
        weight, bias = self._parameters()
        assert weight.grad is not None, "backward comes before a step"
        assert bias.grad is not None, "backward comes before a step"
        whitening = self._whitened()
        self._move(0, whitening.gradient(weight.grad, bias.grad))
        self._move(1, bias.grad)
        weight.copy_(whitening.weights(self.state[weight]["coordinates"]))
        bias.copy_(self.state[bias]["coordinates"] - whitening.bias_shift(weight))
        for index, parameter in enumerate(self._plain(), 2):
            assert parameter.grad is not None, "backward comes before a step"
            self._move(index, parameter.grad)
            parameter.copy_(self.state[parameter]["coordinates"])

    def further_moments(self, weight: Tensor, rank: int) -> dict[str, Tensor]:
        """Return stand-ins, on the meta device, for what `state` has of a weight besides the moments of AdamW.

        rank   r of the whitening's directions
        """
        like = torch.empty_like(weight, device="meta")
        moments = {"coordinates": like}
        if weight is self._parameters()[0]:
            units = weight.shape[1]
            shapes = (units,), (units,), (units, rank), (rank + 1,)
            moments |= {name: like.new_empty(shape) for name, shape in zip(_WHITENING, shapes, strict=True)}
        return moments

    def _parameters(self) -> tuple[Tensor, Tensor]:
        weight, bias = (group["params"][0] for group in self.param_groups[:2])
        return weight, bias

    def _plain(self) -> list[Tensor]:
        """Return the weights that are their own coordinates."""
        return [group["params"][0] for group in self.param_groups[2:]]

    def _whitened(self) -> Whitening:
        """Return the whitening: measured at the first step of a run, later restored from `state`."""
        weight, bias = self._parameters()
        kept = self.state[weight]
        if "mean" not in kept:
            whitening = self._measure()
            kept.update({name: getattr(whitening, name) for name in _WHITENING})
            for parameter in (weight, bias):
                self.state[parameter].update(_beginning(parameter))
            for parameter in self._plain():
                self.state[parameter].update(_beginning(parameter) | {"coordinates": parameter.clone()})
        if self._whitening is None or self._whitening.mean is not kept["mean"]:
            self._whitening = Whitening(*(kept[name] for name in _WHITENING))
        return self._whitening

    def _move(self, index: int, gradient: Tensor) -> None:
        """Run one step of AdamW on the coordinates of one parameter."""
        group = self.param_groups[index]
        kept = self.state[group["params"][0]]
        first, second = group["betas"]
        kept["step"] += 1
        count = int(kept["step"])
        kept["exp_avg"].lerp_(gradient, 1 - first)
        kept["exp_avg_sq"].lerp_(gradient.square(), 1 - second)
        deviation = (kept["exp_avg_sq"] / (1 - second**count)).sqrt_().add_(EPSILON)
        coordinates = kept["coordinates"]
        coordinates.mul_(1 - group["lr"] * group["weight_decay"])
        coordinates.addcdiv_(kept["exp_avg"], deviation, value=-group["lr"] / (1 - first**count))


def _beginning(parameter: Tensor) -> dict[str, Tensor]:
    """Return moments and coordinates before the first step."""
    tensors = {name: torch.zeros_like(parameter) for name in ("coordinates", "exp_avg", "exp_avg_sq")}
    return tensors | {"step": torch.tensor(0.0)}


def readout_optimizer(model: EchoStateNetwork, ids: Ids, config: TrainingConfig) -> ReadoutAdamW:
    """Make AdamW for the readout, whitened on a sample of the training text.

    ids   the row of training tokens
    """
    first = model.readout if model.narrowing is None else model.narrowing
    return ReadoutAdamW(
        first,
        lambda: measure_whitening(model, ids, SAMPLE_SEED),
        lr=config.learning_rate,
        betas=BETAS,
        weight_decay=config.weight_decay,
        behind=None if model.narrowing is None else model.readout,
    )
