"""Claim 5: the echo state network is cheap on long series.

Input: the text; fresh models. Output: CPU time, multiply-adds and held-out loss of training against the length of the
series that the gradient goes back through, for equal tokens: a step has the same number of them at every length, so
that long series leave fewer to run side by side. The ESN is trained twice: its readout by gradient in the same loop,
and in one pass. Besides, memory curves of all families before and after training, and of reservoirs of other
spectral radii and input scales. Must not know: the page.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from meari.bundle_format.names import Family
from meari.claims.claim import Claim, Condition, Expectation, Measurement, around
from meari.claims.evaluation import held_out_loss
from meari.claims.families import (
    FAMILIES,
    NAMES,
    SPECTRAL_RADIUS,
    THROUGH_TIME,
    NetSizes,
    model_config,
    one_pass,
    readout_step,
    reservoir,
    through_time,
    whitening_setup,
)
from meari.claims.memory import MemoryCurve, memory_curve, token_frequencies
from meari.claims.pictures import GREY, LINE_STYLES, PURPLE, SKY, LineStyle, finish, log_ticks, panels, plot_seeds
from meari.claims.training import CALIBRATION_SHARE, OutOfTime, TrainingPlan, train, train_in_one_pass
from meari.claims.workbench import Workbench
from meari.models.cells.esn import EchoStateNetwork
from meari.models.config import ReservoirConfig
from meari.models.families import build_model
from meari.models.language_model import LanguageModel

ONE_PASS = "esn, one pass"  # noqa: S105 (words of a page)
TRAININGS = (*(family.value for family in FAMILIES), ONE_PASS)
BUDGET_SHARE = 0.4  # share of the remaining budget for the trainings: claim 4 is measured later
CURVE_POINTS = 6  # evaluations in a training
CHEAPER = 2.0
RADII = (0.9, 0.99)
SCALED_RADIUS = 0.9  # of the reservoir whose input is scaled
SCALES = (0.1, 10.0)
WORSE = 0.02  # nats a token that a longer training may not cost
GIGA = 1e9
DRAWN_DELAYS = 20
PICTURE = {family.value: LINE_STYLES[family] for family in FAMILIES} | {
    ONE_PASS: LineStyle("ESN, one pass", SKY, "v", "--")
}
RESERVOIRS = {
    f"ESN, radius {SCALED_RADIUS:g}": LineStyle("", PURPLE, "", "-"),
    **{
        f"ESN, radius {SCALED_RADIUS:g}, input × {scale:g}": LineStyle("", PURPLE, "", line)
        for scale, line in zip(SCALES, (":", "--"), strict=True)
    },
    "ESN, radius 0.99": LineStyle("", GREY, "", ":"),
}


@dataclass(frozen=True)
class Cost:
    """One training at one length. points   validation loss and CPU-seconds until then, in the course of it"""

    training: str
    length: int
    batch_size: int
    cpu_seconds: float
    multiply_adds: int
    loss: float
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Series:
    """costs   of every training at every length; memory   curves by name, the trained families' first"""

    num_tokens: int
    costs: tuple[Cost, ...]
    memory: dict[str, MemoryCurve]

    @property
    def lengths(self) -> list[int]:
        """Lengths that every training has been measured at."""
        every = {cost.length for cost in self.costs}
        return [length for length in sorted(every) if all(self._has(name, length) for name in TRAININGS)]

    def _has(self, training: str, length: int) -> bool:
        return any((cost.training, cost.length) == (training, length) for cost in self.costs)

    def cost(self, training: str, length: int) -> Cost:
        return next(cost for cost in self.costs if (cost.training, cost.length) == (training, length))

    def growth(self, training: str) -> float:
        """Return CPU time at the longest series over that at the shortest."""
        lengths = self.lengths
        return self.cost(training, lengths[-1]).cpu_seconds / self.cost(training, lengths[0]).cpu_seconds

    def seconds_to(self, training: str, loss: float, length: int) -> float:
        """Return CPU-seconds until the validation loss is that low; infinite if it never is."""
        reached = (seconds for value, seconds in self.cost(training, length).points if value <= loss)
        return min(reached, default=math.inf)


