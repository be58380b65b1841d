"""Fixed recurrent weights of an echo state network: drawn sparse, their spectral radius measured and set.

Input: sizes and a random generator. Output: weights W of the given spectral radius, and the measured radius.
Must not know: torch, tokens, training.

Two patterns of the nonzero weights; N units, each with k incoming edges:

    block    N = S * K. Units are dealt out like cards: unit j * S + s is the j-th input of block s, whose outputs are
             the units s * K … s * K + K - 1. A product is S small dense ones; the deal between two products
             mixes every block with every other one within two steps where K >= S.
    random   every unit has k incoming edges, from distinct units drawn evenly.

R reservoirs side by side are one matrix of either pattern without an edge between them: reservoir r holds the units
r * N / R … (r + 1) * N / R - 1, and units are dealt within it.

The spectral radius is the largest absolute value among the eigenvalues of W. Those of a random matrix fill a disc, so
many are nearly as large as the largest one: ARPACK gets a wide search space, a wider one if it does not converge, and
and where it still does not, LAPACK solves the dense matrix.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.linalg import ArpackError, LinearOperator, eigs

from meari.models.errors import ReservoirError

Float32s = NDArray[np.float32]
Float64s = NDArray[np.float64]
Int64s = NDArray[np.int64]

DENSE_UNITS = 384  # up to this size all eigenvalues are computed, in a fraction of a second
SEARCH_WIDTHS = (96, 256)  # Arnoldi vectors that ARPACK keeps, one try after another
NUM_EIGENVALUES = 6
TOLERANCE = 1e-6
MAX_RESTARTS = 60  # a random reservoir needs a few; if all eigenvalues lie on one circle, no number suffices
_MEASURING_SEED = 0x5EED  # seed of ARPACK's first vector: measuring does not use the model's own generators


@dataclass(frozen=True)
class BlockWeights:
    """Weights of pattern "block": blocks float32 [R * S, K, K] of R reservoirs with S blocks each.

    blocks[s, j, k] of the first reservoir leads from unit j * S + s to unit s * K + k.
    """

    blocks: Float32s
    num_reservoirs: int = 1

    @property
    def units(self) -> int:
        return int(self.blocks.shape[0] * self.blocks.shape[1])

    def sparse(self) -> csr_array:
        """Return W as float64 [N, N]: row i holds the weights of the edges into unit i."""
        num_blocks, size, _ = self.blocks.shape
        own = num_blocks // self.num_reservoirs
        block, source, target = np.indices(self.blocks.shape)
        rows = (block * size + target).ravel()
        columns = (block // own * own * size + source * own + block % own).ravel()
        return csr_array((self.blocks.astype(np.float64).ravel(), (rows, columns)), shape=(self.units, self.units))

    def scaled(self, factor: float) -> "BlockWeights":
        return BlockWeights((self.blocks * factor).astype(np.float32), self.num_reservoirs)


@dataclass(frozen=True)
class EdgeWeights:
    """Weights of pattern "random": in_index int64 [N, k], the sources of each unit's edges; in_weight float32 [N,
    k].
    """

    in_index: Int64s
    in_weight: Float32s

    @property
    def units(self) -> int:
        return int(self.in_index.shape[0])

    def sparse(self) -> csr_array:
        """Return W as float64 [N, N]: row i holds the weights of the edges into unit i."""
        num_edges = self.in_index.shape[1]
        rows = np.repeat(np.arange(self.units), num_edges)
        values = self.in_weight.astype(np.float64).ravel()
        return csr_array((values, (rows, self.in_index.ravel())), shape=(self.units, self.units))

    def scaled(self, factor: float) -> "EdgeWeights":
        return EdgeWeights(self.in_index, (self.in_weight * factor).astype(np.float32))


RecurrentWeights = BlockWeights | EdgeWeights


def draw_blocks(units: int, block_size: int, generator: np.random.Generator) -> BlockWeights:
    """Draw weights of pattern "block" from a normal distribution, with a radius of about one.

    block_size   a divisor of units
    """
    assert units % block_size == 0, "the config's rules hold this"
    shape = (units // block_size, block_size, block_size)
    return BlockWeights((generator.standard_normal(shape) / np.sqrt(block_size)).astype(np.float32))


def draw_edges(units: int, in_edges: int, generator: np.random.Generator) -> EdgeWeights:
    """Draw weights of pattern "random" from a normal distribution, with a radius of about one.

    in_edges   1 … units, all distinct within a unit
    """
    assert 1 <= in_edges <= units, "the config's rules hold this"
    in_index = np.stack([generator.choice(units, in_edges, replace=False) for _ in range(units)]).astype(np.int64)
    in_weight = generator.standard_normal((units, in_edges)) / np.sqrt(in_edges)
    return EdgeWeights(in_index, in_weight.astype(np.float32))


def side_by_side(parts: Sequence[RecurrentWeights]) -> RecurrentWeights:
    """Join several reservoirs of one pattern and size into one matrix, without edges between them."""
    blocks = [part.blocks for part in parts if isinstance(part, BlockWeights)]
    if blocks:
        return BlockWeights(np.concatenate(blocks), len(parts))
    edges = [part for part in parts if isinstance(part, EdgeWeights)]
    in_index = np.concatenate([part.in_index + number * part.units for number, part in enumerate(edges)])
    return EdgeWeights(in_index, np.concatenate([part.in_weight for part in edges]))


def with_spectral_radius(weights: RecurrentWeights, radius: float) -> RecurrentWeights:
    """Scale the weights so that their spectral radius is `radius`, as far as float32 goes.

    Raises ReservoirError where no factor does that: the weights have no cycle, so that all eigenvalues are zero.
    """
    if radius == 0:
        return weights.scaled(0.0)
    measured = spectral_radius(weights)
    if measured < np.finfo(np.float32).eps:
        raise ReservoirError(
            f"model.spectral_radius: got {radius} for a reservoir of {weights.units} units without a cycle, whose "
            "radius is 0; expected more units or edges, or another seed"
        )
    return weights.scaled(radius / measured)


def spectral_radius(weights: RecurrentWeights) -> float:
    """Measure the largest absolute eigenvalue, to about 1e-5 of itself."""
    matrix = weights.sparse()
    if weights.units <= DENSE_UNITS:
        return _dense_radius(matrix)
    for width in SEARCH_WIDTHS:
        radius = _arpack_radius(matrix, width)
        if radius is not None:
            return radius
    return _dense_radius(matrix)


def _dense_radius(matrix: csr_array) -> float:
    return float(np.abs(np.linalg.eigvals(matrix.toarray())).max())


def _arpack_radius(matrix: csr_array, width: int) -> float | None:
    """Measure the radius by Arnoldi iterations in a space of `width` vectors; None if they do not converge."""
    units: int = matrix.shape[0]
    start = np.random.default_rng(_MEASURING_SEED).standard_normal(units)
    operator: Any = LinearOperator((units, units), matvec=lambda vector: matrix @ vector, dtype=np.float64)
    try:
        found = eigs(
            operator,
            k=NUM_EIGENVALUES,
            which="LM",
            v0=start,
            ncv=min(width, units - 1),
            maxiter=MAX_RESTARTS,
            tol=TOLERANCE,
            return_eigenvectors=False,
        )
    except ArpackError:  # ArpackNoConvergence is one of them; so is a start vector that W maps to zero
        return None
    radius = float(np.abs(found).max())
    return radius if np.isfinite(radius) else None
