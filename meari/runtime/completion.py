"""Prompts → calls of the engine → the text of their choices, whole or as it grows.

Input: a checked request, the model that it is for, and its prompts. Output: a `Completion` for each prompt, which
gives `Choice` objects. Must not know: Flask, server-sent events, OpenAI's shape.

The same `ChoiceWriter` writes whole answers and streams, so their texts are equal.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final, Protocol

from msgspec import UNSET

from meari.runtime.answers import Choice, GenerateAnswer, GenerateUsage, TokenWithLogprob, Work, alternatives
from meari.runtime.engine import Event, Finish, GenerateCall, Generation, Sample, Sampling
from meari.runtime.model import LoadedModel
from meari.runtime.requests import GenerateRequest, checked_logit_bias, effective_top_k
from meari.runtime.state_tokens import StateTokens, TextState
from meari.runtime.text.detokenizer import NO_TEXT, Detokenizer, StopPatterns, StopSearch, TextEnd, matcher_factory
from meari.runtime.text.tokenizer import Vocabulary

__all__ = [
    "BYTES_PER_ALTERNATIVE",
    "BYTES_PER_TOKEN",
    "Budget",
    "Completion",
    "CompletionPlan",
    "ReadPrompt",
    "begin_completion",
    "sampling_of",
    "seed_of",
]

BYTES_PER_TOKEN: Final = 120  # of a generated token: its id, log-probability and text
BYTES_PER_ALTERNATIVE: Final = 80
BYTES_PER_WRITTEN: Final = 90  # of a token or an alternative in a whole answer: its object, and its JSON
TOKENS_PER_CHAR: Final = 4  # at most: bytes of UTF-8


@dataclass(frozen=True, eq=False)
class ReadPrompt:
    """A prompt as the engine reads it.

    text         as it was sent, or as its token ids spell it
    ids          its tokens, without a boundary token in front
    text_end     end of the text so far, to which the first token is joined
    num_unknown  tokens of `ids` that stand for text that the model does not know
    """

    text: str
    ids: list[int]
    text_end: TextEnd
    num_unknown: int


class Budget(Protocol):
    """Account of the memory that a request takes, and of the tokens that its caller may have.

    share  name of the caller, among whom the engine shares its work evenly
    """

    @property
    def share(self) -> str: ...

    def take_bytes(self, count: int) -> None:
        """Hold `count` bytes more, or fewer. Raises TooLarge, Overloaded."""

    def take_tokens(self, count: int) -> None:
        """Take the tokens that the request may read and write. Raises TooLarge, RateLimited."""


@dataclass(eq=False)
class ChoiceWriter:
    """Writes the text of one sample as far as it is certain.

    Text that may be the beginning of a stop string is held back until it is known not to be. A state stands after all
    tokens of the sample, whatever a stop string cut off its text.
    """

    index: int
    sample: Sample
    vocabulary: Vocabulary
    writer: Detokenizer
    search: StopSearch
    with_tokens: bool
    state_tokens: StateTokens | None  # None if no state is wanted
    is_ranked: bool  # a hypothesis of a beam search
    num_tokens: int = 0
    done: bool = False
    kept_chars: int = 0  # how much of the text is kept for the log
    kept: str = ""
    _pending: str = ""
    _given: int = 0  # characters given out

    def take(self) -> Choice | None:
        """Return the text since the last call, None if there is none; the last choice has `finish_reason`."""
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
    """Running continuation of one prompt."""

    model: str
    seed: int
    prompt: ReadPrompt
    generation: Generation
    writers: tuple[ChoiceWriter, ...]

    def new_choices(self) -> Iterator[Choice]:
        """Yield the text of each choice since the last call."""
        for writer in self.writers:
            choice = writer.take()
            if choice is not None:
                yield choice

    def events(self) -> list[object]:
        """Return bodies of a stream's events: the text of each choice since the last call."""
        return [{"choices": [choice]} for choice in self.new_choices()]

    def last_events(self) -> list[object]:
        """Return the body of a stream's last event."""
        return [self._answer([])]

    def answer(self) -> GenerateAnswer:
        """Return the whole answer, once the generation has ended."""
        return self._answer(list(self.new_choices()))

    @property
    def done(self) -> bool:
        """True once every choice has been given out with its finish reason."""
        return all(writer.done for writer in self.writers)

    def work(self) -> Work:
        """Return the work so far, for the log."""
        return Work(
            len(self.prompt.ids),
            self.generation.cached_tokens,
            sum(len(sample.token_ids) for sample in self.generation.samples),
            finish_reasons=tuple(sample.finish.value for sample in self.generation.samples if sample.finish),
            prompts=(self.prompt.text,),
            answers=tuple(writer.kept for writer in self.writers),
        )

    def usage(self) -> GenerateUsage:
        """Return the tokens that were read and given out so far."""
        num_generated = sum(writer.num_tokens for writer in self.writers)
        unknown = self.prompt.num_unknown or UNSET
        return GenerateUsage(len(self.prompt.ids), self.generation.cached_tokens, num_generated, unknown)

    def _answer(self, choices: list[Choice]) -> GenerateAnswer:
        return GenerateAnswer(self.model, self.seed, choices, self.usage())


