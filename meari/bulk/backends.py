"""The interface of the two backends of bulk work, and the one that is an engine of this process.

Input: texts after a context, or a request to generate. Output: functions that wait for the results, so that a backend
works on several chunks at a time. Must not know: lines, files, formats of the output.
"""

from __future__ import annotations

import math
import secrets
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np
from msgspec import UNSET

from meari.bulk.options import GenerateOptions, ScoreOptions
from meari.bundle_format.names import TokenizerKind
from meari.bundle_format.signatures import PublicKey
from meari.runtime.answers import Choice, GenerateUsage
from meari.runtime.engine import EngineLimits, ScoreCall, Scoring, StateValue, TextScore
from meari.runtime.requests import GenerateRequest, checked_logit_bias
from meari.runtime.scores import Scored, ScoredText
from meari.runtime.text.detokenizer import NO_TEXT
from meari.runtime.text.tokenizer import Encoded
from meari.runtime.text.words import require_segmenter

if TYPE_CHECKING:
    from meari.runtime.completion import Completion
    from meari.runtime.model import LoadedModel
    from meari.runtime.state_tokens import StateTokens, TextState

__all__ = [
    "Backend",
    "Generated",
    "LocalBackend",
    "PieceScorer",
    "batches",
    "open_local",
]

MAX_SLOTS: Final = 128  # rows of a step: twice a server's, where every row waits for all others
MAX_WAITING: Final = 100_000  # every line may have a context of its own, and so a call
NEVER_SECONDS: Final = 1e8
TOKENIZED_CHARS: Final = 1 << 16  # at once: the library holds much for each of them
OFFLINE_LIMITS: Final = EngineLimits(MAX_SLOTS, MAX_WAITING, 0, offline=True)
_NO_OFFSETS: Final = np.empty(0, np.int32)


@dataclass(frozen=True)
class Generated:
    """The continuations of one prompt.

    num_tokens  of each choice
    logprobs    of each choice the sum over its tokens, in nats
    """

    seed: int
    choices: list[Choice]
    usage: GenerateUsage
    num_tokens: list[int]
    logprobs: list[float]


class Backend(Protocol):
    """One model that scores texts and continues prompts.

    name             of the model
    source           where texts that are too long were sent, "" if any length is taken
    max_text_chars   of a text with its context
    """

    name: str
    source: str
    max_text_chars: int

    def check(self, options: ScoreOptions | GenerateOptions) -> None:
        """Raise InvalidRequest if the options do not fit the model or this installation."""

    def score(self, context: str, texts: Sequence[str], options: ScoreOptions) -> Callable[[], Iterable[Scored]]:
        """Queue texts; call the result to wait for their figures, which come in the order of the texts."""

    def piece_scorer(self, options: ScoreOptions) -> PieceScorer | None:
        """Return a scorer of texts that come in pieces; None if texts must come whole."""

    def generate(self, request: GenerateRequest, *, wants_counts: bool, label: str) -> Callable[[], Generated]:
        """Queue a prompt; call the result to wait for its continuations.

        wants_counts  fill `num_tokens` and `logprobs`
        label         names the prompt in an error
        """

    def stream(self, request: GenerateRequest, note_usage: Callable[[GenerateUsage], None]) -> Iterator[str]:
        """Yield the text of one sample as it comes, then a line end; tell `note_usage` at the end."""

    def close(self) -> None:
        """Stop the work."""


def open_local(
    folder: Path,
    signing_keys: Sequence[PublicKey] = (),
    state_keys: tuple[str, ...] = (),
    limits: EngineLimits = OFFLINE_LIMITS,
) -> LocalBackend:
    """Open the bundle in that folder, signed by one of the keys if there are any, and start an engine.

    state_keys  sign and verify states; without any, the states of no other backend are accepted

    Raises BundleError.
    """
    from meari.runtime.model import load_model

    return LocalBackend(load_model(folder, limits, signing_keys), state_keys)


class LocalBackend:
    """An engine of this process; see `Backend`."""

    source = ""
    max_text_chars = sys.maxsize  # any length, piece by piece

    def __init__(self, model: LoadedModel, state_keys: tuple[str, ...] = ()) -> None:
        self.model = model
        self.name = model.name
        self._state_keys = state_keys or (secrets.token_hex(),)

    @cached_property
    def state_tokens(self) -> StateTokens:
        """Writer and reader of states."""
        from meari.runtime.state_tokens import StateTokens

        return StateTokens.of(self.model.bundle, self._state_keys)

    def check(self, options: ScoreOptions | GenerateOptions) -> None:
        """Raise InvalidRequest for a bias of no token, and for words by ICU if ICU is not installed."""
        if isinstance(options, GenerateOptions):
            checked_logit_bias(options.request.logit_bias, self.model.tokenizer.vocabulary.size)
        elif options.words == "unicode":
            require_segmenter()

    def score(self, context: str, texts: Sequence[str], options: ScoreOptions) -> Callable[[], Iterable[Scored]]:
        """Queue texts as one call of the engine. Raises InvalidRequest for a state that is none of the model's."""
        start = None if options.state is None else self.state_tokens.decode(options.state)
        return PieceScorer(self.model, options).score_texts(context, texts, start)

    def state_after(self, text: str, state: str | None = None) -> str:
        """Return the state after a text, which follows the text of `state`. Raises InvalidRequest."""
        from meari.runtime.state_tokens import TextState

        start = None if state is None else self.state_tokens.decode(state)
        value = None if start is None else start.value
        engine = self.model.engine
        deadline = engine.clock() + NEVER_SECONDS
        ids = self.model.tokenizer.encode(text)
        with engine.reserve() as reservation:
            call = ScoreCall((), [ids], deadline, add_end=False, start=value, want_state=True)
            scoring = engine.score(call, reservation)
        found = _ended(scoring).results[0].state
        assert found is not None, "it was asked for"
        text_end = (NO_TEXT if start is None else start.text_end).then(text)
        return self.state_tokens.encode(TextState(found, text_end, start is not None and start.is_seeded))

    def piece_scorer(self, options: ScoreOptions) -> PieceScorer:
        """Return a scorer of texts that come in pieces."""
        return PieceScorer(self.model, options)

    def generate(self, request: GenerateRequest, *, wants_counts: bool, label: str) -> Callable[[], Generated]:
        """Queue a prompt. The counts are there in any case."""
        return partial(_await_completion, self.begin(request))

    def stream(self, request: GenerateRequest, note_usage: Callable[[GenerateUsage], None]) -> Iterator[str]:
        """Yield the text of one sample as it comes, then a line end."""
        completion = self.begin(request)
        while not completion.done:
            completion.generation.wait()
            completion.generation.raise_for_failure()
            text = "".join(choice.text for choice in completion.new_choices())
            if text:
                yield text
        yield "\n"
        note_usage(completion.usage())

    def close(self) -> None:
        """Stop the engine."""
        self.model.engine.stop()

    def begin(self, request: GenerateRequest) -> Completion:
        """Queue a request. Raises InvalidRequest."""
        from meari.runtime.completion import begin_completion

        seconds = NEVER_SECONDS if request.timeout_seconds is UNSET else request.timeout_seconds
        deadline = self.model.engine.clock() + seconds
        return begin_completion(request, self.model, Unbounded(), deadline, self.state_tokens)


