"""Claim 1: gradients vanish on their way back through time, in an Elman net sooner than in a gated one.

In: fresh and trained models, held-out text. Out: the norm of d loss_t / d h_{t-k} for every k up to a horizon.

The model runs step by step in float64, its hidden states retained; one backward pass from the loss of the last token
gives the gradient at every state before it. Rows of a batch do not meet, so one pass serves many sequences. For the
LSTM, h_{t-k} is its output; what its memory c_{t-k} hands on beside it is drawn as well.
"""

from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional

from claims.claim import Claim, Condition, Measured
from claims.families import NAMES, THROUGH_TIME
from claims.held_out import Floats
from claims.pictures import LOOKS, Look, finish, panels, plot
from claims.text import Ids
from claims.training import copied
from claims.workbench import Workbench
from models.config import Family
from models.language_model import LanguageModel

WARM_TOKENS = 64  # read before the first retained state
VANISHED = 1e-3  # of the gradient at k = 1
ADVANTAGE = 10.0
STATE, MEMORY = "h0", "c0"


@dataclass(frozen=True)
class Curve:
    """Norms of the gradient at k = 0 … horizon: mean over sequences, and the 10 % and 90 % quantiles."""

    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    @staticmethod
    def of(norms: Floats) -> "Curve":
        """norms   float64 [sequences, horizon + 1]"""
        low, high = np.quantile(norms, (0.1, 0.9), axis=0)
        return Curve(*(tuple(float(value) for value in row) for row in (norms.mean(0), low, high)))

    def kept(self, k: int) -> float:
        """The mean gradient at k as a share of that at 1."""
        return self.mean[k] / self.mean[1]


@dataclass(frozen=True)
class Vanishing:
    """before, after   curves for h by family; memory   for the LSTM's c, after training"""

    horizon: int
    num_sequences: int
    before: dict[str, Curve]
    after: dict[str, Curve]
    memory: Curve

    @property
    def far(self) -> int:
        """The k that is judged: half the horizon."""
        return self.horizon // 2


def gradient_norms(model: LanguageModel, rows: Ids, horizon: int, names: tuple[str, ...] = (STATE,)) -> list[Floats]:
    """Norms of d loss_t / d state_{t-k}, where t is the last position that has a next token.

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


def measure(bench: Workbench) -> Measured[Vanishing]:
    """Before and after training, over places of the held-out text."""
    sizes = bench.sizes
    rows = bench.pieces(sizes.gradient_sequences * sizes.gradient_places, WARM_TOKENS + sizes.horizon + 2)
    before, after = {}, {}
    memory = None
    for family in THROUGH_TIME:
        before[family.value] = Curve.of(gradient_norms(bench.fresh(family), rows, sizes.horizon)[0])
        names = (STATE, MEMORY) if family is Family.LSTM else (STATE,)
        norms = gradient_norms(bench.trained(family).model, rows, sizes.horizon, names)
        after[family.value] = Curve.of(norms[0])
        memory = Curve.of(norms[1]) if family is Family.LSTM else memory
    assert memory is not None
    numbers = Vanishing(sizes.horizon, len(rows), before, after, memory)
    return Measured(numbers, bench.cut_short(THROUGH_TIME))


def judge(numbers: Vanishing) -> tuple[Condition, ...]:
    far = numbers.far
    elman, gru, lstm = (numbers.after[family.value].kept(far) for family in THROUGH_TIME)
    return (
        Condition(
            f"after training, the Elman net's gradient at k = {far} is below a thousandth of that at k = 1",
            elman < VANISHED,
            f"{elman:.1e}",
        ),
        Condition(
            f"there GRU and LSTM each keep at least {ADVANTAGE:g} times the share that the Elman net keeps",
            min(gru, lstm) >= ADVANTAGE * elman,
            f"GRU {gru:.1e}, LSTM {lstm:.1e}",
        ),
    )


def describe(numbers: Vanishing) -> tuple[str, str]:
    far = numbers.far

    def listed(curves: dict[str, Curve]) -> str:
        return ", ".join(f"{NAMES[family]} {curves[family.value].kept(far):.1e}" for family in THROUGH_TIME)

    halving = ", ".join(f"{NAMES[family]} {_factor(numbers.after[family.value], far):.2f}" for family in THROUGH_TIME)
    return (
        (
            f"Of the gradient at k = 1 there is left at k = {far}, before training: {listed(numbers.before)}; after "
            f"it: {listed(numbers.after)}."
        ),
        (
            f"In the mean over these {far - 1} steps a trained net multiplies it at each by: {halving}; the LSTM's "
            f"memory c hands on {numbers.memory.kept(far):.1e} of its own."
        ),
    )


def _factor(curve: Curve, far: int) -> float:
    return float(curve.kept(far) ** (1 / (far - 1)))


def draw(numbers: Vanishing) -> Figure:
    figure, (before, after) = panels(2)
    for axes, curves in ((before, numbers.before), (after, numbers.after)):
        for family in THROUGH_TIME:
            curve, look = curves[family.value], LOOKS[family]
            steps = np.arange(len(curve.mean))
            axes.fill_between(steps, curve.low, curve.high, color=look.colour, alpha=0.15, linewidth=0)
            plot(axes, steps.tolist(), curve.mean, look, is_marked=False)
        axes.set_yscale("log")
    memory = Look("LSTM, its memory c", LOOKS[Family.LSTM].colour, "", "--")
    plot(after, list(range(len(numbers.memory.mean))), numbers.memory.mean, memory, is_marked=False)
    low = min(axes.get_ylim()[0] for axes in (before, after))
    high = max(axes.get_ylim()[1] for axes in (before, after))
    for axes, title in ((before, "before training"), (after, "after training")):
        axes.set_ylim(max(low, 1e-16), high)
        finish(axes, title, "k, tokens back", "norm of d loss / d h at t − k")
    return figure


CLAIM = Claim(
    number=1,
    slug="vanishing-gradients",
    title="Gradients vanish",
    says="Going back through time a gradient shrinks at every step, so that an Elman net cannot learn from what lies "
    "far back; gates give it a way on which it survives.",
    kind=Vanishing,
    setting="Norm of ∂loss_t/∂h_{t−k} against k: mean over places of the held-out text, shaded from the 10 % to the "
    "90 % quantile.",
    measure=measure,
    judge=judge,
    describe=describe,
    draw=draw,
)
