"""Test whole searches of tiny models: results, resumption, time limits and files."""

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from meari.bundle_format.names import Family
from meari.models.choices import Readout
from meari.models.config import Config, RecurrentConfig, ReservoirConfig, load_config
from meari.models.errors import FolderInUse, SearchError
from meari.models.files import locked
from meari.models.search.journal import NAME, SearchResult, Trial
from meari.models.search.report import plain_table
from meari.models.search.run import BEST, PICTURE, Budget, search
from meari.models.search.space import make_space
from meari.models.training import run as training_run
from meari.models.training.display import Display
from meari.models.training.run_folder import Start
from tests.models.training.tiny_runs import Clock, StopAt, tiny_config

RATES: dict[str, object] = {"training.learning_rate": {"log": [1e-3, 1e-1]}, "model.hidden_size": [4, 8]}
ALL = Budget(trials=3, trial_minutes=0, minutes=0)


def never(_number: int) -> Display:
    return StopAt(-1, lambda: None)


def run(
    config: Config,
    folder: Path,
    budget: Budget = ALL,
    start: Start = Start.FRESH,
    settings: dict[str, object] = RATES,
    display_of: Callable[[int], Display] = never,
    clock: Clock | None = None,
) -> tuple[SearchResult, list[str]]:
    lines: list[str] = []
    space = make_space(config, settings)
    found = search(space, budget, folder, start, display_of=display_of, tell=lines.append, clock=clock or Clock())
    return found, lines


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return tiny_config(tmp_path, model=RecurrentConfig(Family.GRU, 5, 7))


def test_search_writes_its_best_config_a_table_and_a_picture(tmp_path: Path, config: Config) -> None:
    found, lines = run(config, tmp_path / "search", replace(ALL, trials=5))
    losses = [trial.loss for trial in found.trials]
    assert len(losses) == len(lines) == 5
    assert found.best is not None
    assert found.best.loss == min(loss for loss in losses if loss is not None)
    assert set(found.shares) == set(RATES)
    assert all(share is not None and 0 <= share <= 1 for share in found.shares.values())
    assert (tmp_path / "search" / PICTURE).read_bytes().startswith(b"\x89PNG")
    best = load_config(tmp_path / "search" / BEST)
    assert best.training.learning_rate == found.best.settings["training.learning_rate"]
    assert replace(best, model=config.model, training=config.training) == config
    table = plain_table(found).splitlines()
    assert len(table) == 7
    assert f"{found.best.loss:.4f}" in table[1]
    assert "explains" in table[-1]


def test_resumed_search_equals_an_uninterrupted_one(tmp_path: Path, config: Config) -> None:
    whole, _ = run(config, tmp_path / "whole")
    run(config, tmp_path / "part", replace(ALL, trials=1))
    with (tmp_path / "part" / NAME).open("a") as file:
        file.write('{"number": 2, "sett')  # a line cut off by a power failure
    resumed, lines = run(config, tmp_path / "part", start=Start.RESUME)
    assert resumed.trials == whole.trials
    assert len(lines) == 2
    assert (tmp_path / "part" / NAME).read_bytes() == (tmp_path / "whole" / NAME).read_bytes()


def test_interrupted_trial_is_repeated(tmp_path: Path, config: Config) -> None:
    whole, _ = run(config, tmp_path / "whole")

    def second_is_stopped(number: int) -> Display:
        return StopAt(4 if number == 2 else -1, lambda: os.kill(os.getpid(), signal.SIGINT))

    found, _ = run(config, tmp_path / "part", display_of=second_is_stopped)
    assert found.signal == signal.SIGINT
    assert found.trials == whole.trials[:1]
    assert run(config, tmp_path / "part", start=Start.RESUME)[0].trials == whole.trials


