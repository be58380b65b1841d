import numpy as np
import pytest
import torch
from torch.nn import functional

from meari.bundle_format.names import Family
from meari.claims.claim import Verdict, verdict
from meari.claims.families import THROUGH_TIME
from meari.claims.measures.vanishing import (
    CLAIM,
    MEMORY,
    STATE,
    Quartiles,
    Vanishing,
    distances,
    gradient_norms,
    shares,
)
from meari.models.config import RecurrentConfig
from meari.models.families import build_model
from meari.models.language_model import LanguageModel, State
from tests.claims.workbenches import TINY, tiny_bench

VOCABULARY = 5
ROWS = np.array([[1, 4, 0, 2, 3, 1, 1], [0, 3, 3, 2, 4, 0, 2]])


def tiny_model(family: Family) -> LanguageModel:
    return build_model(RecurrentConfig(family, embedding_size=4, hidden_size=3), VOCABULARY, seed=2).double()


def loss_after(model: LanguageModel, row: torch.Tensor, state: State, begin: int) -> float:
    """Run the model from the state after token `begin` and return the loss of the last token."""
    hidden = state[STATE]
    for time in range(begin + 1, len(row) - 1):
        hidden, state = model.step(row[None, time], state)
    return float(functional.cross_entropy(model.logits(hidden), row[None, -1]))


@pytest.mark.parametrize("family", THROUGH_TIME)
@torch.no_grad()
def test_gradient_norms_agree_with_finite_differences(family: Family) -> None:
    model, horizon, nudge = tiny_model(family), 4, 1e-6
    with torch.enable_grad():
        (norms,) = gradient_norms(model, ROWS, horizon)
    last = ROWS.shape[1] - 2
    for index, k in ((0, 0), (0, 3), (1, 4)):
        row = torch.from_numpy(ROWS[index])
        state = {name: tensor.double() for name, tensor in model.initial_state(1).items()}
        for time in range(last - k + 1):
            _, state = model.step(row[None, time], state)
        slopes = []
        for unit in range(3):
            shift = torch.zeros(1, 3, dtype=torch.float64)
            shift[0, unit] = nudge
            up, down = (
                loss_after(model, row, {**state, STATE: state[STATE] + sign * shift}, last - k) for sign in (1, -1)
            )
            slopes.append((up - down) / (2 * nudge))
        assert norms[index, k] == pytest.approx(np.linalg.norm(slopes), rel=1e-5)


def test_memory_of_the_lstm_has_its_own_gradient() -> None:
    hidden, memory = gradient_norms(tiny_model(Family.LSTM), ROWS, 4, (STATE, MEMORY))
    assert hidden.shape == memory.shape == (2, 5)
    assert not np.allclose(hidden, memory)


def test_shares_are_computed_for_each_position_separately() -> None:
    norms = np.array([[9.0, 2.0, 1.0], [9.0, 100.0, 1.0]])
    assert shares(norms)[:, 1:].tolist() == [[1.0, 0.5], [1.0, 0.01]]


def test_distances_include_the_judged_one_and_both_ends() -> None:
    assert distances(12) == (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12)
    assert {1, 50, 100} <= set(distances(100))


def about(middle: float) -> Quartiles:
    return Quartiles(middle / 2, middle, 2 * middle)


def vanishing(before: dict[str, float], after: dict[str, float]) -> Vanishing:
    def kept(ends: dict[str, float]) -> dict[str, tuple[Quartiles, ...]]:
        return {family: (about(1.0), about(end)) for family, end in ends.items()}

    gain = {family: about(after[family] / before[family]) for family in after}
    return Vanishing((1, 2), 2, 10, kept(before), kept(after), gain, (about(1.0), about(0.5)))


FRESH = {"rnn": 1e-5, "gru": 1e-7, "lstm": 1e-3}


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        ({"rnn": 1e-8, "gru": 1e-3, "lstm": 1e-3}, Verdict.HOLDS),
        ({"rnn": 1e-3, "gru": 1e-3, "lstm": 1e-3}, Verdict.IN_PART),  # only the GRU gains more
        ({"rnn": 1e-5, "gru": 1e-4, "lstm": 1e-5}, Verdict.IN_PART),
        ({"rnn": 1e-1, "gru": 1e-3, "lstm": 1e-3}, Verdict.DOES_NOT),
    ],
)
def test_criterion_is_the_same_for_all_families(after: dict[str, float], expected: Verdict) -> None:
    assert verdict(CLAIM.judge(vanishing(FRESH, after))) is expected


def test_tiny_run_gives_quartiles_for_each_family_and_a_picture() -> None:
    measured = CLAIM.measure(tiny_bench())
    numbers = measured.numbers
    assert set(numbers.before) == set(numbers.after) == set(numbers.gain) == {"rnn", "gru", "lstm"}
    assert numbers.ks == distances(TINY.horizon)
    assert all(place.low <= place.middle <= place.high for places in numbers.after.values() for place in places)
    assert all(places[0] == Quartiles(1.0, 1.0, 1.0) for places in numbers.before.values())
    assert measured.left_out == ()
    assert CLAIM.draw([numbers]).axes[0].get_yscale() == "log"
    assert all(sentence.endswith(".") for sentence in CLAIM.describe([numbers, numbers]))
