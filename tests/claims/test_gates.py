import numpy as np
import pytest
import torch

from meari.bundle_format.names import Family
from meari.claims.claim import Verdict, verdict
from meari.claims.measures.gates import CLAIM, Gate, Gates, gate_values, read_gates, since
from meari.claims.text import CharacterKind
from meari.models.cells import Cell, GruCell, LstmCell
from tests.claims.workbenches import tiny_bench


@pytest.mark.parametrize("kind", [GruCell, LstmCell])
@torch.no_grad()
def test_state_computed_from_the_gates_matches_the_cell(kind: type[GruCell] | type[LstmCell]) -> None:
    torch.manual_seed(1)
    cell: Cell = kind(3, 5)
    x = torch.randn(4, 3)
    state = tuple(torch.randn(4, 5) for _ in cell.state_names)
    _, h = gate_values(cell, x, state)
    assert torch.allclose(h, cell.step(x, state)[0], atol=1e-6)


@torch.no_grad()
def test_large_negative_biases_close_the_gates() -> None:
    cell = LstmCell(3, 2)
    for name, weight in cell.kernel.named_parameters():
        weight.fill_(-40.0 if name == "bias_ih_l0" else 0.0)
    values, h = gate_values(cell, torch.ones(1, 3), (torch.ones(1, 2), torch.ones(1, 2)))
    assert set(values) == {"forget", "input", "output"}
    assert all(float(value.max()) < 1e-12 for value in values.values())
    assert float(h.abs().max()) < 1e-12


def test_gates_are_read_at_every_token() -> None:
    bench = tiny_bench()
    values = read_gates(bench.fresh(Family.GRU), bench.pieces(3, 7))
    assert {name: value.shape[:2] for name, value in values.items()} == {"update": (3, 7), "reset": (3, 7)}
    assert all(value.min() > 0 and value.max() < 1 for value in values.values())


def test_positions_count_from_the_last_mark() -> None:
    marks = np.array([[False, True, False, False, True, False]])
    assert since(marks).tolist() == [[-1, 0, 1, 2, 0, 1]]


def numbers(letter: float, space: float) -> Gates:
    gate = Gate({CharacterKind.LETTER: letter, CharacterKind.SPACE: space}, {}, (0.5,), (0.5,))
    names = ("GRU update", "GRU reset", "LSTM forget", "LSTM input", "LSTM output")
    return Gates(100, dict.fromkeys(names, gate))


@pytest.mark.parametrize(
    ("letter", "space", "expected"),
    [(0.9, 0.5, Verdict.HOLDS), (0.5, 0.9, Verdict.IN_PART), (0.5, 0.51, Verdict.DOES_NOT)],
)
def test_criterion(letter: float, space: float, expected: Verdict) -> None:
    assert verdict(CLAIM.judge(numbers(letter, space))) is expected


def test_tiny_run_has_every_gate() -> None:
    measured = CLAIM.measure(tiny_bench())
    assert set(measured.numbers.gates) == set(numbers(0.5, 0.5).gates)
    assert all(CharacterKind.SPACE in gate.by_kind for gate in measured.numbers.gates.values())
    assert len(CLAIM.draw([measured.numbers]).axes) == 3
