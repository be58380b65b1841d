"""Test streaming ridge regression against numpy's solution, and the calibration of its scores."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from meari.models.errors import RidgeError
from meari.models.readout.ridge import RidgeSums, calibrate

NUM_STATES, UNITS, VOCABULARY_SIZE = 600, 40, 7


def draw(seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(NUM_STATES, UNITS, generator=generator) + 0.5
    return states, torch.randint(VOCABULARY_SIZE, (NUM_STATES,), generator=generator)


def add_up(states: Tensor, targets: Tensor, chunk: int) -> RidgeSums:
    sums = RidgeSums.zeros(UNITS, VOCABULARY_SIZE, torch.device("cpu"))
    for begin in range(0, len(states), chunk):
        sums.add(states[begin : begin + chunk], targets[begin : begin + chunk])
    return sums


def solve_at_once(states: Tensor, targets: Tensor, ridge: float) -> tuple[np.ndarray, np.ndarray]:
    """Solve least squares over [X - mean; sqrt(ridge) I] with numpy."""
    x, y = states.double().numpy(), np.eye(VOCABULARY_SIZE)[targets.numpy()]
    tall = np.vstack((x - x.mean(0), np.sqrt(ridge) * np.eye(UNITS)))
    wanted = np.vstack((y - y.mean(0), np.zeros((UNITS, VOCABULARY_SIZE))))
    weight = np.linalg.lstsq(tall, wanted, rcond=None)[0].T
    return weight, y.mean(0) - weight @ x.mean(0)


@pytest.mark.parametrize("chunk", [1, 37, NUM_STATES])
@pytest.mark.parametrize("ridge", [1e-3, 1.0, 100.0])
def test_streamed_solution_matches_the_solution_of_all_states(chunk: int, ridge: float) -> None:
    states, targets = draw()
    weight, bias = add_up(states, targets, chunk).solve(ridge)
    expected_weight, expected_bias = solve_at_once(states, targets, ridge)
    np.testing.assert_allclose(weight.numpy(), expected_weight, atol=1e-6)
    np.testing.assert_allclose(bias.numpy(), expected_bias, atol=1e-6)


def test_solution_does_not_depend_on_the_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    states, targets = draw()
    whole = add_up(states, targets, 100).solve(1.0)
    monkeypatch.setattr("meari.models.readout.ridge.BLOCK_UNITS", 16)
    for one, other in zip(whole, add_up(states, targets, 100).solve(1.0), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def test_scores_of_all_tokens_sum_to_one() -> None:
    states, targets = draw()
    weight, bias = add_up(states, targets, 100).solve(1.0)
    scores = states.double() @ weight.t() + bias
    torch.testing.assert_close(scores.sum(1), torch.ones(NUM_STATES, dtype=torch.float64))


def test_sums_restored_from_tensors_give_the_same_solution() -> None:
    states, targets = draw()
    sums = add_up(states, targets, 100)
    again = RidgeSums(**sums.tensors())
    assert torch.equal(again.solve(1.0)[0], sums.solve(1.0)[0])


def test_singular_equations_are_reported_with_the_setting() -> None:
    states, targets = draw()
    states = states[:, :3] @ torch.randn(3, UNITS, generator=torch.Generator().manual_seed(4))
    with pytest.raises(RidgeError, match=r"model\.ridge: got 1e-300, too little for 600 states of 40 units"):
        add_up(states, targets, 100).solve(1e-300)


NUM_TOKENS, NUM_SCORES = 4000, 5


def draw_scores() -> tuple[Tensor, Tensor, Tensor]:
    """Return scores, tokens drawn with logits 3 * scores + shift, and the shift."""
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(NUM_TOKENS, NUM_SCORES, generator=generator, dtype=torch.float64)
    shift = torch.tensor([1.0, 0.0, -1.0, 0.5, -0.5], dtype=torch.float64)
    targets = torch.multinomial((3 * scores + shift).softmax(1), 1, generator=generator)[:, 0]
    return scores, targets, shift


def test_calibration_recovers_the_true_scale_and_shift() -> None:
    scores, targets, shift = draw_scores()
    fitted = calibrate(scores, targets, torch.bincount(targets))
    torch.testing.assert_close(fitted.scale, torch.full_like(shift, 3.0), atol=0.4, rtol=0)
    found = fitted.shift - fitted.shift.mean()
    torch.testing.assert_close(found, shift - shift.mean(), atol=0.3, rtol=0)


def test_calibration_fits_at_least_as_well_as_the_true_parameters() -> None:
    scores, targets, shift = draw_scores()
    fitted = calibrate(scores, targets, torch.bincount(targets))
    found = functional.cross_entropy(fitted.scale * scores + fitted.shift, targets)
    assert found <= functional.cross_entropy(3 * scores + shift, targets) + 1e-3


def test_unseen_token_keeps_a_positive_probability() -> None:
    scores, targets, _ = draw_scores()
    targets = targets.clamp_max(3)
    counts = torch.bincount(targets, minlength=NUM_SCORES)
    fitted = calibrate(scores, targets, counts)
    probabilities = (fitted.scale * scores + fitted.shift).softmax(1)
    assert torch.isfinite(probabilities).all()
    assert 1e-9 < float(probabilities[:, 4].mean()) < 1e-2


def test_constant_scores_give_each_token_its_frequency() -> None:
    counts = torch.tensor([10, 20, 30, 40])
    targets = torch.arange(4).repeat_interleave(counts * 5)
    fitted = calibrate(torch.full((500, 4), 0.25), targets, counts)
    probabilities = (fitted.scale * 0.25 + fitted.shift).softmax(0)
    torch.testing.assert_close(probabilities, counts.double() / 100, atol=1e-2, rtol=0)


def test_folded_readout_gives_the_calibrated_scores() -> None:
    scores, targets, _ = draw_scores()
    fitted = calibrate(scores, targets, torch.bincount(targets))
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(NUM_SCORES, 9, generator=generator, dtype=torch.float64)
    bias = torch.randn(NUM_SCORES, generator=generator, dtype=torch.float64)
    states = torch.randn(6, 9, generator=generator, dtype=torch.float64)
    folded_weight, folded_bias = fitted.fold(weight, bias)
    expected = fitted.scale * (states @ weight.t() + bias) + fitted.shift
    torch.testing.assert_close(states @ folded_weight.t() + folded_bias, expected)
