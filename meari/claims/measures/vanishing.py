"""Claim 1: gradients vanish on their way back through time, and gated nets keep more of them once they are trained.

Input: fresh and trained models, held-out text. Output: the norm of d loss_t / d h_{t-k} as a share of that at k = 1,
for many places t, before and after training. Must not know: the page.

The model runs step by step in float64, its hidden states retained; one backward pass from the loss of the last token
gives the gradient at every state before it. Rows of a batch do not meet, so one pass serves many sequences. For the
LSTM, h_{t-k} is its output; what its memory c_{t-k} hands on beside it is drawn as well.

Shares differ by orders of magnitude from place to place, so that a mean is that of a few places: quartiles are kept.
All three families are judged by the same measure.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional

from meari.bundle_format.names import Family
from meari.claims.claim import Claim, Condition, Measurement, between
from meari.claims.evaluation import Floats
from meari.claims.families import NAMES, THROUGH_TIME
from meari.claims.pictures import LINE_STYLES, LineStyle, finish, panels, plot
from meari.claims.text import Ids
from meari.claims.training import copied
from meari.claims.workbench import Workbench
from meari.models.language_model import LanguageModel

WARMUP_TOKENS = 64  # read before the first retained state
STATE, MEMORY = "h0", "c0"
ELMAN, GATED = Family.RNN, (Family.GRU, Family.LSTM)
QUARTILES = (0.25, 0.5, 0.75)
TINY = 1e-300  # below it a share is that
DENSE, EVERY = 10, 5  # every k up to the first, then every fifth
MIN_DRAWN = 1e-14


@dataclass(frozen=True)
class Quartiles:
    """Lower quartile, median and upper quartile over places."""

    low: float
    middle: float
    high: float

    @staticmethod
    def of(values: Floats) -> "Quartiles":
        """Return the quartiles of float64 [places]."""
        return Quartiles(*(float(value) for value in np.quantile(values, QUARTILES)))


@dataclass(frozen=True)
class Vanishing:
    """Numbers of claim 1.

    ks             distances, in tokens, in rising order from 1
    far            the k that is judged, one of ks
    before, after  by family, the share of the gradient at k = 1 that is left at each of ks
    gain           by family, the share after training over that before it, at `far` and at the same place
    memory         the LSTM's c, after training
    """

    ks: tuple[int, ...]
    far: int
    num_places: int
    before: dict[str, tuple[Quartiles, ...]]
    after: dict[str, tuple[Quartiles, ...]]
    gain: dict[str, Quartiles]
    memory: tuple[Quartiles, ...]

    def kept(self, family: Family, *, is_trained: bool = True) -> Quartiles:
        """Share that is left at `far`."""
        shares = self.after if is_trained else self.before
        return shares[family.value][self.ks.index(self.far)]


def gradient_norms(model: LanguageModel, rows: Ids, horizon: int, names: tuple[str, ...] = (STATE,)) -> list[Floats]:
    """Return norms of d loss_t / d state_{t-k}, where t is the last position that has a next token.

    rows     int64 [batch, time], time >= horizon + 2; what lies before the horizon warms the state up
    names    the state tensors that are looked at
    returns  for each of them float64 [batch, horizon + 1]; column k is that of state_{t-k}
    """
    model = copied(model).double().eval()
    tokens = torch.from_numpy(rows)
    begin = tokens.shape[1] - 2 - horizon
    state = {name: tensor.double() for name, tensor in model.initial_state(len(rows)).items()}
    retained: list[dict[str, Tensor]] = []
    hidden = torch.empty(0)
    for time in range(tokens.shape[1] - 1):
        with torch.set_grad_enabled(time >= begin):
            hidden, state = model.step(tokens[:, time], state)
        if time >= begin:
            retained.append(state)
    loss = functional.cross_entropy(model.logits(hidden), tokens[:, -1], reduction="sum")
    norms = []
    for name in names:
        wanted = [kept[name] for kept in reversed(retained)]
        gradients = torch.autograd.grad(loss, wanted, retain_graph=True, allow_unused=True, materialize_grads=True)
        norms.append(torch.stack([gradient.norm(dim=1) for gradient in gradients], dim=1).detach().numpy())
    return norms


def shares(norms: Floats) -> Floats:
    """Return each place's norms as shares of its norm at k = 1: float64 [places, horizon + 1], both."""
    return np.maximum(norms / np.maximum(norms[:, 1:2], TINY), TINY)


