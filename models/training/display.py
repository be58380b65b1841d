"""Shows a running training to the person who started it: a live bar in a terminal, plain lines anywhere else.

In: steps and evaluations as they happen. Out: text on a console. Knows nothing of models or files.
"""

import math
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from models.training.history import EvaluationRecord, StepRecord

PLAIN_LINE_SECONDS = 10.0
SMOOTHING = 0.98  # share of the past in the shown loss


class Display(Protocol):
    """What a training loop reports to."""

    def start(self, done: int, total: int) -> None: ...
    def step(self, record: StepRecord, tokens_per_second: float) -> None: ...
    def evaluation(self, record: EvaluationRecord, is_best: bool) -> None: ...
    def note(self, text: str) -> None: ...
    def stop(self) -> None: ...


def make_display(console: Console) -> Display:
    """A bar where the console is a terminal, lines where it is not."""
    return BarDisplay(console) if console.is_terminal else LineDisplay(console)


class Silent:
    """Shows nothing: for processes beside the one that shows."""

    def start(self, done: int, total: int) -> None: ...
    def step(self, record: StepRecord, tokens_per_second: float) -> None: ...
    def evaluation(self, record: EvaluationRecord, is_best: bool) -> None: ...
    def note(self, text: str) -> None: ...
    def stop(self) -> None: ...


class _Smoothed:
    """A running mean of the loss that starts at its first value."""

    def __init__(self) -> None:
        self.value: float | None = None

    def add(self, loss: float) -> float:
        before = loss if self.value is None else self.value
        self.value = SMOOTHING * before + (1 - SMOOTHING) * loss
        return self.value


def _described(record: StepRecord, loss: float, tokens_per_second: float) -> str:
    return (
        f"loss {loss:.4f}  perplexity {_shown(perplexity(loss))}  gradient norm {record.grad_norm:.2f}  "
        f"{tokens_per_second:,.0f} tokens/s"
    )


def _evaluated(record: EvaluationRecord, is_best: bool) -> str:
    mark = "  best so far" if is_best else ""
    nats = record.validation
    return f"step {record.step}: validation {nats:.4f} nats/token  perplexity {_shown(perplexity(nats))}{mark}"


def _shown(figure: float) -> str:
    """Two decimals, or a power of ten where a diverging run would fill lines with digits."""
    return f"{figure:.2f}" if figure < 1e9 else f"{figure:.2e}"


def perplexity(nats: float) -> float:
    """exp of nats per token, held below infinity."""
    return math.exp(min(nats, 700.0))


class BarDisplay:
    """A progress bar that stays on one line, with evaluations above it."""

    def __init__(self, console: Console) -> None:
        columns = (
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(bar_width=20),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=console)
        self._task: TaskID | None = None
        self._loss = _Smoothed()

    def start(self, done: int, total: int) -> None:
        self._task = self._progress.add_task("", total=total, completed=done)
        self._progress.start()

    def step(self, record: StepRecord, tokens_per_second: float) -> None:
        assert self._task is not None
        text = _described(record, self._loss.add(record.loss), tokens_per_second)
        self._progress.update(self._task, completed=record.step, description=text)

    def evaluation(self, record: EvaluationRecord, is_best: bool) -> None:
        self.note(_evaluated(record, is_best))

    def note(self, text: str) -> None:
        self._progress.console.print(text, markup=False, highlight=False)

    def stop(self) -> None:
        self._progress.stop()


class LineDisplay:
    """A plain line every ten seconds of training, and one an evaluation: for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._loss = _Smoothed()
        self._total = 0
        self._next_seconds = 0.0

    def start(self, done: int, total: int) -> None:
        self._total = total

    def step(self, record: StepRecord, tokens_per_second: float) -> None:
        loss = self._loss.add(record.loss)
        if record.seconds >= self._next_seconds or record.step == self._total:
            self.note(f"step {record.step}/{self._total}  {_described(record, loss, tokens_per_second)}")
            self._next_seconds = record.seconds + PLAIN_LINE_SECONDS

    def evaluation(self, record: EvaluationRecord, is_best: bool) -> None:
        self.note(_evaluated(record, is_best))

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
        self._console.file.flush()

    def stop(self) -> None:
        pass
