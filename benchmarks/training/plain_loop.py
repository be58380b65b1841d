"""Plain PyTorch loop as the baseline of meari's training step: torch's own modules in few lines.

Input: a config and chunks of tokens. Output: moved weights. Must not know: meari's models. Sizes, batches, clipping and
optimizer are those of the real training; float32, no dropout, the state carried on from chunk to chunk.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from meari.bundle_format.names import Family
from meari.models.config import RecurrentConfig, TrainingConfig
from meari.models.training.streams import Streams

KINDS = {Family.RNN: nn.RNN, Family.GRU: nn.GRU, Family.LSTM: nn.LSTM}
State = Tensor | tuple[Tensor, ...] | None


class PlainModel(nn.Module):
    """Model of nn.Embedding, nn.RNN, nn.GRU or nn.LSTM, and nn.Linear."""

    def __init__(self, config: RecurrentConfig, vocabulary_size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, config.embedding_size)
        kind = KINDS[config.family]
        self.recurrent = kind(config.embedding_size, config.hidden_size, config.num_layers, batch_first=True)
        self.output = nn.Linear(config.hidden_size, vocabulary_size)

    def forward(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Return logits float32 [B, T, V] and the next state, from tokens int64 [B, T]; None: the state before any
        token.
        """
        hidden, state = self.recurrent(self.embedding(tokens), state)
        return self.output(hidden), state


class PlainLoop:
    """Steps of truncated back-propagation, as a tutorial would write them."""

    def __init__(
        self,
        config: RecurrentConfig,
        training: TrainingConfig,
        vocabulary_size: int,
        streams: Streams,
        *,
        compiled: bool,
    ) -> None:
        self._model = PlainModel(config, vocabulary_size)
        self._run = torch.compile(self._model) if compiled else self._model
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=training.learning_rate)
        self._clip_norm = training.clip_norm
        self._streams = streams
        self._state: State = None

    def train_step(self) -> None:
        """Take one chunk and move the weights."""
        chunk = self._streams.next_chunk()
        logits, state = self._run(torch.from_numpy(chunk.inputs), self._state)
        self._state = tuple(part.detach() for part in state) if isinstance(state, tuple) else state.detach()
        loss = functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(chunk.targets).flatten())
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._model.parameters(), self._clip_norm)
        self._optimizer.step()
        loss.item()
