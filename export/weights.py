"""Weights of a model as plain float32 arrays, laid out for products of the form x @ weight.

Input: arrays. Output: frozen dataclasses. Must not know: torch, ONNX.

Sizes: V vocabulary, E embedding, H hidden, G gates of the family, N units of a reservoir.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from meari.bundle_format.names import Family

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class NormWeights:
    """Weights of (x - mean) / sqrt(variance + epsilon) * scale + shift, over the numbers of a row: float32 [H] each."""

    scale: Floats
    shift: Floats
    epsilon: float


@dataclass(frozen=True)
class LayerWeights:
    """Weights of one layer of an RNN (G = 1), GRU (r, z, n) or LSTM (i, f, g, o), its gates side by side.

    input       float32 [input_size, G * H]
    state       float32 [H, G * H]
    input_bias  float32 [G * H]
    state_bias  float32 [G * H]
    initial     float32 [H] for each tensor of the state: its value before any token; none: zero
    norm        of the outputs, or None
    mogrifiers  of an LSTM, in turn float32 [H, input_size] and [input_size, H]
    """

    input: Floats
    state: Floats
    input_bias: Floats
    state_bias: Floats
    initial: tuple[Floats, ...] = ()
    norm: NormWeights | None = None
    mogrifiers: tuple[Floats, ...] = ()

    @property
    def hidden_size(self) -> int:
        return int(self.state.shape[0])

    @property
    def bias(self) -> Floats:
        """Sum of both biases, for layers without anything between the two products."""
        return self.input_bias + self.state_bias

    def gates(self, first: int, last: int) -> "LayerWeights":
        """Return the layer reduced to its gates first … last - 1."""
        columns = slice(first * self.hidden_size, last * self.hidden_size)
        return replace(
            self,
            input=self.input[:, columns],
            state=self.state[:, columns],
            input_bias=self.input_bias[columns],
            state_bias=self.state_bias[columns],
        )


@dataclass(frozen=True)
class RecurrentWeights:
    """Weights of an embedding, float32 [V, E], and the layers above it; family is rnn, gru or lstm."""

    family: Family
    embedding: Floats
    layers: tuple[LayerWeights, ...]


@dataclass(frozen=True)
class BlockPattern:
    """Fixed weights in square blocks: float32 [reservoirs, num_blocks, block_size, block_size], used as x @ block."""

    blocks: Floats


@dataclass(frozen=True)
class RandomPattern:
    """Fixed weights on a fixed number k of incoming edges a unit.

    sources  int64 [N, k], the unit that each edge comes from
    weights  float32 [N, k]
    """

    sources: NDArray[np.int64]
    weights: Floats


Sparse = BlockPattern | RandomPattern


@dataclass(frozen=True)
class ReservoirLayerWeights:
    """Weights of s' = (1 - leak) s + leak tanh(W s + u + bias), with W as the pattern says.

    below  matrix from the layer below to u; None in the first layer, which tokens drive
    leak   float32 [N], each in (0, 1]
    bias   float32 [N]
    """

    pattern: Sparse
    below: Sparse | None
    leak: Floats
    bias: Floats


@dataclass(frozen=True)
class RecentTokensWeights:
    """Weights of u = [e, e of the token before, …] @ weights, with e of a token a row of the embedding.

    embedding  float32 [V, E]
    weights    float32 [k * E, N]
    """

    embedding: Floats
    weights: Floats


@dataclass(frozen=True)
class ReservoirWeights:
    """Weights of the drive of the first layer (a row for each token, float32 [V, N], or embeddings), and of all
    layers.
    """

    entering: Floats | RecentTokensWeights
    layers: tuple[ReservoirLayerWeights, ...]


@dataclass(frozen=True)
class ExpansionWeights:
    """Weights of tanh(G hidden + bias), S groups of features with inputs of their own.

    sources  int64 [S, K]
    weights  float32 [S, K, outputs]
    bias     float32 [S, outputs]
    """

    sources: NDArray[np.int64]
    weights: Floats
    bias: Floats


@dataclass(frozen=True)
class Affine:
    """Weights of x @ weight + bias: weight float32 [inputs, outputs], bias float32 [outputs]."""

    weight: Floats
    bias: Floats


@dataclass(frozen=True)
class AdaptiveWeights:
    """Clusters of rare tokens below the head of an adaptive softmax.

    clusters  for each, the matrix that narrows a hidden vector, [H, D], and the one from there to logits, [D, tokens]
    rank      int64 [V]: a token's place among the tokens of the head, then of all clusters
    """

    clusters: tuple[tuple[Floats, Floats], ...]
    rank: NDArray[np.int64]


@dataclass(frozen=True)
class OutputWeights:
    """Maps from a hidden vector to logits, first to last: one, or a projection and the tied embedding. With an
    adaptive softmax there is one, to the logits of the head: its tokens, then its clusters. A reservoir may have an
    expansion before the maps, whose features follow the hidden vector.

    gated   the first of two maps makes two vectors, whose product the second one takes, and logits to be added
    """

    maps: tuple[Affine, ...]
    adaptive: AdaptiveWeights | None = None
    expansion: ExpansionWeights | None = None
    gated: bool = False


@dataclass(frozen=True)
class ModelWeights:
    """All weights of a model, split like the bundle: the cell and the output layer."""

    cell: RecurrentWeights | ReservoirWeights
    output: OutputWeights
