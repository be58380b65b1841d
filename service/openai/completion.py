"""One /v1/completions: a list of completions, and an answer in OpenAI's shape, whole or as a stream.

Input: a checked request and the model that it is for. Output: bodies of an answer or of events. Must not know: Flask.

Each prompt is the completion that POST /generate would make of it; prompts whose tokens are scored are one call
together, as those of a POST /score are. All wait in the engine's queue at once and are cancelled together.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from msgspec import UNSET

from meari.runtime.answers import Work
from meari.runtime.completion import (
    BYTES_PER_ALTERNATIVE,
    BYTES_PER_TOKEN,
    Budget,
    Completion,
    CompletionPlan,
    sampling_of,
    seed_of,
)
from meari.runtime.engine import Backlog, Event, Generation, HandleGroup, Sample, ScoreCall, Scoring
from meari.runtime.model import LoadedModel
from meari.runtime.text.detokenizer import StopPatterns
from meari.service.openai.bodies import CompletionAnswer, CompletionUsage, PromptTokensDetails
from meari.service.openai.choices import EchoedPrompt, OpenAIChoice, prompt_logprobs, read_ids, read_text
from meari.service.requests.completions import CompletionsRequest, Prompt, prompts_of

__all__ = ["OpenAICompletion", "begin_openai_completion", "memory_bytes"]

BYTES_PER_UNIT: Final = 100  # of a prompt, a token, while it is tokenized and read
BYTES_PER_SAMPLE: Final = 2000  # of any length
BYTES_PER_ECHOED: Final = 350  # of a prompt's token with its figures
BYTES_PER_WRITTEN: Final = 60  # of the same, each time it is written


@dataclass(frozen=True, eq=False)
class PromptChoices:
    """The choices of one prompt, all that were sampled. completion: None if no token is generated."""

    prompt: EchoedPrompt
    completion: Completion | None
    choices: tuple[OpenAIChoice, ...]

    @property
    def samples(self) -> tuple[Sample, ...]:
        """The samples of the choices, in their order."""
        return () if self.completion is None else self.completion.generation.samples

    @property
    def num_cached(self) -> int:
        """Tokens of the prompt whose state was cached."""
        return 0 if self.completion is None else self.completion.generation.cached_tokens

    def best(self, count: int) -> Iterator[OpenAIChoice]:
        """Yield the best choices, or all of them in their order if no more were sampled."""
        if len(self.choices) <= count or not self.samples:
            yield from self.choices[:count]
            return
        order = sorted(range(len(self.choices)), key=lambda index: -mean_logprob(self.samples[index]))
        yield from (self.choices[index] for index in order[:count])


@dataclass(frozen=True, eq=False)
class OpenAICompletion:
    """A running /v1/completions; every event of a stream repeats `id` and `created`."""

    id: str
    created: int
    model: LoadedModel
    request: CompletionsRequest
    prompts: tuple[PromptChoices, ...]
    scoring: Scoring | None
    generation: HandleGroup

    def note_scores(self) -> None:
        """Give the prompts' figures to their choices, once the scoring has ended."""
        if self.scoring is None:
            return
        for own, scores in zip(self.prompts, self.scoring.results, strict=True):
            logprobs = prompt_logprobs(own.prompt, scores, self.model.tokenizer.vocabulary)
            for choice in own.choices:
                choice.echo_logprobs(logprobs)

    @property
    def num_scored(self) -> int:
        """Tokens of prompts that were scored."""
        return 0 if self.scoring is None else sum(len(scores.logprobs) for scores in self.scoring.results)

    @property
    def num_generated(self) -> int:
        """Tokens of all samples so far."""
        return sum(len(sample.token_ids) for own in self.prompts for sample in own.samples)

    @property
    def done(self) -> bool:
        """True once every choice has been given out with its finish reason."""
        return all(choice.done for own in self.prompts for choice in own.choices)

    def work(self) -> Work:
        """Return the work so far, for the log."""
        return Work(
            sum(len(own.prompt.ids) for own in self.prompts),
            sum(own.num_cached for own in self.prompts),
            self.num_generated,
            self.num_scored,
            tuple(sample.finish.value for own in self.prompts for sample in own.samples if sample.finish),
            prompts=tuple(own.prompt.text for own in self.prompts),
            answers=tuple(choice.kept for own in self.prompts for choice in own.choices),
        )

    def answer(self) -> CompletionAnswer:
        """Return the whole answer, once everything has ended."""
        best = [choice for own in self.prompts for choice in own.best(self.request.num_choices)]
        choices = [choice for writer in best if (choice := writer.take()) is not None]
        for index, choice in enumerate(choices):
            choice.index = index
        answer = self._answer()
        answer.choices, answer.usage = choices, usage_of(self.prompts, self.num_generated)
        return answer

    def events(self) -> list[object]:
        """Return bodies of a stream's events: the text of each choice since the last call."""
        bodies: list[object] = []
        for own in self.prompts:
            for writer in own.choices:
                choice = writer.take()
                if choice is not None:
                    answer = self._answer()
                    answer.choices = [choice]
                    if self.request.wants_continuous_usage:
                        answer.usage = usage_of([own], writer.num_tokens)
                    bodies.append(answer)
        return bodies

    def last_events(self) -> list[object]:
        """Return the event with the usage, if it is wanted."""
        if not self.request.wants_usage:
            return []
        answer = self._answer()
        answer.usage = usage_of(self.prompts, self.num_generated)
        return [answer]

    def _answer(self) -> CompletionAnswer:
        fingerprint = f"fp_{self.model.bundle.hash[:16]}"
        answer = CompletionAnswer(self.id, self.created, self.model.name, fingerprint, [])
        if self.request.wants_usage:
            answer.usage = None
        return answer


