"""What a person sees of a training."""

import re
from io import StringIO

import pytest
from rich.console import Console

from meari.models.training.display import BarDisplay, LineDisplay, make_display
from meari.models.training.history import EvaluationRecord, StepRecord


def show(console: Console) -> str:
    display = make_display(console)
    display.start(0, 3)
    for step, seconds in ((1, 0.0), (2, 4.0), (3, 5.0)):
        display.step(StepRecord(step, 2.0, 0.75, 1e-3, seconds), 12_345.6)
    display.evaluation(EvaluationRecord(3, 1.5, 5.0), is_best=True)
    display.stop()
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_a_pipe_gets_plain_lines_now_and_then() -> None:
    console = Console(file=StringIO(), width=40)
    assert isinstance(make_display(console), LineDisplay)
    assert show(console).splitlines() == [
        "step 1/3  loss 2.0000  perplexity 7.39  gradient norm 0.75  12,346 tokens/s",
        "step 3/3  loss 2.0000  perplexity 7.39  gradient norm 0.75  12,346 tokens/s",
        "step 3: validation 1.5000 nats/token  perplexity 4.48  best so far",
    ]


def test_a_terminal_gets_a_bar_with_all_figures() -> None:
    console = Console(file=StringIO(), width=160, force_terminal=True, color_system=None)
    assert isinstance(make_display(console), BarDisplay)
    shown = show(console)
    for piece in (
        "step 3/3",
        "loss 2.0000",
        "perplexity 7.39",
        "gradient norm 0.75",
        "12,346 tokens/s",
        "validation 1.5",
    ):
        assert piece in shown


def test_a_loss_that_exploded_can_still_be_shown() -> None:
    written = StringIO()
    display = make_display(Console(file=written))
    display.start(0, 1)
    display.step(StepRecord(1, 1e30, 0.1, 1e-3, 0.0), 1.0)
    assert "step 1/1" in written.getvalue()
    assert "loss 1.00e+30  perplexity > 1e6" in written.getvalue()


@pytest.mark.parametrize(("width", "told"), [(60, "loss 1.2345"), (80, "12,345 tokens/s"), (120, "gradient norm 0.10")])
def test_a_bar_keeps_the_time_left_whatever_the_width_of_the_terminal(width: int, told: str) -> None:
    written = StringIO()
    display = make_display(Console(file=written, force_terminal=True, width=width, color_system=None))
    display.start(10_000, 100_000)
    display.step(StepRecord(12_345, 1.2345, 0.1, 1e-3, 0.0), 12_345.0)
    display.stop()
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written.getvalue()).replace("\r", "\n").rstrip().splitlines()[-1]
    assert re.fullmatch(r"step 12345/100000 .{12} loss 1.2345.* (-:--:--|\d+:\d\d:\d\d)", plain.rstrip()), plain
    assert told in plain
