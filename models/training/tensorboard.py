"""Writes what happens in a training where TensorBoard can show it, and passes it on to another display.

In: steps and evaluations as they happen. Out: an event file. Knows nothing of models.

    training/loss  training/gradient_norm  training/learning_rate  training/tokens_per_second     at every step
    validation/loss  validation/best                                                   at every evaluation

Losses are nats per token. A resumed run writes a file of its own; what it goes through again stands in both.
"""

from pathlib import Path

from meari.models.errors import TrainingError
from meari.models.training.display import Display
from meari.models.training.history import EvaluationRecord, StepRecord

INSTALL = "--tensorboard needs tensorboardX, which is not installed here: `pip install 'meari[tensorboard]'`"


class TensorBoardDisplay:
    """A display that also writes events into `folder`. Raises TrainingError where tensorboardX is not installed."""

    def __init__(self, folder: Path, shown: Display) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ModuleNotFoundError as error:
            raise TrainingError(INSTALL) from error
        self._writer = SummaryWriter(str(folder))
        self._shown = shown

    def start(self, done: int, total: int) -> None:
        self._shown.start(done, total)

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

    def evaluation(self, record: EvaluationRecord, is_best: bool) -> None:
        self._writer.add_scalar("validation/loss", record.validation, record.step)
        if is_best:
            self._writer.add_scalar("validation/best", record.validation, record.step)
        self._writer.flush()
        self._shown.evaluation(record, is_best)

    def note(self, text: str) -> None:
        self._shown.note(text)

    def stop(self) -> None:
        """The end of the loop; an evaluation may still follow it."""
        self._writer.flush()
        self._shown.stop()