def begin_openai_completion(
    request: CompletionsRequest,
    model: LoadedModel,
    budget: Budget,
    deadline: float,
    answer_id: str,
    created: int,
    kept_chars: int = 0,
) -> OpenAICompletion:
    """Queue everything that a request asks for. kept_chars: of each text, for the log.

    Raises InvalidRequest, RateLimited, Overloaded, TooLarge, NotReady.
    """
    prompts, generate = prompts_of(request), request.generate_request
    sampling = sampling_of(generate, model.tokenizer.vocabulary)
    num_units = sum(map(model.tokenizer.max_tokens, prompts))
    budget.take_bytes(memory_bytes(request, len(prompts), num_units))
    with contextlib.ExitStack() as opened:
        places = [opened.enter_context(model.engine.reserve(budget.share))] if request.asks_engine else []
        tokenizing_bytes = max(map(model.tokenizer.tokenizing_bytes, prompts))
        budget.take_bytes(tokenizing_bytes)
        read = [
            _read(request, prompt, model, path)
            for prompt, path in zip(prompts, _paths(request, len(prompts)), strict=True)
        ]
        budget.take_bytes(-tokenizing_bytes)
        num_written = len(read) * request.num_samples * request.num_tokens
        budget.take_tokens(sum(len(prompt.ids) for prompt in read) + num_written)
        seeds = [seed_of(generate) for _ in read]
        patterns = StopPatterns.of(generate.stops, model.tokenizer.normalized, generate.min_tokens)
        plan = CompletionPlan(generate, model, deadline, sampling, patterns, kept_chars=kept_chars)
        event = Event()
        calls = [
            plan.call(prompt, seed, event=event, ignores_end=bool(request.ignore_eos))
            for prompt, seed in zip(read, seeds, strict=True)
            if request.num_tokens
        ]
        scoring = None
        if request.wants_echo_logprobs:
            texts = [prompt.ids for prompt in read]
            call = ScoreCall([], texts, deadline, add_end=False, num_alternatives=request.logprobs or 0)
            scoring = model.engine.score(call, places.pop())
        generations = [Generation(call) for call in calls]
        backlog = Backlog(model.engine, zip(calls, generations, strict=True))
        handles = generations if scoring is None else [scoring, *generations]
        group = HandleGroup(handles, event, model.engine.clock(), backlog)
        try:
            backlog.feed(places.pop() if places else None)
        except BaseException:
            group.cancel()  # nothing is left running
            raise
    own = tuple(_choices(request, plan, read, seeds, generations))
    return OpenAICompletion(answer_id, created, model, request, own, scoring, group)


def usage_of(prompts: Sequence[PromptChoices], num_generated: int) -> CompletionUsage:
    """Return the tokens of some prompts and of their choices."""
    num_prompt = sum(len(own.prompt.ids) for own in prompts)
    cached = sum(own.num_cached for own in prompts)
    unknown = sum(own.prompt.num_unknown for own in prompts) or UNSET
    return CompletionUsage(num_prompt, num_generated, num_prompt + num_generated, PromptTokensDetails(cached), unknown)


def memory_bytes(request: CompletionsRequest, num_prompts: int, num_units: int) -> int:
    """Return the most bytes that the prompts, their figures and the samples may take. num_units: of all prompts."""
    alternatives = 0 if request.logprobs is None else request.logprobs
    each = BYTES_PER_UNIT
    if request.wants_echo_logprobs:
        written = BYTES_PER_WRITTEN * request.num_choices * (1 + alternatives)
        each += BYTES_PER_ECHOED + BYTES_PER_ALTERNATIVE * alternatives + written
    token_bytes = BYTES_PER_TOKEN + BYTES_PER_ALTERNATIVE * alternatives
    sample_bytes = BYTES_PER_SAMPLE + request.num_tokens * token_bytes
    return num_units * each + num_prompts * request.num_samples * sample_bytes


def mean_logprob(sample: Sample) -> float:
    """Return the log-probability a token, by which OpenAI ranks."""
    return sum(sample.logprobs) / len(sample.logprobs) if sample.logprobs else float("-inf")


def _choices(
    request: CompletionsRequest,
    plan: CompletionPlan,
    prompts: list[EchoedPrompt],
    seeds: list[int],
    generations: list[Generation],
) -> Iterator[PromptChoices]:
    """Yield the choices of each prompt, numbered through; without generations they have the echo alone."""
    vocabulary, each = plan.model.tokenizer.vocabulary, request.num_samples
    for number, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        completion = plan.completion(prompt, seed, generations[number]) if generations else None
        writers = [None] * each if completion is None else completion.writers
        choices = tuple(
            OpenAIChoice(
                number * each + index,
                seed if writer is None else writer.sample.seed,
                prompt,
                writer,
                vocabulary,
                echo=bool(request.echo),
                logprobs=request.logprobs,
            )
            for index, writer in enumerate(writers)
        )
        yield PromptChoices(prompt, completion, choices)


def _read(request: CompletionsRequest, prompt: Prompt, model: LoadedModel, path: str) -> EchoedPrompt:
    if isinstance(prompt, str):
        return read_text(prompt, model.tokenizer, with_offsets=request.wants_echo_logprobs)
    return read_ids(prompt, model.tokenizer.vocabulary, path)


def _paths(request: CompletionsRequest, count: int) -> list[str]:
    """Return the path of each prompt in a message."""
    alone = isinstance(request.prompt, str) or request.prompt is None or isinstance(request.prompt[0], int)
    return ["prompt"] if alone else [f"prompt[{index}]" for index in range(count)]
