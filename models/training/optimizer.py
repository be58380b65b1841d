"""Optimizer, learning rate, penalties and the mean of the weights: everything that decides how weights move.

Input: a model, a config, gradients, hidden vectors. Output: an optimizer, a rate, a scalar that is added to the loss,
the mean of the weights. Must not know: the training loop, files.

The mean of the weights over many steps is measured and kept in place of the weights of the last step:

    ema        mean ← mean + (1 - d) (weights - mean), d rising to ema_decay, so that the first weights fade soon
    triggered  the weights themselves, until trigger_patience evaluations in a row brought no improvement; from then on
               the plain mean over all steps since

Sources: Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", 1992; the trigger: Merity et al.,
"Regularizing and optimizing LSTM language models", 2017; the penalties: Merity et al., "Revisiting activation
regularization for language RNNs", 2017.
"""

import contextlib
import math
from collections.abc import Collection, Iterator

import torch
from torch import Tensor, nn

from meari.models.cells.esn import EchoStateNetwork
from meari.models.choices import Averaging, Optimizer
from meari.models.config import TrainingConfig
from meari.models.readout.softmax import ReadoutAdamW, readout_optimizer
from meari.models.readout.states import Ids
from meari.models.training.muon import BLOCKS, MOMENTUM_BUFFER, MuonAdamW, muon_groups, products_of

BETAS = (0.9, 0.99)
COUNT = "count"


def build_optimizer(model: nn.Module, config: TrainingConfig, ids: Ids) -> torch.optim.Optimizer:
    """Make the config's optimizer, with weight decay on matrices alone: not on biases, not on embeddings.

    ids   the row of training tokens: the states of a reservoir are measured on it, so that its readout learns faster
    """
    if isinstance(model, EchoStateNetwork) and model.gated is None:
        return readout_optimizer(model, ids, config)
    by_muon = muon_groups(model, config) if config.optimizer is Optimizer.MUON else []
    moved_by_muon = {id(weight) for group in by_muon for weight in group["params"]}
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for parameter in trained_parameters(model):
        if id(parameter) in moved_by_muon:
            continue
        is_matrix = parameter.dim() > 1 and id(parameter) not in embeddings
        (decayed if is_matrix else free).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if not by_muon:
        return torch.optim.AdamW(groups, lr=config.learning_rate, betas=BETAS)
    return MuonAdamW(
        by_muon + groups, products_of(config), config.muon_iterations, lr=config.learning_rate, betas=BETAS
    )


def trained_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the trained weights, in the model's order."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Use `rate` from the next step on, or a multiple of it in a group that has a `rate_factor`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("rate_factor", 1.0)


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """Return the optimizer's moments as `NAME OF WEIGHT/MOMENT`; empty before the first step."""
    tensors = {}
    for name, parameter in model.named_parameters():
        for moment, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{name}/{moment}"] = value
    return tensors


def expected_moments(
    optimizer: torch.optim.Optimizer, model: nn.Module, kept: Collection[str], rank: int
) -> dict[str, Tensor]:
    """Return stand-ins, on the meta device, for what `optimizer_tensors` returns after a step.

    kept   names that a snapshot has: the clusters of an adaptive softmax have none until one of their tokens has come
    rank   columns of the directions in which a reservoir's states vary most
    """
    groups = {id(weight): group for group in optimizer.param_groups for weight in group["params"]}
    adaptive = [module for module in model.modules() if isinstance(module, nn.AdaptiveLogSoftmaxWithLoss)]
    rare = {id(weight) for module in adaptive for weight in module.tail.parameters()}
    expected: dict[str, Tensor] = {}
    for name, weight in model.named_parameters():
        group = groups.get(id(weight))
        if group is None or (id(weight) in rare and not any(each.startswith(f"{name}/") for each in kept)):
            continue
        like = torch.empty_like(weight, device="meta")
        moments = {"step": like.new_empty(()), "exp_avg": like, "exp_avg_sq": like}
        if BLOCKS in group:
            moments = {MOMENTUM_BUFFER: like}
        elif isinstance(optimizer, ReadoutAdamW):
            moments |= optimizer.further_moments(weight, rank)
        expected |= {f"{name}/{moment}": tensor for moment, tensor in moments.items()}
    return expected


def restore_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Restore what `optimizer_tensors` returned."""
    for name, parameter in model.named_parameters():
        prefix = f"{name}/"
        moments = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        if moments:
            # The count of steps stays on AdamW's device; the moments are on the device of their weight.
            optimizer.state[parameter] = {
                moment: value.clone() if moment == "step" else value.to(parameter.device)
                for moment, value in moments.items()
            }


class WeightAverage:
    """Mean of a model's trained weights; without averaging, or before the trigger, the weights themselves."""

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
        """Add the weights after a step to the mean."""
        if not self._mean:
            return
        self._count += 1
        share = 1 / self._count
        if self._kind is Averaging.EMA:
            share = 1 - min(self._decay, self._count / (10 + self._count))
        torch._foreach_lerp_(self._mean, list(self._weights), share)

    def evaluated(self, evaluations_since_best: int) -> None:
        """Start averaging if this many evaluations without an improvement pull the trigger."""
        if self._kind is Averaging.TRIGGERED and not self._mean and evaluations_since_best >= self._patience:
            self._begin()

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Put the mean into the model's weights within the block, and the weights back afterwards."""
        if not self._mean:
            yield
            return
        own = [weight.detach().clone() for weight in self._weights]
        _copy(self._mean, self._weights)
        try:
            yield
        finally:
            _copy(own, self._weights)

    def expected_tensors(self, *, is_empty: bool) -> dict[str, Tensor]:
        """Return stand-ins, on the meta device, for what `tensors` returns after a step.

        is_empty   a snapshot has no mean, which may be so before the trigger
        """
        if self._kind is Averaging.NONE or (self._kind is Averaging.TRIGGERED and is_empty):
            return {}
        means = [torch.empty_like(weight, device="meta") for weight in self._weights]
        count = torch.empty((), dtype=torch.int64, device="meta")
        return dict(zip(self._names, means, strict=True)) | {COUNT: count}

    def tensors(self) -> dict[str, Tensor]:
        """Return everything that a resumed run needs; empty if nothing is averaged."""
        if not self._mean:
            return {}
        return dict(zip(self._names, self._mean, strict=True)) | {COUNT: torch.tensor(self._count)}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `tensors` returned."""
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


def penalty(hidden: Tensor, config: TrainingConfig) -> Tensor:
    """Return activation regularisation and its temporal form.

    hidden   float [B, T, H], the input of the output layer
    returns  float32, a scalar: weighted means of h_t^2 and of (h_t - h_{t-1})^2
    """
    added = torch.zeros((), device=hidden.device)
    if config.activation_regularisation:
        added = added + config.activation_regularisation * hidden.float().square().mean()
    if config.temporal_regularisation and hidden.shape[1] > 1:
        added = added + config.temporal_regularisation * hidden.float().diff(dim=1).square().mean()
    return added


def learning_rate(config: TrainingConfig, step: int, total_steps: int, share_of_time: float = 0.0) -> float:
    """Return the rate of one step: linear up to `learning_rate`, then half a cosine down to `min_learning_rate`.

    step            from 0 to total_steps - 1; the first one already learns
    share_of_time   of a run that ends by the clock, 0 … 1: the rate falls as far as steps or time are used up
    """
    peak, floor = config.learning_rate, config.min_learning_rate
    warmup = min(config.warmup_steps, total_steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    share_done = min(1.0, max((step - warmup) / max(1, total_steps - warmup), share_of_time))
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * share_done))