@dataclass(frozen=True, eq=False)
class CompletionPlan:
    """All that the prompts of one request have in common.

    sampling      without a seed, which each prompt has of its own
    state_tokens  None if no states are wanted
    kept_chars    of each text, for the log
    """

    request: GenerateRequest
    model: LoadedModel
    deadline: float
    sampling: Sampling
    patterns: StopPatterns
    state_tokens: StateTokens | None = None
    kept_chars: int = 0

    def call(
        self,
        prompt: ReadPrompt,
        seed: int,
        *,
        start: TextState | None = None,
        event: Event | None = None,
        ignores_end: bool = False,
    ) -> GenerateCall:
        """Return the call of the engine for one prompt.

        event  shared by several calls that one thread waits for
        """
        request, vocabulary = self.request, self.model.tokenizer.vocabulary
        return GenerateCall(
            prompt=prompt.ids,
            max_tokens=request.max_tokens,
            deadline=self.deadline,
            sampling=replace(self.sampling, seed=seed),
            num_samples=request.n,
            num_alternatives=request.logprobs,
            stop=matcher_factory(self.patterns, vocabulary, prompt.text_end),
            start=None if start is None else start.value,
            want_state=self.state_tokens is not None,
            num_beams=request.num_beams,
            ignores_end=ignores_end,
            event=event,
        )

    def completion(self, prompt: ReadPrompt, seed: int, generation: Generation) -> Completion:
        """Return the completion of one prompt, whose call is `generation`."""
        vocabulary = self.model.tokenizer.vocabulary
        writers = tuple(
            ChoiceWriter(
                index,
                sample,
                vocabulary,
                Detokenizer(vocabulary, prompt.text_end),
                StopSearch(self.patterns),
                with_tokens=self.request.logprobs is not None,
                state_tokens=self.state_tokens,
                is_ranked=self.request.num_beams > 1,
                kept_chars=self.kept_chars,
            )
            for index, sample in enumerate(generation.samples)
        )
        return Completion(self.model.name, seed, prompt, generation, writers)


def begin_completion(
    request: GenerateRequest,
    model: LoadedModel,
    budget: Budget,
    deadline: float,
    state_tokens: StateTokens,
    kept_chars: int = 0,
) -> Completion:
    """Queue a request. kept_chars: of each text, for the log. Raises InvalidRequest, RateLimited, Overloaded, TooLarge,
    NotReady.
    """
    sampling = sampling_of(request, model.tokenizer.vocabulary)
    with model.engine.reserve(budget.share) as reservation:
        start = None if request.state is None else state_tokens.decode(request.state)
        budget.take_bytes(_memory_bytes(request, start, state_tokens))
        tokenizing_bytes = model.tokenizer.tokenizing_bytes(request.prompt)
        budget.take_bytes(tokenizing_bytes)
        ids = model.tokenizer.encode(request.prompt)
        budget.take_bytes(-tokenizing_bytes)
        budget.take_tokens(len(ids) + request.n * request.max_tokens)
        text_end = (NO_TEXT if start is None else start.text_end).then(request.prompt)
        prompt = ReadPrompt(request.prompt, ids, text_end, model.tokenizer.vocabulary.num_unknown(ids))
        patterns = StopPatterns.of(request.stops, model.tokenizer.normalized, request.min_tokens)
        returned = state_tokens if request.return_state else None
        plan = CompletionPlan(request, model, deadline, sampling, patterns, returned, kept_chars)
        seed = seed_of(request, start)
        generation = model.engine.generate(plan.call(prompt, seed, start=start), reservation)
    return plan.completion(prompt, seed, generation)


def sampling_of(request: GenerateRequest, vocabulary: Vocabulary) -> Sampling:
    """Return how the tokens of a request are sampled, without its seed. Raises InvalidRequest."""
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


def seed_of(request: GenerateRequest, start: TextState | None = None) -> int:
    """Return the seed of the request, else that of its state, else a random one, exact in every reader of JSON."""
    if request.seed is not UNSET:
        return request.seed
    if start is not None and start.is_seeded:
        return start.value.seed
    return secrets.randbits(53)


def finish_reason(finish: Finish) -> str:
    """Return the contract's name; a choice that a closing server cut off counts as out of time."""
    return Finish.TIMEOUT.value if finish is Finish.CANCELLED else finish.value


def _memory_bytes(request: GenerateRequest, start: TextState | None, state_tokens: StateTokens) -> int:
    """Return the most bytes that the samples and their states may take."""
    num_alternatives = request.logprobs or 0
    token_bytes = BYTES_PER_TOKEN + BYTES_PER_ALTERNATIVE * num_alternatives
    if request.logprobs is not None and not request.stream:
        token_bytes += BYTES_PER_WRITTEN * (1 + num_alternatives)
    num_bytes = max(request.n, request.num_beams) * request.max_tokens * token_bytes
    if request.return_state:
        before = 0 if start is None else len(start.value.seen)
        num_seen = before + TOKENS_PER_CHAR * len(request.prompt) + request.max_tokens
        num_bytes += request.n * state_tokens.memory_bytes(num_seen)
    return num_bytes
