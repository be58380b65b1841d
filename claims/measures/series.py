"""Claim 5: the echo state network is cheap on long series.

In: the text; fresh models. Out: CPU time of training and held-out loss against the length of the series that the
gradient goes back through, for equal tokens: a step has the same number of them at every length, so that long series
leave fewer to run side by side. The ESN is trained twice: its readout by gradient in the same loop, and in one pass.
Beside that, memory curves of all families, before and after training, and of reservoirs of larger spectral radius.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from claims.budget import OutOfTime
from claims.claim import Claim, Condition, Measured
from claims.families import FAMILIES, NAMES, SPECTRAL_RADIUS, THROUGH_TIME, model_config, reservoir
from claims.held_out import held_out_loss
from claims.memory import MemoryCurve, memory_curve, token_frequencies
from claims.one_pass import train_in_one_pass
from claims.pictures import GREY, LOOKS, PURPLE, SKY, Look, finish, log_ticks, panels, plot
from claims.training import Plan, train
from claims.workbench import SEED, Workbench
from models.cells.esn import EchoStateNetwork
from models.config import Family, ReservoirConfig
from models.language_model import LanguageModel, build_model

ONE_PASS = "esn, one pass"
TRAININGS = (*(family.value for family in FAMILIES), ONE_PASS)
BUDGET_SHARE = 0.4  # of what is left, for the trainings: claim 4 comes after this one
CURVE_POINTS = 6  # evaluations in a training
CHEAPER = 2.0
RADII = (0.9, 0.99)
PICTURE = {family.value: LOOKS[family] for family in FAMILIES} | {ONE_PASS: Look("ESN, one pass", SKY, "v", "--")}
RESERVOIRS = (Look("", PURPLE, "", ":"), Look("", GREY, "", ":"))


@dataclass(frozen=True)
class Cost:
    """One training at one length. points   validation loss and CPU-seconds until then, in the course of it"""

    training: str
    length: int
    batch_size: int
    cpu_seconds: float
    loss: float
    standard_error: float
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Series:
    """costs   of every training at every length; memory   curves by name, the trained families' first"""

    num_tokens: int
    costs: tuple[Cost, ...]
    memory: dict[str, MemoryCurve]

    @property
    def lengths(self) -> list[int]:
        """Those that every training has been measured at."""
        every = {cost.length for cost in self.costs}
        return [length for length in sorted(every) if all(self._has(name, length) for name in TRAININGS)]

    def _has(self, training: str, length: int) -> bool:
        return any((cost.training, cost.length) == (training, length) for cost in self.costs)

    def cost(self, training: str, length: int) -> Cost:
        return next(cost for cost in self.costs if (cost.training, cost.length) == (training, length))

    def growth(self, training: str) -> float:
        """CPU time at the longest series over that at the shortest."""
        lengths = self.lengths
        return self.cost(training, lengths[-1]).cpu_seconds / self.cost(training, lengths[0]).cpu_seconds

    def seconds_to(self, training: str, loss: float, length: int) -> float:
        """CPU-seconds until the validation loss is as low as that; infinite where it never is."""
        reached = (seconds for value, seconds in self.cost(training, length).points if value <= loss)
        return min(reached, default=math.inf)


def measure(bench: Workbench) -> Measured[Series]:
    """Memory curves first, then trainings: the longest and the shortest series first.

    Raises OutOfTime where the budget ends before one length is through.
    """
    memory = dict(_memory_curves(bench))
    budget = bench.budget.part(BUDGET_SHARE)
    costs: list[Cost] = []
    left_out: list[str] = []
    lengths = sorted(bench.sizes.lengths)
    for length in (lengths[-1], *lengths[:-1]):
        if len(costs) >= len(TRAININGS) and budget.is_spent:
            left_out.append(f"series of {length} tokens")
            continue
        bench.tell(f"series of {length} tokens")
        found = [_train(bench, training, length) for training in TRAININGS]
        if not bench.budget.is_spent:
            costs += found
        elif costs:
            left_out.append(f"series of {length} tokens")
        else:
            raise OutOfTime
    num_tokens = bench.sizes.length_steps * bench.sizes.batch_size * bench.sizes.chunk_length
    return Measured(Series(num_tokens, tuple(costs), memory), (*bench.cut_short(FAMILIES), *left_out))


