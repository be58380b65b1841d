"""Displays of a running training: a bar in a terminal, plain lines elsewhere, events for TensorBoard.

Input: steps and evaluations as they happen. Output: text on a console, an event file. Must not know: models.

TensorBoard gets these scalars, losses in nats per token; a resumed run writes a file of its own, and repeated steps are
in both:

    training/loss  training/gradient_norm  training/learning_rate  training/tokens_per_second     at every step
    validation/loss  validation/best                                                   at every evaluation
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.status import Status

from meari.models.errors import TrainingError
from meari.models.figures import perplexity, show_figure, show_perplexity
from meari.models.training.history import EvaluationRecord, StepRecord

PLAIN_LINE_SECONDS = 10.0
BAR, REMAINING, GAPS = 12, 8, 3  # columns of a line: the bar, the time left, the spaces between the parts
DROPPED_FIRST = (2, 1, 3)  # parts of a step's description, the least important first
SMOOTHING = 0.98  # share of the past in the shown loss
INSTALL = "--tensorboard needs tensorboardX, which is not installed here: `pip install 'meari[tensorboard]'`"


class Display(Protocol):
    """Interface that a training loop reports to.

    start   with the steps that are done, and of all; and of a run that ends by the clock the seconds likewise
    """

    def start(self, done: int, total: int, seconds: tuple[float, float] | None = None) -> None: ...
    def step(self, record: StepRecord, tokens_per_second: float) -> None: ...
    def evaluation(self, record: EvaluationRecord, *, is_best: bool) -> None: ...
    def note(self, text: str) -> None: ...
    def stop(self) -> None: ...


def make_display(console: Console) -> Display:
    """Make a bar if the console is a terminal, else lines."""
    return BarDisplay(console) if console.is_terminal else LineDisplay(console)


class NullDisplay:
    """Display that shows nothing: for all processes but the first."""

    def start(self, done: int, total: int, seconds: tuple[float, float] | None = None) -> None: ...
    def step(self, record: StepRecord, tokens_per_second: float) -> None: ...
    def evaluation(self, record: EvaluationRecord, *, is_best: bool) -> None: ...
    def note(self, text: str) -> None: ...
    def stop(self) -> None: ...


class _RunningMean:
    """Running mean of the loss that starts at its first value."""

    def __init__(self) -> None:
        self.value: float | None = None

    def add(self, loss: float) -> float:
        before = loss if self.value is None else self.value
        self.value = SMOOTHING * before + (1 - SMOOTHING) * loss
        return self.value


@dataclass(frozen=True)
class _Length:
    """Length of a run in steps, and in seconds if it ends by the clock: then it ends with whichever comes first."""

    steps: int
    seconds: float | None = None

    def share(self, step: int, seconds: float) -> float:
        """Return how much of the run is done, 0 to 1."""
        shares = (step / max(1, self.steps), 0.0 if self.seconds is None else seconds / self.seconds)
        return min(1.0, max(shares))

    def in_words(self, step: int, seconds: float) -> str:
        return f"step {step}/{self.steps}" if self.seconds is None else f"step {step}, {self.share(step, seconds):.0%}"


def _described(record: StepRecord, loss: float, tokens_per_second: float, width: int | None = None) -> str:
    """Describe a step; if `width` is too small for all parts, keep the most important ones."""
    parts = (
        f"loss {show_figure(loss)}",
        f"perplexity {show_perplexity(perplexity(loss))}",
        f"gradient norm {show_figure(record.grad_norm, 2)}",
        f"{tokens_per_second:,.0f} tokens/s",
    )
    shown = set(range(len(parts)))
    for part in DROPPED_FIRST:
        text = "  ".join(parts[each] for each in sorted(shown))
        if width is None or len(text) <= width:
            break
        shown.remove(part)
    return "  ".join(parts[each] for each in sorted(shown))


def _evaluated(record: EvaluationRecord, *, is_best: bool) -> str:
    mark = "  best so far" if is_best else ""
    nats = record.validation
    shown = f"{show_figure(nats)} nats/token  perplexity {show_perplexity(perplexity(nats))}"
    return f"step {record.step}: validation {shown}{mark}"


class BarDisplay:
    """A progress bar that stays on one line, with evaluations above it."""

    def __init__(self, console: Console) -> None:
        columns = (
            TextColumn("{task.fields[place]}"),
            BarColumn(bar_width=BAR),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=console)
        self._task: TaskID | None = None
        self._length = _Length(0)
        self._loss = _RunningMean()

    def start(self, done: int, total: int, seconds: tuple[float, float] | None = None) -> None:
        self._length = _Length(total, seconds and seconds[1])
        spent = seconds[0] if seconds else 0.0
        self._task = self._progress.add_task("", total=1.0, place=self._length.in_words(done, spent))
        self._progress.update(self._task, completed=self._length.share(done, spent))
        self._progress.start()

    def step(self, record: StepRecord, tokens_per_second: float) -> None:
        assert self._task is not None
        place = self._length.in_words(record.step, record.seconds)
        width = self._progress.console.width - len(place) - BAR - REMAINING - GAPS
        text = _described(record, self._loss.add(record.loss), tokens_per_second, width)
        share = self._length.share(record.step, record.seconds)
        self._progress.update(self._task, completed=share, description=text, place=place)

    def evaluation(self, record: EvaluationRecord, *, is_best: bool) -> None:
        self.note(_evaluated(record, is_best=is_best))

    def note(self, text: str) -> None:
        self._progress.console.print(text, markup=False, highlight=False)

    def stop(self) -> None:
        self._progress.stop()


class LineDisplay:
    """A plain line every ten seconds of training, and one an evaluation: for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._loss = _RunningMean()
        self._length = _Length(0)
        self._next_seconds = 0.0

    def start(self, done: int, total: int, seconds: tuple[float, float] | None = None) -> None:
        self._length = _Length(total, seconds and seconds[1])

    def step(self, record: StepRecord, tokens_per_second: float) -> None:
        loss = self._loss.add(record.loss)
        if record.seconds >= self._next_seconds or record.step == self._length.steps:
            place = self._length.in_words(record.step, record.seconds)
            self.note(f"{place}  {_described(record, loss, tokens_per_second)}")
            self._next_seconds = record.seconds + PLAIN_LINE_SECONDS

    def evaluation(self, record: EvaluationRecord, *, is_best: bool) -> None:
        self.note(_evaluated(record, is_best=is_best))

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
        self._console.file.flush()

    def stop(self) -> None:
        pass


