"""Prompts → continuations, a chunk of lines at a time, in a worker.

What comes of a line depends on the seed and the line's number alone: each line has a seed of its own, made of the two,
and tells it, so that `POST /generate` with that seed gives the same text.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import msgspec

from bulk.frames import Done, Part, in_parts
from bulk.generate_rows import GenerateRows, generate_rows
from bulk.lines import LONG_BYTES
from bulk.names import text_name
from bulk.options import GenerateOptions
from bulk.records import Problem, Reader, Record
from bulk.totals import GenerateTotals
from service.answers.completion import Completion, begin_completion
from service.engine import Finish
from service.registry import Model
from service.requests.model_limits import checked_logit_bias, checked_top_k
from service.requests.schema import GenerateRequest
from service.state_tokens import StateTokens

__all__ = ["Completions", "GenerateWork", "line_seed"]

NEVER_SECONDS: Final = 1e8


def line_seed(seed: int, line: int) -> int:
    """The seed of one line, in [0, 2**53): exact in every reader of JSON."""
    digest = hashlib.blake2b(b"%d %d" % (seed, line), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 11


class Unbounded:
    """A budget without an end: how much runs at a time is decided by whoever hands out the chunks."""

    def take_bytes(self, count: int) -> None:
        """Nothing is refused."""


class Completions:
    """Begins completions on one model, as many as are asked for."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._no_states = StateTokens.of(model.bundle, (secrets.token_hex(),))

    def begin(self, request: GenerateRequest) -> Completion:
        """Queue a request. Raises InvalidRequest."""
        deadline = self._model.engine.clock() + NEVER_SECONDS
        return begin_completion(request, self._model, Unbounded(), deadline, self._no_states)


class GenerateWork:
    """What `meari generate` does with every chunk. Raises InvalidRequest where the settings do not fit the model."""

    def __init__(self, model: Model, options: GenerateOptions) -> None:
        vocabulary_size = model.tokenizer.vocabulary.size
        checked_top_k(options.request.top_k, vocabulary_size)
        checked_logit_bias(options.request.logit_bias, vocabulary_size)
        self._options = options
        self._completions = Completions(model)
        self._reader = Reader(options.input_format, text_name(options), with_context=False)
        self.rows: GenerateRows = generate_rows(options)
        self.skips_bad = options.skip_bad

    @property
    def head(self) -> bytes:
        """What stands before the first record of the output."""
        return self.rows.head()

    def begin(self, data: bytes, first_line: int) -> GeneratedChunk:
        """Queue a chunk of whole lines."""
        lines = self._reader.read(data, first_line)
        if not self.skips_bad:
            stop = next((i for i, line in enumerate(lines, 1) if isinstance(line, Problem)), len(lines))
            lines = lines[:stop]
        return GeneratedChunk(self, [(line, self._begun(line)) for line in lines])

    def begin_long(self, line: int) -> LongPrompt:
        """A prompt that is too long."""
        return LongPrompt(self, line)

    def _begun(self, line: Record | Problem) -> Completion | None:
        if isinstance(line, Problem):
            return None
        seed = line_seed(self._options.seed, line.line)
        return self._completions.begin(msgspec.structs.replace(self._options.request, prompt=line.text, seed=seed))


@dataclass(frozen=True, eq=False)
class GeneratedChunk:
    """A chunk whose prompts are being continued."""

    work: GenerateWork
    lines: list[tuple[Record | Problem, Completion | None]]

    def messages(self) -> Iterator[Part | Done]:
        """Wait for the texts and write them, then the sums."""
        yield from in_parts(self._pieces())
        problems = [line for line, _ in self.lines if isinstance(line, Problem)]
        completions = [completion for _, completion in self.lines if completion is not None]
        ends_here = bool(problems) and not self.work.skips_bad
        totals = _totals(completions, 0 if ends_here else len(problems))
        yield Done.of(totals, str(problems[0]) if ends_here else "")

    def _pieces(self) -> Iterator[bytes]:
        for line, completion in self.lines:
            if isinstance(line, Record):
                assert completion is not None
                completion.generation.wait_end()
                completion.generation.raise_for_failure()
                yield self.work.rows.rows(line, completion)
            elif self.work.skips_bad:
                yield self.work.rows.problem(line)


class LongPrompt:
    """A line that is longer than a prompt may be; what it holds is not looked at."""

    def __init__(self, work: GenerateWork, line: int) -> None:
        message = f"got more than {LONG_BYTES:,} bytes, expected a prompt of at most so many"
        self._chunk = GeneratedChunk(work, [(Problem(line, message), None)])

    def feed(self, data: bytes, *, ends: bool) -> None:
        """Nothing is kept."""

    def messages(self) -> Iterator[Part | Done]:
        """A bad line."""
        return self._chunk.messages()


def _totals(completions: list[Completion], num_bad_lines: int) -> GenerateTotals:
    samples = [sample for completion in completions for sample in completion.generation.samples]
    finishes = [sample.finish for sample in samples]
    return GenerateTotals(
        num_bad_lines=num_bad_lines,
        num_prompts=len(completions),
        num_samples=len(samples),
        prompt_tokens=sum(completion.prompt_tokens for completion in completions),
        generated_tokens=sum(len(sample.token_ids) for sample in samples),
        num_ended=finishes.count(Finish.END),
        num_stopped=finishes.count(Finish.STOP),
        num_cut=finishes.count(Finish.LENGTH),
    )
