"""Claim 4: more data favours the LSTM.

Input: shares of the training part. Output: held-out loss of all four families at each, for equal trained parameters.
Must not know: the page.

Every training has the same steps at most and the same learning rates, runs its whole schedule, and gets a shorter one
where the text is memorised (`meari.claims.training.train_fitting`); the weights at its end are measured. So a
family is never blamed for having been trained too long on little text, nor for having been stopped while its rate was
high.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from meari.bundle_format.names import Family
from meari.claims.claim import Claim, Condition, Expectation, Measurement, around
from meari.claims.evaluation import held_out_loss
from meari.claims.families import FAMILIES, NAMES
from meari.claims.pictures import LINE_STYLES, finish, log_ticks, panels, plot_seeds
from meari.claims.training import MEMORISED_LOSS, TrainedModel
from meari.claims.workbench import Workbench

WHOLE = 1.0
WORSE = 0.01  # nats a token that more text may not cost
OTHERS = tuple(family for family in FAMILIES if family is not Family.LSTM)


@dataclass(frozen=True)
class Learned:
    """One training.

    steps  number of steps of its schedule
    rise   rise of the validation loss from its minimum to the end, in nats
    """

    family: str
    share: float
    num_tokens: int
    loss: float
    steps: int
    rise: float
    cpu_seconds: float


@dataclass(frozen=True)
class Data:
    learned: tuple[Learned, ...]

    @property
    def shares(self) -> list[float]:
        """Shares that every family was trained on, in rising order."""
        every = sorted({one.share for one in self.learned})
        return [share for share in every if sum(one.share == share for one in self.learned) == len(FAMILIES)]

    def of(self, family: Family, share: float) -> Learned:
        return next(one for one in self.learned if (one.family, one.share) == (family.value, share))

    def lead(self, family: Family, share: float) -> float:
        """Return how many nats a token the LSTM is ahead of another family."""
        return self.of(family, share).loss - self.of(Family.LSTM, share).loss


def measure(bench: Workbench) -> Measurement[Data]:
    """Measure the whole part first, then the other shares in the order of the sizes, as far as time allows."""
    learned = [_measured(bench, family, WHOLE, bench.trained(family)) for family in FAMILIES]
    left_out: list[str] = []
    for share in bench.sizes.shares:
        for family in FAMILIES if share != WHOLE else ():
            budget = bench.budget
            if not budget.is_spent:
                bench.tell(f"training the {NAMES[family]} on {share:.0%}")
                ids = bench.text.training[: max(2, round(share * len(bench.text.training)))]
                trained = bench.train_on(family, ids, budget)
                if not trained.is_cut:
                    learned.append(_measured(bench, family, share, trained))
                    continue
            left_out.append(f"the {NAMES[family]} on {share:.0%}")
    return Measurement(Data(tuple(learned)), (*bench.cut_short(FAMILIES), *left_out))


def _measured(bench: Workbench, family: Family, share: float, trained: TrainedModel) -> Learned:
    return Learned(
        family.value,
        share,
        round(share * len(bench.text.training)),
        held_out_loss(trained.model, bench.text.held_out),
        trained.steps,
        trained.rise,
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
            f"its lead over each of the others has grown since {shares[0]:.0%}",
            len(shares) > 1 and min(grown.values()) > 0,
            ", ".join(f"{NAMES[family]} {growth:+.3f}" for family, growth in grown.items()),
        ),
    )


def _shares(seeds: Sequence[Data]) -> list[float]:
    """Return the shares that every seed has."""
    return [share for share in seeds[0].shares if all(share in numbers.shares for numbers in seeds)]


def describe(seeds: Sequence[Data]) -> tuple[str, str]:
    shares = _shares(seeds)

    def listed(share: float) -> str:
        losses = {family: [numbers.of(family, share).loss for numbers in seeds] for family in FAMILIES}
        order = sorted(FAMILIES, key=lambda family: sum(losses[family]))
        return ", ".join(f"{NAMES[family]} {around(losses[family])}" for family in order)

    def lead(family: Family, share: float) -> str:
        return around([numbers.lead(family, share) for numbers in seeds], "+.2f")

    leads = ", ".join(f"{NAMES[family]} {lead(family, shares[0])} → {lead(family, shares[-1])}" for family in OTHERS)
    return (
        (
            f"Held-out loss in nats a token, at {shares[0]:.0%} of the text: {listed(shares[0])}; at {shares[-1]:.0%}: "
            f"{listed(shares[-1])}."
        ),
        f"The LSTM's lead from the smallest to the largest share: over {leads} nats a token.",
    )


def expect(seeds: Sequence[Data]) -> tuple[Expectation, ...]:
    """Expect that more text gives no worse a loss, to any family."""
    shares = _shares(seeds)
    labels = tuple(f"{share:.0%} of the text" for share in shares)
    return tuple(
        Expectation(
            f"held-out loss of the {NAMES[family]}",
            labels,
            tuple(tuple(numbers.of(family, share).loss for share in shares) for numbers in seeds),
            WORSE,
        )
        for family in FAMILIES
    )


def draw(seeds: Sequence[Data]) -> Figure:
    figure, (loss, lead) = panels(2)
    shares = _shares(seeds)
    percents = [100 * share for share in shares]
    for family in FAMILIES:
        rows = [[numbers.of(family, share).loss for share in shares] for numbers in seeds]
        plot_seeds(loss, percents, rows, LINE_STYLES[family])
        if family in OTHERS:
            rows = [[numbers.lead(family, share) for share in shares] for numbers in seeds]
            plot_seeds(lead, percents, rows, LINE_STYLES[family])
    lead.axhline(0, color=LINE_STYLES[Family.LSTM].colour, linewidth=1, label="LSTM")
    for axes in (loss, lead):
        log_ticks(axes, percents)
    share = "share of the training text, %"
    finish(loss, "held-out loss (bars: smallest to largest seed)", share, "nats a token")
    finish(lead, "behind the LSTM (above 0: worse)", share, "nats a token")
    return figure


CLAIM = Claim(
    number=4,
    slug="more-data",
    title="More data favours the LSTM",
    says="With little text a simple model does as well; the more text there is, the larger the LSTM's lead.",
    kind=Data,
    setting="Trained parameters are within 2 % of one another. Every training runs its schedule to the end, and the "
    f"final weights are measured. If the validation loss has risen by more than {MEMORISED_LOSS:g} nats by then, as on "
    "little text, schedules of half the steps are tried as long as they help. Learning rates and weight "
    "decay are the same at every share. A share is the beginning of the training part; the validation part is the same "
    "for all.",
    measure=measure,
    judge=judge,
    describe=describe,
    draw=draw,
    expect=expect,
)
