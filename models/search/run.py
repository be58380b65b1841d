"""The search: draw settings, train for a while, measure on validation text, record the trial; again and again.

Input: a space, a budget, a folder. Output: trials in the folder's journal, a picture, the config of the best trial.
Must not know: the command line; the display, the clock and the stop request are passed in.

    search.jsonl   the search, and every finished trial
    search.png     each setting against the held-out loss
    best.toml      the config of the best trial, for `meari train`
    tokens/        the corpus, prepared once for all trials
"""

import dataclasses
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from meari.models.check import check_files
from meari.models.checkpoint import load_checkpoint
from meari.models.config import Config
from meari.models.errors import ReservoirError, SearchError, TrainingError
from meari.models.evaluation import evaluate
from meari.models.fields import to_toml
from meari.models.figures import show_figure
from meari.models.files import current_folder, locked, write_file
from meari.models.memory import check_memory, memory_errors
from meari.models.search.importance import importances
from meari.models.search.journal import Journal, SearchResult, Trial, format_setting
from meari.models.search.report import write_picture
from meari.models.search.space import Space, with_settings
from meari.models.text.tokens import PreparedCorpus, prepare
from meari.models.training.display import Display
from meari.models.training.process import StopRequest, choose_device, fast_torch, stop_on_signals
from meari.models.training.run import check_trainable, trainer_of
from meari.models.training.run_folder import RunFolder, Start, open_run
from meari.models.training.trainer import Ending

TRIAL = "trial"
PICTURE = "search.png"
BEST = "best.toml"
MIN_SECONDS = 1.0  # of remaining budget, below which no trial is started


@dataclass(frozen=True)
class Budget:
    """Limits of a search.

    trials           how many, those of an earlier part of the search included
    trial_minutes    after which a trial's training is ended and measured; 0: as long as its config says
    minutes          of all trials together; 0: no limit
    """

    trials: int
    trial_minutes: float
    minutes: float


def search(
    space: Space,
    budget: Budget,
    folder: Path,
    start: Start,
    *,
    display_of: Callable[[int], Display],
    tell: Callable[[str], None],
    clock: Callable[[], float],
) -> SearchResult:
    """Run trials until a budget is used up or a signal asks to stop.

    display_of   returns the display of a trial's training, by its number
    tell         called with a line after each trial

    Raises SearchError, FolderInUse, ConfigError, CorpusError; the trials that ended before stay in the journal. A trial
    whose training fails (TrainingError, ReservoirError) is recorded as failed, and the search continues.
    """
    journal = Journal(folder)
    if start is Start.RESUME:
        journal.read()
    check_memory(space.config, choose_device(space.config.training.device))
    check_files(space.config)
    with locked(folder):
        return _search(space, budget, journal, start, display_of, tell, clock)


def _search(
    space: Space,
    budget: Budget,
    journal: Journal,
    start: Start,
    display_of: Callable[[int], Display],
    tell: Callable[[str], None],
    clock: Callable[[], float],
) -> SearchResult:
    folder = journal.path.parent
    described = {"config": space.config.to_tables(), "settings": space.described()}
    if start is Start.OVERWRITE:
        journal.path.unlink(missing_ok=True)
    if start is Start.RESUME:
        trials = journal.resume(described)
    else:
        journal.begin(described)
        trials = []
    with fast_torch(space.config.training.threads), stop_on_signals() as stop:
        corpus = prepare(space.config, folder)
        searcher = _Searcher(space, corpus, folder, stop, clock)
        while stop.signal is None and (minutes := _minutes_left(budget, trials)) is not None:
            number = len(trials) + 1
            trial = searcher.trial(number, minutes, display_of(number))
            if trial is None:
                break
            journal.add(trial)
            trials.append(trial)
            tell(_line(trial))
    shutil.rmtree(folder / TRIAL, ignore_errors=True)
    return _conclude(space, folder, trials, stop)


def _minutes_left(budget: Budget, trials: list[Trial]) -> float | None:
    """Return the longest training of the next trial, 0 for no limit; None if there is no next trial."""
    if len(trials) >= budget.trials:
        return None
    if not budget.minutes:
        return budget.trial_minutes
    left = budget.minutes - sum(trial.seconds for trial in trials) / 60
    if left * 60 < MIN_SECONDS:
        return None
    return min(left, budget.trial_minutes or left)


class _Searcher:
    """State shared by all trials."""

    def __init__(
        self, space: Space, corpus: PreparedCorpus, folder: Path, stop: StopRequest, clock: Callable[[], float]
    ) -> None:
        self._space, self._corpus, self._folder = space, corpus, folder
        self._stop, self._clock = stop, clock

    def trial(self, number: int, minutes: float, display: Display) -> Trial | None:
        """Draw, train and measure; None if a signal asks to stop. The draw depends on the seed and the number alone."""
        began = self._clock()
        settings, config = self._space.draw(np.random.default_rng([self._space.config.seed, number]))
        if minutes and (not config.training.max_minutes or minutes < config.training.max_minutes):
            config = dataclasses.replace(config, training=dataclasses.replace(config.training, max_minutes=minutes))
        try:
            measured = self._train(config, display)
        except (TrainingError, ReservoirError) as error:
            return Trial(number, settings, None, None, 0, "failed", str(error), self._clock() - began)
        if measured is None:
            return None
        return Trial(number, settings, *measured, problem="", seconds=self._clock() - began)

    def _train(self, config: Config, display: Display) -> tuple[float, float, int, str] | None:
        """Return nats a character and a token of the validation text, steps and the ending; None if interrupted."""
        run = self._folder_of_trial(config)
        device = choose_device(config.training.device)
        check_trainable(config, self._corpus, device)
        with memory_errors():
            trainer = trainer_of(config)(config, self._corpus, run, device, display, self._clock, self._stop)
            ending = trainer.run()
        if ending is Ending.INTERRUPTED:
            return None
        if not current_folder(run.best).is_dir():
            raise TrainingError("the time limit came before the first step")
        figures = evaluate(load_checkpoint(current_folder(run.best), device).model, self._corpus.validation)
        return figures.nats_per_char, figures.nats_per_token, trainer.progress.step, str(ending)

    def _folder_of_trial(self, config: Config) -> RunFolder:
        path = self._folder / TRIAL
        shutil.rmtree(path, ignore_errors=True)
        run = open_run(path, config, Start.FRESH)
        shutil.copyfile(RunFolder(self._folder).tokenizer, run.tokenizer)
        return run


def _conclude(space: Space, folder: Path, trials: list[Trial], stop: StopRequest) -> SearchResult:
    """Rank the trials and write the picture and the best config. Raises SearchError if there is no trial."""
    if not trials:
        if stop.signal is not None:
            return SearchResult([], {}, stop.signal)
        raise SearchError("got a budget without a trial, expected at least one trial")
    found = SearchResult(trials, importances(trials), stop.signal)
    best = found.best
    head = f"{space.config.name}: {len(trials)} trials"
    if best is not None:
        head += f", best {best.loss:.4f} nats/char (trial {best.number})"
        write_file(folder / BEST, to_toml(with_settings(space.config, best.settings).to_tables()).encode())
    write_picture(folder / PICTURE, head, trials, space.varied, found.shares)
    return found


def _line(trial: Trial) -> str:
    """Describe a trial in a line."""
    result = f"failed: {trial.problem}" if trial.loss is None else f"{show_figure(trial.loss)} nats/char"
    settings = ", ".join(f"{name}={format_setting(value)}" for name, value in trial.settings.items())
    return f"trial {trial.number}: {result}, {trial.seconds:.1f} s  ({settings})"
