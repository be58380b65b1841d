"""Draws an echo state network: everything that is fixed in it comes from here, and from the seed alone.

In: a config, the size of a vocabulary, a seed. Out: a network whose readout is untrained. Knows nothing of text.

Each kind of matrix has a generator of its own, all of them spawned from the seed, so that a setting of one kind leaves
the others as they were.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from meari.models.cells.esn import EchoStateNetwork
from meari.models.cells.reservoir import Expansion, RecentTokens, ReservoirLayer, TokenRows
from meari.models.choices import Pattern, Reach, Spread
from meari.models.config import ReservoirConfig
from meari.models.reservoir import RecurrentWeights, draw_blocks, draw_edges, side_by_side, with_spectral_radius

Generator = np.random.Generator


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
        _draw_input(config, vocabulary_size, entering), layers, _draw_expansion(config, expanding), config.readout_rank
    )


def spectral_radii(config: ReservoirConfig) -> list[float]:
    """That of each reservoir of a layer, the smallest first."""
    most, count = config.spectral_radius, config.reservoirs
    least = most if config.spectral_radius_min is None else config.spectral_radius_min
    if count == 1 or least == most:
        return [most] * count
    return [least * (most / least) ** (number / (count - 1)) for number in range(count)]


def leak_ranges(config: ReservoirConfig) -> list[tuple[float, float]]:
    """From where to where the leaks of each reservoir of a layer are drawn: all from the same, or the first from the
    highest part.
    """
    least, most, count = config.leak_min, config.leak_max, config.reservoirs
    if not config.leak_bands:
        return [(least, most)] * count
    if config.leak_spread is Spread.LOG:
        edges = [float(edge) for edge in np.geomspace(most, least, count + 1)]
    else:
        edges = [float(edge) for edge in np.linspace(most, least, count + 1)]
    return list(zip(edges[1:], edges[:-1], strict=True))


def _draw(config: ReservoirConfig, generator: Generator) -> RecurrentWeights:
    """The weights of one reservoir, of a radius of about one."""
    units = config.units // config.reservoirs
    if config.pattern is Pattern.BLOCK:
        return draw_blocks(units, config.block_size, generator)
    return draw_edges(units, config.in_edges, generator)


def _draw_below(config: ReservoirConfig, generator: Generator) -> RecurrentWeights:
    """From all units of the layer below to all of this one."""
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
