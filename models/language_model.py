"""The one interface of all language models, the trained recurrent ones behind it, and how a config becomes a model.

In: token ids and a recurrent state. Out: hidden vectors, the next state, and logits over the vocabulary.
Knows nothing of text, of training, or of how a model is stored.

Shapes: B batch, T time, H hidden_size, E embedding_size, V vocabulary_size.
A state is a dict from the name of each state tensor to float32 [B, *shape]; the caller owns it and it is never
changed in place.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.cells import Cell, GruCell, LstmCell, RnnCell
from models.config import ModelConfig, ReservoirConfig

State = dict[str, Tensor]

_CELLS: dict[str, type[RnnCell] | type[GruCell] | type[LstmCell]] = {
    "rnn": RnnCell,
    "gru": GruCell,
    "lstm": LstmCell,
}


@dataclass(frozen=True)
class StateTensor:
    """One tensor of the recurrent state: its name and its shape without the batch axis."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"


class LanguageModel(nn.Module):
    """P(next token | all tokens before it), carried by a state of fixed size.

    `forward` and `step` agree to 1e-5 in evaluation mode; dropout acts in `forward` alone, while training.
    """

    family: str
    vocabulary_size: int
    hidden_size: int
    state_tensors: tuple[StateTensor, ...]

    def initial_state(self, batch: int) -> State:
        """The state before any token: zeros, on the device of the weights."""
        device = self.device
        return {tensor.name: torch.zeros(batch, *tensor.shape, device=device) for tensor in self.state_tensors}

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def forward(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Run whole sequences.

        tokens   int64 [B, T], each in [0, V), T >= 1
        state    before the first token
        returns  hidden float32 [B, T, H], what enters the output layer after each token, and the state after the last
        """
        raise NotImplementedError

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Run one token, by the equations as they are written.

        tokens   int64 [B], each in [0, V)
        returns  hidden float32 [B, H] and the next state
        """
        raise NotImplementedError

    def logits(self, hidden: Tensor) -> Tensor:
        """Unnormalised log-probabilities of the next token.

        hidden   float32 [..., H]
        returns  float32 [..., V]
        """
        raise NotImplementedError


class RecurrentLanguageModel(LanguageModel):
    """Embedding, a stack of RNN, GRU or LSTM layers, and an output layer that may share the embedding's weights.

    x_t = embedding[token_t]              h^0_t = x_t
    h^l_t = cell_l(h^{l-1}_t)             l = 1 … num_layers
    y_t = V h_t + b                       untied: V is `output`
    y_t = embedding (P h_t) + b           tied: P is `projection`, left out where H = E
    """

    def __init__(
        self,
        family: str,
        vocabulary_size: int,
        embedding_size: int,
        hidden_size: int,
        num_layers: int = 1,
        dropout: float = 0.0,
        tied: bool = False,
    ) -> None:
        super().__init__()
        self.family = family
        self.vocabulary_size = vocabulary_size
        self.embedding_size = embedding_size
        self.hidden_size = hidden_size
        self.embedding = nn.Embedding(vocabulary_size, embedding_size)
        self.layers = nn.ModuleList(
            _CELLS[family](embedding_size if index == 0 else hidden_size, hidden_size) for index in range(num_layers)
        )
        self.dropout = nn.Dropout(dropout)
        self.tied = tied
        self.projection: nn.Linear | None = None
        self.output: nn.Linear | None = None
        self.output_bias: nn.Parameter | None = None
        self._make_output_layer()
        self.state_tensors = tuple(
            StateTensor(f"{name}{index}", (hidden_size,))
            for index, cell in enumerate(self.cells)
            for name in cell.state_names
        )

    @property
    def cells(self) -> list[Cell]:
        """The layers, first to last."""
        return [layer for layer in self.layers if isinstance(layer, Cell)]

    def forward(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        x = self.dropout(self.embedding(tokens))
        next_state: State = {}
        for index, cell in enumerate(self.cells):
            x, cell_state = cell.sequence(x, _cell_state(cell, index, state))
            next_state.update(_named_state(cell, index, cell_state))
            x = self.dropout(x)
        return x, next_state

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        x = self.embedding(tokens)
        next_state: State = {}
        for index, cell in enumerate(self.cells):
            x, cell_state = cell.step(x, _cell_state(cell, index, state))
            next_state.update(_named_state(cell, index, cell_state))
        return x, next_state

    def logits(self, hidden: Tensor) -> Tensor:
        if self.output is not None:
            return functional.linear(hidden, self.output.weight, self.output.bias)
        projected = hidden if self.projection is None else functional.linear(hidden, self.projection.weight)
        return functional.linear(projected, self.embedding.weight, self.output_bias)

    def _make_output_layer(self) -> None:
        if not self.tied:
            nn.init.normal_(self.embedding.weight)
            self.output = nn.Linear(self.hidden_size, self.vocabulary_size)
            nn.init.xavier_uniform_(self.output.weight)
            nn.init.zeros_(self.output.bias)
            return
        # The embedding is an output matrix too: rows of length one keep the first logits small.
        nn.init.normal_(self.embedding.weight, std=self.embedding_size**-0.5)
        self.output_bias = nn.Parameter(torch.zeros(self.vocabulary_size))
        if self.hidden_size != self.embedding_size:
            self.projection = nn.Linear(self.hidden_size, self.embedding_size, bias=False)


def _cell_state(cell: Cell, index: int, state: State) -> tuple[Tensor, ...]:
    return tuple(state[f"{name}{index}"] for name in cell.state_names)


def _named_state(cell: Cell, index: int, cell_state: tuple[Tensor, ...]) -> State:
    return {f"{name}{index}": tensor for name, tensor in zip(cell.state_names, cell_state, strict=True)}


def build_model(config: ModelConfig, vocabulary_size: int, seed: int) -> LanguageModel:
    """Make a fresh model of the configured family, its weights drawn from `seed` alone.

    torch's global generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if isinstance(config, ReservoirConfig):
            from models.cells.esn import build_esn

            return build_esn(config, vocabulary_size, seed)
        return RecurrentLanguageModel(
            str(config.family),
            vocabulary_size,
            config.embedding_size,
            config.hidden_size,
            config.num_layers,
            config.dropout,
            config.tied,
        )
