"""Test run folders: starting, resuming and replacing runs."""

from dataclasses import replace
from pathlib import Path

import pytest

from meari.models.errors import CheckpointError, FolderInUse
from meari.models.training.run_folder import Start, claimed_run, open_run
from tests.models.training.tiny_runs import tiny_config


def test_new_run_writes_its_config(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    run = open_run(tmp_path / "runs" / "tiny", config, Start.FRESH)
    assert run.config.read_text() == config.to_json()


def test_existing_run_is_refused_with_both_options(tmp_path: Path) -> None:
    run = open_run(tmp_path / "run", tiny_config(tmp_path), Start.FRESH)
    run.best.mkdir()
    with pytest.raises(CheckpointError, match=r"--resume.*--overwrite"):
        open_run(tmp_path / "run", tiny_config(tmp_path), Start.FRESH)


@pytest.mark.parametrize("left", [[], ["tokens", "tokenizer.json", ".lock"], ["tokens.new", "config.json.new"]])
def test_run_without_a_step_can_start_again_with_other_settings(tmp_path: Path, left: list[str]) -> None:
    open_run(tmp_path / "run", tiny_config(tmp_path), Start.FRESH)
    for name in left:
        (tmp_path / "run" / name).mkdir() if name.startswith("tokens") else (tmp_path / "run" / name).touch()
    run = open_run(tmp_path / "run", tiny_config(tmp_path, steps=3), Start.FRESH)
    assert '"steps": 3' in run.config.read_text()


@pytest.mark.parametrize("content", ['{"photos": 3}', "no JSON"])
def test_foreign_config_file_is_never_overwritten(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match="--overwrite"):
        open_run(tmp_path, tiny_config(tmp_path), Start.FRESH)
    assert (tmp_path / "config.json").read_text() == content


def test_resuming_reports_every_changed_setting(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    open_run(tmp_path / "run", config, Start.FRESH)
    training = replace(config.training, learning_rate=0.5, steps=None, epochs=2.0)
    with pytest.raises(CheckpointError) as caught:
        open_run(tmp_path / "run", replace(config, training=training, seed=2), Start.RESUME)
    message = str(caught.value)
    assert "training.learning_rate: the run has 0.01, the config 0.5" in message
    assert "training.steps: the run has 12, the config nothing" in message
    assert "training.epochs: the run has nothing, the config 2.0" in message
    assert "seed: the run has 1, the config 2" in message
    assert "clip_norm" not in message


def test_new_folder_cannot_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no run to resume"):
        open_run(tmp_path / "run", tiny_config(tmp_path), Start.RESUME)


@pytest.mark.parametrize("start", list(Start))
def test_folder_without_a_run_is_never_changed(tmp_path: Path, start: Start) -> None:
    (tmp_path / "holiday.txt").write_text("photos")
    with pytest.raises(CheckpointError, match="not a run"):
        open_run(tmp_path, tiny_config(tmp_path), start)
    assert (tmp_path / "holiday.txt").read_text() == "photos"


def test_overwriting_removes_the_files_of_the_earlier_run(tmp_path: Path) -> None:
    run = open_run(tmp_path / "run", tiny_config(tmp_path), Start.FRESH)
    for folder in (run.best, run.last, run.path / "last.old"):
        folder.mkdir()
    for file in (run.history, run.figures, run.report, run.tokenizer):
        file.write_text("old")
    open_run(tmp_path / "run", tiny_config(tmp_path, steps=3), Start.OVERWRITE)
    assert [path.name for path in run.path.iterdir()] == ["config.json"]
    assert '"steps": 3' in run.config.read_text()


@pytest.mark.parametrize("start", list(Start))
def test_run_in_use_is_refused_and_not_changed(tmp_path: Path, start: Start) -> None:
    config = tiny_config(tmp_path)
    with claimed_run(tmp_path / "run", config, Start.FRESH) as run:
        run.best.mkdir()
        with pytest.raises(FolderInUse, match="another run is writing to it"):
            claimed_run(run.path, config, start).__enter__()
        assert run.best.is_dir()
    with claimed_run(tmp_path / "run", config, Start.RESUME):
        pass
    assert not (tmp_path / "run" / ".lock").exists()
