"""Test trainings on texts without a config, and the measured speed of a machine."""

from pathlib import Path

import pytest

from meari.models.choices import TrainingPrecision
from meari.models.config import load_config
from meari.models.planning.run import name_of, plan_text, train_text
from meari.models.planning.speed import measure_speed
from meari.models.planning.tables import LARGE_PROBE, SMALL_PROBE, TEXT_PROBE_SECONDS, MachineSpeed, step_seconds_of
from meari.models.training.trainer import Ending
from tests.models.training.tiny_runs import chain_text


def text_file(folder: Path) -> Path:
    path = folder / "my text.txt"
    path.write_text(chain_text(3000).replace("ca", "c\na"))
    return path


def test_text_is_planned_and_trained_on_in_a_run_folder(tmp_path: Path) -> None:
    done = train_text([text_file(tmp_path)], 0.01, folder=tmp_path / "run", speed=MachineSpeed())
    assert done.config.name == "my-text"
    assert done.result.ending is Ending.FINISHED
    assert done.result.figures is not None
    assert done.folder.has_snapshot()
    assert load_config(tmp_path / "run/config.toml") == done.config


def test_speed_of_a_machine_is_its_step_beside_the_measured_one() -> None:
    now = [0.0]

    def clock() -> float:
        """Every step takes as long as the small probe's on the measured machine, in either precision."""
        now[0] += step_seconds_of(SMALL_PROBE)
        return now[0]

    speed = measure_speed(clock)
    assert speed.small == pytest.approx(1.0)
    assert speed.large == pytest.approx(step_seconds_of(LARGE_PROBE) / step_seconds_of(SMALL_PROBE))
    assert speed.precision in TrainingPrecision
    assert speed.threads == 1
    assert speed.text == pytest.approx(TEXT_PROBE_SECONDS / step_seconds_of(SMALL_PROBE))


def test_plan_of_files_and_folders_takes_a_speed_that_is_given(tmp_path: Path) -> None:
    path = text_file(tmp_path)
    speed = MachineSpeed(0.1, 0.1, TrainingPrecision.FLOAT32, 3)
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "a.txt").write_text("another text, which is in a folder\n" * 20)
    config = plan_text([path, tmp_path / "more"], 1.0, speed=speed).config
    assert config.training.threads == 3
    assert config.corpus.train == (str(path), str(tmp_path / "more"))


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("my text.txt", "my-text"),
        ("a/b/log.txt.gz", "log"),
        ("diary.TEXT", "diary"),
        ("소설.txt", "soseol"),
        ("v1.2-notes.txt", "v1.2-notes"),
        ("folder/", "folder"),
    ],
)
def test_name_of_a_run_is_that_of_its_first_text(path: str, name: str) -> None:
    assert name_of([path, "other.txt"]) == name
