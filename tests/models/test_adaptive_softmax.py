"""The adaptive softmax: true probabilities, the loss that belongs to them, gradients, and the order of the tokens."""

import numpy as np
import pytest
import torch
from torch import Tensor

from meari.models.adaptive_softmax import AdaptiveSoftmax
from meari.models.config import Family, RecurrentConfig
from meari.models.errors import ConfigError
from meari.models.language_model import build_model

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


def test_probabilities_of_all_tokens_add_up_to_one(softmax: AdaptiveSoftmax, hidden: Tensor) -> None:
    logprobs = softmax.double().log_probabilities(hidden.double().view(7, 1, HIDDEN))
    assert logprobs.shape == (7, 1, VOCABULARY)
    torch.testing.assert_close(softmax.log_probabilities(hidden[3].double()), logprobs[3, 0])
    torch.testing.assert_close(logprobs.exp().sum(-1), torch.ones(7, 1, dtype=torch.float64), atol=1e-12, rtol=0)


def test_a_rare_token_has_its_clusters_probability_times_its_own_within(
    softmax: AdaptiveSoftmax, hidden: Tensor
) -> None:
    rarest = int(COUNTS.argmin())
    narrowing, widening = softmax.layers.tail[2].parameters()
    of_cluster = softmax.layers.head(hidden).softmax(-1)[:, -1]
    within = (hidden @ narrowing.T @ widening.T).softmax(-1)[:, -1]
    expected = (of_cluster * within).log()
    torch.testing.assert_close(softmax.log_probabilities(hidden)[:, rarest], expected, atol=1e-5, rtol=0)


def test_loss_is_the_mean_of_minus_log_probability_of_the_targets(softmax: AdaptiveSoftmax, hidden: Tensor) -> None:
    for first in range(0, VOCABULARY, 7):
        targets = (torch.arange(7) + first) % VOCABULARY
        logprobs = softmax.log_probabilities(hidden).gather(1, targets[:, None])
        torch.testing.assert_close(softmax.loss(hidden, targets), -logprobs.mean(), atol=1e-5, rtol=0)


def test_gradients_of_the_loss_are_those_of_the_log_probabilities(softmax: AdaptiveSoftmax, hidden: Tensor) -> None:
    targets = torch.from_numpy(
        np.argsort(-COUNTS)[[0, 9, 12, 30, 44, 49, 2]].copy()
    )  # of the head and of every cluster
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


def test_tokens_stand_in_the_order_of_their_counts_and_equals_in_that_of_their_ids() -> None:
    softmax = AdaptiveSoftmax(HIDDEN, 6, (2, 4))
    assert softmax.rank.tolist() == [0, 1, 2, 3, 4, 5]
    softmax.order_by(np.array([3, 9, 3, 0, 9, 5]))
    assert softmax.rank.tolist() == [3, 0, 4, 5, 1, 2]
    assert AdaptiveSoftmax(HIDDEN, 6, (2, 4)).load_state_dict(softmax.state_dict()).missing_keys == []


def test_cutoffs_beyond_the_vocabulary_are_refused() -> None:
    config = RecurrentConfig(Family.LSTM, 8, 64, adaptive_cutoffs=(10, 50))
    with pytest.raises(ConfigError, match=r"model\.adaptive_cutoffs: got 50, expected numbers below 50"):
        build_model(config, 50, seed=1)
