"""AdamW over a model's trained weights, and its state as named tensors that a checkpoint can hold.

In: a model, a config. Out: an optimizer. Knows nothing of steps or schedules.
"""

import torch
from torch import Tensor, nn

from meari.models.cells.esn import EchoStateNetwork
from meari.models.config import TrainingConfig
from meari.models.readout.softmax import readout_optimizer
from meari.models.readout.states import Ids

BETAS = (0.9, 0.99)


def build_optimizer(model: nn.Module, config: TrainingConfig, ids: Ids) -> torch.optim.Optimizer:
    """AdamW with weight decay on matrices alone: not on biases, not on embeddings.

    ids   the row of training tokens: the states of a reservoir are measured on it, so that its readout learns faster
    """
    if isinstance(model, EchoStateNetwork):
        return readout_optimizer(model, ids, config)
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for parameter in trained_parameters(model):
        is_matrix = parameter.dim() > 1 and id(parameter) not in embeddings
        (decayed if is_matrix else free).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=config.learning_rate, betas=BETAS)


def trained_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The weights that learn, in the model's order."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Use `rate` from the next step on."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The optimizer's moments as `NAME OF WEIGHT/MOMENT`; empty before the first step."""
    tensors = {}
    for name, parameter in model.named_parameters():
        for moment, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{name}/{moment}"] = value
    return tensors


def restore_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Take back what `optimizer_tensors` gave."""
    for name, parameter in model.named_parameters():
        prefix = f"{name}/"
        moments = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        if moments:
            # The count of steps stays where AdamW made it; the moments lie beside their weight.
            optimizer.state[parameter] = {
                moment: value.clone() if moment == "step" else value.to(parameter.device)
                for moment, value in moments.items()
            }
