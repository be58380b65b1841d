"""Echo state network: fixed sparse reservoirs of leaky units, and the only trained part, a linear readout.

    u_t   = W_in[x_t]                     or W_in [e_t, … e_{t-k+1}], frozen embeddings of the last k tokens
    r^l_t = tanh(W^l s^l_{t-1} + u^l_t + b^l)            u^l_t = W_below^l s^{l-1}_t in the layers above the first
    s^l_t = (1 - a^l) * s^l_{t-1} + a^l * r^l_t
    m_t   = [s^0_t, … s^{L-1}_t]
    y_t   = V m_t + c                     or V [m_t, tanh(G m_t + d)] + c, with a frozen expansion
                                          V may be of low rank: V = V' P, or depend on m_t: see
                                          `meari.models.cells.reservoir.gated_readout`

symbol     name            shape
x_t        tokens          [batch]                  token ids
e_t        recent          [batch, (k - 1) * E]     state "recent": the embeddings of the last k - 1 tokens
s^l_t      s               [batch, N]               state "s0", "s1", …
m_t        hidden          [batch, L * N]           the states of all layers, the input of the output layer
a, b       leak, bias      [N]                      see `meari.models.cells.reservoir.layer`
W          matrix          [N, N]                   see `meari.models.cells.reservoir.layer`
W_in       entering                                 see `meari.models.cells.reservoir.token_input`
G, d       expansion                                see `meari.models.cells.reservoir.layer`
P          narrowing       [rank, M]                with its bias; M = L * N + features
V, c       readout         [V, M] or [V, rank], [V]
*          product of elements

Input: token ids and a state; to draw a network, a config and a seed. Output: states and logits. Must not know: text,
the training of the readout.

Everything but the readout is a buffer: `build_esn` draws it once, and it has no gradient. Each kind of matrix has a
generator of its own, all of them spawned from the seed, so that a setting of one kind leaves the others unchanged.

Sources: Jaeger, "The echo state approach to analysing and training recurrent neural networks", 2001; leaky units:
Jaeger et al., "Optimization and applications of echo state networks with leaky-integrator neurons", 2007; stacked:
Gallicchio, Micheli and Pedrelli, "Deep reservoir computing: a critical experimental analysis", 2017.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from meari.bundle_format.manifest import StateEntry
from meari.bundle_format.names import RECENT_STATE, RESERVOIR_STATE, STATE_DTYPE, Family
from meari.models.cells.reservoir import Expansion, GatedReadout, RecentTokens, ReservoirLayer, TokenRows
from meari.models.cells.reservoir.layer import DOUBLED
from meari.models.cells.reservoir.weights import (
    RecurrentWeights,
    draw_blocks,
    draw_edges,
    side_by_side,
    spectral_radius,
    with_spectral_radius,
)
from meari.models.choices import Pattern, Reach, Spread
from meari.models.config import ReservoirConfig
from meari.models.dropout import BatchShare
from meari.models.language_model import LanguageModel, State

Generator = np.random.Generator


class EchoStateNetwork(LanguageModel):
    """Reservoirs with a readout, which alone is trained.

    entering       what drives the first layer
    layers         first to last, all of one size
    expansion      None: the readout sees the states alone
    rank           of the readout; 0: one matrix
    gated_dropout  of a gated readout of that rank; None: the readout is linear
    """

    def __init__(
        self,
        entering: TokenRows | RecentTokens,
        layers: Sequence[ReservoirLayer],
        expansion: Expansion | None = None,
        rank: int = 0,
        gated_dropout: float | None = None,
    ) -> None:
        super().__init__()
        self.family = Family.ESN
        self.vocabulary_size, self.units = entering.vocabulary_size, entering.units
        self.entering = entering
        self.layers = nn.ModuleList(layers)
        self.expansion = expansion
        self.hidden_size = len(layers) * self.units
        self.readout_inputs = self.hidden_size + (expansion.features if expansion is not None else 0)
        remembered = (StateEntry(RECENT_STATE, (entering.remembered,), STATE_DTYPE),) if entering.remembered else ()
        states = (StateEntry(f"{RESERVOIR_STATE}{index}", (self.units,), STATE_DTYPE) for index in range(len(layers)))
        self.state_tensors = (*remembered, *states)
        self.narrowing: nn.Linear | None = None
        self.gated: GatedReadout | None = None
        if gated_dropout is None:
            self._make_readout(rank)
        else:
            self.gated = GatedReadout(self.readout_inputs, rank, self.vocabulary_size, gated_dropout)

    @property
    def reservoir_layers(self) -> list[ReservoirLayer]:
        """Layers, first to last."""
        return [layer for layer in self.layers if isinstance(layer, ReservoirLayer)]

    def measured_spectral_radius(self) -> float:
        """Return the largest spectral radius of a layer as it is now: in a fraction of a second, or a few at 8,192
        units.
        """
        return max(spectral_radius(layer.matrix.weights) for layer in self.reservoir_layers)

    @torch.no_grad()
    def forward(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        with _exactly(tokens):
            return self._sequence(tokens, state)

    def _sequence(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        first = self.reservoir_layers[0]
        drive, recent = self.entering.sequence(tokens, state.get(RECENT_STATE), first.bias, DOUBLED)
        next_state: State = {} if recent is None else {RECENT_STATE: recent}
        states: list[Tensor] = []
        for index, layer in enumerate(self.reservoir_layers):
            if states:
                drive = layer.drive_from(states[-1])
            states.append(layer.sequence(drive, tokens.shape[1], state[f"{RESERVOIR_STATE}{index}"].t().contiguous()))
            next_state[f"{RESERVOIR_STATE}{index}"] = states[-1][-1].t().contiguous()
        hidden = torch.cat([each.permute(2, 0, 1) for each in states], -1)  # [T, N, B] → [B, T, L * N]
        return hidden, next_state

    @torch.no_grad()
    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        u, recent = self.entering.step(tokens, state.get(RECENT_STATE))
        next_state: State = {} if recent is None else {RECENT_STATE: recent}
        states: list[Tensor] = []
        for index, layer in enumerate(self.reservoir_layers):
            if layer.below is not None:
                u = layer.below.rows(states[-1])
            states.append(layer.step(u, state[f"{RESERVOIR_STATE}{index}"]))
            next_state[f"{RESERVOIR_STATE}{index}"] = states[-1]
        return torch.cat(states, -1), next_state

    @torch.no_grad()
    def readout_states(self, hidden: Tensor) -> Tensor:
        """Return the input of the readout for each hidden vector: float32 [..., H] → [..., readout_inputs]."""
        if self.expansion is None:
            return hidden
        seen: Tensor = self.expansion(hidden.flatten(0, -2))
        return seen.view(*hidden.shape[:-1], self.readout_inputs)

    def take_share(self, index: int, num_shares: int) -> None:
        if self.gated is not None:
            self.gated.rows = BatchShare(index, num_shares)

    def logits(self, hidden: Tensor) -> Tensor:
        if self.gated is not None:
            logits: Tensor = self.gated(self.readout_states(hidden))
            return logits
        with _exactly(hidden):
            seen = self.readout_states(hidden)
            if self.narrowing is not None:
                seen = functional.linear(seen, self.narrowing.weight, self.narrowing.bias)
            return functional.linear(seen, self.readout.weight, self.readout.bias)

    def _make_readout(self, rank: int) -> None:
        """Make a readout that gives every token the same probability."""
        self.readout = nn.Linear(rank or self.readout_inputs, self.vocabulary_size)
        nn.init.zeros_(self.readout.bias)
        if not rank:
            nn.init.zeros_(self.readout.weight)
            return
        # Only one of the two factors is zero: otherwise neither would ever get a gradient.
        nn.init.normal_(self.readout.weight, std=rank**-0.5)
        self.narrowing = nn.Linear(self.readout_inputs, rank)
        nn.init.zeros_(self.narrowing.weight)
        nn.init.zeros_(self.narrowing.bias)


def _exactly(tensor: Tensor) -> torch.autocast:
    """Switch bfloat16 off: rounding errors would feed back into later states, and a readout of thousands of correlated
    units gives small differences of large sums.
    """
    return torch.autocast(tensor.device.type, enabled=False)


def build_esn(config: ReservoirConfig, vocabulary_size: int, seed: int) -> EchoStateNetwork:
    """Draw reservoirs and set their spectral radii; every token is equally likely.

    Raises ReservoirError where the weights drawn cannot have the spectral radius that the config asks for.
    """
    recurrent, entering, leaking, biasing, stacking, expanding = np.random.default_rng(seed).spawn(6)
    layers = []
    for index in range(config.layers):
        weights = side_by_side(
            [with_spectral_radius(_draw(config, recurrent), radius) for radius in spectral_radii(config)]
        )
        below = _draw_below(config, stacking) if index else None
        bias = _evenly(biasing, -config.bias_scale, config.bias_scale, (config.units,))
        layers.append(ReservoirLayer(weights, below, _draw_leaks(config, leaking), bias))
    return EchoStateNetwork(
        _draw_input(config, vocabulary_size, entering),
        layers,
        _draw_expansion(config, expanding),
        config.readout_rank,
        config.readout_dropout if config.readout_gated else None,
    )


def spectral_radii(config: ReservoirConfig) -> list[float]:
    """Return the spectral radius of each reservoir of a layer, the smallest first."""
    most, count = config.spectral_radius, config.reservoirs
    least = most if config.spectral_radius_min is None else config.spectral_radius_min
    if count == 1 or least == most:
        return [most] * count
    return [least * (most / least) ** (number / (count - 1)) for number in range(count)]


def leak_ranges(config: ReservoirConfig) -> list[tuple[float, float]]:
    """Return the range of the leaks of each reservoir of a layer: one range for all, or bands from the highest down."""
    least, most, count = config.leak_min, config.leak_max, config.reservoirs
    if not config.leak_bands:
        return [(least, most)] * count
    if config.leak_spread is Spread.LOG:
        edges = [float(edge) for edge in np.geomspace(most, least, count + 1)]
    else:
        edges = [float(edge) for edge in np.linspace(most, least, count + 1)]
    return list(zip(edges[1:], edges[:-1], strict=True))


def _draw(config: ReservoirConfig, generator: Generator) -> RecurrentWeights:
    """Draw the weights of one reservoir, with a radius of about one."""
    units = config.units // config.reservoirs
    if config.pattern is Pattern.BLOCK:
        return draw_blocks(units, config.block_size, generator)
    return draw_edges(units, config.in_edges, generator)


def _draw_below(config: ReservoirConfig, generator: Generator) -> RecurrentWeights:
    """Draw the weights from all units of the layer below to all units of this one."""
    if config.pattern is Pattern.BLOCK:
        return draw_blocks(config.units, config.block_size, generator).scaled(config.layer_scale)
    return draw_edges(config.units, config.in_edges, generator).scaled(config.layer_scale)


def _draw_leaks(config: ReservoirConfig, generator: Generator) -> Tensor:
    size = (config.units // config.reservoirs,)
    drawn = []
    for least, most in leak_ranges(config):
        if config.leak_spread is Spread.LOG:
            drawn.append(_evenly(generator, np.log(least), np.log(most), size).exp().clamp(least, most))
        else:
            drawn.append(_evenly(generator, least, most, size))
    return torch.cat(drawn)


def _draw_input(config: ReservoirConfig, vocabulary_size: int, generator: Generator) -> TokenRows | RecentTokens:
    units, size, seen = config.units, config.embedding_size, config.input_tokens
    if not size:
        return TokenRows(_evenly(generator, -config.input_scale, config.input_scale, (vocabulary_size, units)))
    embedding = generator.standard_normal((vocabulary_size, size))
    strength = np.broadcast_to((config.input_decay ** np.arange(seen))[:, None], (seen, units))
    if config.input_reach is Reach.STAGGERED:
        strength = np.where(np.arange(seen)[:, None] <= np.arange(units) % seen, strength, 0.0)
    weights = (generator.standard_normal((seen, size, units)) * strength[:, None, :]).reshape(seen * size, units)
    weights *= config.input_scale / np.sqrt(np.square(weights).sum(0))
    return RecentTokens(_floats(embedding), _floats(weights))


def _draw_expansion(config: ReservoirConfig, generator: Generator) -> Expansion | None:
    if not config.features:
        return None
    groups, edges, block = config.features // config.feature_block, config.feature_edges, config.feature_block
    states = config.layers * config.units
    sources = np.stack([generator.choice(states, edges, replace=False) for _ in range(groups)]).astype(np.int64)
    weights = generator.standard_normal((groups, edges, block)) * config.feature_scale / np.sqrt(edges)
    bias = generator.uniform(-config.feature_bias, config.feature_bias, (groups, 1, block))
    return Expansion(torch.from_numpy(sources), _floats(weights), _floats(bias))


def _evenly(generator: Generator, low: float, high: float, shape: Sequence[int]) -> Tensor:
    return _floats(generator.uniform(low, high, tuple(shape)))


def _floats(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.astype(np.float32))
