"""Measured figures that plans stand on: costs of steps and of preparation, sizes and what they need.

Input: a family, a size, a vocabulary. Output: seconds, sizes. Must not know: torch, texts.

Costs are those of `python -m benchmarks.training.step_costs`, on one core of an AMD EPYC with AVX-512; sizes follow
from `docs/benchmarks/minutes.md` (`python -m benchmarks.training.minutes`) as far as it goes: epochs, dropout and sizes
for other lengths of text, the minutes from which an LSTM is ahead, and the cost of planning and export are estimates
from the released configs. A machine's `MachineSpeed` scales all costs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from meari.bundle_format.names import Family, TokenizerKind
from meari.models.choices import Reach, TrainingPrecision
from meari.models.config import ModelConfig, RecurrentConfig, ReservoirConfig

BATCH_SIZE, CHUNK_LENGTH = 32, 64  # of a step whose cost the tables tell
TOKENS_PER_STEP: Final = BATCH_SIZE * CHUNK_LENGTH
SHORT_CHUNK_LENGTH: Final = 32  # half the cost, so twice as many steps: ahead where there are few
STEPS_FOR_LONG_CHUNKS: Final = 3000  # of BATCH_SIZE and CHUNK_LENGTH
SMALL_BATCH_SIZE, SMALL_BATCH_COST = 8, 0.5  # for short texts; of a step, to one of BATCH_SIZE
STEP_SECONDS: Final[dict[Family, dict[int, float]]] = {  # by size, with KINDS_IN_TABLE tokens in the vocabulary
    Family.RNN: {64: 0.009, 128: 0.012, 256: 0.025, 384: 0.029, 512: 0.041, 768: 0.078, 1024: 0.119},
    Family.GRU: {64: 0.017, 128: 0.023, 192: 0.033, 256: 0.046, 384: 0.076, 512: 0.118, 768: 0.212, 1024: 0.345},
    Family.LSTM: {64: 0.018, 128: 0.029, 192: 0.045, 256: 0.061, 384: 0.094, 512: 0.137, 768: 0.345, 1024: 0.580},
    Family.ESN: {256: 0.059, 512: 0.120, 1024: 0.235, 2048: 0.483},
}
KINDS_IN_TABLE: Final = 100
MIN_TIED_VOCABULARY: Final = 1000
OUTPUT_SECONDS: Final = 1.1e-7  # of a step, for each input of the output layer and token of the vocabulary
MINUTES_FOR_LSTM, CHARACTERS_FOR_LSTM = 20.0, 1_000_000  # from which on it is ahead of a GRU
MAX_SIZES: Final = ((10_000, 64), (50_000, 128), (400_000, 256), (3_000_000, 512), (20_000_000, 768))
MIN_STEPS_PER_UNIT: Final = 2.2  # of a size, from which on it is ahead of the next smaller one
SHORT_TEXT: Final = 30_000  # characters, which bear this many epochs; longer texts fewer
MAX_EPOCHS: Final = 40.0
DROPOUTS: Final = ((4, 0.0), (6, 0.1), (10, 0.2), (20, 0.3))  # up to so many epochs
MAX_DROPOUT: Final = 0.4
FEW_KINDS: Final = 300  # of characters, as alphabets have and syllables have not
VOCABULARIES: Final = ((100_000, 500), (1_000_000, 1000), (100_000_000, 2000))  # byte pairs, up to so many characters
CHARACTERS_FOR_BPE: Final = 2_000_000
MAX_VOCABULARY: Final = 4000
DEFAULT_VOCABULARY: Final = 2000
BYTES_PER_TOKEN: Final = {257: 1.0, 500: 2.1, 1000: 2.8, 2000: 3.4, 4000: 3.9, 8000: 4.3, 32000: 4.8}
START_AND_END_SECONDS: Final = 10.0  # planning; measuring, checks, export
TEXT_PROBE_SECONDS: Final = 0.4  # where preparing a text takes these seconds:
SECONDS_PER_MEGABYTE: Final = {TokenizerKind.CHAR: 0.15, TokenizerKind.WORD: 0.6, TokenizerKind.BPE: 1.0}
NGRAM_SECONDS_PER_MEGABYTE: Final = 0.15  # of counting n-grams
STREAM_TOKEN_SECONDS: Final = 1e-4  # of measuring one stream, a token after another: by torch twice and by the graphs
READING_COST: Final = 0.15  # of a text that is left out, to one that is encoded
MIN_SAVED_SHARE: Final = 0.05  # of the minutes, else no text is left out


@dataclass(frozen=True)
class MachineSpeed:
    """Speed of a machine in multiples of the measured one; 1: as fast.

    small, large   for steps of the small and of the large probe
    precision      the faster one
    threads        0: torch's own choice, on a GPU
    text           of preparing a text, which has little to do with the speed of steps
    """

    small: float = 1.0
    large: float = 1.0
    precision: TrainingPrecision = TrainingPrecision.BFLOAT16
    threads: int = 1
    text: float = 1.0


@dataclass(frozen=True)
class Probe:
    """Sizes of a model whose step is timed.

    size   hidden units, or a reservoir's
    """

    family: Family
    size: int
    vocabulary_size: int

    @property
    def model(self) -> ModelConfig:
        return model_of(self.family, self.size, self.vocabulary_size)


SMALL_PROBE: Final = Probe(Family.GRU, 128, KINDS_IN_TABLE)
LARGE_PROBE: Final = Probe(Family.GRU, 512, KINDS_IN_TABLE)


def model_of(family: Family, size: int, vocabulary_size: int = KINDS_IN_TABLE) -> ModelConfig:
    """Return the model of a family that has this size. Large vocabularies have one matrix for both ends."""
    if family is Family.ESN:
        return ReservoirConfig(
            Family.ESN, units=size, spectral_radius=0.3, leak_min=0.7, input_tokens=6, embedding_size=32,
            input_scale=2.0, input_reach=Reach.STAGGERED, bias_scale=0.5, features=6 * size,
        )  # fmt: skip
    is_tied = vocabulary_size >= MIN_TIED_VOCABULARY
    return RecurrentConfig(
        family, embedding_size=min(size, 256 if is_tied else 128), hidden_size=size, tied=is_tied, locked_dropout=False
    )


def step_seconds_of(probe: Probe, speed: MachineSpeed | None = None) -> float:
    """Return the time of a step of TOKENS_PER_STEP tokens."""
    model = probe.model
    width = probe.size
    if isinstance(model, ReservoirConfig):
        width += model.features
    elif model.tied:
        width = model.embedding_size
    output = OUTPUT_SECONDS * width * max(0, probe.vocabulary_size - KINDS_IN_TABLE)
    return (_interpolated(STEP_SECONDS[probe.family], probe.size) + output) / _speed_at(
        probe.size, speed or MachineSpeed()
    )


def _interpolated(table: dict[int, float], size: int) -> float:
    """Return the value at a size, along straight lines in both logarithms, the outer ones continued."""
    pairs = list(pairwise(sorted(table)))
    low, high = next((pair for pair in pairs if size <= pair[1]), pairs[-1])
    power = math.log(table[high] / table[low]) / math.log(high / low)
    return float(table[low] * (size / low) ** power)


def _speed_at(size: int, speed: MachineSpeed) -> float:
    """Return the speed at a size: between those of the two probes on a logarithmic scale, and theirs beyond them."""
    span = math.log(size / SMALL_PROBE.size) / math.log(LARGE_PROBE.size / SMALL_PROBE.size)
    share = min(1.0, max(0.0, span))
    return float(speed.small ** (1 - share) * speed.large**share)


def sizes_of(family: Family) -> tuple[int, ...]:
    """Return the sizes that are chosen from, the smallest first."""
    return tuple(sorted(STEP_SECONDS[family]))


def max_size_for(num_characters: int) -> int:
    """Return the largest size that a text of this length can fill."""
    return next((size for limit, size in MAX_SIZES if num_characters < limit), 1024)


def min_steps_for(family: Family, size: int) -> int:
    """Return the steps from which on this size beats the next smaller one."""
    return round(MIN_STEPS_PER_UNIT * (size / 4 if family is Family.ESN else size))


def epochs_for(num_characters: int) -> float:
    """Return how often a text is read before a model of its size begins to learn it by heart."""
    return float(MAX_EPOCHS * min(1.0, (SHORT_TEXT / num_characters) ** 0.3))


def dropout_for(epochs: float) -> float:
    return next((dropout for limit, dropout in DROPOUTS if epochs < limit), MAX_DROPOUT)


def learning_rate_for(family: Family, size: int) -> float:
    if family is Family.RNN:
        return 3e-3 if size <= 128 else 1.5e-3
    if family is Family.ESN:
        return 3e-3
    return 5e-3 if size <= 192 else 4e-3 if size <= 384 else 3e-3


def vocabulary_for(num_characters: int, num_kinds: int) -> int:
    """Return the size of a vocabulary of byte pairs, 0 for characters."""
    if num_kinds <= FEW_KINDS and num_characters < CHARACTERS_FOR_BPE:
        return 0
    return next((size for limit, size in VOCABULARIES if num_characters < limit), MAX_VOCABULARY)


def characters_per_token(kind: TokenizerKind, vocabulary_size: int, bytes_per_character: float) -> float:
    """Estimate the characters of a token; scripts of several bytes a character have longer byte pairs."""
    if kind is TokenizerKind.CHAR:
        return 1.0
    if kind is TokenizerKind.WORD:
        return 5.0 if bytes_per_character < 2 else 3.0
    num_bytes = _interpolated(BYTES_PER_TOKEN, max(257, vocabulary_size))
    return max(1 / bytes_per_character, num_bytes * (0.75 + 0.25 * bytes_per_character) / bytes_per_character)


def overhead_seconds(
    num_bytes: float, kind: TokenizerKind, speed: MachineSpeed, share: float = 1.0, num_in_stream: float = 0.0
) -> float:
    """Return the time of everything but training: planning, encoding the text, measuring, export.

    share          of the text that is encoded; all of it is read
    num_in_stream  held-out tokens, if they are one stream
    """
    measuring = STREAM_TOKEN_SECONDS * num_in_stream
    megabytes = num_bytes / 1e6 * (share + (1 - share) * READING_COST)
    counting = NGRAM_SECONDS_PER_MEGABYTE * num_bytes / 1e6 * share
    preparing = SECONDS_PER_MEGABYTE[kind] * megabytes
    return (START_AND_END_SECONDS + measuring) / min(1.0, speed.small) + (preparing + counting) / speed.text


def expectation(num_characters: int) -> str:
    """Return what can be expected of a model of a text of this length."""
    shown = f"{num_characters:,} characters"
    if num_characters < 10_000:
        return (
            f"{shown} are far too few for a language model: it will know frequent letters and a few words, write "
            "gibberish and learn passages by heart, and its figure on the short held-out part is mostly chance; "
            "100,000 are enough for a first result, a few million for a useful one"
        )
    if num_characters < 100_000:
        return (
            f"{shown} are few: expect the spelling of frequent words and no sentences that make sense; "
            "a few million are enough for a useful model"
        )
    if num_characters < 1_000_000:
        return f"{shown}: expect real words and the form of sentences; a few million make a useful model"
    return f"{shown}: enough for real words, sentences and the style of the text"
