"""Speed of meari's training step beside the plain PyTorch loop: `python -m benchmarks.training.throughput --help`.

Input: families, hidden sizes and vocabularies. Output: one record a case, added to a JSON file as soon as it is
measured, and the page of all of them (`throughput_page`). Must not know: corpora.

All loops of a case run in one process with one thread and take turns, a step each, on random text of 64 streams by 64
tokens. The first round is left out; the figures are medians of the others: of the process's own CPU time, which other
work on the machine hardly affects, and of wall time. Then the profiler gives the operators in which a step of each loop
spends its time.
"""

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.training.plain_loop import PlainLoop
from benchmarks.training.throughput_page import BFLOAT16, FLOAT32, FLOAT32_COMPILED, PLAIN, PLAIN_COMPILED, page
from meari.bundle_format.names import Document, Family, TokenizerKind
from meari.models.choices import TrainingPrecision
from meari.models.config import Config, CorpusConfig, RecurrentConfig, TokenizerConfig, TrainingConfig
from meari.models.text.tokens import PreparedCorpus, prepare
from meari.models.training.display import Display
from meari.models.training.history import EvaluationRecord, StepRecord
from meari.models.training.process import StopRequest, describe_machine, fast_torch
from meari.models.training.run_folder import Start, open_run
from meari.models.training.streams import open_streams
from meari.models.training.trainer import Trainer

BATCH, LENGTH = 64, 64
NUM_TOKENS = 60_000
OPTIMIZER = "Optimizer."  # beginning of torch's names for an optimizer's calls
CHARACTERS = 100  # up to so many entries are characters; beyond, words


@dataclass(frozen=True)
class Case:
    """Sizes that are measured together; the embedding is half as long as the hidden vector."""

    family: Family
    hidden_size: int
    vocabulary_size: int

    @property
    def model(self) -> RecurrentConfig:
        return RecurrentConfig(self.family, embedding_size=self.hidden_size // 2, hidden_size=self.hidden_size)


@dataclass(frozen=True)
class Cost:
    """Cost of one step: median seconds.

    first_cpu_seconds  of the step that is not counted, which may have compiled
    operators          share of a step's time that each took itself; {}: not profiled
    """

    cpu_seconds: float
    wall_seconds: float
    first_cpu_seconds: float
    operators: dict[str, float]


class NullDisplay:
    """A display that shows nothing."""

    def start(self, done: int, total: int, seconds: tuple[float, float] | None = None) -> None: ...
    def step(self, record: StepRecord, tokens_per_second: float) -> None: ...
    def evaluation(self, record: EvaluationRecord, *, is_best: bool) -> None: ...
    def note(self, text: str) -> None: ...
    def stop(self) -> None: ...


def measure(case: Case, rounds: int, *, compiled: bool, profiled: bool) -> dict[str, Cost]:
    """Return the costs of a step of every loop. One more round than `rounds` is run, and not counted."""
    with fast_torch(1), tempfile.TemporaryDirectory() as folder, _loops(case, Path(folder), compiled=compiled) as loops:
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in loops}
        for _ in range(rounds + 1):
            for name, step in loops.items():
                times[name].append(_seconds(step))
        operators = {name: _operators(step) if profiled else {} for name, step in loops.items()}
    return {
        name: Cost(
            statistics.median(cpu for cpu, _ in steps[1:]),
            statistics.median(wall for _, wall in steps[1:]),
            steps[0][0],
            operators[name],
        )
        for name, steps in times.items()
    }


def _seconds(step: Callable[[], None]) -> tuple[float, float]:
    """Return CPU time of the process, and wall time."""
    cpu, wall = time.process_time(), time.perf_counter()
    step()
    return time.process_time() - cpu, time.perf_counter() - wall