def measure(bench: Workbench) -> Measurement[Series]:
    """Measure memory curves first, then trainings: the longest and the shortest series first.

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
    return Measurement(Series(num_tokens, tuple(costs), memory), (*bench.cut_short(FAMILIES), *left_out))


def _train(bench: Workbench, training: str, length: int) -> Cost:
    sizes, text = bench.sizes, bench.text
    batch_size = max(1, sizes.batch_size * sizes.chunk_length // length)
    if training == ONE_PASS:
        model: LanguageModel = bench.fresh(Family.ESN)
        assert isinstance(model, EchoStateNetwork)
        ids = text.training[: sizes.length_steps * batch_size * length + 1]
        seconds = train_in_one_pass(model, ids, batch_size, length)
        points: tuple[tuple[float, float], ...] = ((held_out_loss(model, bench.validation), seconds),)
    else:
        model = bench.fresh(Family(training))
        plan = TrainingPlan(sizes.length_steps, batch_size, length, max(1, sizes.length_steps // CURVE_POINTS))
        trained = train(model, text.training, bench.validation, plan, bench.budget, bench.seed)
        seconds = trained.cpu_seconds
        points = tuple((point.loss, point.cpu_seconds) for point in trained.points)
    loss = held_out_loss(model, text.held_out)
    products = multiply_adds(bench, training, batch_size, length)
    return Cost(training, length, batch_size, seconds, products, loss, points)


def multiply_adds(bench: Workbench, training: str, batch_size: int, length: int) -> int:
    """Return all multiply-adds of a training, by `meari.claims.families`."""
    sizes, steps = bench.sizes, bench.sizes.length_steps
    family = Family.ESN if training == ONE_PASS else Family(training)
    config = model_config(family, bench.text.vocabulary_size, sizes)
    if not isinstance(config, ReservoirConfig):
        net = NetSizes(bench.text.vocabulary_size, config.hidden_size, embedding=config.embedding_size)
        return steps * through_time(family, net, batch_size, length)
    net = NetSizes(bench.text.vocabulary_size, config.units, block=config.block_size)
    if training == ONE_PASS:
        num_columns = min(steps * batch_size * length, len(bench.text.training) - 1) // batch_size
        num_calibrated = max(1, round(CALIBRATION_SHARE * num_columns))
        return one_pass(net, batch_size * (num_columns - num_calibrated), batch_size * num_calibrated)
    setup, num_directions = whitening_setup(net, len(bench.text.training))
    return setup + steps * readout_step(net, num_directions, batch_size, length)


def _memory_curves(bench: Workbench) -> Iterator[tuple[str, MemoryCurve]]:
    bench.tell("memory curves")
    sizes, size = bench.sizes, bench.text.vocabulary_size
    frequencies = token_frequencies(bench.text.training, size)

    def curve(model: LanguageModel) -> MemoryCurve:
        return memory_curve(model, frequencies, sizes.memory_tokens, sizes.memory_delays, bench.seed)

    for family in FAMILIES:
        yield NAMES[family], curve(bench.trained(family).model)
    for family in THROUGH_TIME:
        yield f"{NAMES[family]}, untrained", curve(bench.fresh(family))
    config = model_config(Family.ESN, size, sizes)
    assert isinstance(config, ReservoirConfig)
    named = {f"ESN, radius {radius:g}": (radius, 1.0) for radius in RADII}
    named |= {f"ESN, radius {SCALED_RADIUS:g}, input × {scale:g}": (SCALED_RADIUS, scale) for scale in SCALES}
    for name, (radius, scale) in named.items():
        yield name, curve(build_model(reservoir(config.units, config.block_size, radius, scale), size, bench.seed))


def judge(numbers: Series) -> tuple[Condition, ...]:
    longest = numbers.lengths[-1]
    esn = min((Family.ESN.value, ONE_PASS), key=lambda name: numbers.cost(name, longest).cpu_seconds)
    costs = {name: numbers.cost(name, longest) for name in TRAININGS}
    seconds = {name: costs[name].cpu_seconds for name in THROUGH_TIME}
    products = {name: costs[name].multiply_adds / GIGA for name in THROUGH_TIME}
    fewest = min((Family.ESN.value, ONE_PASS), key=lambda name: costs[name].multiply_adds)
    least = costs[fewest].multiply_adds / GIGA
    loss = costs[esn].points[-1][0]
    reached = {name: numbers.seconds_to(name, loss, longest) for name in THROUGH_TIME}
    return (
        Condition(
            f"on series of {longest} tokens the cheaper training of the ESN takes at most 1/{CHEAPER:g} of the CPU "
            "time of every family trained through time, for the same tokens",
            CHEAPER * costs[esn].cpu_seconds <= min(seconds.values()),
            f"{PICTURE[esn].label} {costs[esn].cpu_seconds:.1f} s; {_listed(seconds, '{:.1f} s')}",
        ),
        Condition(
            f"the ESN's training with fewer multiply-adds needs at most 1/{CHEAPER:g} of those of every other family",
            CHEAPER * least <= min(products.values()),
            f"{PICTURE[fewest].label} {least:.1f} · 10⁹; {_listed(products, '{:.1f} · 10⁹')}",
        ),
        Condition(
            f"the ESN's CPU time grows less than that of the others from series of {numbers.lengths[0]} to those of "
            f"{longest}",
            numbers.growth(esn) < min(numbers.growth(name) for name in THROUGH_TIME),
            f"× {numbers.growth(esn):.1f}; "
            + _listed({name: numbers.growth(name) for name in THROUGH_TIME}, "× {:.1f}"),
        ),
        Condition(
            f"on series of {longest} tokens no other family reaches the ESN's validation loss in less CPU time",
            min(reached.values()) >= costs[esn].cpu_seconds,
            f"to {loss:.2f}: {_listed(reached, '{:.1f} s')}".replace("inf s", "never"),
        ),
    )


def _listed(values: dict[Family, float], shape: str) -> str:
    return ", ".join(f"{NAMES[family]} {shape.format(value)}" for family, value in values.items())


def _lengths(seeds: Sequence[Series]) -> list[int]:
    """Return the lengths that every seed has."""
    return [length for length in seeds[0].lengths if all(length in numbers.lengths for numbers in seeds)]


def describe(seeds: Sequence[Series]) -> tuple[str, str]:
    longest = _lengths(seeds)[-1]

    def listed(name: str) -> str:
        costs = [numbers.cost(name, longest) for numbers in seeds]
        return (
            f"{PICTURE[name].label} {around([cost.cpu_seconds for cost in costs], '.1f')} s, "
            f"{costs[0].multiply_adds / GIGA:.1f} · 10⁹ multiply-adds, "
            f"{around([cost.loss for cost in costs])} nats a token"
        )

    memory = ", ".join(
        f"{name} {around([numbers.memory[name].capacity for numbers in seeds], '.1f')}" for name in seeds[0].memory
    )
    return (
        (
            f"{seeds[0].num_tokens:,} tokens in series of {longest}, with their cost and the held-out loss: "
            f"{'; '.join(listed(name) for name in TRAININGS)}."
        ),
        f"Memory capacity of the state, the sum of R² over the delays from 1 on, for random tokens: {memory}.",
    )


def expect(seeds: Sequence[Series]) -> tuple[Expectation, ...]:
    """Expect that a training lowers the validation loss until its end."""
    longest = _lengths(seeds)[-1]
    courses = {name: [numbers.cost(name, longest).points for numbers in seeds] for name in TRAININGS}
    return tuple(
        Expectation(
            f"validation loss of the {PICTURE[name].label} during training",
            tuple(f"evaluation {index + 1}" for index in range(len(rows[0]))),
            tuple(tuple(loss for loss, _ in row) for row in rows),
            WORSE,
        )
        for name, rows in courses.items()
    )


def draw(seeds: Sequence[Series]) -> Figure:
    figure, (time, products, loss, memory) = panels(4)
    lengths = _lengths(seeds)
    for name in TRAININGS:
        costs = [[numbers.cost(name, length) for length in lengths] for numbers in seeds]
        plot_seeds(time, lengths, [[cost.cpu_seconds for cost in row] for row in costs], PICTURE[name])
        plot_seeds(products, lengths, [[cost.multiply_adds / GIGA for cost in row] for row in costs], PICTURE[name])
        plot_seeds(loss, lengths, [[cost.loss for cost in row] for row in costs], PICTURE[name])
    for axes in (time, products, loss):
        log_ticks(axes, lengths)
    for axes in (time, products):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    _draw_memory(memory, seeds)
    memory.set_xlim(0, DRAWN_DELAYS)
    length = "length of a series, tokens"
    finish(time, f"training on {seeds[0].num_tokens:,} tokens", length, "CPU time, s", legend=False)
    finish(products, "the same, whatever the kernels", length, "multiply-adds, 10⁹", legend=False)
    finish(loss, "held-out loss after it", length, "nats a token", legend=False)
    finish(memory, f"memory (ESN: radius {SPECTRAL_RADIUS:g} if not said)", "delay, tokens", "R² of the token then")
    figure.legend(*time.get_legend_handles_labels(), loc="outside lower left", ncols=5, fontsize=8, frameon=False)
    return figure


def _draw_memory(axes: Axes, seeds: Sequence[Series]) -> None:
    """Draw curves of all families, and, without bands, of the other reservoirs, from delay 1 on."""
    looks = {NAMES[family]: LINE_STYLES[family] for family in FAMILIES}
    looks |= {f"{NAMES[family]}, untrained": replace(LINE_STYLES[family], line="--") for family in THROUGH_TIME}
    for name, look in (looks | RESERVOIRS).items():
        if name not in seeds[0].memory:
            continue
        rows = [numbers.memory[name].r_squared[1:] for numbers in seeds]
        delays = [float(delay) for delay in range(1, len(rows[0]) + 1)]
        plot_seeds(axes, delays, rows, replace(look, label=name), is_band=True)


CLAIM = Claim(
    number=5,
    slug="long-series",
    title="The echo state network is cheap on long series",
    says="Since only its readout is trained, an echo state network needs no back-propagation through time and is cheap "
    "if series are long.",
    kind=Series,
    setting="CPU time of this implementation, one thread, evaluations left out; a step has the same number of tokens "
    "at every length, so with longer series fewer run side by side. CPU time compares kernels as much as families, "
    "and the LSTM's is the only fused one. Multiply-adds are counted from the sizes, only products of matrices, "
    "and those of the ESN include the search for the directions in which its states vary, once. "
    "One pass: ridge regression instead of gradients. Memory: a linear readout of the token of k steps ago, from all "
    "numbers of the state, tokens drawn independently with the text's frequencies; the capacity sums from k = 1 "
    "(Jaeger 2001). It depends on the strength of the input: × 1 is the scale of the networks trained here.",
    measure=measure,
    judge=judge,
    describe=describe,
    draw=draw,
    expect=expect,
)