class TensorBoardDisplay:
    """Display that also writes events into `folder`. Raises TrainingError if tensorboardX is not installed."""

    def __init__(self, folder: Path, shown: Display) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ModuleNotFoundError as error:
            raise TrainingError(INSTALL) from error
        self._writer = SummaryWriter(str(folder))
        self._shown = shown

    def start(self, done: int, total: int, seconds: tuple[float, float] | None = None) -> None:
        self._shown.start(done, total, seconds)

    def step(self, record: StepRecord, tokens_per_second: float) -> None:
        figures = {
            "loss": record.loss,
            "gradient_norm": record.grad_norm,
            "learning_rate": record.learning_rate,
            "tokens_per_second": tokens_per_second,
        }
        for name, figure in figures.items():
            self._writer.add_scalar(f"training/{name}", figure, record.step)
        self._shown.step(record, tokens_per_second)

    def evaluation(self, record: EvaluationRecord, *, is_best: bool) -> None:
        self._writer.add_scalar("validation/loss", record.validation, record.step)
        if is_best:
            self._writer.add_scalar("validation/best", record.validation, record.step)
        self._writer.flush()
        self._shown.evaluation(record, is_best=is_best)

    def note(self, text: str) -> None:
        self._shown.note(text)

    def stop(self) -> None:
        """End the loop's events; an evaluation may still follow."""
        self._writer.flush()
        self._shown.stop()


class TrialDisplay:
    """Display of one trial's training: a line that is overwritten in a terminal, nothing elsewhere."""

    def __init__(self, console: Console, number: int) -> None:
        self._status = Status("", console=console) if console.is_terminal else None
        self._number = number
        self._total = 0

    def start(self, done: int, total: int, seconds: tuple[float, float] | None = None) -> None:
        self._total = total
        if self._status is not None:
            self._status.start()

    def step(self, record: StepRecord, tokens_per_second: float) -> None:
        if self._status is not None:
            self._status.update(
                f"trial {self._number}: step {record.step}/{self._total}  loss {record.loss:.3f}  "
                f"{tokens_per_second:,.0f} tokens/s"
            )

    def evaluation(self, record: EvaluationRecord, *, is_best: bool) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def stop(self) -> None:
        if self._status is not None:
            self._status.stop()
