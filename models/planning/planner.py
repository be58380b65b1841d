"""Config of a training, from facts about the text, a time, and the speed of the machine.

Input: `TextFacts`, minutes, `MachineSpeed`; a family and settings if the user chose some. Output: a `Plan`. Must not
know: files, clocks, torch. The same input gives the same plan.

    document    as the text's shape says (`meari.models.text.facts`)
    tokenizer   characters, or byte pairs where a text is long or has many kinds of characters
    size        the largest of the family that still takes the steps from which on it beats a smaller one, and that a
                text of this length can fill
    chunks      short ones where the time allows few steps, so that there are twice as many
    length      by the clock, or the epochs that a short text bears, whichever ends sooner
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from meari.bundle_format.names import Document, Family, TokenizerKind
from meari.models.choices import Averaging, Schedule, TrainingPrecision
from meari.models.config import Config, parse_config
from meari.models.errors import ConfigError, EmptyCorpus
from meari.models.fields import show
from meari.models.planning.tables import (
    BATCH_SIZE,
    CHARACTERS_FOR_LSTM,
    CHUNK_LENGTH,
    DEFAULT_VOCABULARY,
    MIN_SAVED_SHARE,
    MINUTES_FOR_LSTM,
    SHORT_CHUNK_LENGTH,
    SMALL_BATCH_COST,
    SMALL_BATCH_SIZE,
    STEPS_FOR_LONG_CHUNKS,
    TOKENS_PER_STEP,
    MachineSpeed,
    Probe,
    characters_per_token,
    dropout_for,
    epochs_for,
    expectation,
    learning_rate_for,
    max_size_for,
    min_steps_for,
    model_of,
    overhead_seconds,
    sizes_of,
    step_seconds_of,
    vocabulary_for,
)
from meari.models.text.facts import TextFacts

MIN_CHARACTERS = 500
HELD_OUT_CHARACTERS = 150_000
MAX_HELD_OUT_SHARE = 0.1
NUM_EVALUATIONS = 6
MIN_TRAINING_SHARE = 0.3  # of the minutes, however long preparation and export take
LATE = 1.05  # times the minutes, from which on it is told
SPARE_TEXT = 1.5  # times the text that is read in all of the minutes
SPARE_STEPS = 1.5  # times those that the machine should take: the clock ends the run, unless the epochs do
RECURRENT = ("family", "embedding_size", "hidden_size", "dropout", "tied", "locked_dropout")
RESERVOIR = (
    "family", "units", "spectral_radius", "leak_min", "input_tokens", "embedding_size", "input_scale", "input_reach",
    "bias_scale", "features",
)  # fmt: skip
SHOWN = {False: RECURRENT, True: RESERVOIR}
RIVALS = {
    "corpus.validation": "corpus.validation_share",
    "corpus.test": "corpus.test_share",
    "training.steps": "training.epochs",
    "training.epochs": "training.steps",
}
LENGTHS = ("training.steps", "training.epochs", "training.max_minutes")  # with which more may be read
UNRECKONED = (  # with which the steps that are told beforehand would be wrong
    *LENGTHS, "training.schedule", "training.batch_size", "training.chunk_length", "model.num_layers",
    "model.layer_sizes",
)  # fmt: skip
SECTIONS = ("corpus", "tokenizer", "model", "training")


@dataclass(frozen=True)
class Plan:
    """A config, and what the user is told about it.

    tables        the config's chosen settings, without those that have their defaults
    reasons       a line for each choice
    expectation   what a text of this length can give
    """

    config: Config
    tables: Mapping[str, Any]
    reasons: tuple[str, ...]
    expectation: str


def plan(
    facts: TextFacts,
    train: Sequence[str],
    minutes: float,
    speed: MachineSpeed,
    *,
    name: str,
    family: Family | None = None,
    settings: Mapping[str, object] | None = None,
) -> Plan:
    """Plan a training of so many minutes, from the start of the command to the written bundle.

    train      files and folders, for corpus.train
    settings   by name, "training.learning_rate": they replace what would be chosen, and the rest is chosen around them

    Raises EmptyCorpus for a text too short to hold something out, ConfigError for settings that do not fit.
    """
    if facts.num_characters < MIN_CHARACTERS:
        raise EmptyCorpus(
            f"got a text of {facts.num_characters:,} characters, expected at least {MIN_CHARACTERS:,}: "
            "a part of it is held out to measure the model on",
            source=", ".join(train),
        )
    own = dict(settings or {})
    if family is not None:
        own = {"model.family": family.value} | own
    picks = _picked(facts, minutes, speed, own)
    tables = _changed(picks.tables(facts, train, name), own, "--set")
    config = parse_config(tables, "--set")
    return Plan(config, tables, picks.reasons(facts, own), expectation(facts.num_characters))


@dataclass(frozen=True)
class _Picks:
    """What is chosen, in the order in which one choice follows from another.

    seconds       of training
    num_tokens    of what is read of the training part, estimated
    num_steps     that the run is expected to take
    epochs        that it is expected to read the text
    is_short      the text ends the run, not the clock
    overhead      seconds of all else: reading, encoding, measuring, export
    minutes       that were given for both
    """

    tokenizer: TokenizerKind
    vocabulary_size: int
    family: Family
    size: int
    seconds: float
    num_tokens: float
    num_steps: int
    epochs: float
    is_short: bool
    overhead: float
    minutes: float
    batch_size: int
    chunk_length: int
    training_share: float
    speed: MachineSpeed

    def tables(self, facts: TextFacts, train: Sequence[str], name: str) -> dict[str, Any]:
        """Return the config as plain tables."""
        return {
            "name": name,
            "seed": 1,
            "corpus": {
                "train": list(train),
                "document": facts.document.value,
                "validation_share": _rounded(held_out_share(facts.num_characters)),
            }
            | ({"training_share": _rounded(self.training_share)} if self.training_share < 1 else {}),
            "tokenizer": {"kind": self.tokenizer.value, "vocabulary_size": self.vocabulary_size},
            "model": self._model(),
            "training": self._training(facts),
        }

    def _model(self) -> dict[str, Any]:
        model = asdict(model_of(self.family, self.size, self.vocabulary_size))
        shown = {key: value for key, value in model.items() if key in SHOWN[self.family is Family.ESN]}
        return shown if self.family is Family.ESN else shown | {"dropout": dropout_for(self.epochs)}

    def _training(self, facts: TextFacts) -> dict[str, Any]:
        is_reservoir = self.family is Family.ESN
        length = (
            {"epochs": round(self.epochs, 2)} if self.is_short else {"steps": math.ceil(SPARE_STEPS * self.num_steps)}
        )
        return length | {
            "schedule": Schedule.CLOCK.value,
            "max_minutes": max(0.001, round(self.seconds / 60, 3)),
            "batch_size": self.batch_size,
            "chunk_length": self.chunk_length,
            "learning_rate": learning_rate_for(self.family, self.size),
            "warmup_steps": max(1, min(100, self.num_steps // 10)),
            "weight_decay": 0.1 if is_reservoir else 0.05,
            "clip_norm": 10.0 if is_reservoir else 1.0,
            "restart_share": 0.01 if facts.document is Document.FILE else 0.1,
            "evaluate_every": max(1, self.num_steps // NUM_EVALUATIONS),
            "averaging": (Averaging.NONE if is_reservoir else Averaging.EMA).value,
            "ema_decay": 0.998,
            "precision": (TrainingPrecision.FLOAT32 if is_reservoir else self.speed.precision).value,
            "threads": self.speed.threads,
        }

    def reasons(self, facts: TextFacts, settings: Mapping[str, object]) -> tuple[str, ...]:
        """Return a line for each choice, and for what settings choose in its place."""
        tokens = (
            "characters"
            if self.tokenizer is TokenizerKind.CHAR
            else f"{self.vocabulary_size:,} {self.tokenizer} tokens"
        )
        left_out = "" if self.training_share == 1 else f"; {self.training_share:.0%} of it is read, as the time allows"
        document = f"; --set makes it a {settings['corpus.document']}" if "corpus.document" in settings else ""
        end = "the text bears no more" if self.is_short else "the clock ends it"
        total = self.seconds + self.overhead
        late = f"time: all else takes about {_in_words(self.overhead)}, so together some {_in_words(total)}"
        return (
            *((f"advice: {facts.advice}",) if facts.advice else ()),
            f"text: {facts.in_words()}{document}{left_out}",
            f"tokenizer: {tokens}, about {self.num_tokens:,.0f} of them to train on",
            f"model: {self.family} of {self.size:,} units",
            self._length(settings) or f"{self._steps()}; {end}",
            *((late,) if total > LATE * 60 * self.minutes else ()),
        )

    def _length(self, settings: Mapping[str, object]) -> str:
        """Return the line about a length that settings choose, "" if they do not."""
        named = [name for name in UNRECKONED if name in settings]
        return f"training: as --set says ({', '.join(named)})" if named else ""

    def _steps(self) -> str:
        steps = f"about {self.num_steps:,} steps in at most {_in_words(self.seconds)}"
        return f"training: {steps}, {self.epochs:.1f} times over the text"


def _rounded(share: float) -> float:
    """Return a share with four digits, which never is 0."""
    return float(f"{share:.4g}")


def _in_words(seconds: float) -> str:
    return f"{seconds / 60:.1f} minutes" if seconds >= 60 else f"{seconds:.2g} seconds"


def _picked(facts: TextFacts, minutes: float, speed: MachineSpeed, settings: Mapping[str, object]) -> _Picks:
    family = _family(settings, minutes * speed.large, facts.num_characters)
    kind, vocabulary_size = _tokenizer(facts, settings)
    num_characters = facts.num_characters * (1 - held_out_share(facts.num_characters))
    num_tokens = num_characters / characters_per_token(kind, vocabulary_size, facts.bytes_per_character)
    kinds = vocabulary_size or facts.num_kinds + 2
    budget = _Budget(facts, minutes, speed, settings, family, kind, kinds)
    training_share = budget.training_share(num_tokens)
    seconds, num_tokens = budget.seconds(training_share), num_tokens * training_share
    size = budget.size(seconds)
    batch_size = BATCH_SIZE if num_tokens > 32 * TOKENS_PER_STEP else SMALL_BATCH_SIZE
    share = 1.0 if batch_size == BATCH_SIZE else SMALL_BATCH_COST
    step_seconds = step_seconds_of(Probe(family, size, kinds), speed) * share
    affordable = seconds / step_seconds * batch_size * CHUNK_LENGTH / num_tokens
    epochs = min(affordable, epochs_for(facts.num_characters))
    is_hurried = seconds / step_seconds < STEPS_FOR_LONG_CHUNKS and epochs == affordable
    chunk_length = SHORT_CHUNK_LENGTH if is_hurried and family is not Family.ESN else CHUNK_LENGTH
    num_steps = max(1, round(epochs * num_tokens / (batch_size * chunk_length)))
    return _Picks(
        kind,
        vocabulary_size,
        family,
        size,
        seconds,
        num_tokens,
        num_steps,
        epochs,
        epochs < affordable,
        budget.overhead(training_share),
        minutes,
        batch_size,
        chunk_length,
        training_share,
        speed,
    )


@dataclass(frozen=True)
class _Budget:
    """What fits into the minutes with a family and a tokenizer; kinds: of tokens."""

    facts: TextFacts
    minutes: float
    speed: MachineSpeed
    settings: Mapping[str, object]
    family: Family
    tokenizer: TokenizerKind
    kinds: int

    def seconds(self, share: float) -> float:
        """Return the time for training if this share of the text is prepared."""
        return max(MIN_TRAINING_SHARE * 60 * self.minutes, 60 * self.minutes - self.overhead(share))

    def overhead(self, share: float) -> float:
        """Return the time of all else."""
        facts = self.facts
        num_in_stream = 0.0
        if facts.document is Document.FILE:
            held_out = facts.num_characters * held_out_share(facts.num_characters)
            num_in_stream = held_out / characters_per_token(self.tokenizer, self.kinds, facts.bytes_per_character)
        return overhead_seconds(facts.num_bytes, self.tokenizer, self.speed, share, num_in_stream)

    def size(self, seconds: float) -> int:
        """Return the size of a model that is trained for so long."""
        return _size(self.family, self.kinds, seconds, self.facts.num_characters, self.speed, self.settings)

    def training_share(self, num_tokens: float) -> float:
        """Return the share of the text to prepare: that of settings, else what is read before the time is over."""
        named = self.settings.get("corpus.training_share")
        if isinstance(named, int | float) and 0 < named <= 1:
            return float(named)
        if any(key in self.settings for key in LENGTHS):
            return 1.0
        probe = Probe(self.family, self.size(self.seconds(1.0)), self.kinds)
        num_steps = SPARE_TEXT * 60 * self.minutes / step_seconds_of(probe, self.speed)
        share = min(1.0, num_steps * TOKENS_PER_STEP / num_tokens)
        saved = self.overhead(1.0) - self.overhead(share)
        return share if saved >= MIN_SAVED_SHARE * 60 * self.minutes else 1.0


def held_out_share(num_characters: int) -> float:
    """Return the share of the text that is held out: a tenth, of long texts enough characters for two digits."""
    return min(MAX_HELD_OUT_SHARE, HELD_OUT_CHARACTERS / num_characters)


def _family(settings: Mapping[str, object], minutes: float, num_characters: int) -> Family:
    """Return the chosen family, else the one that is best after so many minutes of the measured machine.

    Raises ConfigError.
    """
    named = settings.get("model.family")
    if named is None:
        return Family.LSTM if minutes >= MINUTES_FOR_LSTM and num_characters >= CHARACTERS_FOR_LSTM else Family.GRU
    if named not in list(Family):
        raise ConfigError("--set", [f"model.family: got {show(named)}, expected one of {', '.join(Family)}"])
    return Family(str(named))


def _tokenizer(facts: TextFacts, settings: Mapping[str, object]) -> tuple[TokenizerKind, int]:
    """Return kind and vocabulary, 0 for all characters; those of settings first."""
    named, size = settings.get("tokenizer.kind"), settings.get("tokenizer.vocabulary_size")
    vocabulary = vocabulary_for(facts.num_characters, facts.num_kinds)
    kind = TokenizerKind.BPE if vocabulary else TokenizerKind.CHAR
    if named in list(TokenizerKind) and named != kind:
        kind = TokenizerKind(str(named))
        vocabulary = 0 if kind is TokenizerKind.CHAR else DEFAULT_VOCABULARY
    return kind, size if type(size) is int else vocabulary


def _size(
    family: Family, kinds: int, seconds: float, num_characters: int, speed: MachineSpeed, settings: Mapping[str, object]
) -> int:
    named = settings.get("model.units" if family is Family.ESN else "model.hidden_size")
    if type(named) is int and named > 0:
        return named
    most = max_size_for(num_characters) * (4 if family is Family.ESN else 1)
    fitting = [
        size
        for size in sizes_of(family)
        if size <= most and seconds / step_seconds_of(Probe(family, size, kinds), speed) >= min_steps_for(family, size)
    ]
    return max(fitting, default=sizes_of(family)[0])


def with_options(tables: Mapping[str, Any], settings: Mapping[str, object], source: str) -> Config:
    """Return the config of plain tables with settings by name: "training.steps", "seed". Raises ConfigError."""
    return parse_config(_changed(tables, settings, source), source)


def _changed(tables: Mapping[str, Any], settings: Mapping[str, object], source: str) -> dict[str, Any]:
    changed = {key: dict(value) if isinstance(value, Mapping) else value for key, value in tables.items()}
    problems = []
    for name, value in settings.items():
        section, dot, key = name.partition(".")
        if dot and section not in SECTIONS:
            problems.append(f"{name}: got an unknown table, expected {', '.join(SECTIONS)}")
        elif not dot:
            changed[section] = value
        elif isinstance(changed.setdefault(section, {}), dict):
            changed[section][key] = value
    if problems:
        raise ConfigError(source, problems)
    return _without_rivals(changed, settings)


def _without_rivals(tables: dict[str, Any], settings: Mapping[str, object]) -> dict[str, Any]:
    """Leave out what a setting takes the place of: a share for files of its own, epochs for steps."""
    for name, rival in RIVALS.items():
        section, _, key = rival.partition(".")
        if name in settings and rival not in settings and isinstance(tables.get(section), dict):
            tables[section].pop(key, None)
    return tables
