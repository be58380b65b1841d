"""Memory capacity: the delays at which a linear readout can recover an input from the state.

Input: a model. Output: R² against the delay, and their sum. Must not know: text, training.

The inputs are drawn independently of one another, so that only the state can hold an earlier one. For each delay k a
ridge regression reads the token of k steps ago, as an indicator vector, from all numbers of the state:

    R²_k = 1 - sum |y - ŷ|² / sum |y - mean y|²        on steps that the regression has not seen, at least 0
    MC   = R²_1 + R²_2 + …                             the present input, k = 0, is no memory

Source: Jaeger, "Short term memory in echo state networks", 2001, there for one real input, with its squared
correlation; R² of an indicator vector is the same share of variance for a token. A reservoir's capacity depends on how
strongly the input enters, so that a figure says nothing without the input scale.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from meari.claims.evaluation import Floats
from meari.claims.text import Ids
from meari.models.language_model import LanguageModel

NUM_ROWS = 64
FIT, CHOOSE = 0.6, 0.2  # of the steps: to fit on, to choose the ridge on; the rest measures
RIDGES = (1e-6, 1e-4, 1e-2, 1.0)  # times the mean eigenvalue
FORGOTTEN = 3  # delays in a row without a trace, after which the search ends


@dataclass(frozen=True)
class MemoryCurve:
    """r_squared   for delays 0, 1, …; num_states   numbers in the state"""

    r_squared: tuple[float, ...]
    num_states: int

    @property
    def capacity(self) -> float:
        """Sum from k = 1."""
        return sum(self.r_squared[1:])


@torch.no_grad()
def states_of(model: LanguageModel, tokens: Tensor) -> Tensor:
    """Return all state tensors after every token: int64 [batch, time] → float64 [time, batch, numbers]."""
    state = model.initial_state(len(tokens))
    states = []
    for time in range(tokens.shape[1]):
        _, state = model.step(tokens[:, time], state)
        states.append(torch.cat([state[tensor.name].flatten(1) for tensor in model.state_tensors], dim=1))
    return torch.stack(states).double()


def memory_curve(model: LanguageModel, frequencies: Floats, num_tokens: int, num_delays: int, seed: int) -> MemoryCurve:
    """Return R² for delays 0 … num_delays - 1.

    frequencies   float64 [V], how likely each token is drawn
    num_tokens    in all; NUM_ROWS sequences run side by side
    """
    generator = np.random.default_rng(seed)
    shape = (NUM_ROWS, num_tokens // NUM_ROWS)
    tokens = torch.from_numpy(generator.choice(len(frequencies), size=shape, p=frequencies / frequencies.sum()))
    states = states_of(model, tokens)[num_delays:]
    return MemoryCurve(tuple(delayed_r_squared(states, tokens, num_delays, len(frequencies))), states.shape[2])


def delayed_r_squared(states: Tensor, tokens: Tensor, num_delays: int, vocabulary_size: int) -> list[float]:
    """Return R² of the token of k steps ago, read from the state.

    states   float64 [time - num_delays, batch, numbers], after token num_delays and the following
    tokens   int64 [batch, time]
    """
    cuts = [int(share * len(states)) for share in (FIT, FIT + CHOOSE)]
    mean = states[: cuts[0]].mean((0, 1))
    fit, choose, measure = (part.flatten(0, 1) - mean for part in states.tensor_split(cuts))
    values, vectors = torch.linalg.eigh(fit.t() @ fit)
    turned = [part @ vectors for part in (fit, choose, measure)]
    scale = float(values.clamp_min(0).mean())
    found: list[float] = []
    for delay in range(num_delays):
        if len(found) >= FORGOTTEN and not any(found[-FORGOTTEN:]):
            found.append(0.0)
            continue
        then = tokens[:, num_delays - delay : tokens.shape[1] - delay].t()
        targets = [_indicators(part.flatten(), vocabulary_size) for part in then.tensor_split(cuts)]
        mean_target = targets[0].mean(0)
        cross = turned[0].t() @ (targets[0] - mean_target)
        weights = [cross / (values.clamp_min(0) + ridge * scale).unsqueeze(1) for ridge in RIDGES]
        best = max(weights, key=lambda weight: _r_squared(turned[1] @ weight, targets[1] - mean_target))
        found.append(max(0.0, _r_squared(turned[2] @ best, targets[2] - mean_target)))
    return found


def _indicators(tokens: Tensor, vocabulary_size: int) -> Tensor:
    return torch.nn.functional.one_hot(tokens, vocabulary_size).double()


def _r_squared(estimates: Tensor, targets: Tensor) -> float:
    """Return one less the share of the targets' variance that is left; both float64 [n, V]."""
    total = float((targets - targets.mean(0)).square().sum())
    return 1 - float((targets - estimates).square().sum()) / max(total, 1e-12)


def token_frequencies(ids: Ids, vocabulary_size: int) -> Floats:
    """Return the frequency of each token, float64 [V]."""
    return np.bincount(ids, minlength=vocabulary_size).astype(np.float64)
