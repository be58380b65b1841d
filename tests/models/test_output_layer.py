"""Test the adaptive softmax and the loss of a linear layer: probabilities, gradients, the order of the tokens."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from meari.bundle_format.names import Family
from meari.models import output_layer as cross_entropy
from meari.models.config import RecurrentConfig
from meari.models.errors import ConfigError
from meari.models.families import build_model
from meari.models.output_layer import AdaptiveSoftmax, linear_cross_entropy

HIDDEN, VOCABULARY, CUTOFFS = 64, 50, (10, 25, 40)
COUNTS = np.random.default_rng(0).permutation(VOCABULARY)


@pytest.fixture
def softmax() -> AdaptiveSoftmax:
    torch.manual_seed(1)
    softmax = AdaptiveSoftmax(HIDDEN, VOCABULARY, CUTOFFS)
    softmax.order_by(COUNTS)
    return softmax


@pytest.fixture
def hidden() -> Tensor:
    return torch.randn(7, HIDDEN, generator=torch.Generator().manual_seed(2))


def test_probabilities_of_all_tokens_sum_to_one(softmax: AdaptiveSoftmax, hidden: Tensor) -> None:
    logprobs = softmax.double().log_probabilities(hidden.double().view(7, 1, HIDDEN))
    assert logprobs.shape == (7, 1, VOCABULARY)
    torch.testing.assert_close(softmax.log_probabilities(hidden[3].double()), logprobs[3, 0])
    torch.testing.assert_close(logprobs.exp().sum(-1), torch.ones(7, 1, dtype=torch.float64), atol=1e-12, rtol=0)


def test_probability_of_a_rare_token_is_that_of_its_cluster_times_that_within_the_cluster(
    softmax: AdaptiveSoftmax, hidden: Tensor
) -> None:
    rarest = int(COUNTS.argmin())
    narrowing, widening = softmax.layers.tail[2].parameters()
    of_cluster = softmax.layers.head(hidden).softmax(-1)[:, -1]
    within = (hidden @ narrowing.T @ widening.T).softmax(-1)[:, -1]
    expected = (of_cluster * within).log()
    torch.testing.assert_close(softmax.log_probabilities(hidden)[:, rarest], expected, atol=1e-5, rtol=0)


def test_loss_is_the_mean_negative_logprob_of_the_targets(softmax: AdaptiveSoftmax, hidden: Tensor) -> None:
    for first in range(0, VOCABULARY, 7):
        targets = (torch.arange(7) + first) % VOCABULARY
        logprobs = softmax.log_probabilities(hidden).gather(1, targets[:, None])
        torch.testing.assert_close(softmax.loss(hidden, targets), -logprobs.mean(), atol=1e-5, rtol=0)


def test_gradients_of_loss_and_logprobs_agree(softmax: AdaptiveSoftmax, hidden: Tensor) -> None:
    targets = torch.from_numpy(
        np.argsort(-COUNTS)[[0, 9, 12, 30, 44, 49, 2]].copy()
    )  # tokens of the head and of every cluster
    gradients = []
    for loss in (
        lambda x: softmax.loss(x, targets),
        lambda x: -softmax.log_probabilities(x).gather(1, targets[:, None]).mean(),
    ):
        softmax.zero_grad()
        x = hidden.clone().requires_grad_()
        loss(x).backward()
        gradients.append([x.grad, *(parameter.grad for parameter in softmax.parameters())])
    assert all(gradient is not None and gradient.any() for gradient in gradients[0])
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-6, rtol=1e-4)


def test_tokens_are_ranked_by_count_then_by_id() -> None:
    softmax = AdaptiveSoftmax(HIDDEN, 6, (2, 4))
    assert softmax.rank.tolist() == [0, 1, 2, 3, 4, 5]
    softmax.order_by(np.array([3, 9, 3, 0, 9, 5]))
    assert softmax.rank.tolist() == [3, 0, 4, 5, 1, 2]
    assert AdaptiveSoftmax(HIDDEN, 6, (2, 4)).load_state_dict(softmax.state_dict()).missing_keys == []


def test_cutoffs_beyond_the_vocabulary_are_refused() -> None:
    config = RecurrentConfig(Family.LSTM, 8, 64, adaptive_cutoffs=(10, 50))
    with pytest.raises(ConfigError, match=r"model\.adaptive_cutoffs: got 50, expected numbers below 50"):
        build_model(config, 50, seed=1)


def inputs(num_rows: int, width: int, vocabulary_size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(4)
    hidden, weight = torch.randn(num_rows, width), torch.randn(vocabulary_size, width)
    targets = torch.randint(vocabulary_size, (num_rows,))
    return hidden.requires_grad_(), weight.requires_grad_(), torch.randn(vocabulary_size, requires_grad=True), targets


@pytest.mark.parametrize("logits_at_once", [1, 100, 1 << 20])
def test_chunked_loss_and_gradients_match_torch(monkeypatch: pytest.MonkeyPatch, logits_at_once: int) -> None:
    monkeypatch.setattr(cross_entropy, "LOGITS_AT_ONCE", logits_at_once)
    hidden, weight, bias, targets = inputs(23, 7, 31)
    ours = linear_cross_entropy(hidden, weight, bias, targets)
    wanted = functional.cross_entropy(functional.linear(hidden, weight, bias), targets)
    torch.testing.assert_close(ours, wanted)
    grads = torch.autograd.grad(3 * ours, (hidden, weight, bias))
    torch.testing.assert_close(grads, torch.autograd.grad(3 * wanted, (hidden, weight, bias)))


def test_large_logits_do_not_overflow() -> None:
    hidden, weight, bias, targets = inputs(5, 4, 6)
    assert torch.isfinite(linear_cross_entropy(hidden * 1e4, weight, bias, targets))


def test_products_in_bfloat16_are_close_to_float32() -> None:
    hidden, weight, bias, targets = inputs(200, 16, 50)
    exact = linear_cross_entropy(hidden, weight, bias, targets)
    rounded = linear_cross_entropy(hidden.bfloat16(), weight, bias, targets)
    assert rounded.dtype == torch.float32
    assert abs(rounded.item() - exact.item()) < 0.02 * exact.item()
    (grad,) = torch.autograd.grad(rounded, weight)
    (wanted,) = torch.autograd.grad(exact, weight)
    assert (grad - wanted).norm() < 0.02 * wanted.norm()