def _train(bench: Workbench, training: str, length: int) -> Cost:
    sizes, text = bench.sizes, bench.text
    batch_size = max(1, sizes.batch_size * sizes.chunk_length // length)
    if training == ONE_PASS:
        model: LanguageModel = bench.fresh(Family.ESN)
        assert isinstance(model, EchoStateNetwork)
        ids = text.training[: sizes.length_steps * batch_size * length + 1]
        seconds = train_in_one_pass(model, ids, batch_size, length)
        points: tuple[tuple[float, float], ...] = ((held_out_loss(model, bench.validation).mean, seconds),)
    else:
        model = bench.fresh(Family(training))
        plan = Plan(sizes.length_steps, batch_size, length, max(1, sizes.length_steps // CURVE_POINTS))
        trained = train(model, text.training, bench.validation, plan, bench.budget, SEED)
        seconds = trained.cpu_seconds
        points = tuple((point.loss, point.cpu_seconds) for point in trained.points)
    loss = held_out_loss(model, text.held_out)
    return Cost(training, length, batch_size, seconds, loss.mean, loss.standard_error, points)


def _memory_curves(bench: Workbench) -> Iterator[tuple[str, MemoryCurve]]:
    bench.tell("memory curves")
    sizes, size = bench.sizes, bench.text.vocabulary_size
    frequencies = token_frequencies(bench.text.training, size)

    def curve(model: LanguageModel) -> MemoryCurve:
        return memory_curve(model, frequencies, sizes.memory_tokens, sizes.memory_delays, SEED)

    for family in FAMILIES:
        yield NAMES[family], curve(bench.trained(family).model)
    for family in THROUGH_TIME:
        yield f"{NAMES[family]}, untrained", curve(bench.fresh(family))
    config = model_config(Family.ESN, size, sizes)
    assert isinstance(config, ReservoirConfig)
    for radius in RADII:
        model = build_model(reservoir(config.units, config.block_size, radius), size, SEED)
        yield f"ESN, radius {radius:g}", curve(model)


def judge(numbers: Series) -> tuple[Condition, ...]:
    longest = numbers.lengths[-1]
    esn = min((Family.ESN.value, ONE_PASS), key=lambda name: numbers.cost(name, longest).cpu_seconds)
    seconds = {name: numbers.cost(name, longest).cpu_seconds for name in (esn, *THROUGH_TIME)}
    cheapest = min(seconds[name] for name in THROUGH_TIME)
    loss = numbers.cost(esn, longest).points[-1][0]
    reached = {name: numbers.seconds_to(name, loss, longest) for name in THROUGH_TIME}
    named = {family: NAMES[family] for family in THROUGH_TIME}
    return (
        Condition(
            f"on series of {longest} tokens the cheaper training of the ESN takes at most 1/{CHEAPER:g} of the CPU "
            "time of every family trained through time, for the same tokens",
            CHEAPER * seconds[esn] <= cheapest,
            f"{PICTURE[esn].label} {seconds[esn]:.1f} s; "
            + ", ".join(f"{named[name]} {seconds[name]:.1f} s" for name in THROUGH_TIME),
        ),
        Condition(
            f"its time grows less than theirs from series of {numbers.lengths[0]} to series of {longest} tokens",
            numbers.growth(esn) < min(numbers.growth(name) for name in THROUGH_TIME),
            f"× {numbers.growth(esn):.1f}; "
            + ", ".join(f"{named[name]} × {numbers.growth(name):.1f}" for name in THROUGH_TIME),
        ),
        Condition(
            f"there none of them comes to its validation loss ({loss:.2f}) in less CPU time",
            min(reached.values()) >= seconds[esn],
            ", ".join(
                f"{named[name]} {f'{value:.1f} s' if math.isfinite(value) else 'never'}"
                for name, value in reached.items()
            ),
        ),
    )


def describe(numbers: Series) -> tuple[str, str]:
    longest = numbers.lengths[-1]
    costs = "; ".join(
        f"{PICTURE[name].label} {numbers.cost(name, longest).cpu_seconds:.1f} s, "
        f"{numbers.cost(name, longest).loss:.2f} nats a token"
        for name in TRAININGS
    )
    memory = ", ".join(f"{name} {curve.capacity:.1f}" for name, curve in numbers.memory.items())
    return (
        f"{numbers.num_tokens:,} tokens in series of {longest} cost CPU time and come to a held-out loss of: {costs}.",
        f"Of tokens drawn at random the state gives back, as the sum of R² over delays: {memory}.",
    )


def draw(numbers: Series) -> Figure:
    figure, (time, loss, memory) = panels(3)
    for name in TRAININGS:
        costs = [numbers.cost(name, length) for length in numbers.lengths]
        plot(time, numbers.lengths, [cost.cpu_seconds for cost in costs], PICTURE[name])
        plot(loss, numbers.lengths, [cost.loss for cost in costs], PICTURE[name])
    for axes in (time, loss):
        log_ticks(axes, numbers.lengths)
    time.set_yscale("log")
    time.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    time.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    time.yaxis.set_minor_formatter(NullFormatter())
    for family in FAMILIES:
        look = LOOKS[family]
        plot(memory, *_points(numbers.memory[NAMES[family]]), look, is_marked=False)
        before = numbers.memory.get(f"{NAMES[family]}, untrained")
        if before is not None:
            faint = Look(f"{look.label}, untrained", look.colour, "", "--")
            plot(memory, *_points(before), faint, is_marked=False)
    for radius, look in zip(RADII, RESERVOIRS, strict=True):
        name = f"ESN, radius {radius:g}"
        plot(memory, *_points(numbers.memory[name]), Look(name, look.colour, "", look.line), is_marked=False)
    length = "length of a series, tokens"
    finish(time, f"training on {numbers.num_tokens:,} tokens", length, "CPU time, s", legend=False)
    finish(loss, "held-out loss after it", length, "nats a token", legend=False)
    finish(memory, f"memory (ESN: radius {SPECTRAL_RADIUS:g} if not said)", "delay, tokens", "R² of the token then")
    figure.legend(*time.get_legend_handles_labels(), loc="outside lower left", ncols=5, fontsize=8, frameon=False)
    return figure


def _points(curve: MemoryCurve) -> tuple[list[float], tuple[float, ...]]:
    return [float(delay) for delay in range(len(curve.r_squared))], curve.r_squared


CLAIM = Claim(
    number=5,
    slug="long-series",
    title="The echo state network is cheap on long series",
    says="Since only its readout is trained, an echo state network needs no way back through time and is cheap where "
    "series are long.",
    kind=Series,
    setting="CPU time of this implementation, one thread, evaluations left out; a step has equally many tokens at "
    "every length, so a longer series leaves fewer to run side by side. One pass: ridge regression instead of "
    "gradients. Memory: a linear readout of the token of k steps ago, from all numbers of the state, tokens drawn "
    "independently with the text's frequencies.",
    measure=measure,
    judge=judge,
    describe=describe,
    draw=draw,
)
