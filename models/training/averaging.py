"""The mean of the weights over many steps: it is measured and kept in place of the weights of the last step.

In: a model after each step, and whether its evaluations still improve. Out: the model with the mean in it, for a while.
Knows nothing of losses or files.

    ema        mean ← mean + (1 - d) (weights - mean), d rising to ema_decay, so that the first weights are soon gone
    triggered  the weights themselves, until trigger_patience evaluations brought nothing better; from then on the plain
               mean over all steps since

Sources: Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", 1992; the trigger: Merity et al.,
"Regularizing and optimizing LSTM language models", 2017.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from meari.models.choices import Averaging
from meari.models.config import TrainingConfig
from meari.models.training.optimizer import trained_parameters

COUNT = "count"


class WeightAverage:
    """The mean of a model's trained weights; without averaging, or before the trigger, it is the weights themselves."""

    def __init__(self, model: nn.Module, config: TrainingConfig) -> None:
        self._kind = config.averaging
        self._decay = config.ema_decay
        self._patience = config.trigger_patience
        self._model = model
        self._names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        self._weights = trained_parameters(model)
        self._mean: list[Tensor] = []
        self._count = 0
        if self._kind is Averaging.EMA:
            self._begin()

    @torch.no_grad()
    def add(self) -> None:
        """Take the weights after a step into the mean."""
        if not self._mean:
            return
        self._count += 1
        share = 1 / self._count
        if self._kind is Averaging.EMA:
            share = 1 - min(self._decay, self._count / (10 + self._count))
        torch._foreach_lerp_(self._mean, list(self._weights), share)

    def evaluated(self, evaluations_since_best: int) -> None:
        """Begin to average where the trigger waits for so many evaluations without a better one."""
        if self._kind is Averaging.TRIGGERED and not self._mean and evaluations_since_best >= self._patience:
            self._begin()

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The mean stands in the model's weights within; the weights themselves do again afterwards."""
        if not self._mean:
            yield
            return
        own = [weight.detach().clone() for weight in self._weights]
        _copy(self._mean, self._weights)
        try:
            yield
        finally:
            _copy(own, self._weights)

    def tensors(self) -> dict[str, Tensor]:
        """All that a resumed run needs; empty where nothing is averaged."""
        if not self._mean:
            return {}
        return dict(zip(self._names, self._mean, strict=True)) | {COUNT: torch.tensor(self._count)}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Go on from what `tensors` gave."""
        if tensors:
            self._count = int(tensors[COUNT])
            self._mean = [
                tensors[name].to(weight.device) for name, weight in zip(self._names, self._weights, strict=True)
            ]

    def _begin(self) -> None:
        self._mean = [weight.detach().clone() for weight in self._weights]


@torch.no_grad()
def _copy(sources: list[Tensor], targets: list[nn.Parameter]) -> None:
    for source, target in zip(sources, targets, strict=True):
        target.copy_(source)
