"""What is added to the loss before the gradient is taken, so that hidden vectors stay small and change slowly.

In: hidden vectors, a config. Out: a scalar. Knows nothing of models.
Source: Merity et al., "Revisiting activation regularization for language RNNs", 2017.
"""

import torch
from torch import Tensor

from meari.models.config import TrainingConfig


def penalty(hidden: Tensor, config: TrainingConfig) -> Tensor:
    """Activation regularisation and its temporal form.

    hidden   float [B, T, H], what enters the output layer
    returns  float32, a scalar: weighted means of h_t^2 and of (h_t - h_{t-1})^2
    """
    added = torch.zeros((), device=hidden.device)
    if config.activation_regularisation:
        added = added + config.activation_regularisation * hidden.float().square().mean()
    if config.temporal_regularisation and hidden.shape[1] > 1:
        added = added + config.temporal_regularisation * hidden.float().diff(dim=1).square().mean()
    return added