class Unbounded:
    """A budget without an end: the caller of the backend decides how much runs at a time."""

    share = ""

    def take_bytes(self, count: int) -> None:
        """Refuse nothing."""

    def take_tokens(self, count: int) -> None:
        """Refuse nothing."""


class PieceScorer:
    """Scores texts and pieces of texts by an engine, with the figures that the options ask for."""

    def __init__(self, model: LoadedModel, options: ScoreOptions) -> None:
        self._model = model
        self._options = options

    @property
    def has_characters(self) -> bool:
        """True if every character is a token."""
        return self._model.tokenizer.vocabulary.kind is TokenizerKind.CHAR

    def score_texts(
        self, context: str, texts: Sequence[str], start: TextState | None = None
    ) -> Callable[[], Iterable[Scored]]:
        """Queue whole texts after one context, or after a state."""
        encoded = self.encode(texts)
        ids = [text.ids for text in encoded]
        add_end = self._options.add_end
        before, value = self._model.tokenizer.encode(context), None if start is None else start.value
        scoring = self._queue(ScoreCall(before, ids, 0.0, add_end=add_end, start=value))
        return partial(self._await, encoded, scoring)

    def score_piece(self, context: str, start: StateValue | None, ids: list[int], *, is_last: bool) -> Scoring:
        """Queue a piece of a text: the first after its context, the others from the state in which the last ended."""
        before = self._model.tokenizer.encode(context) if start is None else ()
        add_end = is_last and self._options.add_end
        return self._queue(ScoreCall(before, [ids], 0.0, add_end=add_end, start=start, want_state=not is_last))

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """Return the tokens, with offsets only if figures of tokens or words need them."""
        tokenizer = self._model.tokenizer
        if self._options.tokens or self._options.words:
            return [tokenizer.encode_with_offsets(text) for text in texts]
        encoded = []
        for some in batches(texts, TOKENIZED_CHARS):
            for text, ids in zip(some, tokenizer.encode_all(some), strict=True):
                encoded.append(Encoded(text, ids, _NO_OFFSETS, _NO_OFFSETS))
        return encoded

    def scored(self, encoded: Encoded, scores: TextScore) -> ScoredText:
        """Return a text with its figures."""
        vocabulary, options = self._model.tokenizer.vocabulary, self._options
        return ScoredText(encoded, scores, vocabulary, options.log_base, split=options.words)

    def _queue(self, call: ScoreCall) -> Scoring:
        engine, options = self._model.engine, self._options
        deadline = engine.clock() + NEVER_SECONDS
        call = replace(call, deadline=deadline, num_alternatives=options.top, want_ranks=options.tokens)
        with engine.reserve() as reservation:
            return engine.score(call, reservation)

    def _await(self, encoded: list[Encoded], scoring: Scoring) -> Iterable[Scored]:
        return map(self.scored, encoded, _ended(scoring).results)


def _ended(scoring: Scoring) -> Scoring:
    """Wait for the figures; nobody else does, so an interruption cancels them. Raises MeariError."""
    try:
        scoring.wait_end()
    except BaseException:
        scoring.cancel()
        raise
    scoring.raise_for_failure()
    return scoring


def _await_completion(completion: Completion) -> Generated:
    """Wait for the end. Raises MeariError."""
    completion.generation.wait_end()
    completion.generation.raise_for_failure()
    choices = list(completion.new_choices())
    samples = [writer.sample for writer in completion.writers]
    num_tokens = [len(sample.token_ids) for sample in samples]
    logprobs = [math.fsum(sample.logprobs) for sample in samples]
    return Generated(completion.seed, choices, completion.usage(), num_tokens, logprobs)


def batches(texts: Iterable[str], max_chars: int, max_texts: int = sys.maxsize) -> Iterator[list[str]]:
    """Group neighbouring texts up to both bounds; a text that is longer stands alone."""
    batch: list[str] = []
    size = 0
    for text in texts:
        if batch and (len(batch) == max_texts or size + len(text) > max_chars):
            yield batch
            batch, size = [], 0
        batch.append(text)
        size += len(text)
    if batch:
        yield batch
