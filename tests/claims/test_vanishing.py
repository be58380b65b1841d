import numpy as np
import pytest
import torch
from torch.nn import functional

from claims.claim import Verdict, verdict
from claims.families import THROUGH_TIME
from claims.measures.vanishing import CLAIM, MEMORY, STATE, Curve, Vanishing, gradient_norms
from models.config import Family, RecurrentConfig
from models.language_model import LanguageModel, State, build_model
from tests.claims.benches import TINY, tiny_bench

VOCABULARY = 5
ROWS = np.array([[1, 4, 0, 2, 3, 1, 1], [0, 3, 3, 2, 4, 0, 2]])


def tiny_model(family: Family) -> LanguageModel:
    return build_model(RecurrentConfig(family, embedding_size=4, hidden_size=3), VOCABULARY, seed=2).double()


def loss_after(model: LanguageModel, row: torch.Tensor, state: State, begin: int) -> float:
    """The loss of the last token, the model run on from the state that stands after token `begin`."""
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


def test_memory_of_the_lstm_has_a_gradient_of_its_own() -> None:
    hidden, memory = gradient_norms(tiny_model(Family.LSTM), ROWS, 4, (STATE, MEMORY))
    assert hidden.shape == memory.shape == (2, 5)
    assert not np.allclose(hidden, memory)


def curve(*means: float) -> Curve:
    return Curve(means, means, means)


@pytest.mark.parametrize(
    ("elman", "gru", "expected"),
    [(1e-5, 1e-2, Verdict.HOLDS), (1e-5, 1e-5, Verdict.IN_PART), (0.5, 0.5, Verdict.DOES_NOT)],
)
def test_criterion(elman: float, gru: float, expected: Verdict) -> None:
    ends = {"rnn": elman, "gru": gru, "lstm": 0.9}
    curves = {family: curve(1.0, 1.0, end, end, end) for family, end in ends.items()}
    numbers = Vanishing(4, 1, curves, curves, curves["lstm"])
    assert verdict(CLAIM.judge(numbers)) is expected


def test_tiny_run_gives_a_curve_a_family_and_a_picture() -> None:
    measured = CLAIM.measure(tiny_bench())
    numbers = measured.numbers
    assert set(numbers.before) == set(numbers.after) == {"rnn", "gru", "lstm"}
    assert all(len(curve.mean) == TINY.horizon + 1 for curve in numbers.after.values())
    assert measured.left_out == ()
    assert CLAIM.draw(numbers).axes[0].get_yscale() == "log"
    assert all(sentence.endswith(".") for sentence in CLAIM.describe(numbers))
