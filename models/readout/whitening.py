"""Coordinates in which the states of a reservoir vary evenly, so that plain gradient steps get everywhere at one pace.

In: a reservoir and training token ids. Out: a `Whitening`. Knows nothing of optimizers.

States of reservoir units have different means and sizes and are strongly correlated: a few directions hold most of the
variance. With m and d the mean and deviation of each unit, and U the r leading eigenvectors of the correlations, the
readout W acts on whitened states through coordinates Z,

    W = Z P D        D = diag(1 / d),   P = g I + U diag(gains - g) U^T,   gains = 1 / sqrt(eigenvalue + DAMPING),

where g is the gain of the mean eigenvalue that is left, and the bias is c = bias' - W m. P costs 4 N r products for
each token of the vocabulary, a small part of what the gradient itself costs.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from meari.models.cells.esn import EchoStateNetwork
from meari.models.readout.states import Ids, state_chunks

NUM_DIRECTIONS = 256
SAMPLE_TOKENS = 32_768
NUM_PASSES = 2  # of subspace iteration over the sample
DAMPING = 0.01  # of the mean eigenvalue, which is one
LEAST_DEVIATION = 1e-4  # a unit that hardly moves is not blown up
SAMPLE_PIECES = 64


@dataclass(frozen=True)
class Whitening:
    """mean, deviation   float32 [N]
    directions           float32 [N, r], orthonormal columns
    gains                float32 [r + 1]: one a direction, and last the one of all that is left
    """

    mean: Tensor
    deviation: Tensor
    directions: Tensor
    gains: Tensor

    def weights(self, coordinates: Tensor) -> Tensor:
        """W of coordinates Z, both float32 [V, N]."""
        return self._transformed(coordinates) / self.deviation

    def gradient(self, weight_gradient: Tensor, bias_gradient: Tensor) -> Tensor:
        """Gradient for Z from those for W, float32 [V, N], and for the bias, float32 [V]."""
        centred = weight_gradient - torch.outer(bias_gradient, self.mean)
        return self._transformed(centred / self.deviation)

    def bias_shift(self, weights: Tensor) -> Tensor:
        """W m, float32 [V]: what the bias takes off so that states count from their mean."""
        return weights @ self.mean

    def _transformed(self, rows: Tensor) -> Tensor:
        rest = self.gains[-1]
        along = (rows @ self.directions) * (self.gains[:-1] - rest)
        return torch.addmm(rows * rest, along, self.directions.t())


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
    # Within the space found, the eigenvectors of the correlations themselves.
    within = directions.t() @ _correlated(model, sample, mean, deviation, directions) / num_states
    values, turn = torch.linalg.eigh((within + within.t()) / 2)
    # One layout, fresh or from a checkpoint: products of other layouts are rounded in another order.
    leading = (directions @ turn).contiguous()
    return Whitening(mean, deviation, leading, _gains(values.clamp_min(0.0), units))


def _correlated(model: EchoStateNetwork, ids: Ids, mean: Tensor, deviation: Tensor, directions: Tensor) -> Tensor:
    """The product of the states' correlations and the directions, float32 [N, r], times the number of states."""
    product = torch.zeros_like(directions)
    for states, _ in state_chunks(model, ids):
        standard = (states - mean) / deviation
        product.addmm_(standard.t(), standard @ directions)
    return product


def _sample(ids: Ids) -> Ids:
    """Evenly spread pieces of the training text, SAMPLE_TOKENS in all at most."""
    if len(ids) <= SAMPLE_TOKENS:
        return ids
    length = SAMPLE_TOKENS // SAMPLE_PIECES
    begins = np.linspace(0, len(ids) - length, SAMPLE_PIECES).astype(np.int64)
    pieces = [np.asarray(ids[begin : begin + length]) for begin in begins]
    return np.concatenate(pieces)


def _moments(model: EchoStateNetwork, ids: Ids) -> tuple[Tensor, Tensor, int]:
    """Mean and deviation of each unit, float32 [N], and how many states there were."""
    size = model.readout_inputs
    sums = torch.zeros(2, size, dtype=torch.float64, device=model.device)
    num_states = 0
    for states, _ in state_chunks(model, ids):
        exact = states.double()
        sums += torch.stack((exact.sum(0), exact.square().sum(0)))
        num_states += len(states)
    mean = sums[0] / num_states
    variance = (sums[1] / num_states - mean.square()).clamp_min(0.0)
    return mean.float(), variance.sqrt().clamp_min(LEAST_DEVIATION).float(), num_states


def _gains(values: Tensor, units: int) -> Tensor:
    """One over the root of each eigenvalue, and of the mean of those that were not found."""
    rest = ((units - values.sum()) / max(1, units - len(values))).clamp_min(0.0)
    return torch.cat((values, rest.reshape(1))).add(DAMPING).rsqrt()
