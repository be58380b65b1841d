"""Language models of every family, and the step from a config to a fresh model.

Input: a [model] table of a config and the size of the vocabulary. Output: a model with weights drawn from a seed.
Must not know: text, training, the storage of a model.

The recurrent families are built here from the cells in `models/cells`; a reservoir is in `models/cells/esn.py`.
Shapes: B batch, T time, H hidden_size, E embedding_size, V vocabulary_size.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from meari.bundle_format.manifest import StateEntry
from meari.bundle_format.names import STATE_DTYPE, Family
from meari.models.cells import Cell, GruCell, LstmCell, RnnCell
from meari.models.cells.esn import build_esn
from meari.models.config import ModelConfig, RecurrentConfig, ReservoirConfig
from meari.models.dropout import BatchShare, drop
from meari.models.errors import ConfigError
from meari.models.language_model import LanguageModel, State
from meari.models.output_layer import AdaptiveSoftmax, linear_cross_entropy


class RecurrentLanguageModel(LanguageModel):
    """Embedding, a stack of RNN, GRU or LSTM layers, and an output layer that may share the embedding's weights.

    x_t = embedding[token_t]              h^0_t = x_t
    h^l_t = cell_l(h^{l-1}_t)             l = 1 … num_layers; normalised if `norms` is not empty
    y_t = V h_t + b                       V is `output`, or a head and clusters: `adaptive`
    y_t = embedding (P h_t) + b           tied: P is `projection`, left out where H = E

    Dropout sets numbers to zero while training: whole embeddings, then the same entries of x_t, of the outputs of
    layers and of h_t at all steps of a chunk (Gal and Ghahramani, "A theoretically grounded application of dropout in
    recurrent neural networks", 2016).
    """

    def __init__(self, config: RecurrentConfig, vocabulary_size: int) -> None:
        super().__init__()
        self.family = config.family
        self.vocabulary_size = vocabulary_size
        self.embedding_size = config.embedding_size
        self.hidden_size = config.sizes[-1]
        self.embedding = nn.Embedding(vocabulary_size, config.embedding_size)
        input_sizes = (config.embedding_size, *config.sizes[:-1])
        self.layers = nn.ModuleList(_make_cell(config, *sizes) for sizes in zip(input_sizes, config.sizes, strict=True))
        self.norms = nn.ModuleList(nn.LayerNorm(size) for size in config.sizes if config.layer_norm)
        self._dropout = _Dropouts.of(config)
        self.tied = config.tied
        self.projection: nn.Linear | None = None
        self.output: nn.Linear | None = None
        self.output_bias: nn.Parameter | None = None
        self.adaptive: AdaptiveSoftmax | None = None
        self._make_output_layer(config.adaptive_cutoffs)
        self.state_tensors = tuple(
            StateEntry(f"{name}{index}", (size,), STATE_DTYPE)
            for index, (cell, size) in enumerate(zip(self.cells, config.sizes, strict=True))
            for name in cell.state_names
        )
        self.initial = nn.ParameterDict()
        if config.learned_initial_state:
            self.initial.update({tensor.name: torch.zeros(tensor.shape) for tensor in self.state_tensors})

    @property
    def cells(self) -> list[Cell]:
        """Layers, first to last."""
        return [layer for layer in self.layers if isinstance(layer, Cell)]

    def initial_state(self, batch: int) -> State:
        """Return the state before any token: zeros, or learned values; on the device of the weights."""
        if not self.initial:
            return super().initial_state(batch)
        return {tensor.name: self.initial[tensor.name].expand(batch, -1) for tensor in self.state_tensors}

    def take_share(self, index: int, num_shares: int) -> None:
        self._dropout = replace(self._dropout, rows=BatchShare(index, num_shares))

    def forward(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        x = self._dropout.at_input(self.embedding(tokens), tokens, self.vocabulary_size, training=self.training)
        next_state: State = {}
        for index, cell in enumerate(self.cells):
            if index:
                x = self._dropout.between(x, training=self.training)
            x, cell_state = cell.sequence(x, _cell_state(cell, index, state))
            next_state.update(_named_state(cell, index, cell_state))
            x = self._normalised(index, x)
        return self._dropout.at_output(x, training=self.training), next_state

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        x = self.embedding(tokens)
        next_state: State = {}
        for index, cell in enumerate(self.cells):
            x, cell_state = cell.step(x, _cell_state(cell, index, state))
            next_state.update(_named_state(cell, index, cell_state))
            x = self._normalised(index, x)
        return x, next_state

    def logits(self, hidden: Tensor) -> Tensor:
        if self.adaptive is not None:
            return self.adaptive.log_probabilities(hidden)
        if self.output is not None:
            return functional.linear(hidden, self.output.weight, self.output.bias)
        return functional.linear(self._projected(hidden), self.embedding.weight, self.output_bias)

    def loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        if self.adaptive is not None:
            return self.adaptive.loss(hidden.flatten(0, -2), targets.flatten())
        weight, bias = (self.embedding.weight, self.output_bias)
        if self.output is not None:
            weight, bias = self.output.weight, self.output.bias
        else:
            hidden = self._projected(hidden)
        assert bias is not None
        with torch.autocast(hidden.device.type, enabled=False):
            return linear_cross_entropy(hidden.flatten(0, -2), weight, bias, targets.flatten())

    def _projected(self, hidden: Tensor) -> Tensor:
        return hidden if self.projection is None else functional.linear(hidden, self.projection.weight)

    def _normalised(self, index: int, x: Tensor) -> Tensor:
        return self.norms[index](x) if self.norms else x

    def _make_output_layer(self, cutoffs: tuple[int, ...]) -> None:
        if not self.tied:
            nn.init.normal_(self.embedding.weight)
            if cutoffs:
                self.adaptive = AdaptiveSoftmax(self.hidden_size, self.vocabulary_size, cutoffs)
                return
            self.output = nn.Linear(self.hidden_size, self.vocabulary_size)
            nn.init.xavier_uniform_(self.output.weight)
            nn.init.zeros_(self.output.bias)
            return
        # The embedding is also the output matrix: rows of length one keep the first logits small.
        nn.init.normal_(self.embedding.weight, std=self.embedding_size**-0.5)
        self.output_bias = nn.Parameter(torch.zeros(self.vocabulary_size))
        if self.hidden_size != self.embedding_size:
            self.projection = nn.Linear(self.hidden_size, self.embedding_size, bias=False)


@dataclass(frozen=True)
class _Dropouts:
    """Dropout at each place while training; masks are drawn for the whole batch, of which the rows are a share."""

    embedding: float
    input: float
    layers: float
    output: float
    is_locked: bool
    rows: BatchShare = BatchShare()

    @staticmethod
    def of(config: RecurrentConfig) -> "_Dropouts":
        at_input = config.dropout if config.input_dropout is None else config.input_dropout
        at_output = config.dropout if config.output_dropout is None else config.output_dropout
        return _Dropouts(config.embedding_dropout, at_input, config.dropout, at_output, config.locked_dropout)

    def at_input(self, x: Tensor, tokens: Tensor, vocabulary_size: int, *, training: bool) -> Tensor:
        if training and self.embedding:
            kept = functional.dropout(x.new_ones(vocabulary_size, 1), self.embedding)
            x = x * kept[tokens]
        return self._drop(x, self.input, training=training)

    def between(self, x: Tensor, *, training: bool) -> Tensor:
        return self._drop(x, self.layers, training=training)

    def at_output(self, x: Tensor, *, training: bool) -> Tensor:
        return self._drop(x, self.output, training=training)

    def _drop(self, x: Tensor, share: float, *, training: bool) -> Tensor:
        return drop(x, share, self.rows, is_locked=self.is_locked) if training else x


def _make_cell(config: RecurrentConfig, input_size: int, hidden_size: int) -> Cell:
    cell: Cell
    if config.family is Family.LSTM:
        rounds, bias = config.mogrifier_rounds, config.forget_bias
        cell = LstmCell(input_size, hidden_size, mogrifier_rounds=rounds, forget_bias=bias)
    else:
        cell = (GruCell if config.family is Family.GRU else RnnCell)(input_size, hidden_size)
    cell.weight_drop = config.weight_drop
    return cell


def _cell_state(cell: Cell, index: int, state: State) -> tuple[Tensor, ...]:
    return tuple(state[f"{name}{index}"] for name in cell.state_names)


def _named_state(cell: Cell, index: int, cell_state: tuple[Tensor, ...]) -> State:
    return {f"{name}{index}": tensor for name, tensor in zip(cell.state_names, cell_state, strict=True)}


def build_model(config: ModelConfig, vocabulary_size: int, seed: int) -> LanguageModel:
    """Make a fresh model of the configured family, its weights drawn from `seed` alone.

    torch's global generator is left as it was. Raises ConfigError where the config does not fit the vocabulary.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if isinstance(config, ReservoirConfig):
            return build_esn(config, vocabulary_size, seed)
        _check_cutoffs(config.adaptive_cutoffs, vocabulary_size)
        return RecurrentLanguageModel(config, vocabulary_size)


def _check_cutoffs(cutoffs: tuple[int, ...], vocabulary_size: int) -> None:
    if cutoffs and cutoffs[-1] >= vocabulary_size:
        expected = f"numbers below {vocabulary_size}, the size of the vocabulary"
        raise ConfigError("model", [f"model.adaptive_cutoffs: got {cutoffs[-1]}, expected {expected}"])
