"""The echo state network: fixed sparse reservoirs of leaky units, and the only trained part, a linear readout.

    u_t   = W_in[x_t]                     or W_in [e_t, … e_{t-k+1}], frozen embeddings of the last k tokens
    r^l_t = tanh(W^l s^l_{t-1} + u^l_t + b^l)            u^l_t = W_below^l s^{l-1}_t in the layers above the first
    s^l_t = (1 - a^l) * s^l_{t-1} + a^l * r^l_t
    m_t   = [s^0_t, … s^{L-1}_t]
    y_t   = V m_t + c                     or V [m_t, tanh(G m_t + d)] + c, with a frozen expansion
                                          V may be of low rank: V = V' P

symbol     name            shape
x_t        tokens          [batch]                  token ids
e_t        recent          [batch, (k - 1) * E]     state "recent": the embeddings of the last k - 1 tokens
s^l_t      s               [batch, N]               state "s0", "s1", …
m_t        hidden          [batch, L * N]           the states of all layers, and what enters the output layer
a, b       leak, bias      [N]                      see `meari.models.cells.reservoir.layer`
W          matrix          [N, N]                   see `meari.models.cells.reservoir.matrix`
W_in       entering                                 see `meari.models.cells.reservoir.token_input`
G, d       expansion                                see `meari.models.cells.reservoir.expansion`
P          narrowing       [rank, M]                with its bias; M = L * N + features
V, c       readout         [V, M] or [V, rank], [V]
*          product of elements

In: token ids and a state. Out: states and logits. Knows nothing of text or of how the readout is trained.

Everything but the readout is a buffer: it is drawn once (`meari.models.cells.esn_drawing`) and has no gradient.

Sources: Jaeger, "The echo state approach to analysing and training recurrent neural networks", 2001; leaky units:
Jaeger et al., "Optimization and applications of echo state networks with leaky-integrator neurons", 2007; stacked:
Gallicchio, Micheli and Pedrelli, "Deep reservoir computing: a critical experimental analysis", 2017.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from meari.models.cells.reservoir import Expansion, RecentTokens, ReservoirLayer, TokenRows
from meari.models.cells.reservoir.layer import DOUBLED
from meari.models.language_model import LanguageModel, State, StateTensor
from meari.models.reservoir import spectral_radius

RECENT = "recent"


class EchoStateNetwork(LanguageModel):
    """Reservoirs that only their readout was trained for.

    entering   what drives the first layer
    layers     first to last, all of one size
    expansion  None: the readout sees the states alone
    rank       of the readout; 0: one matrix
    """

    def __init__(
        self,
        entering: TokenRows | RecentTokens,
        layers: Sequence[ReservoirLayer],
        expansion: Expansion | None = None,
        rank: int = 0,
    ) -> None:
        super().__init__()
        self.family = "esn"
        self.vocabulary_size, self.units = entering.vocabulary_size, entering.units
        self.entering = entering
        self.layers = nn.ModuleList(layers)
        self.expansion = expansion
        self.hidden_size = len(layers) * self.units
        self.readout_inputs = self.hidden_size + (expansion.features if expansion is not None else 0)
        remembered = (StateTensor(RECENT, (entering.remembered,)),) if entering.remembered else ()
        states = (StateTensor(f"s{index}", (self.units,)) for index in range(len(layers)))
        self.state_tensors = (*remembered, *states)
        self.narrowing: nn.Linear | None = None
        self._make_readout(rank)

    @property
    def reservoir_layers(self) -> list[ReservoirLayer]:
        """The layers, first to last."""
        return [layer for layer in self.layers if isinstance(layer, ReservoirLayer)]

    def measured_spectral_radius(self) -> float:
        """The largest spectral radius of a layer as it is now: a fraction of a second, or a few at 8,192 units."""
        return max(spectral_radius(layer.matrix.weights) for layer in self.reservoir_layers)

    @torch.no_grad()
    def forward(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        with _exactly(tokens):
            return self._sequence(tokens, state)

    def _sequence(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        first = self.reservoir_layers[0]
        drive, recent = self.entering.sequence(tokens, state.get(RECENT), first.bias, DOUBLED)
        next_state: State = {} if recent is None else {RECENT: recent}
        states: list[Tensor] = []
        for index, layer in enumerate(self.reservoir_layers):
            if states:
                drive = layer.drive_from(states[-1])
            states.append(layer.sequence(drive, tokens.shape[1], state[f"s{index}"].t().contiguous()))
            next_state[f"s{index}"] = states[-1][-1].t().contiguous()
        hidden = torch.cat([each.permute(2, 0, 1) for each in states], -1)  # [T, N, B] → [B, T, L * N]
        return hidden, next_state

    @torch.no_grad()
    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        u, recent = self.entering.step(tokens, state.get(RECENT))
        next_state: State = {} if recent is None else {RECENT: recent}
        states: list[Tensor] = []
        for index, layer in enumerate(self.reservoir_layers):
            if layer.below is not None:
                u = layer.below.rows(states[-1])
            states.append(layer.step(u, state[f"s{index}"]))
            next_state[f"s{index}"] = states[-1]
        return torch.cat(states, -1), next_state

    @torch.no_grad()
    def readout_states(self, hidden: Tensor) -> Tensor:
        """What the readout sees of each hidden vector: float32 [..., H] → [..., readout_inputs]."""
        if self.expansion is None:
            return hidden
        seen: Tensor = self.expansion(hidden.flatten(0, -2))
        return seen.view(*hidden.shape[:-1], self.readout_inputs)

    def logits(self, hidden: Tensor) -> Tensor:
        with _exactly(hidden):
            seen = self.readout_states(hidden)
            if self.narrowing is not None:
                seen = functional.linear(seen, self.narrowing.weight, self.narrowing.bias)
            return functional.linear(seen, self.readout.weight, self.readout.bias)

    def _make_readout(self, rank: int) -> None:
        """A readout that finds every token equally likely."""
        self.readout = nn.Linear(rank or self.readout_inputs, self.vocabulary_size)
        nn.init.zeros_(self.readout.bias)
        if not rank:
            nn.init.zeros_(self.readout.weight)
            return
        # One of the two factors is zero, not both: else neither would ever get a gradient.
        nn.init.normal_(self.readout.weight, std=rank**-0.5)
        self.narrowing = nn.Linear(self.readout_inputs, rank)
        nn.init.zeros_(self.narrowing.weight)
        nn.init.zeros_(self.narrowing.bias)


def _exactly(tensor: Tensor) -> torch.autocast:
    """No bfloat16: rounding errors would feed back into later states, and a readout of thousands of correlated units
    gives small differences of large sums.
    """
    return torch.autocast(tensor.device.type, enabled=False)
