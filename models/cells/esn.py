"""The echo state network: a fixed sparse reservoir of leaky units, and the only trained part, a linear readout.

    r_t = tanh(W s_{t-1} + W_in[x_t] + b)
    s_t = (1 - a) * s_{t-1} + a * r_t
    y_t = V s_t + c

symbol   name             shape
x_t      tokens           [batch]                  token ids
s_t      s                [batch, N]               state "s0", and what enters the readout
r_t      r                [batch, N]               what the units would become without their leak
a        leak             [N]                      leak rates, drawn evenly from leak_min … leak_max
W        blocks, or       [S, K, K]                recurrent weights, see `models.reservoir`
         in_index,        int64 [N, k]
         in_weight        [N, k]
W_in     input_weights    [vocabulary_size, N]     drawn evenly from -input_scale … input_scale
b        bias             [N]                      drawn evenly from -bias_scale … bias_scale
V, c     readout          [vocabulary_size, N], [vocabulary_size]
*        product of elements

In: token ids and a state. Out: states and logits. Knows nothing of text or of how the readout is trained.

Everything but the readout is a buffer: it is drawn once, from one generator a matrix, all of them spawned from one
seed, and has no gradient.

Sources: Jaeger, "The echo state approach to analysing and training recurrent neural networks", 2001; leaky units:
Jaeger et al., "Optimization and applications of echo state networks with leaky-integrator neurons", 2007.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.choices import Pattern
from models.language_model import LanguageModel, State, StateTensor
from models.reservoir import (
    BlockWeights,
    EdgeWeights,
    RecurrentWeights,
    draw_blocks,
    draw_edges,
    spectral_radius,
    with_spectral_radius,
)

if TYPE_CHECKING:
    from models.config import ReservoirConfig

STATE = "s0"


class EchoStateNetwork(LanguageModel):
    """A reservoir that only its readout was trained for; logits are V s + c.

    weights         recurrent weights of either pattern, at the spectral radius wanted
    input_weights   float32 [vocabulary_size, N]
    leak, bias      float32 [N], leak in (0, 1]
    """

    blocks: Tensor
    in_index: Tensor
    in_weight: Tensor
    input_weights: Tensor
    leak: Tensor
    bias: Tensor

    def __init__(self, weights: RecurrentWeights, input_weights: Tensor, leak: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.family = "esn"
        self.vocabulary_size, self.hidden_size = input_weights.shape
        self.state_tensors = (StateTensor(STATE, (self.hidden_size,)),)
        self.pattern = Pattern.BLOCK if isinstance(weights, BlockWeights) else Pattern.RANDOM
        if isinstance(weights, BlockWeights):
            self.register_buffer("blocks", torch.from_numpy(weights.blocks).clone())
        else:
            self.register_buffer("in_index", torch.from_numpy(weights.in_index).clone())
            self.register_buffer("in_weight", torch.from_numpy(weights.in_weight).clone())
        self.register_buffer("input_weights", input_weights)
        self.register_buffer("leak", leak)
        self.register_buffer("bias", bias)
        self.readout = nn.Linear(self.hidden_size, self.vocabulary_size)
        nn.init.zeros_(self.readout.weight)
        nn.init.zeros_(self.readout.bias)

    @property
    def recurrent_weights(self) -> RecurrentWeights:
        """W as it is now, loaded from a checkpoint or not."""
        if self.pattern is Pattern.BLOCK:
            return BlockWeights(self.blocks.cpu().numpy())
        return EdgeWeights(self.in_index.cpu().numpy(), self.in_weight.cpu().numpy())

    def measured_spectral_radius(self) -> float:
        """The spectral radius of W as it is now: a fraction of a second, or a few at 8,192 units."""
        return spectral_radius(self.recurrent_weights)

    @torch.no_grad()
    def forward(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        # Units lie along the first axis here, so that the blocks' outputs need no copy to become their next inputs.
        batch, length = tokens.shape
        s = state[STATE].t().contiguous()  # [N, B]
        # tanh z = 2 sigmoid(2 z) - 1, several times faster in torch; doubling is exact
        doubled_input = (2 * (self.input_weights + self.bias)).t().contiguous()  # [N, V]
        doubled = tuple(2 * weights for weights in self._float_weights())
        leak = self.leak.unsqueeze(1)
        hidden = tokens.new_empty(batch, length, self.hidden_size, dtype=torch.float32)
        for time in range(length):
            r = doubled_input.index_select(1, tokens[:, time])
            r = self._add_recurrence(r, s, *doubled).sigmoid_().mul_(2).sub_(1)
            s = torch.lerp(s, r, leak)
            hidden[:, time].copy_(s.t())
        return hidden, {STATE: hidden[:, -1].clone()}

    @torch.no_grad()
    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        s = state[STATE]
        r = torch.tanh(self._recurrence(s) + self.input_weights[tokens] + self.bias)
        s_next = (1 - self.leak) * s + self.leak * r
        return s_next, {STATE: s_next}

    def logits(self, hidden: Tensor) -> Tensor:
        return functional.linear(hidden, self.readout.weight, self.readout.bias)

    def _recurrence(self, s: Tensor) -> Tensor:
        """W s: float32 [B, N] → [B, N]."""
        if self.pattern is Pattern.RANDOM:
            return (s[:, self.in_index] * self.in_weight).sum(-1)  # [B, N, k] → [B, N]
        batch = s.shape[0]
        num_blocks, size, _ = self.blocks.shape
        dealt = s.view(batch, size, num_blocks).permute(2, 0, 1)  # [S, B, K]
        return torch.bmm(dealt, self.blocks).permute(1, 0, 2).reshape(batch, self.hidden_size)

    def _float_weights(self) -> tuple[Tensor, ...]:
        """The recurrent weights as `_add_recurrence` takes them: blocks as [S, out, in], or one weight an edge."""
        return (self.blocks.transpose(1, 2),) if self.pattern is Pattern.BLOCK else (self.in_weight,)

    def _add_recurrence(self, r: Tensor, s: Tensor, weights: Tensor) -> Tensor:
        """r + W s, in the storage of r where that is possible: float32 [N, B], both."""
        if self.pattern is Pattern.RANDOM:
            return r.add_(functional.embedding_bag(self.in_index, s, mode="sum", per_sample_weights=weights))
        num_blocks, size, _ = weights.shape
        dealt = s.view(size, num_blocks, -1).transpose(0, 1)  # [S, K, B]
        sums = r.view(num_blocks, size, -1)
        return torch.baddbmm(sums, weights, dealt, out=sums).view_as(r)


def build_esn(config: "ReservoirConfig", vocabulary_size: int, seed: int) -> EchoStateNetwork:
    """Draw a reservoir and set its spectral radius; the readout is zero, so every token is equally likely.

    Raises ReservoirError where the weights drawn cannot have the spectral radius that the config asks for.
    """
    recurrent, entering, leaking, biasing = np.random.default_rng(seed).spawn(4)
    units = config.units
    weights: RecurrentWeights
    if config.pattern is Pattern.BLOCK:
        weights = draw_blocks(units, config.block_size, recurrent)
    else:
        weights = draw_edges(units, config.in_edges, recurrent)
    return EchoStateNetwork(
        with_spectral_radius(weights, config.spectral_radius),
        _drawn_evenly(entering, -config.input_scale, config.input_scale, (vocabulary_size, units)),
        _drawn_evenly(leaking, config.leak_min, config.leak_max, (units,)),
        _drawn_evenly(biasing, -config.bias_scale, config.bias_scale, (units,)),
    )


def _drawn_evenly(generator: np.random.Generator, low: float, high: float, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(generator.uniform(low, high, shape).astype(np.float32))
