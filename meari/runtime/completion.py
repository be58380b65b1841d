"""One /generate: a request → a call of the engine → the text of its choices, whole or as it grows.

Enters: a checked request and the model it is for. Leaves: `Choice` objects. Whole answers and streams are written by
the same `ChoiceWriter`, so their texts are equal. Knows nothing of Flask or of server-sent events.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

from msgspec import UNSET

from meari.runtime.answers import Choice, GenerateAnswer, GenerateUsage, TokenWithLogprob, Work, alternatives
from meari.runtime.engine import Finish, GenerateCall, Generation, Sample, Sampling
from meari.runtime.model import LoadedModel
from meari.runtime.requests import GenerateRequest, checked_logit_bias, effective_top_k
from meari.runtime.state_tokens import StateTokens, TextState
from meari.runtime.text.detokenizer import NO_TEXT, Detokenizer, StopPatterns, StopSearch, matcher_factory
from meari.runtime.text.tokenizer import Vocabulary

__all__ = ["Budget", "Completion", "begin_completion"]

BYTES_PER_TOKEN = 120  # of a generated token: its id, log-probability and text
BYTES_PER_ALTERNATIVE = 80
TOKENS_PER_CHAR = 4  # at most: bytes of UTF-8


class Budget(Protocol):
    """What a request's memory is accounted to."""

    def take_bytes(self, count: int) -> None:
        """Hold `count` bytes more. Raises TooLarge, Overloaded."""


@dataclass(eq=False)
class ChoiceWriter:
    """Writes what is certain of one sample's text.

    Text that may be the beginning of a stop string is held back until it is known not to be. A state stands after all
    tokens of the sample, whatever a stop string cut off its text.
    """

    index: int
    sample: Sample
    vocabulary: Vocabulary
    writer: Detokenizer
    search: StopSearch
    with_tokens: bool
    state_tokens: StateTokens | None  # None where no state is wanted
    is_ranked: bool  # a hypothesis of a beam search
    num_tokens: int = 0
    done: bool = False
    kept_chars: int = 0  # how much of the text is kept for the log
    kept: str = ""
    _pending: str = ""
    _given: int = 0  # characters given out

    def take(self) -> Choice | None:
        """What has come since the last call, None where that is nothing; `finish_reason` is in the last one."""
        if self.done:
            return None
        finish = self.sample.finish  # before the lists: once it is set they are complete
        if finish is None and len(self.sample.token_ids) == self.num_tokens:
            return None
        first, self.num_tokens = self.num_tokens, len(self.sample.token_ids)
        new_tokens = self.sample.token_ids[first : self.num_tokens]
        num_early = max(0, self.search.min_tokens - first)
        self._feed(new_tokens[:num_early], counts=False)
        self._feed(new_tokens[num_early:], counts=True)
        text = self._certain(finish)
        self.done = finish is not None
        if not (text or self.done or (self.with_tokens and new_tokens)):
            return None
        if len(self.kept) < self.kept_chars:
            self.kept += text[: self.kept_chars - len(self.kept)]
        choice = Choice(self.index, text)
        if self.with_tokens:
            choice.tokens = self._tokens(first, self.num_tokens)
        if finish is not None:
            choice.finish_reason = finish_reason(finish)
            choice.seed = self.sample.seed
            if self.is_ranked:
                choice.logprob = math.fsum(self.sample.logprobs)
            if self.state_tokens is not None:
                choice.state = self._state(self.state_tokens)
        return choice

    def _feed(self, tokens: list[int], *, counts: bool) -> None:
        text = self.writer.feed_all(tokens)
        self._pending += text
        self.search.feed(text, counts=counts)

    def _certain(self, finish: Finish | None) -> str:
        if self.search.cut is not None:
            length = self.search.cut - self._given
        elif finish is not None:
            length = len(self._pending)
        else:
            length = len(self._pending) - self.search.held_back
        text, self._pending = self._pending[:length], self._pending[length:]
        self._given += len(text)
        return text

    def _state(self, state_tokens: StateTokens) -> str | None:
        state = self.sample.state
        if state is None:
            return None
        return state_tokens.encode(TextState(state, self.writer.text_end))

    def _tokens(self, first: int, last: int) -> list[TokenWithLogprob]:
        texts, sample = self.vocabulary.texts, self.sample
        return [
            TokenWithLogprob(
                sample.token_ids[i],
                texts[sample.token_ids[i]],
                sample.logprobs[i],
                alternatives(self.vocabulary, *sample.alternatives[i]),
                self.vocabulary.parts.get(sample.token_ids[i], UNSET),
            )
            for i in range(first, last)
        ]


