"""Test the displays of a training: bar, lines, TensorBoard."""

import re
import struct
import sys
from collections import defaultdict
from io import StringIO
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console
from tensorboardX.proto.event_pb2 import Event

from meari.cli.main import group
from meari.models.errors import TrainingError
from meari.models.training.display import BarDisplay, LineDisplay, NullDisplay, TensorBoardDisplay, make_display
from meari.models.training.history import EvaluationRecord, StepRecord, read_history
from tests.models.training.tiny_runs import tiny_config
from tests.models.training.torchrun_runs import write_toml


def show(console: Console) -> str:
    display = make_display(console)
    display.start(0, 3)
    for step, seconds in ((1, 0.0), (2, 4.0), (3, 5.0)):
        display.step(StepRecord(step, 2.0, 0.75, 1e-3, seconds), 12_345.6)
    display.evaluation(EvaluationRecord(3, 1.5, 5.0), is_best=True)
    display.stop()
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_pipe_gets_occasional_plain_lines() -> None:
    console = Console(file=StringIO(), width=40)
    assert isinstance(make_display(console), LineDisplay)
    assert show(console).splitlines() == [
        "step 1/3  loss 2.0000  perplexity 7.39  gradient norm 0.75  12,346 tokens/s",
        "step 3/3  loss 2.0000  perplexity 7.39  gradient norm 0.75  12,346 tokens/s",
        "step 3: validation 1.5000 nats/token  perplexity 4.48  best so far",
    ]


def test_terminal_gets_a_bar_with_all_figures() -> None:
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


def test_run_that_ends_by_the_clock_tells_its_share_of_the_time_not_of_steps_that_are_never_taken() -> None:
    console = Console(file=StringIO(), width=40)
    display = make_display(console)
    display.start(0, 900, (0.0, 60.0))
    display.step(StepRecord(1, 2.0, 0.75, 1e-3, 0.2), 12_345.6)
    display.step(StepRecord(300, 2.0, 0.75, 1e-3, 30.0), 12_345.6)
    assert isinstance(console.file, StringIO)
    assert [line.partition("  ")[0] for line in console.file.getvalue().splitlines()] == ["step 1, 0%", "step 300, 50%"]
    written = StringIO()
    bar = make_display(Console(file=written, force_terminal=True, width=160, color_system=None))
    bar.start(100, 400, (10.0, 600.0))  # of a short text, which ends the run before its time
    bar.step(StepRecord(200, 2.0, 0.75, 1e-3, 20.0), 12_345.6)
    bar.stop()
    assert "step 200, 50%" in written.getvalue()


def test_huge_loss_is_shown() -> None:
    written = StringIO()
    display = make_display(Console(file=written))
    display.start(0, 1)
    display.step(StepRecord(1, 1e30, 0.1, 1e-3, 0.0), 1.0)
    assert "step 1/1" in written.getvalue()
    assert "loss 1.00e+30  perplexity > 1e6" in written.getvalue()


@pytest.mark.parametrize(
    ("width", "figure"), [(60, "loss 1.2345"), (80, "12,345 tokens/s"), (120, "gradient norm 0.10")]
)
def test_bar_shows_the_remaining_time_at_every_width(width: int, figure: str) -> None:
    written = StringIO()
    display = make_display(Console(file=written, force_terminal=True, width=width, color_system=None))
    display.start(10_000, 100_000)
    display.step(StepRecord(12_345, 1.2345, 0.1, 1e-3, 0.0), 12_345.0)
    display.stop()
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written.getvalue()).replace("\r", "\n").rstrip().splitlines()[-1]
    assert re.fullmatch(r"step 12345/100000 .{12} loss 1.2345.* (-:--:--|\d+:\d\d:\d\d)", plain.rstrip()), plain
    assert figure in plain


Scalars = dict[str, list[tuple[int, float]]]


def read_scalars(folder: Path) -> Scalars:
    """Read every scalar of the event file; a record is a length, a checksum, the data and a checksum."""
    (path,) = folder.iterdir()
    content = path.read_bytes()
    scalars: Scalars = defaultdict(list)
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        event = Event.FromString(content[12 : 12 + length])
        for value in event.summary.value:
            scalars[value.tag].append((event.step, value.simple_value))
        content = content[16 + length :]
    return scalars


def test_tensorboard_events_match_the_history(tmp_path: Path) -> None:
    config = write_toml(tiny_config(tmp_path), tmp_path / "tiny.toml")
    arguments = ["train", str(config), "--run", str(tmp_path / "run"), "--tensorboard", str(tmp_path / "events")]
    result = CliRunner().invoke(group, arguments)
    assert result.exit_code == 0, result.output
    assert "step 12: validation" in result.output  # the terminal display still runs
    records = read_history(tmp_path / "run" / "history.jsonl")
    steps = [record for record in records if isinstance(record, StepRecord)]
    evaluations = [record for record in records if isinstance(record, EvaluationRecord)]
    scalars = read_scalars(tmp_path / "events")
    expected = {
        "training/loss": [(record.step, record.loss) for record in steps],
        "training/gradient_norm": [(record.step, record.grad_norm) for record in steps],
        "training/learning_rate": [(record.step, record.learning_rate) for record in steps],
        "validation/loss": [(record.step, record.validation) for record in evaluations],
    }
    assert set(scalars) == {*expected, "training/tokens_per_second", "validation/best"}
    for tag, points in expected.items():
        assert [step for step, _ in scalars[tag]] == [step for step, _ in points]
        assert [figure for _, figure in scalars[tag]] == pytest.approx([figure for _, figure in points], rel=1e-6)
    assert all(speed > 0 for _, speed in scalars["training/tokens_per_second"])


def test_missing_tensorboard_package_is_reported_with_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(TrainingError, match=r"meari\[tensorboard\]"):
        TensorBoardDisplay(tmp_path, NullDisplay())
