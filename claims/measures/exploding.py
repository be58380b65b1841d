"""Claim 2: where the recurrent weights are large, gradients explode, and clipping keeps training going.

In: fresh Elman nets whose W is scaled to several spectral radii. Out: loss and gradient norm at every step of plain
gradient descent, with and without clipping. Descent is plain because AdamW divides by the gradient's own size, which
is a kind of clipping already; its rate is the one of 0.25, 0.5, 1 and 2 at which the net of radius one, clipped, trains
best (4 gains 0.01 nats).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from claims.claim import Claim, Condition, Measured
from claims.families import fresh_model, num_trained
from claims.pictures import BLACK, BLUE, GREEN, ORANGE, VERMILION, Look, finish, panels, plot
from claims.training import Streams, chunk_loss
from claims.workbench import SEED, Workbench
from models.config import Family
from models.language_model import LanguageModel, RecurrentLanguageModel
from models.report import smoothed
from models.training.optimizer import trained_parameters

LEARNING_RATE = 2.0
CLIP_NORM = 1.0
EXPLODED = 10.0  # times the gradient at radius one
WORSE = 0.1  # nats a token
NUM_CHUNKS = 10  # that the gradient before training is measured on
LAST_SHARE = 0.2
COLOURS = (BLUE, GREEN, ORANGE, VERMILION, BLACK)


@dataclass(frozen=True)
class Course:
    """One training. A loss or norm is None where it was not finite; nothing comes after that.

    first_norm   of the gradient at the weights before training, the median over chunks; infinite where not finite
    norms        of the gradient before clipping, at every step
    """

    radius: float
    is_clipped: bool
    first_norm: float
    losses: tuple[float | None, ...]
    norms: tuple[float | None, ...]

    @property
    def final_loss(self) -> float:
        """The mean over the last fifth, infinite where the training broke off."""
        last = self.losses[-max(1, round(LAST_SHARE * len(self.losses))) :]
        return math.inf if None in last else float(np.mean([loss for loss in last if loss is not None]))


@dataclass(frozen=True)
class Exploding:
    """num_parameters   of the net; num_tokens   that a gradient goes back through"""

    num_parameters: int
    num_tokens: int
    courses: tuple[Course, ...]

    def course(self, radius: float, *, is_clipped: bool) -> Course:
        return next(course for course in self.courses if (course.radius, course.is_clipped) == (radius, is_clipped))

    def gain(self, radius: float) -> float:
        """What clipping gains, in nats a token; infinite where training broke off without it alone."""
        loose, clipped = (self.course(radius, is_clipped=is_clipped).final_loss for is_clipped in (False, True))
        return -math.inf if math.isinf(clipped) else loose - clipped

    @property
    def radii(self) -> list[float]:
        """Those with both courses."""
        return sorted({course.radius for course in self.courses if course.is_clipped})


@torch.no_grad()
def scale_recurrence(model: LanguageModel, radius: float) -> None:
    """Scale W of an Elman net so that its spectral radius is the one given."""
    assert isinstance(model, RecurrentLanguageModel)
    weight = model.cells[0].kernel.weight_hh_l0
    assert isinstance(weight, torch.Tensor)
    weight.mul_(radius / float(torch.linalg.eigvals(weight).abs().max()))


def train_course(bench: Workbench, radius: float, *, is_clipped: bool) -> Course:
    """Plain gradient descent from the same weights, on the same chunks, for every radius."""
    sizes = bench.sizes
    model = _small_net(bench)
    scale_recurrence(model, radius)
    first_norm = _first_norm(model, _streams(bench))
    streams = _streams(bench)
    optimizer = torch.optim.SGD(trained_parameters(model), lr=LEARNING_RATE)
    state = model.initial_state(sizes.batch_size)
    losses: list[float | None] = []
    norms: list[float | None] = []
    for _ in range(sizes.scaled_steps):
        loss, state = chunk_loss(model, streams, state)
        norm = _gradient_norm(model, loss, CLIP_NORM if is_clipped else math.inf)
        losses.append(_finite(loss.item()))
        norms.append(_finite(norm))
        if losses[-1] is None or norms[-1] is None:
            break
        optimizer.step()
    return Course(radius, is_clipped, first_norm, tuple(losses), tuple(norms))


def _small_net(bench: Workbench) -> LanguageModel:
    small = replace(bench.sizes, parameters=bench.sizes.scaled_parameters)
    return fresh_model(Family.RNN, bench.text.vocabulary_size, small, SEED)


def _streams(bench: Workbench) -> Streams:
    sizes = bench.sizes
    return Streams(bench.text.training, sizes.batch_size, sizes.chunk_length, np.random.default_rng(SEED))


def _gradient_norm(model: LanguageModel, loss: torch.Tensor, limit: float) -> float:
    """Make the gradient of the loss, scaled down to `limit`; returns its norm before that."""
    model.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    return torch.nn.utils.clip_grad_norm_(trained_parameters(model), limit).item()


def _first_norm(model: LanguageModel, streams: Streams) -> float:
    """The median over chunks, the state carried on and the weights left as they are; the largest float if infinite."""
    state = model.initial_state(len(streams))
    norms = []
    for _ in range(NUM_CHUNKS):
        loss, state = chunk_loss(model, streams, state)
        norms.append(_gradient_norm(model, loss, math.inf))
    return float(np.nan_to_num(np.median(norms), nan=np.finfo(np.float64).max))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def measure(bench: Workbench) -> Measured[Exploding]:
    """Every radius, clipped and not; those that the budget does not reach are left out."""
    courses: list[Course] = []
    left_out: list[str] = []
    wanted = sorted(bench.sizes.radii, key=lambda radius: (radius != 1.0, -radius))
    for radius in wanted:
        if courses and bench.budget.is_spent:
            left_out.append(f"the spectral radius {radius:g}")
            continue
        courses += [train_course(bench, radius, is_clipped=is_clipped) for is_clipped in (False, True)]
    numbers = Exploding(num_trained(_small_net(bench)), bench.sizes.chunk_length, tuple(courses))
    return Measured(numbers, tuple(left_out))


def judge(numbers: Exploding) -> tuple[Condition, ...]:
    norms = {radius: numbers.course(radius, is_clipped=False).first_norm for radius in numbers.radii}
    largest = numbers.radii[-1]
    exploded = [radius for radius in numbers.radii if norms[radius] >= EXPLODED * norms[1.0]]
    gains = [numbers.gain(radius) for radius in exploded]
    return (
        Condition(
            f"before training, the gradient at spectral radius {largest:g} is at least {EXPLODED:g} times that at 1",
            largest in exploded,
            f"{norms[largest]:.2g} against {norms[1.0]:.2g}",
        ),
        Condition(
            f"at every radius where it is, training ends at least {WORSE:g} nats a token better with clipping than "
            "without, or breaks off without",
            bool(gains) and min(gains) >= WORSE,
            ", ".join(f"radius {radius:g}: {_gain(gain)}" for radius, gain in zip(exploded, gains, strict=True)) or "–",
        ),
    )


def _gain(gain: float) -> str:
    return f"{gain:+.2f}" if math.isfinite(gain) else "broke off"


def _loss(loss: float) -> str:
    return f"{loss:.2f}" if math.isfinite(loss) else "not finite"


def describe(numbers: Exploding) -> tuple[str, str]:
    radii = numbers.radii
    norms = ", ".join(f"{numbers.course(radius, is_clipped=False).first_norm:.2g}" for radius in radii)
    loose, clipped = (
        ", ".join(_loss(numbers.course(radius, is_clipped=is_clipped).final_loss) for radius in radii)
        for is_clipped in (False, True)
    )
    named = ", ".join(f"{radius:g}" for radius in radii)
    steps = max(len(course.losses) for course in numbers.courses)
    return (
        (
            f"At spectral radii {named} the gradient of a net of {numbers.num_parameters:,} weights has, over "
            f"{numbers.num_tokens} tokens and before training, the norm {norms}."
        ),
        f"After {steps} steps the training loss is {loose} nats a token without clipping and {clipped} with it.",
    )


def draw(numbers: Exploding) -> Figure:
    figure, (norms, loose, clipped) = panels(3)
    for radius, colour in zip(numbers.radii, COLOURS, strict=False):
        look = Look(f"radius {radius:g}", colour, "", "-")
        course = numbers.course(radius, is_clipped=False)
        _line(norms, course.norms, look)
        _line(norms, numbers.course(radius, is_clipped=True).norms, Look("", colour, "", ":"))
        _line(loose, course.losses, look)
        _line(clipped, numbers.course(radius, is_clipped=True).losses, look)
    norms.set_yscale("log")
    norms.axhline(CLIP_NORM, color=BLACK, linewidth=0.6, linestyle="--")
    finish(norms, "gradient (dotted: clipped run, before clipping)", "steps", "gradient norm")
    limits = _limits(numbers)
    for axes, title in ((loose, "loss without clipping"), (clipped, f"loss with clipping to norm {CLIP_NORM:g}")):
        axes.set_ylim(*limits)
        finish(axes, title, "steps", "training loss, nats a token")
    return figure


def _line(axes: Axes, values: Sequence[float | None], look: Look) -> None:
    known = [value for value in values if value is not None]
    plot(axes, list(range(1, len(known) + 1)), smoothed(np.array(known)).tolist(), look, is_marked=False)


def _limits(numbers: Exploding) -> tuple[float, float]:
    """From the lowest loss to somewhat above the highest of the clipped runs."""
    known = [[loss for loss in course.losses if loss is not None] for course in numbers.courses if course.is_clipped]
    low, high = min(map(min, known)), max(map(max, known))
    return low - 0.1, high + 0.5


CLAIM = Claim(
    number=2,
    slug="exploding-gradients",
    title="Gradients explode",
    says="Where the recurrent weights are large, a gradient grows at every step back through time until training is "
    "thrown off; clipping its norm prevents that.",
    kind=Exploding,
    setting="A small Elman net whose recurrent matrix is scaled to a spectral radius, trained by plain gradient "
    f"descent from the same weights on the same text, unclipped and clipped to norm {CLIP_NORM:g}. The rate, "
    f"{LEARNING_RATE:g}, is the best one for the clipped net of radius 1; without clipping it may be too large "
    "even where no gradient explodes.",
    measure=measure,
    judge=judge,
    describe=describe,
    draw=draw,
)
