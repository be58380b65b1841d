"""Test the recurrent weights of a reservoir against dense numpy and scipy."""

from collections.abc import Callable

import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg
from scipy.sparse.linalg import ArpackNoConvergence

from meari.models.cells.reservoir import weights as reservoir
from meari.models.cells.reservoir.weights import (
    BlockWeights,
    EdgeWeights,
    RecurrentWeights,
    draw_blocks,
    draw_edges,
    spectral_radius,
)
from meari.models.errors import ReservoirError

Draw = Callable[[int, int], RecurrentWeights]


def block(units: int, seed: int) -> RecurrentWeights:
    return draw_blocks(units, 32, np.random.default_rng(seed))


def random(units: int, seed: int) -> RecurrentWeights:
    return draw_edges(units, 10, np.random.default_rng(seed))


def dense_of_blocks(weights: BlockWeights) -> np.ndarray:
    """Build W by its definition, weight by weight: blocks[s, j, k] leads from unit j * S + s to unit s * K + k."""
    num_blocks, size, _ = weights.blocks.shape
    dense = np.zeros((weights.units, weights.units))
    for s in range(num_blocks):
        for j in range(size):
            for k in range(size):
                dense[s * size + k, j * num_blocks + s] = weights.blocks[s, j, k]
    return dense


def dense_radius(weights: RecurrentWeights) -> float:
    return float(np.abs(np.linalg.eigvals(weights.sparse().toarray())).max())


def test_block_weights_follow_the_pattern() -> None:
    weights = draw_blocks(24, 4, np.random.default_rng(1))
    np.testing.assert_array_equal(weights.sparse().toarray(), dense_of_blocks(weights))


def test_random_weights_follow_the_pattern() -> None:
    weights = draw_edges(40, 7, np.random.default_rng(1))
    rows = np.repeat(np.arange(40), 7)
    expected = scipy.sparse.coo_array((weights.in_weight.ravel(), (rows, weights.in_index.ravel())), shape=(40, 40))
    np.testing.assert_array_equal(weights.sparse().toarray(), expected.toarray())


def test_units_of_the_random_pattern_have_distinct_edges() -> None:
    weights = draw_edges(50, 20, np.random.default_rng(3))
    assert all(len(set(sources)) == 20 for sources in weights.in_index.tolist())
    assert weights.in_index.min() >= 0
    assert weights.in_index.max() < 50


@pytest.mark.parametrize("draw", [block, random])
def test_parallel_reservoirs_are_diagonal_blocks_of_one_matrix(draw: Draw) -> None:
    parts = [draw(64, seed) for seed in (1, 2, 3)]
    expected = scipy.sparse.block_diag([part.sparse() for part in parts]).toarray()
    np.testing.assert_array_equal(reservoir.side_by_side(parts).sparse().toarray(), expected)
    np.testing.assert_array_equal(reservoir.side_by_side(parts).scaled(2.0).sparse().toarray(), 2 * expected)


@pytest.mark.parametrize("draw", [block, random])
@pytest.mark.parametrize("units", [32, 256, 512, 768])
def test_measured_radius_matches_the_dense_eigenvalues(draw: Draw, units: int) -> None:
    weights = draw(units, 5)
    assert spectral_radius(weights) == pytest.approx(dense_radius(weights), rel=1e-5)


@pytest.mark.parametrize("draw", [block, random])
@pytest.mark.parametrize("units", [64, 768])
@pytest.mark.parametrize("radius", [0.3, 0.99, 1.7])
def test_scaled_weights_have_the_requested_radius(draw: Draw, units: int, radius: float) -> None:
    weights = reservoir.with_spectral_radius(draw(units, 7), radius)
    assert dense_radius(weights) == pytest.approx(radius, rel=1e-5)


@pytest.mark.parametrize("draw", [block, random])
def test_radius_of_a_large_reservoir_agrees_with_scipy(draw: Draw) -> None:
    weights = reservoir.with_spectral_radius(draw(4096, 2), 0.9)
    found = scipy.sparse.linalg.eigs(
        weights.sparse(), k=12, which="LM", ncv=400, tol=1e-9, v0=np.ones(4096), return_eigenvectors=False
    )
    assert np.abs(found).max() == pytest.approx(0.9, rel=1e-4)


def test_radius_of_zero_removes_the_recurrence() -> None:
    weights = reservoir.with_spectral_radius(block(64, 1), 0.0)
    assert not weights.sparse().toarray().any()


def test_weights_without_a_cycle_are_refused() -> None:
    chain = EdgeWeights(np.array([[0], [0], [1], [2]]), np.array([[0], [1], [1], [1]], dtype=np.float32))
    with pytest.raises(ReservoirError, match=r"model\.spectral_radius: got 0\.9 for a reservoir of 4 units"):
        reservoir.with_spectral_radius(chain, 0.9)


def test_eigenvalues_are_computed_densely_after_arpack_fails_at_every_width(monkeypatch: pytest.MonkeyPatch) -> None:
    widths = []

    def never(_matrix: object, *, ncv: int, **_settings: object) -> None:
        widths.append(ncv)
        raise ArpackNoConvergence("%s %s", np.array([]), np.array([]))

    weights = block(512, 1)
    monkeypatch.setattr(reservoir, "eigs", never)
    assert spectral_radius(weights) == pytest.approx(dense_radius(weights), rel=1e-6)
    assert widths == list(reservoir.SEARCH_WIDTHS)


def test_radius_is_measured_if_all_eigenvalues_are_equally_large() -> None:
    # One edge for each unit, in a single cycle: all eigenvalues lie on one circle.
    units = 400
    cycle = EdgeWeights(np.roll(np.arange(units), 1)[:, None], np.full((units, 1), 0.5, dtype=np.float32))
    assert spectral_radius(cycle) == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize("draw", [block, random])
def test_seed_determines_the_drawn_weights(draw: Draw) -> None:
    np.testing.assert_array_equal(draw(128, 4).sparse().toarray(), draw(128, 4).sparse().toarray())
    assert not np.array_equal(draw(128, 4).sparse().toarray(), draw(128, 5).sparse().toarray())
