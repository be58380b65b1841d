"""Claim 6: how much context each family uses.

In: trained models, held-out text. Out: the loss at the same places when only the last k tokens are read from the
initial state. Training streams start afresh at random places, so a history that is cut off is nothing new to a model.
"""

from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from torch.nn import functional

from claims.claim import Claim, Condition, Measured
from claims.families import FAMILIES, NAMES
from claims.held_out import Estimate, Floats
from claims.pictures import LOOKS, finish, log_ticks, panels, plot
from claims.text import Ids
from claims.workbench import Workbench
from models.config import Family
from models.language_model import LanguageModel

BATCH_TOKENS = 32_768
LEAST_DRAWN = 1e-4  # nats a token, on a logarithmic axis
NEAR = 0.02  # nats a token that a used-up history may cost


@dataclass(frozen=True)
class Context:
    """losses   by family, one for each length of history; excess   the same less the loss with the longest, at the same
    places
    """

    lengths: tuple[int, ...]
    losses: dict[str, tuple[Estimate, ...]]
    excess: dict[str, tuple[Estimate, ...]]

    def used(self, family: Family) -> float:
        """Tokens of history from which on the loss is within NEAR of the longest history's, by interpolation in log k.

        A cut between two measured lengths; the shortest length where that is near already.
        """
        means = [estimate.mean for estimate in self.excess[family.value]]
        far = max((index for index, mean in enumerate(means) if mean > NEAR), default=-1)
        if far < 0:
            return float(self.lengths[0])
        share = (means[far] - NEAR) / (means[far] - means[far + 1])
        return float(self.lengths[far] * (self.lengths[far + 1] / self.lengths[far]) ** share)


@torch.no_grad()
def cut_losses(model: LanguageModel, rows: Ids, length: int) -> Floats:
    """-ln P of the last token of each row after only the `length` tokens before it: int64 [n, time] → float64 [n]."""
    tokens = torch.from_numpy(rows[:, -length - 1 :])
    losses = []
    for piece in torch.split(tokens, max(1, BATCH_TOKENS // length)):
        hidden, _ = model(piece[:, :-1], model.initial_state(len(piece)))
        losses.append(functional.cross_entropy(model.logits(hidden[:, -1]), piece[:, -1], reduction="none"))
    return torch.cat(losses).double().numpy()


def measure(bench: Workbench) -> Measured[Context]:
    """Every family, every length, at the same places."""
    lengths = bench.sizes.contexts
    rows = bench.pieces(bench.sizes.context_places, lengths[-1] + 1)
    losses, excess = {}, {}
    for family in FAMILIES:
        model = bench.trained(family).model
        found = np.stack([cut_losses(model, rows, length) for length in lengths])
        losses[family.value] = tuple(Estimate.of(row) for row in found)
        excess[family.value] = tuple(Estimate.of(row - found[-1]) for row in found)
    return Measured(Context(lengths, losses, excess), bench.cut_short(FAMILIES))


def judge(numbers: Context) -> tuple[Condition, ...]:
    elman, gru, lstm, esn = (numbers.used(family) for family in FAMILIES)
    figures = f"Elman {elman:.0f}, GRU {gru:.0f}, LSTM {lstm:.0f}, ESN {esn:.0f} tokens"
    return (
        Condition("GRU and LSTM both use more context than the Elman net", min(gru, lstm) > elman, figures),
        Condition(
            "each of the trained recurrences uses more context than the ESN", min(elman, gru, lstm) > esn, figures
        ),
    )


def describe(numbers: Context) -> tuple[str, str]:
    used = ", ".join(f"{NAMES[family]} {numbers.used(family):.0f}" for family in FAMILIES)
    ends = ", ".join(
        f"{NAMES[family]} {numbers.losses[family.value][0].mean:.2f} → {numbers.losses[family.value][-1].mean:.2f}"
        for family in FAMILIES
    )
    return (
        f"Within {NEAR:g} nats a token of the loss with {numbers.lengths[-1]} tokens of history are: {used} tokens.",
        f"From {numbers.lengths[0]} to {numbers.lengths[-1]} tokens of history the loss goes: {ends}.",
    )


def draw(numbers: Context) -> Figure:
    figure, (loss, excess) = panels(2)
    for family in FAMILIES:
        look = LOOKS[family]
        means = [estimate.mean for estimate in numbers.losses[family.value]]
        errors = [estimate.standard_error for estimate in numbers.losses[family.value]]
        low, high = np.array(means) - errors, np.array(means) + errors
        loss.fill_between(numbers.lengths, low, high, color=look.colour, alpha=0.15, linewidth=0)
        plot(loss, numbers.lengths, means, look)
        means = [estimate.mean for estimate in numbers.excess[family.value]]
        above = [(length, mean) for length, mean in zip(numbers.lengths, means, strict=True) if mean >= LEAST_DRAWN]
        plot(excess, [length for length, _ in above], [mean for _, mean in above], look)
        excess.axvline(numbers.used(family), color=look.colour, linewidth=0.8, linestyle=":")
    excess.set_yscale("log")
    excess.axhline(NEAR, color="black", linewidth=0.6, linestyle="--")
    for axes in (loss, excess):
        log_ticks(axes, numbers.lengths)
    finish(loss, "loss (shaded: standard error)", "tokens of history", "held-out loss, nats a token")
    finish(excess, f"above the longest history (dotted: reaches {NEAR:g})", "tokens of history", "nats a token")
    return figure


CLAIM = Claim(
    number=6,
    slug="context",
    title="How much context each family uses",
    says="A recurrent net could use all that it has read; in fact an Elman net uses little of it, a gated one more, "
    "and a fixed reservoir only the last few tokens.",
    kind=Context,
    setting=f"Loss at the same held-out places after only the last k tokens, read from the initial state; the context "
    f"used is where it comes within {NEAR:g} nats of the longest, interpolated between the measured k.",
    measure=measure,
    judge=judge,
    describe=describe,
    draw=draw,
)
