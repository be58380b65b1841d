"""Prompts → continuations, a chunk of lines at a time, in a worker.

What comes of a line depends on the seed and the line's number alone: each line has a seed of its own, made of the two,
and tells it, so that `POST /generate` with that seed gives the same text. `served_generate.py` has a service do it.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

import msgspec

from meari.bulk.frames import Bad, Done, Part, in_parts
from meari.bulk.generate_rows import Continued, GenerateRows, generate_rows
from meari.bulk.lines import LONG_BYTES
from meari.bulk.names import new_names, text_name
from meari.bulk.options import GenerateOptions
from meari.bulk.records import Problem, Reader, Record, up_to_bad
from meari.bulk.totals import GenerateTotals
from meari.runtime.completion import Completion, begin_completion
from meari.runtime.model import LoadedModel
from meari.runtime.requests import GenerateRequest, checked_logit_bias
from meari.runtime.state_tokens import StateTokens

__all__ = ["Completions", "GenerateWork", "GeneratedChunk", "LongPrompt", "line_seed"]

NEVER_SECONDS: Final = 1e8
Ending = Callable[[], Continued]  # waits for what comes of a prompt


def line_seed(seed: int, line: int) -> int:
    """The seed of one line, in [0, 2**53): exact in every reader of JSON."""
    digest = hashlib.blake2b(b"%d %d" % (seed, line), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 11


def line_request(options: GenerateOptions, record: Record) -> GenerateRequest:
    """The request of one line."""
    seed = line_seed(options.seed, record.line)
    return msgspec.structs.replace(options.request, prompt=record.text, seed=seed)


class Unbounded:
    """A budget without an end: how much runs at a time is decided by whoever hands out the chunks."""

    def take_bytes(self, count: int) -> None:
        """Nothing is refused."""


class Completions:
    """Begins completions on one model, as many as are asked for."""

    def __init__(self, model: LoadedModel) -> None:
        self._model = model
        self._no_states = StateTokens.of(model.bundle, (secrets.token_hex(),))

    def begin(self, request: GenerateRequest) -> Completion:
        """Queue a request. Raises InvalidRequest."""
        deadline = self._model.engine.clock() + NEVER_SECONDS
        return begin_completion(request, self._model, Unbounded(), deadline, self._no_states)


class Work(Protocol):
    """What a chunk is written with."""

    rows: GenerateRows


class GenerateWork:
    """What `meari generate` does with every chunk. Raises InvalidRequest where the settings do not fit the model."""

    def __init__(self, model: LoadedModel, options: GenerateOptions) -> None:
        vocabulary_size = model.tokenizer.vocabulary.size
        checked_logit_bias(options.request.logit_bias, vocabulary_size)
        self._options = options
        self._completions = Completions(model)
        self._reader = Reader(options.input_format, text_name(options), with_context=False, taken=new_names(options))
        self.rows: GenerateRows = generate_rows(options)

    @property
    def head(self) -> bytes:
        """What stands before the first record of the output."""
        return self.rows.head()

    def begin(self, data: bytes, first_line: int, file: str = "") -> GeneratedChunk:
        """Queue a chunk of whole lines."""
        lines = up_to_bad(self._reader.read(data, first_line, file), skips_bad=self._options.skip_bad)
        return GeneratedChunk(self, [(line, self._begun(line)) for line in lines])

    def begin_long(self, line: int, file: str = "") -> LongPrompt:
        """A prompt that is too long."""
        return LongPrompt(self, line, file)

    def _begun(self, line: Record | Problem) -> Ending | None:
        if isinstance(line, Problem):
            return None
        return partial(Continued.of, self._completions.begin(line_request(self._options, line)))


@dataclass(frozen=True, eq=False)
class GeneratedChunk:
    """A chunk whose prompts are being continued."""

    work: Work
    lines: list[tuple[Record | Problem, Ending | None]]

    def messages(self) -> Iterator[Part | Bad | Done]:
        """Wait for the texts and write them, then the sums."""
        totals = [GenerateTotals()]
        yield from in_parts(self._pieces(totals))
        yield Done.of(totals[0])

    def _pieces(self, totals: list[GenerateTotals]) -> Iterator[bytes | Bad]:
        """The records; the sums are kept in `totals`."""
        for line, ending in self.lines:
            if ending is not None and isinstance(line, Record):
                continued = ending()
                totals[0] = totals[0].plus(_totals(continued))
                yield self.work.rows.rows(line, continued)
            elif isinstance(line, Problem):
                yield Bad(str(line))
                totals[0] = totals[0].plus(GenerateTotals(num_bad_lines=1))
                yield self.work.rows.problem(line)


class LongPrompt:
    """A line that is longer than a prompt may be; what it holds is not looked at."""

    def __init__(self, work: Work, line: int, file: str) -> None:
        message = f"got more than {LONG_BYTES:,} bytes, expected a prompt of at most so many"
        self._chunk = GeneratedChunk(work, [(Problem(line, message, file), None)])

    def feed(self, data: bytes, *, ends: bool) -> None:
        """Nothing is kept."""

    def messages(self) -> Iterator[Part | Bad | Done]:
        """A bad line."""
        return self._chunk.messages()


def _totals(continued: Continued) -> GenerateTotals:
    finishes = [choice.finish_reason for choice in continued.choices]
    return GenerateTotals(
        num_prompts=1,
        num_samples=len(continued.choices),
        prompt_tokens=continued.usage.prompt_tokens,
        unknown_tokens=continued.usage.unknown_tokens or 0,
        generated_tokens=sum(continued.num_tokens),
        num_ended=finishes.count("end"),
        num_stopped=finishes.count("stop"),
        num_cut=finishes.count("length"),
    )
