"""AdamW for the readout of a reservoir, in whitened coordinates.

In: gradients of the readout's weight and bias, as any training loop makes them. Out: better ones, in place.
Knows nothing of the loop.

The reservoir is fixed, so its states can be measured beforehand, and each step taken in coordinates in which they vary
evenly (`meari.models.readout.whitening`). The weight itself is always the finished one: nothing has to be folded later.
All that the next step depends on is in `state`, as named tensors.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from meari.models.readout.whitening import Whitening

EPSILON = 1e-10
_WHITENING = ("mean", "deviation", "directions", "gains")


class ReadoutAdamW(torch.optim.Optimizer):
    """AdamW over one linear layer whose inputs are the states of a reservoir.

    readout        its weight float32 [V, N] and bias float32 [V]; the weight is zero before the first step
    behind         of a low-rank readout: the layer behind that one, whose inputs are no states: plain AdamW
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

    def _parameters(self) -> tuple[Tensor, Tensor]:
        weight, bias = (group["params"][0] for group in self.param_groups[:2])
        return weight, bias

    def _plain(self) -> list[Tensor]:
        """Weights that are their own coordinates."""
        return [group["params"][0] for group in self.param_groups[2:]]

    def _whitened(self) -> Whitening:
        """The whitening: measured at the first step of a run, later on what `state` holds, resumed or not."""
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
        """One step of AdamW on the coordinates of one parameter."""
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
    """Moments and coordinates before the first step."""
    tensors = {name: torch.zeros_like(parameter) for name in ("coordinates", "exp_avg", "exp_avg_sq")}
    return tensors | {"step": torch.tensor(0.0)}
