"""Claim 7: long generated texts lose the thread.

Input: the trained LSTM, which writes, and the trained GRU, which reads what was written. Output: the reader's loss and
the share of repeated n-grams against the position, for several ways of sampling, and for the held-out text itself as
it continues the same prompts. No text is kept. Must not know: the page.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from meari.bundle_format.names import Family
from meari.claims.claim import Claim, Condition, Measurement, around
from meari.claims.evaluation import NGRAM, SAMPLINGS, WINDOW, Floats, repeated, token_losses, write_texts
from meari.claims.families import NAMES
from meari.claims.pictures import BLACK, BLUE, GREEN, ORANGE, PURPLE, VERMILION, LineStyle, finish, panels, plot_seeds
from meari.claims.text import Ids
from meari.claims.workbench import Workbench

WRITER, READER = Family.LSTM, Family.GRU
NUM_BINS = 10
HELD_OUT = "held-out text"
STRAYS = 0.1  # nats a token, or share of n-grams
COLOURS = dict(zip([sampling.name for sampling in SAMPLINGS], (VERMILION, ORANGE, GREEN, BLUE, PURPLE), strict=True))
MARKERS = dict(zip(COLOURS, "os^Dv", strict=True))


@dataclass(frozen=True)
class Course:
    """Means over texts, for each tenth of their length."""

    losses: tuple[float, ...]
    repetition: tuple[float, ...]


@dataclass(frozen=True)
class Thread:
    """positions   the middle of each tenth, in tokens after the prompt; courses   by sampling, and of HELD_OUT"""

    num_texts: int
    positions: tuple[float, ...]
    courses: dict[str, Course]

    @property
    def samplings(self) -> list[str]:
        return [name for name in self.courses if name != HELD_OUT]

    def repeats_more(self, name: str) -> float:
        """Return the growth of repetition from the first to the last fifth, beyond that of the held-out text."""
        mine, its = _ends(self.courses[name].repetition), _ends(self.courses[HELD_OUT].repetition)
        return (mine[1] - mine[0]) - (its[1] - its[0])

    def strays(self, name: str) -> float:
        """Return how much further the reader's loss is from the held-out text's in the last fifth than in the first."""
        mine, its = _ends(self.courses[name].losses), _ends(self.courses[HELD_OUT].losses)
        return abs(mine[1] - its[1]) - abs(mine[0] - its[0])

    def loses(self, name: str) -> bool:
        return max(self.repeats_more(name), self.strays(name)) >= STRAYS


def _ends(tenths: tuple[float, ...]) -> tuple[float, float]:
    """Return the means of the first and of the last fifth."""
    return (tenths[0] + tenths[1]) / 2, (tenths[-2] + tenths[-1]) / 2


def measure(bench: Workbench) -> Measurement[Thread]:
    """Measure all samplings from the same prompts; those that the budget does not reach are left out."""
    sizes = bench.sizes
    writer, reader = bench.trained(WRITER).model, bench.trained(READER).model
    rows = bench.pieces(sizes.written_texts, sizes.prompt_tokens + sizes.written_tokens)
    prompts = rows[:, : sizes.prompt_tokens]
    left_out = list(bench.cut_short((WRITER, READER)))

    def course(whole: Ids) -> Course:
        begin = sizes.prompt_tokens
        return Course(_tenths(token_losses(reader, whole)[:, begin - 1 :]), _tenths(repeated(whole, begin)))

    courses = {HELD_OUT: course(rows)}
    for sampling in SAMPLINGS:
        if len(courses) > 1 and bench.budget.is_spent:
            left_out.append(sampling.name)
            continue
        written = write_texts(writer, prompts, rows.shape[1] - sizes.prompt_tokens, sampling, bench.seed)
        courses[sampling.name] = course(np.concatenate((prompts, written), axis=1))
    length = rows.shape[1] - sizes.prompt_tokens
    positions = tuple((tenth + 0.5) * length / NUM_BINS for tenth in range(NUM_BINS))
    return Measurement(Thread(len(rows), positions, courses), tuple(left_out))


def _tenths(values: Floats) -> tuple[float, ...]:
    """Return means of ten equal stretches: float64 [texts, time] → ten numbers."""
    return tuple(float(part.mean()) for part in np.array_split(values, NUM_BINS, axis=1))


def judge(numbers: Thread) -> tuple[Condition, ...]:
    return tuple(
        Condition(
            f"{name} loses the thread",
            numbers.loses(name),
            f"repetition {numbers.repeats_more(name):+.2f}, loss {numbers.strays(name):+.2f}",
        )
        for name in numbers.samplings
    )


def _names(seeds: Sequence[Thread]) -> list[str]:
    """Return the names that every seed has: the held-out text and samplings."""
    return [name for name in seeds[0].courses if all(name in numbers.courses for numbers in seeds)]


def describe(seeds: Sequence[Thread]) -> tuple[str, str]:
    def listed(of: Callable[[Course], tuple[float, ...]]) -> str:
        ends = {name: [_ends(of(numbers.courses[name])) for numbers in seeds] for name in _names(seeds)}
        return "; ".join(
            f"{name} {around([first for first, _ in pairs])} → {around([last for _, last in pairs])}"
            for name, pairs in ends.items()
        )

    return (
        (
            f"Loss of the {NAMES[READER]} on {seeds[0].num_texts} texts by the {NAMES[WRITER]}, from their first to "
            f"their last fifth: {listed(lambda course: course.losses)} nats a token."
        ),
        f"Share of repeated {NGRAM}-grams: {listed(lambda course: course.repetition)}.",
    )


def draw(seeds: Sequence[Thread]) -> Figure:
    figure, (loss, repetition) = panels(2)
    positions = seeds[0].positions
    for name in _names(seeds):
        look = (
            LineStyle(name, BLACK, "", "--") if name == HELD_OUT else LineStyle(name, COLOURS[name], MARKERS[name], "-")
        )
        plot_seeds(loss, positions, [numbers.courses[name].losses for numbers in seeds], look)
        plot_seeds(repetition, positions, [numbers.courses[name].repetition for numbers in seeds], look)
    repetition.set_ylim(-0.02, 1.02)
    loss.set_ylim(bottom=0)
    place = "tokens after the prompt"
    finish(loss, f"{NAMES[WRITER]} writes, {NAMES[READER]} reads", place, "reader's loss, nats a token", legend=False)
    what = f"{NGRAM}-grams seen in the last {WINDOW} (bars: smallest to largest seed)"
    finish(repetition, what, place, "share repeated")
    return figure


CLAIM = Claim(
    number=7,
    slug="long-texts",
    title="Long texts lose the thread",
    says="What a recurrent net writes sounds right for a sentence or two; the longer it writes, the more it repeats "
    "itself or drifts away.",
    kind=Thread,
    setting=f"The {NAMES[WRITER]} continues prompts of the held-out text, the {NAMES[READER]} reads prompt and "
    f"continuation. An {NGRAM}-gram is repeated if it occurs in the {WINDOW} tokens before it. A way of sampling loses "
    f"the thread if, from the first to the last fifth of the text, repetition grows by {STRAYS:g} more than in the "
    f"held-out text, or the reader's loss strays {STRAYS:g} nats a token further from the held-out text's.",
    measure=measure,
    judge=judge,
    describe=describe,
    draw=draw,
)
