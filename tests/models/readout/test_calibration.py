"""Scores become probabilities: the fit is the best of its kind, and folds into the readout."""

import torch
from torch import Tensor
from torch.nn import functional

from meari.models.readout.calibration import calibrate

NUM_TOKENS, VOCABULARY_SIZE = 4000, 5


def draw() -> tuple[Tensor, Tensor, Tensor]:
    """Scores, tokens drawn with logits that are 3 * scores + shift, and the shift."""
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(NUM_TOKENS, VOCABULARY_SIZE, generator=generator, dtype=torch.float64)
    shift = torch.tensor([1.0, 0.0, -1.0, 0.5, -0.5], dtype=torch.float64)
    targets = torch.multinomial((3 * scores + shift).softmax(1), 1, generator=generator)[:, 0]
    return scores, targets, shift


def test_the_scale_and_shift_that_drew_the_tokens_are_found() -> None:
    scores, targets, shift = draw()
    fitted = calibrate(scores, targets, torch.bincount(targets))
    torch.testing.assert_close(fitted.scale, torch.full_like(shift, 3.0), atol=0.4, rtol=0)
    found = fitted.shift - fitted.shift.mean()
    torch.testing.assert_close(found, shift - shift.mean(), atol=0.3, rtol=0)


def test_the_fit_is_no_worse_than_the_truth() -> None:
    scores, targets, shift = draw()
    fitted = calibrate(scores, targets, torch.bincount(targets))
    found = functional.cross_entropy(fitted.scale * scores + fitted.shift, targets)
    assert found <= functional.cross_entropy(3 * scores + shift, targets) + 1e-3


def test_a_token_that_never_came_keeps_a_probability() -> None:
    scores, targets, _ = draw()
    targets = targets.clamp_max(3)
    counts = torch.bincount(targets, minlength=VOCABULARY_SIZE)
    fitted = calibrate(scores, targets, counts)
    probabilities = (fitted.scale * scores + fitted.shift).softmax(1)
    assert torch.isfinite(probabilities).all()
    assert 1e-9 < float(probabilities[:, 4].mean()) < 1e-2


def test_scores_that_say_nothing_leave_each_token_its_share() -> None:
    counts = torch.tensor([10, 20, 30, 40])
    targets = torch.arange(4).repeat_interleave(counts * 5)
    fitted = calibrate(torch.full((500, 4), 0.25), targets, counts)
    probabilities = (fitted.scale * 0.25 + fitted.shift).softmax(0)
    torch.testing.assert_close(probabilities, counts.double() / 100, atol=1e-2, rtol=0)


def test_folded_into_a_readout_the_logits_are_the_calibrated_scores() -> None:
    scores, targets, _ = draw()
    fitted = calibrate(scores, targets, torch.bincount(targets))
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(VOCABULARY_SIZE, 9, generator=generator, dtype=torch.float64)
    bias = torch.randn(VOCABULARY_SIZE, generator=generator, dtype=torch.float64)
    states = torch.randn(6, 9, generator=generator, dtype=torch.float64)
    folded_weight, folded_bias = fitted.fold(weight, bias)
    expected = fitted.scale * (states @ weight.t() + bias) + fitted.shift
    torch.testing.assert_close(states @ folded_weight.t() + folded_bias, expected)