def test_search_is_not_overwritten_or_continued_with_other_settings(tmp_path: Path, config: Config) -> None:
    folder = tmp_path / "search"
    run(config, folder, replace(ALL, trials=1))
    with pytest.raises(SearchError, match="continue it with --resume, replace it with --overwrite"):
        run(config, folder)
    with pytest.raises(SearchError, match="was started with different settings"):
        run(config, folder, start=Start.RESUME, settings={"model.hidden_size": [4]})
    with pytest.raises(SearchError, match="was started with different config"):
        run(replace(config, seed=2), folder, start=Start.RESUME)
    assert len(run(config, folder, replace(ALL, trials=1), Start.OVERWRITE)[0].trials) == 1
    (folder / NAME).write_text("no journal\n")
    with pytest.raises(SearchError, match="is damaged"):
        run(config, folder, start=Start.RESUME)
    with pytest.raises(SearchError, match="expected a search to resume"):
        run(config, tmp_path / "none", start=Start.RESUME)


def test_time_budgets_end_trials_and_searches(tmp_path: Path, config: Config) -> None:
    endless = replace(config, training=replace(config.training, steps=10**6, evaluate_every=10**6))
    budget = Budget(trials=100, trial_minutes=1.0, minutes=2.5)
    found, _ = run(endless, tmp_path / "search", budget, clock=Clock(seconds_per_look=2.0))
    assert 2 <= len(found.trials) <= 4
    assert all("time limit" in trial.ending and trial.loss is not None for trial in found.trials[:2])


def test_trial_without_time_for_a_step_fails(tmp_path: Path, config: Config) -> None:
    budget = Budget(trials=1, trial_minutes=0.5, minutes=0)
    found, _ = run(config, tmp_path / "search", budget, clock=Clock(seconds_per_look=60.0))
    assert found.trials[0].problem == "the time limit came before the first step"
    assert found.best is None
    assert not (tmp_path / "search" / BEST).exists()


def test_search_continues_after_a_failed_trial(tmp_path: Path, config: Config) -> None:
    settings: dict[str, object] = {"training.learning_rate": [1e-2, 1e30], "training.clip_norm": [1e30]}
    found, lines = run(config, tmp_path / "search", replace(ALL, trials=6), settings=settings)
    failed = [trial for trial in found.trials if trial.loss is None]
    assert 1 <= len(failed) < 6
    assert all(trial.settings["training.learning_rate"] == 1e30 and trial.problem for trial in failed)
    assert found.best is not None
    assert found.best.settings["training.learning_rate"] == 1e-2
    assert any("failed: " in line for line in lines)
    assert "failed" in plain_table(found)


@pytest.mark.parametrize("readout", list(Readout))
def test_reservoirs_of_both_readouts_are_searched(tmp_path: Path, readout: Readout) -> None:
    model = ReservoirConfig(family=Family.ESN, units=32, block_size=8, readout=readout)
    config = tiny_config(tmp_path, model=model)  # type: ignore[arg-type]
    found, _ = run(
        config, tmp_path / "s", replace(ALL, trials=2), settings={"model.spectral_radius": {"log": [0.1, 1]}}
    )
    assert all(trial.loss is not None and trial.loss < 2 for trial in found.trials)


def test_search_never_measures_the_test_part(tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_run, "measure_run", pytest.fail)
    run(config, tmp_path / "search", replace(ALL, trials=1))
    text = (tmp_path / "search" / NAME).read_text()
    assert "test" not in {key for line in text.splitlines()[1:] for key in json.loads(line)}


def test_journal_has_one_line_for_each_trial(tmp_path: Path, config: Config) -> None:
    found, _ = run(config, tmp_path / "search", replace(ALL, trials=2))
    head, *lines = (tmp_path / "search" / NAME).read_text().splitlines()
    assert json.loads(head)["search"]["settings"] == RATES
    assert [Trial(**json.loads(line)) for line in lines] == found.trials
    assert not (tmp_path / "search" / "trial").exists()


def test_search_in_use_by_another_process_is_refused(tmp_path: Path, config: Config) -> None:
    run(config, tmp_path / "search", replace(ALL, trials=1))
    before = (tmp_path / "search" / NAME).read_bytes()
    with locked(tmp_path / "search"):
        for start in Start:
            with pytest.raises(FolderInUse):
                run(config, tmp_path / "search", start=start)
    assert (tmp_path / "search" / NAME).read_bytes() == before
