"""Claim 2: where the recurrent weights are large, gradients explode, and clipping widens the range of rates that work.

Input: fresh Elman nets whose W is scaled to several spectral radii. Output: the gradient's norm before training, and
the loss after plain gradient descent at every learning rate of a grid, with and without clipping. Must not know: the
page.

Descent is plain because AdamW divides by the gradient's own size, which is a kind of clipping already. Both arms get
the same rates, the same weights and the same text, so that neither is tuned for the other. A rate works where training
ends below the loss of guessing by the characters' frequencies.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from meari.bundle_format.names import Family
from meari.claims.claim import Claim, Condition, Expectation, Measurement, around, between
from meari.claims.families import fresh_model, num_trained
from meari.claims.memory import token_frequencies
from meari.claims.pictures import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    VERMILION,
    LineStyle,
    finish,
    log_ticks,
    panels,
    plot_seeds,
)
from meari.claims.training import Streams, chunk_loss
from meari.claims.workbench import Workbench
from meari.models.families import RecurrentLanguageModel
from meari.models.language_model import LanguageModel
from meari.models.training.optimizer import trained_parameters

CLIP_NORM = 1.0
EXPLODED = 10.0  # times the gradient at radius one
NUM_CHUNKS = 10  # on which the gradient before training is measured
LAST_SHARE = 0.2
INFINITE = 1e300  # in place of a norm that is not finite
MIN_RISE = 0.3  # decimal orders of a gradient's norm
BROKEN_OFF = 10.0  # nats a token, where a training that broke off is drawn
COLOURS = (BLUE, GREEN, ORANGE, VERMILION, BLACK)
MARKERS = "o^Dsv"


@dataclass(frozen=True)
class Run:
    """One training. loss   the mean over the last fifth of its steps, None where it broke off: not finite"""

    radius: float
    rate: float
    is_clipped: bool
    loss: float | None

    @property
    def end(self) -> float:
        """Loss, infinite if training broke off."""
        return math.inf if self.loss is None else self.loss


@dataclass(frozen=True)
class Exploding:
    """Numbers of claim 2.

    num_parameters   of the net; num_tokens   that a gradient goes back through
    guess            nats a token of guessing by the characters' frequencies
    norms            one for each of radii: of the gradient before training, the median over chunks
    """

    num_parameters: int
    num_tokens: int
    num_steps: int
    guess: float
    radii: tuple[float, ...]
    rates: tuple[float, ...]
    norms: tuple[float, ...]
    runs: tuple[Run, ...]

    def of(self, radius: float, *, is_clipped: bool) -> list[Run]:
        """Return the trainings of one arm, in the order of the rates."""
        return [run for run in self.runs if (run.radius, run.is_clipped) == (radius, is_clipped)]

    def working(self, radius: float, *, is_clipped: bool) -> list[float]:
        """Return the rates that work."""
        return [run.rate for run in self.of(radius, is_clipped=is_clipped) if run.end < self.guess]

    def best(self, radius: float, *, is_clipped: bool) -> float:
        """Return the loss at the arm's best rate."""
        return min(run.end for run in self.of(radius, is_clipped=is_clipped))


@torch.no_grad()
def scale_recurrence(model: LanguageModel, radius: float) -> None:
    """Scale W of an Elman net so that its spectral radius is the one given."""
    assert isinstance(model, RecurrentLanguageModel)
    weight = model.cells[0].kernel.weight_hh_l0
    assert isinstance(weight, torch.Tensor)
    weight.mul_(radius / float(torch.linalg.eigvals(weight).abs().max()))


def train_at(bench: Workbench, radius: float, rate: float, *, is_clipped: bool) -> Run:
    """Run plain gradient descent from the same weights, on the same chunks, for every radius and rate."""
    model, streams = _scaled_net(bench, radius), _streams(bench)
    optimizer = torch.optim.SGD(trained_parameters(model), lr=rate)
    state = model.initial_state(bench.sizes.batch_size)
    losses: list[float] = []
    for _ in range(bench.sizes.scaled_steps):
        loss, state = chunk_loss(model, streams, state)
        norm = _gradient_norm(model, loss, CLIP_NORM if is_clipped else math.inf)
        losses.append(loss.item())
        if not math.isfinite(losses[-1]) or not math.isfinite(norm):
            return Run(radius, rate, is_clipped, None)
        optimizer.step()
    return Run(radius, rate, is_clipped, float(np.mean(losses[-max(1, round(LAST_SHARE * len(losses))) :])))


