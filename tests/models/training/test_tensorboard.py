"""What `--tensorboard` writes is read back from the event file and compared with the run's own history."""

import struct
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from click.testing import CliRunner
from tensorboardX.proto.event_pb2 import Event

from meari.cli.main import group
from meari.models.errors import TrainingError
from meari.models.training.display import Silent
from meari.models.training.history import EvaluationRecord, StepRecord, read_history
from meari.models.training.tensorboard import TensorBoardDisplay
from tests.models.training.tiny_runs import tiny_config
from tests.models.training.torchrun_runs import write_toml

Scalars = dict[str, list[tuple[int, float]]]


def read_scalars(folder: Path) -> Scalars:
    """Every scalar of a folder's event file: a record is its length, a checksum, that many bytes, and a checksum."""
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


def test_the_events_are_the_history_of_the_run(tmp_path: Path) -> None:
    config = write_toml(tiny_config(tmp_path), tmp_path / "tiny.toml")
    arguments = ["train", str(config), "--run", str(tmp_path / "run"), "--tensorboard", str(tmp_path / "events")]
    result = CliRunner().invoke(group, arguments)
    assert result.exit_code == 0, result.output
    assert "step 12: validation" in result.output  # the display of the terminal goes on beside it
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


def test_without_the_extra_the_error_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(TrainingError, match=r"meari\[tensorboard\]"):
        TensorBoardDisplay(tmp_path, Silent())
