"""Shows the trainings of a search: a line that is overwritten in a terminal, nothing elsewhere."""

from rich.console import Console
from rich.status import Status

from meari.models.training.history import EvaluationRecord, StepRecord


class QuietDisplay:
    """What the training of one trial reports to."""

    def __init__(self, console: Console, number: int) -> None:
        self._status = Status("", console=console) if console.is_terminal else None
        self._number = number
        self._total = 0

    def start(self, done: int, total: int) -> None:
        self._total = total
        if self._status is not None:
            self._status.start()

    def step(self, record: StepRecord, tokens_per_second: float) -> None:
        if self._status is not None:
            self._status.update(
                f"trial {self._number}: step {record.step}/{self._total}  loss {record.loss:.3f}  "
                f"{tokens_per_second:,.0f} tokens/s"
            )

    def evaluation(self, record: EvaluationRecord, is_best: bool) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def stop(self) -> None:
        if self._status is not None:
            self._status.stop()