def _scaled_net(bench: Workbench, radius: float) -> LanguageModel:
    small = replace(bench.sizes, parameters=bench.sizes.scaled_parameters)
    model = fresh_model(Family.RNN, bench.text.vocabulary_size, small, bench.seed)
    scale_recurrence(model, radius)
    return model


def _streams(bench: Workbench) -> Streams:
    sizes = bench.sizes
    return Streams(bench.text.training, sizes.batch_size, sizes.chunk_length, np.random.default_rng(bench.seed))


def _gradient_norm(model: LanguageModel, loss: torch.Tensor, limit: float) -> float:
    """Compute the gradient of the loss, scaled down to `limit`; return its norm before that."""
    model.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    return torch.nn.utils.clip_grad_norm_(trained_parameters(model), limit).item()


def first_norm(bench: Workbench, radius: float) -> float:
    """Return the median over chunks, with the state carried on and the weights unchanged; INFINITE if not finite."""
    model, streams = _scaled_net(bench, radius), _streams(bench)
    state = model.initial_state(len(streams))
    norms = []
    for _ in range(NUM_CHUNKS):
        loss, state = chunk_loss(model, streams, state)
        norms.append(_gradient_norm(model, loss, math.inf))
    return min(float(np.nan_to_num(np.median(norms), nan=INFINITE)), INFINITE)


def measure(bench: Workbench) -> Measurement[Exploding]:
    """Measure every radius and rate, clipped and not; radii that the budget does not reach are left out."""
    sizes = bench.sizes
    found: dict[float, tuple[float, list[Run]]] = {}
    left_out: list[str] = []
    for radius in sorted(sizes.radii, key=lambda radius: (radius != 1.0, -radius)):
        if found and bench.budget.is_spent:
            left_out.append(f"the spectral radius {radius:g}")
            continue
        runs = [
            train_at(bench, radius, rate, is_clipped=is_clipped) for is_clipped in (False, True) for rate in sizes.rates
        ]
        found[radius] = first_norm(bench, radius), runs
    radii = tuple(sorted(found))
    frequencies = token_frequencies(bench.text.training, bench.text.vocabulary_size)
    shares = frequencies[frequencies > 0] / frequencies.sum()
    numbers = Exploding(
        num_trained(_scaled_net(bench, 1.0)),
        sizes.chunk_length,
        sizes.scaled_steps,
        float(-(shares * np.log(shares)).sum()),
        radii,
        sizes.rates,
        tuple(found[radius][0] for radius in radii),
        tuple(run for radius in radii for run in found[radius][1]),
    )
    return Measurement(numbers, tuple(left_out))


def judge(numbers: Exploding) -> tuple[Condition, ...]:
    norms = dict(zip(numbers.radii, numbers.norms, strict=True))
    largest = numbers.radii[-1]
    loose, clipped = (
        {radius: numbers.working(radius, is_clipped=is_clipped) for radius in numbers.radii}
        for is_clipped in (False, True)
    )
    return (
        Condition(
            f"before training, the gradient at spectral radius {largest:g} is at least {EXPLODED:g} times that at 1",
            norms[largest] >= EXPLODED * norms[1.0],
            f"{norms[largest]:.2g} against {norms[1.0]:.2g}",
        ),
        Condition(
            "at every radius the largest rate that works is larger with clipping than without",
            all(max(clipped[radius], default=0) > max(loose[radius], default=0) for radius in numbers.radii),
            "; ".join(
                f"radius {radius:g}: {max(clipped[radius], default=0):g} against {max(loose[radius], default=0):g}"
                for radius in numbers.radii
            ),
        ),
        Condition(
            "at every radius more of the rates work with clipping than without",
            all(len(clipped[radius]) > len(loose[radius]) for radius in numbers.radii),
            "; ".join(
                f"radius {radius:g}: {len(clipped[radius])} against {len(loose[radius])}" for radius in numbers.radii
            ),
        ),
    )


def _radii(seeds: Sequence[Exploding]) -> list[float]:
    """Return the radii that every seed has."""
    return [radius for radius in seeds[0].radii if all(radius in numbers.radii for numbers in seeds)]


def _norms(seeds: Sequence[Exploding], radius: float) -> list[float]:
    return [numbers.norms[numbers.radii.index(radius)] for numbers in seeds]


