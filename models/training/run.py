"""One training from beginning to end: prepare the corpus, train, measure the best weights, write the report.

Input: a config and a run folder. Output: the filled folder, and a `TrainingResult`. Must not know: the command line.
"""

import datetime as dt
import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from meari.models.cells.esn import EchoStateNetwork
from meari.models.check import check_files
from meari.models.checkpoint import load_checkpoint
from meari.models.choices import Readout
from meari.models.config import Config, ReservoirConfig
from meari.models.evaluation import evaluate
from meari.models.figures import Figures, worse_than_guessing
from meari.models.files import current_folder, locked, write_file
from meari.models.memory import check_memory, memory_errors
from meari.models.text.tokens import PreparedCorpus, prepare
from meari.models.training.display import Display, TensorBoardDisplay
from meari.models.training.history import read_history
from meari.models.training.hosts import claimed_hosts
from meari.models.training.process import StopRequest, choose_device, describe_machine, fast_torch, stop_on_signals
from meari.models.training.report import write_report
from meari.models.training.ridge_trainer import RidgeTrainer
from meari.models.training.run_folder import RunFolder, Start
from meari.models.training.snapshot import Progress
from meari.models.training.streams import chunk_length
from meari.models.training.trainer import Ending, Trainer
from meari.models.training.workers import SINGLE_PROCESS, Workers


@dataclass(frozen=True)
class TrainingResult:
    """Result of a run; `figures` is None if the run was interrupted, and in every process but the first."""

    ending: Ending
    step: int
    stop: StopRequest
    figures: dict[str, Any] | None


def train_in_folder(
    config: Config,
    folder: Path,
    start: Start,
    *,
    display: Display,
    toml: str | None = None,
    events: Path | None = None,
    workers: Workers = SINGLE_PROCESS,
) -> TrainingResult:
    """Train as `train` in a run folder, which is claimed meanwhile, together with all `workers`.

    toml     the config as a file, which is kept in the folder
    events   folder for TensorBoard

    Raises also what the config's files and the device's memory do not bear, before the folder is touched, and
    FolderInUse.
    """
    check_memory(config, choose_device(config.training.device), num_processes=workers.size)
    workers.first(lambda: check_files(config))
    run = RunFolder(folder)
    with ExitStack() as held:
        has_snapshot = held.enter_context(claimed_hosts(folder, config, start, workers))
        if toml is not None and workers.is_first:
            write_file(run.toml, toml.encode())
        if events is not None and workers.is_first:
            held.enter_context(locked(events))
            display = TensorBoardDisplay(events, display)
        return train(
            config,
            run,
            resume=has_snapshot,
            display=display,
            clock=time.monotonic,
            cpu_clock=time.process_time,
            workers=workers,
        )


def train(
    config: Config,
    run: RunFolder,
    *,
    resume: bool,
    display: Display,
    clock: Callable[[], float],
    cpu_clock: Callable[[], float] | None = None,
    workers: Workers = SINGLE_PROCESS,
) -> TrainingResult:
    """Train as configured, together with all `workers`.

    cpu_clock   of this process's processor time, which the figures then tell too, except for a ridge readout

    Raises CorpusError, CheckpointError, TrainingError (NotFinite among them); saved checkpoints stay whole.
    """
    with fast_torch(config.training.threads), memory_errors():
        return _train(config, run, display, clock, cpu_clock, workers, resume=resume)


def _train(
    config: Config,
    run: RunFolder,
    display: Display,
    clock: Callable[[], float],
    cpu_clock: Callable[[], float] | None,
    workers: Workers,
    *,
    resume: bool,
) -> TrainingResult:
    device = choose_device(config.training.device)
    display.note("Preparing the corpus")
    corpus = workers.in_turn(lambda: prepare(config, run.path))
    display.note(describe_corpus(corpus))
    check_trainable(config, corpus, device, workers.size)
    with stop_on_signals() as stop:
        trainer = trainer_of(config)(config, corpus, run, device, display, clock, stop, workers)
        if cpu_clock is not None and isinstance(trainer, Trainer):
            trainer.count_cpu_time(cpu_clock)
        if resume and run.has_snapshot():
            trainer.resume()
        ending = trainer.run()
    step = trainer.progress.step
    if ending is Ending.INTERRUPTED or not workers.is_first:
        return TrainingResult(ending, step, stop, None)
    machine = describe_machine(device, workers.size)
    figures = measure_run(config, corpus, run, trainer.progress, device, machine)
    problem = worse_than_guessing(figures["validation"]["nats_per_token"], corpus.tokenizer.vocabulary_size)
    if problem is not None:
        display.note(f"Warning: {problem}")
    return TrainingResult(ending, step, stop, figures)


