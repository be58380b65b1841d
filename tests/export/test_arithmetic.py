"""Test quantised matrices, and the int8 product in the graph against the same arithmetic in numpy."""

import numpy as np
import pytest

from meari.bundle_format.names import Precision
from meari.export.arithmetic import WEIGHT_LIMIT, quantise_columns, quantise_rows
from meari.export.graphs import output_graph
from meari.export.sessions import Tokens, open_session
from meari.export.weights import Affine, Floats, OutputWeights


@pytest.fixture
def weight() -> Floats:
    return np.random.default_rng(0).standard_normal((200, 30)).astype(np.float32)


def test_weights_use_seven_bits_in_every_column(weight: Floats) -> None:
    values = quantise_columns(weight).values
    assert values.dtype == np.int8
    assert (np.abs(values).max(axis=0) == WEIGHT_LIMIT).all()


def test_rounding_error_of_weights_is_at_most_half_a_step(weight: Floats) -> None:
    columns = quantise_columns(weight)
    assert (np.abs(columns.values * columns.scales - weight) <= columns.scales * 0.501).all()


def test_column_of_zeros_stays_zero(weight: Floats) -> None:
    weight[:, 3] = 0
    columns = quantise_columns(weight)
    assert not columns.values[:, 3].any()
    assert np.isfinite(columns.scales).all()


def test_rounding_error_of_rows_is_at_most_half_a_step() -> None:
    x = np.random.default_rng(1).standard_normal((5, 40)).astype(np.float32)
    x[2] = 0
    rows = quantise_rows(x)
    assert rows.values.min() >= 1
    assert (rows.values[2] == 128).all()
    restored = (rows.values.astype(np.float32) - 128) * rows.scales
    assert (np.abs(restored - x) <= rows.scales * 0.501).all()


def test_graph_computes_the_integer_product(weight: Floats) -> None:
    bias = np.linspace(-1, 1, 30, dtype=np.float32)
    x = np.random.default_rng(2).uniform(-1, 1, (7, 200)).astype(np.float32)
    x[3] = 0
    rows, columns = quantise_rows(x), quantise_columns(weight)
    exact = (rows.values.astype(np.int64) - 128) @ columns.values.astype(np.int64)
    expected = exact.astype(np.float32) * rows.scales * columns.scales + bias
    logits = _logits(weight, bias, x)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(logits[3], bias)


def test_extreme_activations_and_weights_do_not_saturate() -> None:
    """Multiply pairs of 255 and 63, the worst case for 16-bit partial sums."""
    x = np.ones((2, 64), np.float32)
    weight = np.ones((64, 16), np.float32)
    logits = _logits(weight, np.zeros(16, np.float32), x)
    np.testing.assert_allclose(logits, 64.0, rtol=1e-5)


@pytest.mark.parametrize("magnitude", [1e-20, 1e-3, 1e6])
def test_rows_of_any_magnitude_keep_their_relative_error(weight: Floats, magnitude: float) -> None:
    x = np.random.default_rng(3).uniform(-1, 1, (4, 200)).astype(np.float32)
    logits = _logits(weight, np.zeros(30, np.float32), x * np.float32(magnitude)) / magnitude
    np.testing.assert_allclose(logits, x @ weight, atol=0.02 * float(np.abs(x @ weight).max()))


def _logits(weight: Floats, bias: Floats, x: Floats) -> Tokens:
    session = open_session(output_graph(OutputWeights((Affine(weight, bias),)), Precision.INT8), 1)
    (logits,) = session.run(["logits"], {"hidden": x})
    assert isinstance(logits, np.ndarray)
    return logits
