"""Test the importance of settings on trials whose loss depends on known settings."""

import numpy as np
import pytest

from meari.models.search.importance import explained, importances, ranks
from meari.models.search.journal import Trial


def trials_of(settings: dict[str, list[float]], losses: list[float | None]) -> list[Trial]:
    return [
        Trial(
            number + 1, {name: values[number] for name, values in settings.items()}, loss, loss, 1, "finished", "", 1.0
        )
        for number, loss in enumerate(losses)
    ]


def test_equal_values_get_their_mean_rank() -> None:
    np.testing.assert_array_equal(ranks(np.array([3.0, 1.0, 3.0, np.inf])), [2.5, 1.0, 2.5, 4.0])


def test_settings_are_ordered_by_their_effect_on_the_loss() -> None:
    random = np.random.default_rng(0)
    rate, size, noise = (10 ** random.uniform(-3, 0, 60) for _ in range(3))
    losses = np.log10(rate) + 0.3 * np.log10(size)
    found = importances(
        trials_of({"noise": noise.tolist(), "size": size.tolist(), "rate": rate.tolist()}, losses.tolist())
    )
    assert list(found) == ["rate", "size", "noise"]
    shares = [share for share in found.values() if share is not None]
    assert shares[0] > 0.7
    assert 0.02 < shares[1] < 0.3
    assert shares[2] < 0.1


def test_setting_with_an_optimum_in_the_middle_is_important() -> None:
    random = np.random.default_rng(1)
    rate = 10 ** random.uniform(-4, 0, 50)
    losses = (np.log10(rate) + 2) ** 2
    assert explained(rate.tolist(), ranks(losses)) > 0.9


def test_categorical_settings_are_compared_by_mean_rank() -> None:
    values = ["block", "random"] * 20
    losses = np.array([1.0, 2.0] * 20) + np.random.default_rng(2).normal(0, 0.1, 40)
    assert explained(values, ranks(losses)) > 0.7
    assert explained(values, np.random.default_rng(3).normal(size=40)) < 0.1


def test_setting_without_effect_has_little_importance() -> None:
    shares = []
    for seed in range(20):
        random = np.random.default_rng(seed)
        shares.append(explained(random.normal(size=20).tolist(), ranks(random.normal(size=20))))
    assert np.mean(shares) < 0.12


def test_failed_trials_count_as_the_worst() -> None:
    rates = [float(rate) for rate in range(1, 21)]
    losses: list[float | None] = [1.0 + (rate * 7 % 3) for rate in rates[:10]] + [None] * 10
    share = importances(trials_of({"rate": rates}, losses))["rate"]
    assert share is not None
    assert share > 0.5


@pytest.mark.parametrize("constant", [[1.0] * 8, ["same"] * 8])
def test_constant_setting_has_no_importance(constant: list[float]) -> None:
    assert explained(constant, np.arange(8.0)) == 0.0


def test_few_trials_give_no_importance() -> None:
    assert importances(trials_of({"rate": [1.0, 2.0]}, [1.0, 2.0])) == {"rate": None}
    assert importances([]) == {}
