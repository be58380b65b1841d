"""Parallel streams through the training text, for truncated back-propagation.

Input: one long row of token ids, a config, a random generator. Output: chunks of inputs and targets, and the streams
that start afresh; the number of steps of a run; a fingerprint of the corpus. Must not know: models.

The row reads  <|end|> document <|end|> document <|end|> …  A stream is a cursor into it: a chunk's inputs are
ids[cursor : cursor + length], its targets are the same one token later, and the cursor advances by `length`. With a
spread, lengths are drawn from a normal distribution around `length`, so that gradients are not cut at the same places
in every epoch (Merity et al., "Regularizing and optimizing LSTM language models", 2017). A stream that starts afresh
has its state zeroed and the boundary token as its first input, like a served text. Streams start afresh at the very
beginning, at the end of the corpus, and by chance between chunks (`restart_share`), where a text may start:

    line, paragraph   the next document
    file              a random place of the corpus, moved on to the next beginning of a line
"""

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meari.bundle_format.names import END_ID, Document
from meari.models.config import Config, TrainingConfig
from meari.models.text.token_file import UNCOUNTED
from meari.models.text.tokenizer import Tokenizer
from meari.models.text.tokens import PreparedCorpus, TokenFile

SEARCH_WINDOW = 1 << 12  # tokens that are searched for a place to start

Ids = NDArray[Any]
Int64s = NDArray[np.int64]
Bools = NDArray[np.bool_]
PIECE_TOKENS = 1 << 22


@dataclass(frozen=True)
class Chunk:
    """One step's tokens.

    inputs, targets   int64 [batch, length]; a target that is not learnt is UNCOUNTED
    fresh             bool [batch], the streams whose state is zeroed before the first input
    num_learnt        targets that are learnt
    """

    inputs: Int64s
    targets: Int64s
    fresh: Bools

    @property
    def num_learnt(self) -> int:
        return int(np.count_nonzero(self.targets != UNCOUNTED))

    def of(self, rows: slice) -> "Chunk":
        """Return the chunk of some of the streams."""
        return Chunk(self.inputs[rows], self.targets[rows], self.fresh[rows])