@dataclass(frozen=True, eq=False)
class Completion:
    """A running /generate."""

    model: str
    seed: int
    prompt: str
    prompt_tokens: int
    unknown_tokens: int  # of the prompt
    generation: Generation
    writers: tuple[ChoiceWriter, ...]

    def news(self) -> Iterator[Choice]:
        """What has come of each choice since the last call."""
        for writer in self.writers:
            choice = writer.take()
            if choice is not None:
                yield choice

    def events(self) -> list[object]:
        """Bodies of a stream's events: what has come since the last call."""
        return [{"choices": [choice]} for choice in self.news()]

    def last_events(self) -> list[object]:
        """The body of a stream's last event."""
        return [self.answer([])]

    @property
    def done(self) -> bool:
        """True once every choice has been given out with its finish reason."""
        return all(writer.done for writer in self.writers)

    @property
    def generated_tokens(self) -> int:
        """Tokens of all samples, as far as they were taken up."""
        return sum(writer.num_tokens for writer in self.writers)

    def work(self) -> Work:
        """What was done so far, for the log."""
        return Work(
            self.prompt_tokens,
            self.generation.cached_tokens,
            sum(len(sample.token_ids) for sample in self.generation.samples),
            finish_reasons=tuple(sample.finish.value for sample in self.generation.samples if sample.finish),
            prompts=(self.prompt,),
            answers=tuple(writer.kept for writer in self.writers),
        )

    def answer(self, choices: list[Choice]) -> GenerateAnswer:
        """The whole answer, or with no choices the end of a stream."""
        return GenerateAnswer(self.model, self.seed, choices, self.usage())

    def usage(self) -> GenerateUsage:
        """Tokens that were read and written so far."""
        unknown = self.unknown_tokens or UNSET
        return GenerateUsage(self.prompt_tokens, self.generation.cached_tokens, self.generated_tokens, unknown)


def begin_completion(
    request: GenerateRequest,
    model: LoadedModel,
    budget: Budget,
    deadline: float,
    state_tokens: StateTokens,
    kept_chars: int = 0,
) -> Completion:
    """Queue a request. kept_chars: of each text, for the log. Raises InvalidRequest, Overloaded, TooLarge, NotReady."""
    vocabulary = model.tokenizer.vocabulary
    sampling = _sampling(request, vocabulary)
    with model.engine.reserve() as reservation:
        start = None if request.state is None else state_tokens.decode(request.state)
        budget.take_bytes(_memory_bytes(request, start, state_tokens))
        prompt = model.tokenizer.encode(request.prompt)
        before = (NO_TEXT if start is None else start.text_end).then(request.prompt)
        patterns = StopPatterns.of(request.stops, model.tokenizer.normalized, request.min_tokens)
        call = GenerateCall(
            prompt=prompt,
            max_tokens=request.max_tokens,
            deadline=deadline,
            sampling=_seeded(sampling, request, start),
            num_samples=request.n,
            num_alternatives=request.logprobs,
            stop=matcher_factory(patterns, vocabulary, before),
            start=None if start is None else start.value,
            want_state=request.return_state,
            num_beams=request.num_beams,
        )
        generation = model.engine.generate(call, reservation)
    writers = tuple(
        ChoiceWriter(
            index,
            sample,
            vocabulary,
            Detokenizer(vocabulary, before),
            StopSearch(patterns),
            request.logprobs is not None,
            state_tokens if request.return_state else None,
            request.num_beams > 1,
            kept_chars=kept_chars,
        )
        for index, sample in enumerate(generation.samples)
    )
    unknown = vocabulary.num_unknown(prompt)
    return Completion(model.name, call.sampling.seed, request.prompt, len(prompt), unknown, generation, writers)


def finish_reason(finish: Finish) -> str:
    """As the contract names it; what a closing server cut off counts as out of time."""
    return Finish.TIMEOUT.value if finish is Finish.CANCELLED else finish.value


def _sampling(request: GenerateRequest, vocabulary: Vocabulary) -> Sampling:
    return Sampling(
        temperature=request.temperature,
        top_k=effective_top_k(request.top_k, vocabulary.size, request.num_beams),
        top_p=request.top_p,
        min_p=request.min_p,
        repetition_penalty=request.repetition_penalty,
        frequency_penalty=request.frequency_penalty,
        presence_penalty=request.presence_penalty,
        min_tokens=request.min_tokens,
        logit_bias=checked_logit_bias(request.logit_bias, vocabulary.size),
    )


def _seeded(sampling: Sampling, request: GenerateRequest, start: TextState | None) -> Sampling:
    """With the request's seed, else that of its state, else a random one."""
    if request.seed is not UNSET:
        seed = request.seed
    elif start is not None and start.is_seeded:
        seed = start.value.seed
    else:
        seed = secrets.randbits(53)  # exact in every JSON reader
    return replace(sampling, seed=seed)


def _memory_bytes(request: GenerateRequest, start: TextState | None, state_tokens: StateTokens) -> int:
    """What the samples and their states may come to."""
    token_bytes = BYTES_PER_TOKEN + BYTES_PER_ALTERNATIVE * (request.logprobs or 0)
    num_bytes = max(request.n, request.num_beams) * request.max_tokens * token_bytes
    if request.return_state:
        before = 0 if start is None else len(start.value.seen)
        num_seen = before + TOKENS_PER_CHAR * len(request.prompt) + request.max_tokens
        num_bytes += request.n * state_tokens.memory_bytes(num_seen)
    return num_bytes