def check_trainable(config: Config, corpus: PreparedCorpus, device: torch.device, num_processes: int = 1) -> None:
    """Raise TrainingError if the training of this very corpus cannot fit into memory."""
    check_memory(
        config,
        device,
        vocabulary_size=corpus.tokenizer.vocabulary_size,
        chunk_length=chunk_length(config.training, len(corpus.train.ids) - 1),
        num_processes=num_processes,
    )


def describe_corpus(corpus: PreparedCorpus) -> str:
    """Describe the training and held-out text in one line, with the number of blocked documents."""
    train, vocabulary = corpus.train, corpus.tokenizer.vocabulary_size
    documents = f"{train.num_documents:,} document{'s' * (train.num_documents != 1)}"
    blocked = f", {train.num_blocked:,} left out by the blocklist" if train.num_blocked else ""
    masked = f", {train.num_masked:,} of them masked" if train.num_masked else ""
    bad = f"; {corpus.num_bad_lines:,} lines that are not UTF-8 read as blank" if corpus.num_bad_lines else ""
    return (
        f"{train.num_tokens - 1:,} tokens of {vocabulary:,} kinds{masked} in {documents}{blocked}; "
        f"held out: {corpus.validation.num_tokens - 1:,} tokens{bad}"
    )


def trainer_of(config: Config) -> type[RidgeTrainer] | type[Trainer]:
    """Return the trainer's class: ridge regression for a reservoir that asks for it, else step by step."""
    is_ridge = isinstance(config.model, ReservoirConfig) and config.model.readout is Readout.RIDGE
    return RidgeTrainer if is_ridge else Trainer


def measure_run(
    config: Config, corpus: PreparedCorpus, run: RunFolder, progress: Progress, device: torch.device, machine: str
) -> dict[str, Any]:
    """Measure the best weights on all held-out text and write `figures.json` and `report.png`."""
    model = load_checkpoint(current_folder(run.best), device).model
    parts = {"validation": corpus.validation} | ({"test": corpus.test} if corpus.test is not None else {})
    counts_ends = corpus.train.counts.has_ends
    held_out: dict[str, Figures] = {
        part: evaluate(model, tokens, counts_ends=counts_ends) for part, tokens in parts.items()
    }
    figures: dict[str, Any] = {part: value.to_json() for part, value in held_out.items()}
    figures |= {
        "training_seconds": round(progress.seconds, 1),
        **({} if progress.cpu_seconds is None else {"training_cpu_seconds": round(progress.cpu_seconds, 1)}),
        "steps": progress.step,
        "epochs": round(progress.tokens / (len(corpus.train.ids) - 1), 3),
        "training_documents": corpus.train.num_documents,
        "checkpoint_chosen_on": "validation",
        "blocked_documents": corpus.train.num_blocked,
        **({"masked_tokens": corpus.train.num_masked} if corpus.train.num_masked else {}),
        **({"bad_lines": corpus.num_bad_lines} if corpus.num_bad_lines else {}),
        "best_step": progress.best_step,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "training_ended": dt.datetime.now(dt.UTC).date().isoformat(),
        "machine": machine,
    }
    if isinstance(model, EchoStateNetwork):
        figures["spectral_radius"] = model.measured_spectral_radius()
    write_file(run.figures, (json.dumps(figures, ensure_ascii=False, indent=2) + "\n").encode())
    write_report(run.report, config.name, read_history(run.history), held_out["validation"])
    return figures
