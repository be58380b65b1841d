"""Interface of all language models.

Input: token ids and a recurrent state. Output: hidden vectors, the next state, and logits over the vocabulary.
Must not know: text, training, the storage of a model.

Shapes: B batch, T time, H hidden_size, E embedding_size, V vocabulary_size.
A state is a dict from the name of each state tensor to float32 [B, *shape]; the caller owns it and it is never
changed in place.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from meari.bundle_format.manifest import StateEntry
from meari.bundle_format.names import Family

State = dict[str, Tensor]


class LanguageModel(nn.Module):
    """Model of P(next token | all tokens before it), with a state of fixed size.

    `forward` and `step` agree to 1e-5 in evaluation mode; dropout acts in `forward` alone, while training.
    """

    family: Family
    vocabulary_size: int
    hidden_size: int
    state_tensors: tuple[StateEntry, ...]

    def initial_state(self, batch: int) -> State:
        """Return the state before any token: zeros, on the device of the weights."""
        device = self.device
        return {tensor.name: torch.zeros(batch, *tensor.shape, device=device) for tensor in self.state_tensors}

    def restarted(self, state: State, fresh: Tensor) -> State:
        """Return the state with the rows in `fresh`, bool [B], reset to the state before any token."""
        initial = self.initial_state(len(fresh))
        return {
            name: torch.where(fresh.view(-1, *[1] * (tensor.dim() - 1)), initial[name], tensor)
            for name, tensor in state.items()
        }

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device

    def take_share(self, index: int, num_shares: int) -> None:
        """Train on the index-th of equal shares of a batch's rows, with the dropout that they have in the whole
        batch.
        """

    def forward(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Run whole sequences.

        tokens   int64 [B, T], each in [0, V), T >= 1
        state    before the first token
        returns  hidden float32 [B, T, H], the output layer's input after each token, and the state after the last
        """
        raise NotImplementedError

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Run one token by the written-out equations.

        tokens   int64 [B], each in [0, V)
        returns  hidden float32 [B, H] and the next state
        """
        raise NotImplementedError

    def logits(self, hidden: Tensor) -> Tensor:
        """Return unnormalised log-probabilities of the next token.

        hidden   float32 [..., H]
        returns  float32 [..., V]
        """
        raise NotImplementedError

    def loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy in nats.

        hidden   float32 [..., H]
        targets  int64 [...], each in [0, V)
        """
        return functional.cross_entropy(self.logits(hidden).flatten(0, -2), targets.flatten())