class Streams:
    """Cursors into one row of token ids.

    ids            unsigned integers [num_tokens], at least two; may lie on disk
    starts         bool [vocabulary], tokens after which a text may start
    masked         int64 [num_masked], ascending places of tokens that are inputs but no targets
    length_spread  standard deviation of a chunk's length; lengths stay between half and one and a half times `length`
    """

    def __init__(
        self,
        ids: Ids,
        unit: Document,
        starts: Bools,
        *,
        batch_size: int,
        length: int,
        restart_share: float,
        generator: np.random.Generator,
        masked: Int64s | None = None,
        length_spread: float = 0.0,
    ) -> None:
        self._ids = ids
        self._masked = np.empty(0, np.int64) if masked is None else masked
        self._unit = unit
        self._starts = starts
        self._length = length
        self._restart_share = restart_share
        self._generator = generator
        self._length_spread = length_spread
        self._longest = min(int(1.5 * length) if length_spread else length, len(ids) - 1)
        self._last_start = len(ids) - 1 - self._longest
        places = np.arange(batch_size, dtype=np.int64) * (len(ids) - 1) // batch_size
        self._cursors = np.array([self._next_start(int(place)) for place in places], dtype=np.int64)
        self._is_new = True

    def next_chunk(self) -> Chunk:
        """Advance every stream by one chunk."""
        fresh = self._restarts()
        length = self._next_length()
        rows = np.stack([self._ids[cursor : cursor + length + 1] for cursor in self._cursors]).astype(np.int64)
        rows[fresh, 0] = END_ID
        targets = self._with_uncounted(rows[:, 1:])
        self._cursors = self._cursors + length
        return Chunk(rows[:, :-1], targets, fresh)

    @property
    def size(self) -> int:
        """Number of streams."""
        return len(self._cursors)

    def state(self) -> dict[str, Any]:
        """Return everything that the next chunks depend on, as JSON values."""
        return {
            "cursors": self._cursors.tolist(),
            "is_new": self._is_new,
            "generator": self._generator.bit_generator.state,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue where the streams with this `state()` were. Raises what of a damaged one does not fit."""
        cursors, is_new = state["cursors"], state["is_new"]
        if not isinstance(cursors, list) or len(cursors) != len(self._cursors):
            raise ValueError(f"cursors: got {cursors!r:.60}, expected {len(self._cursors)} numbers")
        for cursor in cursors:
            if type(cursor) is not int or not 0 <= cursor < len(self._ids):
                raise ValueError(f"cursors: got {cursor!r:.60}, expected a whole number from 0 to {len(self._ids) - 1}")
        if not isinstance(is_new, bool):
            raise TypeError(f"is_new: got {is_new!r:.60}, expected true or false")
        self._cursors, self._is_new = np.array(cursors, dtype=np.int64), is_new
        self._generator.bit_generator.state = state["generator"]

    def _with_uncounted(self, targets: Int64s) -> Int64s:
        """Return the targets at the cursors, the masked ones UNCOUNTED; they share their memory with the inputs."""
        begins = self._cursors + 1
        places = np.stack((begins, begins + targets.shape[1]))
        firsts, lasts = np.searchsorted(self._masked, places)
        if (firsts == lasts).all():
            return targets
        targets = targets.copy()
        for row, begin, first, last in zip(targets, begins, firsts, lasts, strict=True):
            row[self._masked[first:last] - begin] = UNCOUNTED
        return targets

    def _next_length(self) -> int:
        if not self._length_spread:
            return self._length
        drawn = round(self._generator.normal(self._length, self._length_spread))
        return min(max(drawn, 1, self._length // 2), self._longest)

    def _restarts(self) -> Bools:
        if self._is_new:
            self._is_new = False
            return np.ones(len(self._cursors), dtype=np.bool_)
        fresh = self._generator.random(len(self._cursors)) < self._restart_share
        for stream in np.flatnonzero(fresh):
            place = int(self._cursors[stream])
            if self._unit is Document.FILE:
                place = int(self._generator.integers(self._last_start + 1))
            self._cursors[stream] = self._next_start(place)
        at_end = self._cursors > self._last_start
        self._cursors[at_end] = 0
        return fresh | at_end

    def _next_start(self, place: int) -> int:
        """Return the first cursor from `place` on at which a text may start.

        Where none is near, a file is entered at `place` itself, and documents from the very first one.
        """
        end = min(place + SEARCH_WINDOW, self._last_start + 1)
        found = np.flatnonzero(self._starts[self._ids[place:end]])
        if len(found):
            return place + int(found[0])
        is_past_the_last = end > self._last_start and self._unit is not Document.FILE
        return 0 if is_past_the_last else min(place, self._last_start)


def open_streams(config: Config, corpus: PreparedCorpus, generator: np.random.Generator) -> Streams:
    """Open streams over the training part, at its beginning."""
    ids = corpus.train.ids
    return Streams(
        ids,
        config.corpus.document,
        starting_tokens(corpus.tokenizer, config.corpus.document),
        batch_size=config.training.batch_size,
        length=chunk_length(config.training, len(ids) - 1),
        restart_share=config.training.restart_share,
        generator=generator,
        masked=corpus.train.masked,
        length_spread=config.training.chunk_spread,
    )


def starting_tokens(tokenizer: Tokenizer, unit: Document) -> Bools:
    """Tokens after which a text may start, bool [vocabulary]: the boundary, and in whole files also line ends."""
    starts = np.zeros(tokenizer.vocabulary_size, dtype=np.bool_)
    if unit is Document.FILE:
        for token in range(tokenizer.vocabulary_size):
            starts[token] = tokenizer.decode([token]).endswith("\n")
    starts[END_ID] = True
    return starts


def token_counts(ids: NDArray[Any], vocabulary_size: int) -> NDArray[np.int64]:
    """Count each token of the vocabulary in a row of ids, which may lie on disk."""
    counts = np.zeros(vocabulary_size, dtype=np.int64)
    for begin in range(0, len(ids), PIECE_TOKENS):
        counts += np.bincount(ids[begin : begin + PIECE_TOKENS], minlength=vocabulary_size)
    return counts


def fingerprint(corpus: PreparedCorpus) -> str:
    """Return a value that is equal for the same training tokens and vocabulary only. Reads the corpus once."""
    digest = hashlib.sha256(str(corpus.tokenizer.vocabulary_size).encode())
    for part in (corpus.train, corpus.validation):
        digest.update(_part_digest(part))
    return digest.hexdigest()


def _part_digest(part: TokenFile) -> bytes:
    digest = hashlib.sha256(str(len(part.ids)).encode())
    for begin in range(0, len(part.ids), PIECE_TOKENS):
        digest.update(np.ascontiguousarray(part.ids[begin : begin + PIECE_TOKENS]).tobytes())
    if part.num_masked:
        digest.update(part.masked.tobytes())
    return digest.digest()


def num_steps(config: TrainingConfig, num_targets: int) -> int:
    """Return the steps of a whole run: as configured, or enough to take `epochs` times `num_targets` tokens."""
    if config.steps is not None:
        return config.steps
    assert config.epochs is not None, "a config has steps or epochs"
    return max(1, math.ceil(config.epochs * num_targets / tokens_per_step(config, num_targets)))


def chunk_length(config: TrainingConfig, num_targets: int) -> int:
    """Return the tokens that a stream takes in one step: as configured, but never more than the corpus has."""
    return min(config.chunk_length, num_targets)


def tokens_per_step(config: TrainingConfig, num_targets: int) -> int:
    """Return the tokens that all streams together take in one step."""
    return config.batch_size * chunk_length(config, num_targets)
