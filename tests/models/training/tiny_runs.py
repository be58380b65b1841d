"""Real training runs of about a second: a corpus drawn from a known chain, a tiny config, a clock that can be set.

The chain is a Markov chain over three letters.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
from rich.console import Console

from meari.bundle_format.names import Document, Family, TokenizerKind
from meari.models.config import Config, CorpusConfig, RecurrentConfig, TokenizerConfig, TrainingConfig
from meari.models.training.display import make_display
from meari.models.training.history import Record
from meari.models.training.run import TrainingResult, train
from meari.models.training.run_folder import Start, open_run

LETTERS = "abc"
CHAIN = np.array([[0.8, 0.1, 0.1], [0.1, 0.2, 0.7], [0.3, 0.6, 0.1]])


def chain_entropy() -> float:
    """Return nats per letter of the stationary chain, the minimum of any model's cross-entropy."""
    values, vectors = np.linalg.eig(CHAIN.T)
    settled = np.real(vectors[:, np.argmax(np.real(values))])
    settled /= settled.sum()
    return float(-(settled[:, None] * CHAIN * np.log(CHAIN)).sum())


def chain_text(num_letters: int, seed: int = 0) -> str:
    generator = np.random.default_rng(seed)
    letter, letters = 0, []
    for draw in generator.random(num_letters):
        letter = int(np.searchsorted(np.cumsum(CHAIN[letter]), draw))
        letters.append(LETTERS[min(letter, 2)])
    return "".join(letters)


def tiny_config(folder: Path, *, model: RecurrentConfig | None = None, **training: object) -> Config:
    """Make a config for 6,000 letters of the chain, written to `folder`; a tenth each for validation and test."""
    path = folder / "chain.txt"
    if not path.exists():
        path.write_text(chain_text(6000))
    settings = TrainingConfig(
        steps=12, batch_size=4, chunk_length=16, learning_rate=1e-2, warmup_steps=2, restart_share=0.2,
        evaluate_every=5, threads=1,
    )  # fmt: skip
    return Config(
        name="tiny",
        seed=1,
        corpus=CorpusConfig((str(path),), Document.FILE, validation_share=0.1, test_share=0.1),
        tokenizer=TokenizerConfig(TokenizerKind.CHAR),
        model=model or RecurrentConfig(Family.LSTM, 5, 7, 2, dropout=0.2),
        training=replace(settings, **training),  # type: ignore[arg-type]
    )


def masked_config(config: Config, folder: Path) -> Config:
    """Make a config whose chain has an "x" behind every fifth letter, which the loss mask matches."""
    path, mask = folder / "masked.txt", folder / "mask.txt"
    letters = chain_text(6000)
    path.write_text("".join(f"{letters[begin : begin + 5]}x" for begin in range(0, len(letters), 5)))
    mask.write_text("x\n")
    return replace(config, corpus=replace(config.corpus, train=(str(path),), loss_mask=str(mask)))


class Clock:
    """Clock that advances by a fixed number of seconds at each reading."""

    def __init__(self, seconds_per_look: float = 0.0) -> None:
        self.now = 0.0
        self._pace = seconds_per_look

    def __call__(self) -> float:
        self.now += self._pace
        return self.now


def run_training(
    config: Config, folder: Path, start: Start = Start.FRESH, *, clock: Callable[[], float] | None = None
) -> tuple[TrainingResult, str]:
    """Train in `folder`; return the result and the printed text."""
    shown = StringIO()
    run = open_run(folder, config, start)
    display = make_display(Console(file=shown, width=200))
    outcome = train(config, run, resume=start is Start.RESUME, display=display, clock=clock or Clock())
    return outcome, shown.getvalue()


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file of a run except the picture, which matplotlib may draw differently."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".png"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


class StopAt:
    """Display that calls `send` after a given step."""

    def __init__(self, step: int, send: Callable[[], None]) -> None:
        self._step = step
        self._send = send

    def start(self, done: int, total: int, seconds: tuple[float, float] | None = None) -> None: ...

    def step(self, record: Record, tokens_per_second: float) -> None:
        if record.step == self._step:
            self._send()

    def evaluation(self, record: Record, is_best: bool) -> None: ...

    def note(self, text: str) -> None: ...

    def stop(self) -> None: ...


def read_json(path: Path) -> dict[str, object]:
    value = json.loads(path.read_text())
    assert isinstance(value, dict)
    return value