def describe(seeds: Sequence[Exploding]) -> tuple[str, str]:
    norms = ", ".join(f"{between(_norms(seeds, radius), '.2g')} at radius {radius:g}" for radius in _radii(seeds))
    best = "; ".join(
        f"radius {radius:g} {_best(seeds, radius, is_clipped=False)} and {_best(seeds, radius, is_clipped=True)}"
        for radius in _radii(seeds)
    )
    rates = ", ".join(f"{rate:g}" for rate in seeds[0].rates)
    return (
        (
            f"The gradient of a net of {seeds[0].num_parameters:,} weights has, over {seeds[0].num_tokens} tokens and "
            f"before training, the norm {norms}."
        ),
        (
            f"After {seeds[0].num_steps} steps, at the best of the rates {rates} for each, the training loss without "
            f"and with clipping is: {best} nats a token; guessing by frequencies gives {seeds[0].guess:.2f}."
        ),
    )


def _best(seeds: Sequence[Exploding], radius: float, *, is_clipped: bool) -> str:
    losses = [numbers.best(radius, is_clipped=is_clipped) for numbers in seeds]
    return around(losses) if all(map(math.isfinite, losses)) else "not finite"


def expect(seeds: Sequence[Exploding]) -> tuple[Expectation, ...]:
    """Expect that before training a larger radius gives no smaller gradient."""
    radii = _radii(seeds)[::-1]
    values = tuple(
        tuple(math.log10(numbers.norms[numbers.radii.index(radius)]) for radius in radii) for numbers in seeds
    )
    labels = tuple(f"radius {radius:g}" for radius in radii)
    return (Expectation("logarithm of the gradient's norm before training", labels, values, MIN_RISE),)


def draw(seeds: Sequence[Exploding]) -> Figure:
    figure, (norms, loose, clipped) = panels(3)
    radii = _radii(seeds)
    all_norms = [[_norms([numbers], radius)[0] for radius in radii] for numbers in seeds]
    plot_seeds(norms, radii, all_norms, LineStyle("before training", BLACK, "o", "-"))
    norms.set_yscale("log")
    norms.axhline(CLIP_NORM, color=BLACK, linewidth=0.6, linestyle="--")
    finish(norms, "gradient before training (dashed: clipped to)", "spectral radius", "gradient norm", legend=False)
    _draw_losses(loose, seeds, is_clipped=False)
    _draw_losses(clipped, seeds, is_clipped=True)
    finish(loose, "without clipping", "learning rate", "training loss at the end, nats a token")
    finish(clipped, f"clipped to norm {CLIP_NORM:g}", "learning rate", "training loss at the end", legend=False)
    return figure


def _draw_losses(axes: Axes, seeds: Sequence[Exploding], *, is_clipped: bool) -> None:
    """Draw loss against rate, one line a radius; trainings that broke off or ended higher lie at the upper edge."""
    for radius, colour, marker in zip(_radii(seeds), COLOURS, MARKERS, strict=False):
        rows = [[min(run.end, BROKEN_OFF) for run in numbers.of(radius, is_clipped=is_clipped)] for numbers in seeds]
        plot_seeds(axes, seeds[0].rates, rows, LineStyle(f"radius {radius:g}", colour, marker, "-"))
    axes.axhline(seeds[0].guess, color=BLACK, linewidth=0.8, linestyle="--", label="guessing by frequencies")
    axes.set_ylim(1.9, BROKEN_OFF + 0.3)
    axes.set_yscale("log")
    axes.set_yticks([2, 3, 4, 6, 10], ["2", "3", "4", "6", "10+"])
    axes.minorticks_off()
    log_ticks(axes, seeds[0].rates)


CLAIM = Claim(
    number=2,
    slug="exploding-gradients",
    title="Gradients explode, and clipping widens the range of rates that work",
    says="If the recurrent weights are large, a gradient grows at every step back through time until training fails; "
    "with its norm clipped, more learning rates work.",
    kind=Exploding,
    setting="A small Elman net whose recurrent matrix is scaled to a spectral radius, trained by plain gradient "
    f"descent from the same weights on the same text, at every rate once unclipped and once clipped to norm "
    f"{CLIP_NORM:g}. A rate works if training ends below the loss of guessing by the characters' frequencies. All "
    "trainings have the same number of steps: at a small rate clipped steps may be too short. Bars: smallest to "
    "largest of the seeds.",
    measure=measure,
    judge=judge,
    describe=describe,
    draw=draw,
    expect=expect,
)
