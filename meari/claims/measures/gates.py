"""Claim 3: gates decide, character by character, what is kept, written and shown.

Input: the trained GRU and LSTM (and fresh ones, to compare), held-out text. Output: mean gates by kind of character, by
place in the line, and by unit. Gates are computed by the equations at the head of `models/cells/gru.py` and `lstm.py`;
the state that follows from them must be the one that `Cell.step` gives. Must not know: the page.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from meari.bundle_format.names import Family
from meari.claims.claim import Claim, Condition, Measurement, around
from meari.claims.evaluation import Floats
from meari.claims.families import NAMES
from meari.claims.pictures import BLUE, GREEN, ORANGE, PURPLE, VERMILION, LineStyle, finish, panels, plot_seeds
from meari.claims.text import BOUNDARIES, KINDS, CharacterKind, Ids
from meari.claims.workbench import Workbench
from meari.models.cells import Cell, GruCell, LstmCell
from meari.models.families import RecurrentLanguageModel
from meari.models.language_model import LanguageModel

GATED = (Family.GRU, Family.LSTM)
GATES = {Family.GRU: ("update", "reset"), Family.LSTM: ("forget", "input", "output")}
KEEPING = {Family.GRU: "update", Family.LSTM: "forget"}  # open: it keeps the old value
LINE_STYLES = {
    "GRU update": LineStyle("GRU update z (open: keeps)", GREEN, "^", "-"),
    "GRU reset": LineStyle("GRU reset r", ORANGE, "v", "--"),
    "LSTM forget": LineStyle("LSTM forget f (open: keeps)", BLUE, "o", "-"),
    "LSTM input": LineStyle("LSTM input i", VERMILION, "s", "--"),
    "LSTM output": LineStyle("LSTM output o", PURPLE, "D", ":"),
}
SHIFTS = dict(
    zip(LINE_STYLES, np.linspace(-0.24, 0.24, len(LINE_STYLES)).tolist(), strict=True)
)  # so that bars do not overlap
WARMUP_TOKENS = 64
LINE_PLACES = 30  # characters since the line end that are distinguished
MIN_READ = 50  # readings that a mean is made of
NUM_QUANTILES = 21
REACTS = 0.05
AGREEMENT = 1e-4  # between the gates' equations and the cell's own step


@dataclass(frozen=True)
class Gate:
    """One gate's means. by_kind, by_kind_before   after and before training, for the kinds that were read often enough

    by_place   against the characters since the last line end, None where there were too few
    by_unit    over time, at NUM_QUANTILES quantiles of the units
    """

    by_kind: dict[str, float]
    by_kind_before: dict[str, float]
    by_place: tuple[float | None, ...]
    by_unit: tuple[float, ...]

    @property
    def range(self) -> float:
        """Largest difference between two kinds."""
        return max(self.by_kind.values()) - min(self.by_kind.values())

    def mean_of(self, kinds: tuple[CharacterKind, ...]) -> float:
        """Return the mean over kinds, each counting the same."""
        return float(np.mean([self.by_kind[kind] for kind in kinds if kind in self.by_kind]))


@dataclass(frozen=True)
class Gates:
    """gates   by "GRU update" and so on"""

    num_tokens: int
    gates: dict[str, Gate]


def gate_values(cell: Cell, x: Tensor, state: tuple[Tensor, ...]) -> tuple[dict[str, Tensor], Tensor]:
    """Return the gates of one step, each float32 [batch, hidden_size], and the output h that follows from them.

    x        float32 [batch, input_size]
    state    as the cell has it
    """
    weights = dict(cell.kernel.named_parameters())
    u = x @ weights["weight_ih_l0"].t() + weights["bias_ih_l0"]
    w = state[0] @ weights["weight_hh_l0"].t() + weights["bias_hh_l0"]
    if isinstance(cell, GruCell):
        (u_r, u_z, u_n), (w_r, w_z, w_n) = u.chunk(3, 1), w.chunk(3, 1)
        r, z = torch.sigmoid(u_r + w_r), torch.sigmoid(u_z + w_z)
        return {"update": z, "reset": r}, (1 - z) * torch.tanh(u_n + r * w_n) + z * state[0]
    assert isinstance(cell, LstmCell), "only these two have gates"
    i, f, g, o = (u + w).chunk(4, 1)
    i, f, o = torch.sigmoid(i), torch.sigmoid(f), torch.sigmoid(o)
    h = o * torch.tanh(f * state[1] + i * torch.tanh(g))
    return {"forget": f, "input": i, "output": o}, h


@torch.no_grad()
def read_gates(model: LanguageModel, rows: Ids) -> dict[str, Floats]:
    """Read every gate at every token: int64 [batch, time] → float64 [batch, time, hidden_size] by the gate's name.

    The model has one layer.
    """
    assert isinstance(model, RecurrentLanguageModel)
    (cell,) = model.cells
    tokens = torch.from_numpy(rows)
    state = model.initial_state(len(rows))
    found: dict[str, list[Tensor]] = {}
    for time in range(tokens.shape[1]):
        before = tuple(state[f"{name}0"] for name in cell.state_names)
        values, h = gate_values(cell, model.embedding(tokens[:, time]), before)
        _, state = model.step(tokens[:, time], state)
        assert torch.allclose(h, state["h0"], atol=AGREEMENT), "the cell's equations are no longer these"
        for name, value in values.items():
            found.setdefault(name, []).append(value)
    return {name: torch.stack(values, dim=1).double().numpy() for name, values in found.items()}


def measure(bench: Workbench) -> Measurement[Gates]:
    """Read pieces of the held-out text with each model, trained and fresh."""
    sizes = bench.sizes
    rows = bench.pieces(sizes.gate_sequences, WARMUP_TOKENS + sizes.gate_tokens)
    kinds = bench.text.kinds[rows]
    line_end = KINDS.index(CharacterKind.LINE_END)
    places = since(kinds == line_end)
    gates = {}
    for family in GATED:
        before = read_gates(bench.fresh(family), rows)
        after = read_gates(bench.trained(family).model, rows)
        for name in GATES[family]:
            gates[f"{NAMES[family]} {name}"] = _gate(before[name], after[name], kinds, places)
    return Measurement(Gates(rows[:, WARMUP_TOKENS:].size, gates), bench.cut_short(GATED))


def _gate(before: Floats, after: Floats, kinds: Ids, places: Ids) -> Gate:
    warm = (slice(None), slice(WARMUP_TOKENS, None))
    kinds, places, first, values = kinds[warm], places[warm], before[warm].mean(2), after[warm]
    means = values.mean(2)
    read = [(place, kind) for place, kind in enumerate(KINDS) if (kinds == place).sum() >= MIN_READ]
    by_place = tuple(
        float(means[places == place].mean()) if (places == place).sum() >= MIN_READ else None
        for place in range(LINE_PLACES)
    )
    return Gate(
        {kind.value: float(means[kinds == place].mean()) for place, kind in read},
        {kind.value: float(first[kinds == place].mean()) for place, kind in read},
        by_place,
        tuple(float(value) for value in np.quantile(values.mean((0, 1)), np.linspace(0, 1, NUM_QUANTILES))),
    )


def since(marks: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> Ids:
    """Return places since the last mark, 0 at the mark itself, -1 before the first: bool [batch, time] → int64
    alike.
    """
    steps = np.arange(marks.shape[1])
    last = np.maximum.accumulate(np.where(marks, steps, -1), axis=1)
    return np.asarray(np.where(last >= 0, steps - last, -1), dtype=np.int64)


def judge(numbers: Gates) -> tuple[Condition, ...]:
    ranges = {name: gate.range for name, gate in numbers.gates.items()}
    keeping = {NAMES[family]: numbers.gates[f"{NAMES[family]} {KEEPING[family]}"] for family in GATED}
    boundary = {name: gate.mean_of(BOUNDARIES) for name, gate in keeping.items()}
    inside = {name: gate.mean_of((CharacterKind.LETTER,)) for name, gate in keeping.items()}
    return (
        Condition(
            f"the mean of every gate differs by at least {REACTS:g} between two kinds of characters",
            min(ranges.values()) >= REACTS,
            ", ".join(f"{name} {value:.2f}" for name, value in ranges.items()),
        ),
        Condition(
            "the LSTM's forget gate and the GRU's update gate keep less at spaces and line ends than at letters",
            all(boundary[name] < inside[name] for name in keeping),
            ", ".join(f"{name} {boundary[name]:.2f} against {inside[name]:.2f}" for name in keeping),
        ),
    )


def describe(seeds: Sequence[Gates]) -> tuple[str, str]:
    means = ", ".join(
        f"{name} {around([float(np.mean(numbers.gates[name].by_unit)) for numbers in seeds])}"
        for name in seeds[0].gates
    )

    def listed(name: str) -> str:
        gates = [numbers.gates[name] for numbers in seeds]
        return ", ".join(f"{kind} {around([gate.by_kind[kind] for gate in gates])}" for kind in gates[0].by_kind)

    return (
        (f"Mean openness of the trained gates over {seeds[0].num_tokens:,} tokens, all units and time: {means}."),
        (
            f"By the character just read, the forget gate is at {listed('LSTM forget')}; the update gate at "
            f"{listed('GRU update')}."
        ),
    )


def draw(seeds: Sequence[Gates]) -> Figure:
    figure, (by_kind, by_place, by_unit) = panels(3)
    for name in seeds[0].gates:
        look, gates = LINE_STYLES[name], [numbers.gates[name] for numbers in seeds]
        kinds = [kind.value for kind in KINDS if kind.value in gates[0].by_kind]
        places = np.arange(len(kinds)) + SHIFTS[name]
        hollow = np.mean([[gate.by_kind_before[kind] for kind in kinds] for gate in gates], axis=0)
        by_kind.scatter(places, hollow, 30, marker=look.marker, facecolors="none", edgecolors=look.colour)
        full = [[gate.by_kind[kind] for kind in kinds] for gate in gates]
        plot_seeds(by_kind, places.tolist(), full, replace(look, line="none"))
        by_kind.set_xticks(range(len(kinds)), [kind.replace(", ", ",\n") for kind in kinds], fontsize=8)
        known = [place for place in range(LINE_PLACES) if all(gate.by_place[place] is not None for gate in gates)]
        rows = [[gate.by_place[place] or 0.0 for place in known] for gate in gates]
        plot_seeds(by_place, known, rows, look, is_band=True)
        percents = np.linspace(0, 100, NUM_QUANTILES).tolist()
        plot_seeds(by_unit, percents, [gate.by_unit for gate in gates], look, is_band=True)
    for axes in (by_kind, by_place, by_unit):
        axes.set_ylim(0, 1)
    finish(by_kind, "by character just read (hollow: before training)", "", "mean gate, 0 shut, 1 open", legend=False)
    finish(by_place, "by place in the line", "characters since the line end", "mean gate", legend=False)
    finish(by_unit, "by unit, mean over time", "units, sorted, %", "mean gate", legend=False)
    figure.legend(*by_unit.get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    return figure


CLAIM = Claim(
    number=3,
    slug="gates",
    title="Gates open and close with the text",
    says="Gates decide at every step what is kept, what is written and what is shown; a trained net forgets at "
    "boundaries and keeps its memory inside a word.",
    kind=Gates,
    setting="Mean over sequences of the held-out text. z is the share of the old state that the GRU keeps, f the share "
    "of its memory that the LSTM keeps. Bars and bands: smallest to largest of the seeds, around their median.",
    measure=measure,
    judge=judge,
    describe=describe,
    draw=draw,
)
