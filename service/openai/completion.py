"""One /v1/completions: a request → calls of the engine → an answer in OpenAI's shape, whole or as a stream.

Each prompt is a call of its own, the very one that /generate would make; prompts whose tokens are to be scored are one
call together, as those of a /score are. All wait in the engine's queue at once and are cancelled together. No Flask.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from msgspec import UNSET

from meari.runtime.answers import Work
from meari.runtime.completion import BYTES_PER_ALTERNATIVE, BYTES_PER_TOKEN, Budget, ChoiceWriter
from meari.runtime.engine import (
    Backlog,
    Event,
    GenerateCall,
    Generation,
    HandleGroup,
    Reservation,
    Sample,
    Sampling,
    ScoreCall,
    Scoring,
)
from meari.runtime.model import LoadedModel
from meari.runtime.requests import checked_logit_bias, effective_top_k
from meari.runtime.text.detokenizer import Detokenizer, StopPatterns, StopSearch, matcher_factory
from meari.service.openai.bodies import CompletionAnswer, CompletionUsage, PromptTokensDetails
from meari.service.openai.choices import OpenAIChoice, prompt_logprobs
from meari.service.openai.prompts import ReadPrompt, read_ids, read_text
from meari.service.requests.completions import CompletionsRequest, Prompt, prompts_of

__all__ = ["OpenAICompletion", "begin_openai_completion", "memory_bytes"]

BYTES_PER_UNIT: Final = 100  # of a prompt, a character or a token id, while it is tokenized and read
BYTES_PER_SAMPLE: Final = 2000  # whatever its length
BYTES_PER_ECHOED: Final = 350  # of a prompt's token with its figures
BYTES_PER_WRITTEN: Final = 60  # of the same, each time it is written


@dataclass(eq=False)
class PromptWork:
    """What is done for one prompt."""

    prompt: ReadPrompt
    sampling: Sampling
    generation: Generation | None = None


@dataclass(frozen=True, eq=False)
class OpenAICompletion:
    """A running /v1/completions; `id` and `created` are what every event of a stream repeats."""

    id: str
    created: int
    model: LoadedModel
    request: CompletionsRequest
    works: tuple[PromptWork, ...]
    scoring: Scoring | None
    generation: HandleGroup
    choices: tuple[OpenAIChoice, ...]

    def note_scores(self) -> None:
        """Once the scoring has ended: hand the prompts' figures to their choices."""
        if self.scoring is None:
            return
        each = self.request.num_samples
        for number, (work, scores) in enumerate(zip(self.works, self.scoring.results, strict=True)):
            logprobs = prompt_logprobs(work.prompt, scores, self.model.tokenizer.vocabulary)
            for choice in self.choices[number * each : (number + 1) * each]:
                choice.echo_logprobs(logprobs)

    @property
    def num_scored(self) -> int:
        """Tokens of prompts that were scored."""
        return 0 if self.scoring is None else sum(len(scores.logprobs) for scores in self.scoring.results)

    @property
    def num_generated(self) -> int:
        """Tokens of all samples so far."""
        return sum(len(sample.token_ids) for work in self.works for sample in _samples(work))

    @property
    def done(self) -> bool:
        """True once every choice has been given out with its finish reason."""
        return all(choice.done for choice in self.choices)

    def work(self) -> Work:
        """What was done so far, for the log."""
        samples = [sample for work in self.works for sample in _samples(work)]
        return Work(
            sum(len(work.prompt.ids) for work in self.works),
            sum(work.generation.cached_tokens for work in self.works if work.generation is not None),
            self.num_generated,
            self.num_scored,
            tuple(sample.finish.value for sample in samples if sample.finish),
            prompts=tuple(work.prompt.text for work in self.works),
            answers=tuple(choice.kept for choice in self.choices),
        )

    def answer(self) -> CompletionAnswer:
        """The whole answer, once everything has ended."""
        choices = [choice for writer in self._ranked() if (choice := writer.take()) is not None]
        for index, choice in enumerate(choices):
            choice.index = index
        answer = self._answer()
        answer.choices, answer.usage = choices, self._usage()
        return answer

    def events(self) -> list[object]:
        """Bodies of a stream's events: what has come of each choice since the last call."""
        bodies: list[object] = []
        for number, writer in enumerate(self.choices):
            choice = writer.take()
            if choice is not None:
                answer = self._answer()
                answer.choices = [choice]
                if self.request.wants_continuous_usage:
                    work = self.works[number // self.request.num_samples]
                    answer.usage = usage_of([work], writer.num_tokens)
                bodies.append(answer)
        return bodies

    def last_events(self) -> list[object]:
        """The event with the usage, if it is wanted."""
        if not self.request.wants_usage:
            return []
        answer = self._answer()
        answer.usage = self._usage()
        return [answer]

    def _answer(self) -> CompletionAnswer:
        fingerprint = f"fp_{self.model.bundle.hash[:16]}"
        answer = CompletionAnswer(self.id, self.created, self.model.name, fingerprint, [])
        if self.request.wants_usage:
            answer.usage = None
        return answer

    def _usage(self) -> CompletionUsage:
        return usage_of(self.works, self.num_generated)

    def _ranked(self) -> Iterator[OpenAIChoice]:
        """The best choices of each prompt, all of them in their order where no more were sampled than are wanted."""
        each, wanted = self.request.num_samples, self.request.num_choices
        for number, work in enumerate(self.works):
            own = self.choices[number * each : (number + 1) * each]
            if each > wanted and work.generation is not None:
                samples = work.generation.samples
                order = sorted(range(each), key=lambda place, of=samples: -mean_logprob(of[place]))  # type: ignore[misc]
                yield from (own[place] for place in order[:wanted])
            else:
                yield from own[:wanted]


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

    Raises InvalidRequest, Overloaded, TooLarge, NotReady.
    """
    prompts = prompts_of(request)
    sampling = _sampling(request, model)
    budget.take_bytes(memory_bytes(request, prompts))
    event = Event()
    with contextlib.ExitStack() as opened:
        places = [opened.enter_context(model.engine.reserve())] if request.asks_engine else []
        works = tuple(
            PromptWork(_read(request, prompt, model, path), _seeded(sampling, request))
            for prompt, path in zip(prompts, _paths(request, len(prompts)), strict=True)
        )
        patterns = StopPatterns.of(request.stops, model.tokenizer.normalized, request.min_tokens or 0)
        calls = [_call(request, work, model, deadline, event, patterns) for work in works if request.num_tokens]
        scoring = _score(request, works, model, deadline, places)
        together = _generate(works, calls, model, scoring, places, event)
    choices = tuple(_choices(request, works, model, patterns, kept_chars))
    return OpenAICompletion(answer_id, created, model, request, works, scoring, together, choices)


def usage_of(works: Sequence[PromptWork], num_generated: int) -> CompletionUsage:
    """The tokens of some prompts and of what was written after them."""
    prompt = sum(len(work.prompt.ids) for work in works)
    cached = sum(work.generation.cached_tokens for work in works if work.generation is not None)
    unknown = sum(work.prompt.num_unknown for work in works) or UNSET
    return CompletionUsage(prompt, num_generated, prompt + num_generated, PromptTokensDetails(cached), unknown)


def memory_bytes(request: CompletionsRequest, prompts: list[Prompt]) -> int:
    """What the prompts, their figures and the samples may come to."""
    alternatives = 0 if request.logprobs is None else request.logprobs
    each = BYTES_PER_UNIT
    if request.wants_echo_logprobs:
        written = BYTES_PER_WRITTEN * request.num_choices * (1 + alternatives)
        each += BYTES_PER_ECHOED + BYTES_PER_ALTERNATIVE * alternatives + written
    token_bytes = BYTES_PER_TOKEN + BYTES_PER_ALTERNATIVE * alternatives
    sample_bytes = BYTES_PER_SAMPLE + request.num_tokens * token_bytes
    return sum(map(len, prompts)) * each + len(prompts) * request.num_samples * sample_bytes


def mean_logprob(sample: Sample) -> float:
    """What OpenAI ranks by: the log-probability a token."""
    return sum(sample.logprobs) / len(sample.logprobs) if sample.logprobs else float("-inf")


def _score(
    request: CompletionsRequest,
    works: tuple[PromptWork, ...],
    model: LoadedModel,
    deadline: float,
    places: list[Reservation],
) -> Scoring | None:
    """Queue the scoring of all prompts as one call, where it is wanted. Raises NotReady."""
    if not request.wants_echo_logprobs:
        return None
    texts = [work.prompt.ids for work in works]
    call = ScoreCall([], texts, deadline, add_end=False, num_alternatives=request.logprobs or 0)
    return model.engine.score(call, places.pop())


def _generate(
    works: tuple[PromptWork, ...],
    calls: list[GenerateCall],
    model: LoadedModel,
    scoring: Scoring | None,
    places: list[Reservation],
    event: Event,
) -> HandleGroup:
    """Queue the calls, one a prompt, as far as there is room; none is left running if that fails. Raises NotReady."""
    generations = [Generation(call) for call in calls]
    for work, generation in zip(works, generations, strict=False):
        work.generation = generation
    backlog = Backlog(model.engine, zip(calls, generations, strict=True))
    handles = generations if scoring is None else [scoring, *generations]
    together = HandleGroup(handles, event, model.engine.clock(), backlog)
    try:
        backlog.feed(places.pop() if places else None)
    except BaseException:
        together.cancel()
        raise
    return together


def _call(
    request: CompletionsRequest,
    work: PromptWork,
    model: LoadedModel,
    deadline: float,
    event: Event,
    patterns: StopPatterns,
) -> GenerateCall:
    return GenerateCall(
        prompt=work.prompt.ids,
        max_tokens=request.num_tokens,
        deadline=deadline,
        sampling=work.sampling,
        num_samples=request.num_samples,
        num_alternatives=request.logprobs,
        stop=matcher_factory(patterns, model.tokenizer.vocabulary, work.prompt.text_end),
        ignores_end=bool(request.ignore_eos),
        event=event,
    )


def _choices(
    request: CompletionsRequest,
    works: tuple[PromptWork, ...],
    model: LoadedModel,
    patterns: StopPatterns,
    kept_chars: int,
) -> Iterator[OpenAIChoice]:
    vocabulary = model.tokenizer.vocabulary
    index = 0
    for work in works:
        samples = _samples(work)
        for place in range(request.num_samples):
            seed, writer = work.sampling.seed, None
            if samples:
                seed = samples[place].seed
                detokenizer = Detokenizer(vocabulary, work.prompt.text_end)
                with_tokens = request.logprobs is not None
                search = StopSearch(patterns)
                writer = ChoiceWriter(
                    index,
                    samples[place],
                    vocabulary,
                    detokenizer,
                    search,
                    with_tokens,
                    None,
                    False,
                    kept_chars=kept_chars,
                )
            yield OpenAIChoice(index, seed, work.prompt, writer, vocabulary, bool(request.echo), request.logprobs)
            index += 1


def _samples(work: PromptWork) -> tuple[Sample, ...]:
    return () if work.generation is None else work.generation.samples


def _read(request: CompletionsRequest, prompt: Prompt, model: LoadedModel, path: str) -> ReadPrompt:
    if isinstance(prompt, str):
        return read_text(prompt, model.tokenizer, request.wants_echo_logprobs)
    return read_ids(prompt, model.tokenizer.vocabulary, path)


def _paths(request: CompletionsRequest, count: int) -> list[str]:
    """How each prompt is called in a message."""
    alone = isinstance(request.prompt, str) or request.prompt is None or isinstance(request.prompt[0], int)
    return ["prompt"] if alone else [f"prompt[{place}]" for place in range(count)]


def _sampling(request: CompletionsRequest, model: LoadedModel) -> Sampling:
    size = model.tokenizer.vocabulary.size
    return Sampling(
        temperature=1.0 if request.temperature is None else request.temperature,
        top_k=effective_top_k(request.top_k or 0, size),
        top_p=1.0 if request.top_p is None else request.top_p,
        min_p=request.min_p or 0.0,
        repetition_penalty=1.0 if request.repetition_penalty is None else request.repetition_penalty,
        frequency_penalty=request.frequency_penalty or 0.0,
        presence_penalty=request.presence_penalty or 0.0,
        min_tokens=request.min_tokens or 0,
        logit_bias=checked_logit_bias(request.logit_bias, size),
    )


def _seeded(sampling: Sampling, request: CompletionsRequest) -> Sampling:
    """With the request's seed, as every prompt would have it alone, or else a random one for each."""
    seed = secrets.randbits(53) if request.fixed_seed is None else request.fixed_seed
    return replace(sampling, seed=seed)
