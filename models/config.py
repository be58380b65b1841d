"""Config of a training: one frozen dataclass, read from a TOML file and kept as JSON in checkpoints and bundles.

Input: a TOML file or the JSON of an earlier run. Output: `Config`, or one `ConfigError` with every problem.
Must not know: text, torch, other files; paths stay as written and are relative to the working directory. Dataclasses
made in code are not checked: reading checks.
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from meari.bundle_format.names import NAME_PATTERN, Document, Family, TokenizerKind
from meari.models.choices import (
    Averaging,
    Device,
    Optimizer,
    Pattern,
    Reach,
    Readout,
    Schedule,
    Spread,
    TrainingPrecision,
)
from meari.models.config_rules import CORPUS_RULES, RECURRENT_RULES, RESERVOIR_RULES, TOKENIZER_RULES, TRAINING_RULES
from meari.models.errors import ConfigError
from meari.models.fields import (
    TableRule,
    choice,
    did_you_mean,
    integer,
    integers,
    paths,
    read_table,
    real,
    show,
    string,
    switch,
    texts,
)

SEARCH = "search"  # the table of another verb
MAX_VOCABULARY = 1_000_000
MAX_LAYERS = 1000  # of layers and of what else is made one by one: more would be made for hours before memory ends
MAX_THREADS = 1024  # many more crash the process inside the thread library, without an error
MAX_TOML_BYTES = 1 << 20


def _share(default: float | None) -> Any:
    return real(default, expected="0 ≤ share < 1", fits=lambda share: 0 <= share < 1)


def _positive(default: object = dataclasses.MISSING) -> Any:
    return real(default, expected="> 0", fits=lambda number: number > 0)


def _not_negative(default: object = dataclasses.MISSING) -> Any:
    return real(default, expected="≥ 0", fits=lambda number: number >= 0)


@dataclass(frozen=True)
class CorpusConfig:
    """Text, the unit of a document, and the split into parts.

    train, validation, test   files, or folders whose .txt, .text and .gz files are taken in sorted order
    validation_share          in place of validation files: the last share of the training text
    test_share                in place of test files: the share behind the validation part
    training_share            of the training text that is read: an even sample, always the same, of lines, paragraphs,
                              or files and pieces of long ones (131,072 characters)
    blocklist                 a file with a regular expression a line: matching documents are not trained on; "": none
    loss_mask                 the same: text that matches is read, but not learnt
    max_bad                   lines that are not UTF-8 and are read as blank ones, at most
    baseline                  figures of other models on the same split, name to figure, shown beside our own
    """

    train: tuple[str, ...] = paths()
    document: Document = choice(Document)
    name: str = string("")
    licence: str = string("")
    source: str = string("")
    validation: tuple[str, ...] = paths(())
    test: tuple[str, ...] = paths(())
    validation_share: float = _share(0.0)
    test_share: float = _share(0.0)
    training_share: float = real(1.0, expected="0 < share ≤ 1", fits=lambda share: 0 < share <= 1)
    blocklist: str = string("")
    loss_mask: str = string("")
    max_bad: int = integer(0)
    baseline: dict[str, str] | None = texts(None)


@dataclass(frozen=True)
class TokenizerConfig:
    """Kind and size of a vocabulary.

    vocabulary_size      bpe: the size to reach, all 256 bytes included; char, word: the largest size, 0: no limit
    min_count            char, word: rarer entries become the unknown token; bpe: pairs rarer than this are not merged
    """

    kind: TokenizerKind = choice(TokenizerKind)
    vocabulary_size: int = integer(0, maximum=MAX_VOCABULARY)
    min_count: int = integer(1, minimum=1)


@dataclass(frozen=True)
class RecurrentConfig:
    """Gated or Elman network: family is rnn, gru or lstm.

    layer_sizes            hidden units of each layer, first to last, in place of hidden_size and num_layers
    dropout                between layers, and where the next two say nothing, at the input and the output too
    input_dropout          on embedded tokens
    output_dropout         on what enters the output layer
    locked_dropout         one mask a sequence, the same at all steps of a chunk (variational); else one a step
    embedding_dropout      share of the vocabulary whose embeddings are zero during a chunk
    weight_drop            share of the recurrent weights that is zero during a chunk
    tied                   the output layer shares the embedding's weights
    layer_norm             normalise each layer's outputs
    forget_bias            of an LSTM's forget gate at the start
    learned_initial_state  the state before the first token is trained; else it is zero
    mogrifier_rounds       of an LSTM: how often input and state gate one another before each step
    adaptive_cutoffs       frequency ranks at which a cluster of the adaptive softmax begins; (): a full softmax
    """

    family: Family = choice(Family)
    embedding_size: int = integer(128, minimum=1)
    hidden_size: int = integer(512, minimum=1)
    num_layers: int = integer(1, minimum=1, maximum=MAX_LAYERS)
    dropout: float = _share(0.0)
    tied: bool = switch(default=False)
    layer_sizes: tuple[int, ...] = integers(())
    input_dropout: float | None = _share(None)
    output_dropout: float | None = _share(None)
    locked_dropout: bool = switch(default=True)
    embedding_dropout: float = _share(0.0)
    weight_drop: float = _share(0.0)
    layer_norm: bool = switch(default=False)
    forget_bias: float = real(1.0, expected="below 100 in size", fits=lambda bias: abs(bias) < 100)
    learned_initial_state: bool = switch(default=False)
    mogrifier_rounds: int = integer(0, maximum=MAX_LAYERS)
    adaptive_cutoffs: tuple[int, ...] = integers(())

    @property
    def sizes(self) -> tuple[int, ...]:
        """Hidden units of each layer, first to last."""
        return self.layer_sizes or (self.hidden_size,) * self.num_layers


@dataclass(frozen=True)
class ReservoirConfig:
    """Echo state network: family is esn. The fixed weights are drawn once from the seed; the readout alone is trained.

    Reservoirs:
    layers, reservoirs      stacked layers; the units of each are divided among the reservoirs, side by side
    units                   of one layer, all of its reservoirs together
    pattern                 of recurrent weights and of those between layers: block (block_size) or random (in_edges)
    spectral_radius         of every reservoir; with spectral_radius_min the reservoirs of a layer have radii from that
                            one up to this one, evenly on a logarithmic scale
    leak_min, leak_max      leak rates are drawn from this range, as leak_spread says
    leak_bands              every reservoir draws from its own part of that range, the first from the highest
    layer_scale             how strongly a layer drives the next one
    bias_scale              biases of the units are drawn evenly from -bias_scale … bias_scale

    Input:
    input_tokens            how many of the last tokens enter the first layer; more than one need an embedding_size
    embedding_size          of the frozen embeddings of tokens; 0: a row of its own for every token
    input_scale             strength of the input: the largest weight without embeddings, else deviation of the drive
                            a unit with them
    input_decay             how strongly a token enters compared with the one after it
    input_reach             all: every unit sees all input_tokens; staggered: by turns the last 1, 2, … of them

    Readout:
    features                units of a frozen expansion between states and readout: products with feature_edges states
                            each, shared by feature_block units, then tanh; 0: the readout sees the states alone
    feature_scale           deviation of a feature's input if states have a deviation of one
    feature_bias            biases of the features are drawn evenly from -feature_bias … feature_bias
    readout, ridge          trained by cross-entropy, or solved by ridge regression with this much of a ridge
    readout_rank            softmax only: logits are V (P x), where P has this many rows; 0: one matrix
    readout_gated           softmax only: logits are V ((A x + a) * (B x + b)) + U x + c; A, B have readout_rank rows
    readout_dropout         gated only: share of those products that is zero while training
    """

    family: Family = choice(Family)
    units: int = integer(4096, minimum=1)
    pattern: Pattern = choice(Pattern, Pattern.BLOCK)
    block_size: int = integer(64, minimum=1)
    in_edges: int = integer(10, minimum=1)
    spectral_radius: float = _not_negative(0.9)
    leak_min: float = real(0.6, expected="0 < leak ≤ 1", fits=lambda leak: 0 < leak <= 1)
    leak_max: float = real(1.0, expected="0 < leak ≤ 1", fits=lambda leak: 0 < leak <= 1)
    input_scale: float = _positive(1.0)
    bias_scale: float = _not_negative(0.1)
    readout: Readout = choice(Readout, Readout.SOFTMAX)
    ridge: float = _positive(1.0)
    layers: int = integer(1, minimum=1, maximum=MAX_LAYERS)
    reservoirs: int = integer(1, minimum=1, maximum=MAX_LAYERS)
    spectral_radius_min: float | None = _positive(None)
    leak_spread: Spread = choice(Spread, Spread.EVEN)
    leak_bands: bool = switch(default=False)
    layer_scale: float = _positive(1.0)
    input_tokens: int = integer(1, minimum=1)
    embedding_size: int = integer(0)
    input_decay: float = real(0.6, expected="0 < decay ≤ 1", fits=lambda decay: 0 < decay <= 1)
    input_reach: Reach = choice(Reach, Reach.ALL)
    features: int = integer(0)
    feature_edges: int = integer(16, minimum=1)
    feature_block: int = integer(64, minimum=1)
    feature_scale: float = _positive(1.0)
    feature_bias: float = _not_negative(0.5)
    readout_rank: int = integer(0)
    readout_gated: bool = switch(default=False)
    readout_dropout: float = _share(0.0)


ModelConfig = RecurrentConfig | ReservoirConfig


@dataclass(frozen=True)
class TrainingConfig:
    """Length and optimizer of a training.

    steps or epochs: one of the two. evaluate_every counts steps; patience counts evaluations, 0: never stop early;
    max_minutes 0: no limit; threads 0: torch's own choice.

    optimizer                    adamw; or muon: the input and recurrent matrices move by Muon, a gate at a time, and
                                 what is left by AdamW
    matrix_learning_rate         muon only: the rate of those matrices; 0: learning_rate. Both rise and fall together
    muon_iterations              muon only: more of them cost more time and make an update's singular values more equal
    schedule                     what the learning rate falls over: steps; or clock: the run ends after max_minutes,
                                 earlier parts of a resumed run included, or after steps if they are taken sooner
    chunk_spread                 standard deviation of a chunk's length around chunk_length, in tokens; 0: all are equal
    activation_regularisation    factor of the mean square of the output layer's input, added to the loss
    temporal_regularisation      factor of the mean square of its change from step to step, added to the loss
    averaging                    ema: of all steps, each ema_decay times the one before; triggered: of all steps since
                                 trigger_patience evaluations brought nothing better
    precision                    of products: bfloat16 is up to twice as fast on a CPU that has it
    """

    steps: int | None = integer(None, minimum=1)
    epochs: float | None = _positive(None)
    batch_size: int = integer(32, minimum=1)
    chunk_length: int = integer(64, minimum=1)
    learning_rate: float = _positive(2e-3)
    min_learning_rate: float = _not_negative(0.0)
    warmup_steps: int = integer(100)
    optimizer: Optimizer = choice(Optimizer, Optimizer.ADAMW)
    matrix_learning_rate: float = _not_negative(0.0)
    muon_iterations: int = integer(5, minimum=1)
    weight_decay: float = _not_negative(0.01)
    clip_norm: float = _positive(1.0)
    restart_share: float = real(0.0, expected="0 ≤ share ≤ 1", fits=lambda share: 0 <= share <= 1)
    evaluate_every: int = integer(500, minimum=1)
    patience: int = integer(0)
    max_minutes: float = _not_negative(0.0)
    schedule: Schedule = choice(Schedule, Schedule.STEPS)
    chunk_spread: float = _not_negative(0.0)
    activation_regularisation: float = _not_negative(0.0)
    temporal_regularisation: float = _not_negative(0.0)
    averaging: Averaging = choice(Averaging, Averaging.NONE)
    ema_decay: float = _share(0.999)
    trigger_patience: int = integer(0)
    precision: TrainingPrecision = choice(TrainingPrecision, TrainingPrecision.FLOAT32)
    threads: int = integer(0, maximum=MAX_THREADS)
    device: Device = choice(Device, Device.AUTO)


@dataclass(frozen=True)
class Config:
    """Everything that determines a training run. `name` is the name of its folder and its bundle."""

    corpus: CorpusConfig
    tokenizer: TokenizerConfig
    model: ModelConfig
    training: TrainingConfig
    name: str = string(pattern=NAME_PATTERN, expected="a name of letters, digits, '.', '_', '-', and not DEFAULT")
    seed: int = integer(1, maximum=2**63 - 1)

    def to_tables(self) -> dict[str, Any]:
        """Return the config as plain tables for `parse_config`; absent settings stay absent."""
        return {key: _plain(value) for key, value in dataclasses.asdict(self).items()}

    def to_json(self) -> str:
        return json.dumps(self.to_tables(), ensure_ascii=False, indent=2) + "\n"

    @staticmethod
    def from_json(text: str, source: str = "config") -> Config:
        """Read a config that `to_json` wrote. Raises ConfigError."""
        try:
            tables = json.loads(text)
        except ValueError as error:
            raise ConfigError(source, [f"got text that is not JSON ({error}), expected a config"]) from error
        return parse_config(tables, source)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items() if entry is not None}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value.value if isinstance(value, StrEnum) else value


def load_config(path: Path) -> Config:
    """Read a TOML file. Raises ConfigError: unreadable, not TOML, or with every problem of its settings."""
    return parse_config(read_toml(path), str(path))


def read_toml(path: Path) -> dict[str, Any]:
    """Read the tables of a TOML file, with or without a byte-order mark, once: it may be a pipe. Raises ConfigError."""
    advice = "; a text cannot come from a pipe, because it is read several times" if path.is_fifo() else ""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_TOML_BYTES + 1)
        if len(data) > MAX_TOML_BYTES:
            expected = f"expected TOML of at most {MAX_TOML_BYTES:,}{advice}"
            raise ConfigError(str(path), [f"got more than {MAX_TOML_BYTES:,} bytes, {expected}"])
        return tomllib.loads(data.decode("utf-8-sig"))
    except OSError as error:
        beside = [each.name for each in path.parent.glob("*.toml")]
        hint = did_you_mean(path.name, beside) if isinstance(error, FileNotFoundError) else ""
        raise ConfigError(str(path), [f"got {error.strerror or error}, expected a readable TOML file{hint}"]) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), [f"got {error}, expected TOML in UTF-8{advice}"]) from error


def parse_config(tables: object, source: str = "config") -> Config:
    """Read plain tables. Raises ConfigError with every problem: unknown keys, wrong types, values out of range.

    A table [search] is left to `meari search`.
    """
    if not isinstance(tables, Mapping):
        raise ConfigError(source, [f"got {show(tables)}, expected the tables of a config"])
    problems: list[str] = []
    sections: dict[str, Any] = {
        "corpus": (CorpusConfig, CORPUS_RULES),
        "tokenizer": (TokenizerConfig, TOKENIZER_RULES),
    }
    sections["model"] = _model_kind(tables.get("model"))
    sections["training"] = (TrainingConfig, TRAINING_RULES)
    top = {key: value for key, value in tables.items() if key not in sections and key != SEARCH}
    values = read_table(Config, "", top, (), problems, known=tuple(sections))
    parts: dict[str, tuple[Any, dict[str, Any]]] = {}
    for section, (kind, rules) in sections.items():
        parts[section] = (kind, _read_section(kind, section, tables, rules, problems))
    if parts["training"][1].get("optimizer") is Optimizer.MUON and sections["model"][0] is ReservoirConfig:
        problems.append('training.optimizer: got "muon" for family "esn", expected "adamw": its matrices are fixed')
    if problems:
        raise ConfigError(source, problems)
    return Config(**values, **{section: kind(**given) for section, (kind, given) in parts.items()})


def _model_kind(table: object) -> tuple[Any, tuple[TableRule, ...]]:
    is_reservoir = isinstance(table, Mapping) and table.get("family") == Family.ESN
    return (ReservoirConfig, RESERVOIR_RULES) if is_reservoir else (RecurrentConfig, RECURRENT_RULES)


def _read_section(
    kind: type, section: str, tables: Mapping[str, object], rules: tuple[TableRule, ...], problems: list[str]
) -> dict[str, Any]:
    table = tables.get(section, {})
    if not isinstance(table, Mapping):
        problems.append(f"{section}: got {show(table)}, expected a table")
        return {}
    foreign = _foreign_keys(kind, table) if section == "model" else {}
    problems += [
        f"model.{key}: got a setting of {owner}, expected settings of family {table.get('family')!s}"
        for key, owner in foreign.items()
    ]
    own = {key: value for key, value in table.items() if key not in foreign}
    return read_table(kind, f"{section}.", own, rules, problems)


def _foreign_keys(kind: type, table: Mapping[str, object]) -> dict[str, str]:
    """Return the keys of a [model] table that only the other kind of family has, each with the families that have
    it.
    """
    other, owner = (RecurrentConfig, "rnn, gru and lstm") if kind is ReservoirConfig else (ReservoirConfig, "esn")
    mine = {field.name for field in dataclasses.fields(kind)}
    return {field.name: owner for field in dataclasses.fields(other) if field.name in table and field.name not in mine}