def distances(horizon: int) -> tuple[int, ...]:
    """Return the k that are kept: all small ones, every fifth, half the horizon and the horizon."""
    sparse = range(EVERY, horizon + 1, EVERY)
    return tuple(sorted({*range(1, min(DENSE, horizon) + 1), *sparse, horizon // 2, horizon}))


def measure(bench: Workbench) -> Measurement[Vanishing]:
    """Measure before and after training, over places of the held-out text."""
    sizes = bench.sizes
    rows = bench.pieces(sizes.gradient_sequences * sizes.gradient_places, WARMUP_TOKENS + sizes.horizon + 2)
    ks, far = distances(sizes.horizon), sizes.horizon // 2
    before, after, gain = {}, {}, {}
    memory: tuple[Quartiles, ...] = ()
    for family in THROUGH_TIME:
        first = shares(gradient_norms(bench.fresh(family), rows, sizes.horizon)[0])
        names = (STATE, MEMORY) if family is Family.LSTM else (STATE,)
        last = [shares(norms) for norms in gradient_norms(bench.trained(family).model, rows, sizes.horizon, names)]
        before[family.value] = tuple(Quartiles.of(first[:, k]) for k in ks)
        after[family.value] = tuple(Quartiles.of(last[0][:, k]) for k in ks)
        gain[family.value] = Quartiles.of(last[0][:, far] / first[:, far])
        memory = tuple(Quartiles.of(last[1][:, k]) for k in ks) if family is Family.LSTM else memory
    return Measurement(Vanishing(ks, far, len(rows), before, after, gain, memory), bench.cut_short(THROUGH_TIME))


def judge(numbers: Vanishing) -> tuple[Condition, ...]:
    """Judge all families by one measure: the quartiles of a gated net lie above those of the Elman net."""
    conditions = []
    for family in GATED:
        elman, gated = numbers.kept(ELMAN), numbers.kept(family)
        what = (
            f"after training, the {NAMES[family]} keeps more at k = {numbers.far} than the Elman net: its lower "
            "quartile lies above the Elman net's upper one"
        )
        conditions.append(Condition(what, gated.low > elman.high, f"{gated.low:.1e} against {elman.high:.1e}"))
    for family in GATED:
        elman, gated = numbers.gain[ELMAN.value], numbers.gain[family.value]
        what = (
            f"relative to before training, the {NAMES[family]} keeps more than the Elman net: the lower quartile of "
            "the share after over that before lies above the Elman net's upper one"
        )
        conditions.append(Condition(what, gated.low > elman.high, f"× {gated.low:.1e} against × {elman.high:.1e}"))
    return tuple(conditions)


def describe(seeds: Sequence[Vanishing]) -> tuple[str, str]:
    far = seeds[0].far

    def listed(*, is_trained: bool) -> str:
        return ", ".join(
            f"{NAMES[family]} {between([numbers.kept(family, is_trained=is_trained).middle for numbers in seeds])}"
            for family in THROUGH_TIME
        )

    gains = ", ".join(
        f"{NAMES[family]} × {between([numbers.gain[family.value].middle for numbers in seeds])}"
        for family in THROUGH_TIME
    )
    return (
        (
            f"Share of the gradient at k = 1 that is left at k = {far}, median over {seeds[0].num_places} places: "
            f"before training {listed(is_trained=False)}; after training {listed(is_trained=True)}."
        ),
        f"Ratio of the share after training to that before, at the same place: {gains}.",
    )


def draw(seeds: Sequence[Vanishing]) -> Figure:
    figure, (before, after) = panels(2)
    for family in THROUGH_TIME:
        _draw_shares(before, [numbers.before[family.value] for numbers in seeds], seeds[0], LINE_STYLES[family])
        _draw_shares(after, [numbers.after[family.value] for numbers in seeds], seeds[0], LINE_STYLES[family])
    memory = LineStyle("LSTM, its memory c", LINE_STYLES[Family.LSTM].colour, "", "--")
    middles = [[place.middle for place in numbers.memory] for numbers in seeds]
    plot(after, seeds[0].ks, np.median(middles, axis=0).tolist(), memory, is_marked=False)
    low = max(MIN_DRAWN, min(axes.get_ylim()[0] for axes in (before, after)))
    for axes, title in ((before, "before training"), (after, "after training")):
        axes.set_ylim(low, 3)
        finish(axes, title, "k, tokens back", "share of the gradient at k = 1")
    return figure


def _draw_shares(axes: Axes, rows: Sequence[Sequence[Quartiles]], numbers: Vanishing, look: LineStyle) -> None:
    """Draw medians over seeds of the quartiles, and bars over seeds of the median at every tenth part of the
    horizon.
    """
    low, middle, high = (
        np.array([[getattr(place, name) for place in row] for row in rows]) for name in ("low", "middle", "high")
    )
    axes.set_yscale("log")
    axes.fill_between(numbers.ks, np.median(low, 0), np.median(high, 0), color=look.colour, alpha=0.15, linewidth=0)
    plot(axes, numbers.ks, np.median(middle, 0).tolist(), look, is_marked=False)
    barred = [place for place, k in enumerate(numbers.ks) if k % max(1, numbers.far // 5) == 0]
    mid = np.median(middle, 0)[barred]
    bars = (mid - middle.min(0)[barred], middle.max(0)[barred] - mid)
    axes.errorbar(np.array(numbers.ks)[barred], mid, bars, fmt="none", ecolor=look.colour, elinewidth=1.2, capsize=3)


CLAIM = Claim(
    number=1,
    slug="vanishing-gradients",
    title="Gradients vanish, in trained gated nets less",
    says="A gradient shrinks at every step back through time, so that an Elman net cannot learn from distant inputs; "
    "gates learn to keep a path on which more of it survives.",
    kind=Vanishing,
    setting="Norm of ∂loss_t/∂h_{t−k} as a share of that at k = 1, at places of the held-out text, the same before and "
    "after training. Line: median; shaded: quartiles over places; bars: smallest to largest median of the seeds. "
    "Before training the order of the families says nothing about gates: it is that of their initial weights.",
    measure=measure,
    judge=judge,
    describe=describe,
    draw=draw,
)
