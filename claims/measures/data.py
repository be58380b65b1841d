"""Claim 4: more data favours the LSTM.

In: shares of the training part. Out: held-out loss of all four families at each, for equal trained parameters. Every
training has the same steps at most and the same learning rates; it ends early where the validation loss has stopped
falling, and the weights with the best validation loss are measured. So a family is never blamed for having been
trained too long on little text, and each gets the same chance at a share.
"""

from dataclasses import dataclass

from matplotlib.figure import Figure

from claims.claim import Claim, Condition, Measured
from claims.families import FAMILIES, NAMES
from claims.held_out import held_out_loss
from claims.pictures import LOOKS, finish, log_ticks, panels, plot
from claims.training import Plan, Trained, train
from claims.workbench import SEED, Workbench
from models.config import Family

WHOLE = 1.0
OTHERS = tuple(family for family in FAMILIES if family is not Family.LSTM)


@dataclass(frozen=True)
class Learned:
    """One training. best_step   where the validation loss was lowest"""

    family: str
    share: float
    num_tokens: int
    loss: float
    standard_error: float
    steps: int
    best_step: int
    cpu_seconds: float


@dataclass(frozen=True)
class Data:
    learned: tuple[Learned, ...]

    @property
    def shares(self) -> list[float]:
        """Those that every family was trained on, in rising order."""
        every = sorted({one.share for one in self.learned})
        return [share for share in every if sum(one.share == share for one in self.learned) == len(FAMILIES)]

    def of(self, family: Family, share: float) -> Learned:
        return next(one for one in self.learned if (one.family, one.share) == (family.value, share))

    def lead(self, family: Family, share: float) -> float:
        """How many nats a token the LSTM is ahead of another family."""
        return self.of(family, share).loss - self.of(Family.LSTM, share).loss


def measure(bench: Workbench) -> Measured[Data]:
    """The whole part first, then the other shares in the order of the sizes; what there is no time for is left out."""
    learned = [_measured(bench, family, WHOLE, bench.trained(family)) for family in FAMILIES]
    left_out: list[str] = []
    for share in bench.sizes.shares:
        for family in FAMILIES if share != WHOLE else ():
            budget = bench.budget
            if not budget.is_spent:
                bench.tell(f"training the {NAMES[family]} on {share:.0%}")
                ids = bench.text.training[: max(2, round(share * len(bench.text.training)))]
                plan = Plan.of(bench.sizes)
                trained = train(bench.fresh(family), ids, bench.validation, plan, budget, SEED)
                if not trained.is_cut:
                    learned.append(_measured(bench, family, share, trained))
                    continue
            left_out.append(f"the {NAMES[family]} on {share:.0%}")
    return Measured(Data(tuple(learned)), (*bench.cut_short(FAMILIES), *left_out))


def _measured(bench: Workbench, family: Family, share: float, trained: Trained) -> Learned:
    loss = held_out_loss(trained.model, bench.text.held_out)
    best = min(trained.points, key=lambda point: point.loss, default=None)
    return Learned(
        family.value,
        share,
        round(share * len(bench.text.training)),
        loss.mean,
        loss.standard_error,
        trained.steps,
        trained.steps if best is None else best.step,
        trained.cpu_seconds,
    )


def judge(numbers: Data) -> tuple[Condition, ...]:
    shares = numbers.shares
    whole = {family: numbers.of(family, shares[-1]).loss for family in FAMILIES}
    grown = {family: numbers.lead(family, shares[-1]) - numbers.lead(family, shares[0]) for family in OTHERS}
    return (
        Condition(
            f"at {shares[-1]:.0%} of the text the LSTM has the lowest held-out loss",
            min(whole, key=lambda family: whole[family]) is Family.LSTM,
            ", ".join(f"{NAMES[family]} {loss:.3f}" for family, loss in whole.items()),
        ),
        Condition(
            f"its lead on each of the others has grown since {shares[0]:.0%}",
            len(shares) > 1 and min(grown.values()) > 0,
            ", ".join(f"{NAMES[family]} {growth:+.3f}" for family, growth in grown.items()),
        ),
    )


def describe(numbers: Data) -> tuple[str, str]:
    shares = numbers.shares

    def listed(share: float) -> str:
        return ", ".join(
            f"{NAMES[family]} {numbers.of(family, share).loss:.2f}"
            for family in sorted(FAMILIES, key=lambda family: numbers.of(family, share).loss)
        )

    leads = ", ".join(
        f"{NAMES[family]} {numbers.lead(family, shares[0]):+.2f} → {numbers.lead(family, shares[-1]):+.2f}"
        for family in OTHERS
    )
    return (
        (
            f"Held-out loss in nats a token, at {shares[0]:.0%} of the text: {listed(shares[0])}; at {shares[-1]:.0%}: "
            f"{listed(shares[-1])}."
        ),
        f"The LSTM's lead from the smallest to the largest share goes, on: {leads} nats a token.",
    )


def draw(numbers: Data) -> Figure:
    figure, (loss, lead) = panels(2)
    percents = [100 * share for share in numbers.shares]
    for family in FAMILIES:
        found = [numbers.of(family, share) for share in numbers.shares]
        plot(loss, percents, [one.loss for one in found], LOOKS[family])
        errors = [one.standard_error for one in found]
        loss.errorbar(percents, [one.loss for one in found], errors, fmt="none", ecolor=LOOKS[family].colour)
        if family in OTHERS:
            plot(lead, percents, [numbers.lead(family, share) for share in numbers.shares], LOOKS[family])
    lead.axhline(0, color=LOOKS[Family.LSTM].colour, linewidth=1, label="LSTM")
    for axes in (loss, lead):
        log_ticks(axes, percents)
    share = "share of the training text, %"
    finish(loss, "held-out loss (bars: standard error)", share, "nats a token")
    finish(lead, "behind the LSTM (above 0: worse)", share, "nats a token")
    return figure


CLAIM = Claim(
    number=4,
    slug="more-data",
    title="More data favours the LSTM",
    says="With little text a simple model does as well; the more text there is, the more the LSTM is ahead.",
    kind=Data,
    setting="Trained parameters are within 2 % of one another. Every training has the same steps at most and ends "
    "where the validation loss has stopped falling; measured are the weights with the best validation loss. A share is "
    "the beginning of the training part; the validation part is the same for all.",
    measure=measure,
    judge=judge,
    describe=describe,
    draw=draw,
)