@contextlib.contextmanager
def _loops(case: Case, folder: Path, *, compiled: bool) -> Iterator[dict[str, Callable[[], None]]]:
    corpus_file = folder / "corpus.txt"
    corpus_file.write_text(_random_text(case.vocabulary_size), encoding="utf-8")
    config = _config(case, corpus_file)
    corpora: dict[str, PreparedCorpus] = {}

    def trainer(name: str, precision: TrainingPrecision) -> Trainer:
        own = replace(config, training=replace(config.training, precision=precision))
        run = open_run(folder / name, own, Start.FRESH)
        corpora[name] = prepare(own, run.path)
        display: Display = NullDisplay()
        return Trainer(own, corpora[name], run, torch.device("cpu"), display, time.perf_counter, StopRequest())

    single, half = trainer("float32", TrainingPrecision.FLOAT32), trainer("bfloat16", TrainingPrecision.BFLOAT16)
    size = corpora["float32"].tokenizer.vocabulary_size

    def plain(*, compiled: bool) -> PlainLoop:
        streams = open_streams(config, corpora["float32"], np.random.default_rng(1))
        return PlainLoop(case.model, config.training, size, streams, compiled=compiled)

    loops = {PLAIN: plain(compiled=False).train_step, FLOAT32: single.train_step, BFLOAT16: half.train_step}
    if compiled:
        third = trainer("compiled", TrainingPrecision.FLOAT32)
        third.model.compile()
        loops |= {PLAIN_COMPILED: plain(compiled=True).train_step, FLOAT32_COMPILED: third.train_step}
    yield loops


def _config(case: Case, corpus: Path) -> Config:
    kind = TokenizerKind.CHAR if case.vocabulary_size <= CHARACTERS else TokenizerKind.WORD
    return Config(
        name="throughput",
        seed=1,
        corpus=CorpusConfig((str(corpus),), Document.FILE, validation_share=0.02),
        tokenizer=TokenizerConfig(kind, case.vocabulary_size),
        model=case.model,
        training=TrainingConfig(steps=1_000_000, batch_size=BATCH, chunk_length=LENGTH, threads=1),
    )


def _random_text(vocabulary_size: int) -> str:
    picks = np.random.default_rng(0).integers(0, vocabulary_size, NUM_TOKENS)
    if vocabulary_size <= CHARACTERS:
        return "".join(chr(0x30 + pick) for pick in picks)
    return " ".join(f"w{pick}" for pick in picks)


def _operators(step: Callable[[], None]) -> dict[str, float]:
    """Return shares of one step's time, of operators with a thousandth of it or more."""
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiled:
        step()
    times: Counter[str] = Counter()
    for event in profiled.events():
        times[OPTIMIZER if _is_of_optimizer(event) else event.name] += event.self_cpu_time_total
    total = times.total()
    return {name: round(spent / total, 4) for name, spent in times.items() if spent >= total / 1000}


def _is_of_optimizer(event: Any) -> bool:
    while event is not None:
        if event.name.startswith(OPTIMIZER):
            return True
        event = event.cpu_parent
    return False


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the cases of the command line and write the page of all that the results file has."""
    options = _options(arguments)
    results: dict[str, Any] = json.loads(options.results.read_text("utf-8")) if options.results.exists() else {}
    for family in options.family:
        for hidden_size in options.hidden:
            for vocabulary_size in options.vocabulary:
                case = Case(Family(family), hidden_size, vocabulary_size)
                costs = measure(case, options.rounds, compiled=options.compile, profiled=options.profile)
                key = f"{family} {hidden_size} {vocabulary_size}" + (" compiled" if options.compile else "")
                record = {"machine": describe_machine(torch.device("cpu")), "rounds": options.rounds}
                results[key] = record | {"costs": {name: asdict(cost) for name, cost in costs.items()}}
                options.results.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
                options.results.with_suffix(".md").write_text(page(results), "utf-8")
                sys.stdout.write(f"{key}: {costs}\n")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", nargs="+", default=["lstm"], choices=["rnn", "gru", "lstm"])
    parser.add_argument("--hidden", nargs="+", type=int, default=[512, 1024])
    parser.add_argument("--vocabulary", nargs="+", type=int, default=[65, 6000])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="also with torch.compile, which needs a C++ compiler")
    parser.add_argument("--profile", action="store_true", help="also where the time goes")
    parser.add_argument("--results", type=Path, default=Path("docs/benchmarks/training.json"))
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
