"""Prompts → continuations, over either backend: a chunk of lines at a time, or one prompt.

Input: chunks of lines, or a request. Output: JSONL as POST /generate answers, TSV with a row a sample, or text. Must
not know: which backend generates, where output goes.

The continuation of a line depends on the seed and the line's number alone: each line has a seed of its own, made of the
two, and reports it, so that `POST /generate` with that seed gives the same text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

import msgspec

from meari.bulk.backends import Backend, Generated
from meari.bulk.frames import Bad, Begun, Done, LongLine, Part, in_parts
from meari.bulk.lines import LONG_BYTES
from meari.bulk.options import GenerateOptions, OutputFormat, figure_names, new_names, text_name
from meari.bulk.records import Problem, Reader, Record, up_to_bad
from meari.bulk.rows import CarriedColumns, CarriedFields, cell, on_one_line
from meari.bulk.totals import GenerateTotals
from meari.errors import EngineFailed
from meari.runtime.answers import Choice, GenerateUsage
from meari.runtime.requests import GenerateRequest
from meari.validation.parsing import escape_line_ends

__all__ = ["GenerateWork", "continue_prompt", "line_seed"]

SEPARATOR: Final = "---\n"  # between the texts of several samples
_encode: Final = msgspec.json.Encoder().encode


def continue_prompt(
    backend: Backend,
    request: GenerateRequest,
    output_format: OutputFormat,
    note_usage: Callable[[GenerateUsage], None],
) -> Generator[bytes]:
    """Yield the output of one prompt, text as it comes; then call `note_usage`.

    Raises InvalidRequest, RemoteError, BulkError if a service's time was up.
    """
    if output_format == "text" and request.n == 1:
        for piece in backend.stream(request, note_usage):
            yield piece.encode("utf-8")
        return
    generated = backend.generate(request, wants_counts=output_format == "tsv", label="the prompt")()
    if output_format == "text":
        yield SEPARATOR.join(f"{choice.text}\n" for choice in generated.choices).encode("utf-8")
    else:
        yield _only_line(request, output_format, generated)
    note_usage(generated.usage)


def _only_line(request: GenerateRequest, output_format: OutputFormat, generated: Generated) -> bytes:
    """Return the output of one prompt as if it were the only line of a file."""
    rows = generate_rows(
        GenerateOptions(bundle="", input_format="text", format=output_format, request=request, seed=generated.seed)
    )
    data = rows.head() + rows.rows(Record(1, request.prompt), generated)
    return escape_line_ends(data) if output_format == "jsonl" else data


def line_seed(seed: int, line: int) -> int:
    """Return the seed of one line, in [0, 2**53): exact in every reader of JSON."""
    digest = hashlib.blake2b(b"%d %d" % (seed, line), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 11


class GenerateWork:
    """The work of `meari generate` on every chunk. Raises InvalidRequest if the options do not fit the model."""

    def __init__(self, backend: Backend, options: GenerateOptions) -> None:
        backend.check(options)
        self._backend = backend
        self._options = options
        self._reader = Reader(options.input_format, text_name(options), with_context=False, taken=new_names(options))
        self._rows: GenerateRows = generate_rows(options)
        self.head = self._rows.head()  # before the first record of the output

    def begin(self, data: bytes, first_line: int, file: str = "") -> GeneratedChunk:
        """Queue a chunk of whole lines."""
        lines = up_to_bad(self._reader.read(data, first_line, file), skips_bad=self._options.skip_bad)
        return self._chunk([line if isinstance(line, Problem) else (line, self._queue(line)) for line in lines])

    def begin_long(self, line: int, file: str = "") -> LongLine:
        """Begin a prompt that is too long."""
        message = f"got more than {LONG_BYTES:,} bytes, expected a prompt of at most so many"
        return LongPrompt(self._chunk([Problem(line, message, file)]))

    def _queue(self, record: Record) -> Callable[[], Generated]:
        seed = line_seed(self._options.seed, record.line)
        request = msgspec.structs.replace(self._options.request, prompt=record.text, seed=seed)
        wants_counts = self._options.format == "tsv"
        return self._backend.generate(request, wants_counts=wants_counts, label=f"line {record.line}")

    def _chunk(self, lines: list[Problem | tuple[Record, Callable[[], Generated]]]) -> GeneratedChunk:
        return GeneratedChunk(self._rows, self._options, lines)


@dataclass(frozen=True, eq=False)
class GeneratedChunk(Begun):
    """A chunk whose prompts are being continued. Each record stands beside a function that waits for its texts."""

    rows: GenerateRows
    options: GenerateOptions
    lines: list[Problem | tuple[Record, Callable[[], Generated]]]

    def messages(self) -> Iterator[Part | Bad | Done]:
        """Wait for the texts and yield them, then the sums."""
        totals = [GenerateTotals()]
        yield from in_parts(self._pieces(totals), self.options)
        yield Done.of(totals[0])

    def _pieces(self, totals: list[GenerateTotals]) -> Iterator[bytes | Bad]:
        """Yield the records, and keep the sums in `totals`."""
        for line in self.lines:
            if isinstance(line, Problem):
                problem = line
            else:
                record, await_texts = line
                try:
                    generated = await_texts()
                except EngineFailed as error:
                    problem = Problem(record.line, str(error), record.file)
                else:
                    totals[0] = totals[0].plus(_totals(generated))
                    yield self.rows.rows(record, generated)
                    continue
            yield Bad(str(problem))
            totals[0] = totals[0].plus(GenerateTotals(num_bad_lines=1))
            yield self.rows.problem(problem)
            if not self.options.skip_bad:
                return


@dataclass(frozen=True, eq=False)
class LongPrompt(LongLine):
    """A line that is longer than a prompt may be, as a chunk with a problem; its bytes are not kept."""

    chunk: GeneratedChunk

    def feed(self, data: bytes, *, ends: bool) -> None:
        """Ignore the piece."""

    def messages(self) -> Iterator[Part | Bad | Done]:
        """Yield the bad line."""
        return self.chunk.messages()


def _totals(generated: Generated) -> GenerateTotals:
    finishes = [choice.finish_reason for choice in generated.choices]
    return GenerateTotals(
        num_prompts=1,
        num_samples=len(generated.choices),
        prompt_tokens=generated.usage.prompt_tokens,
        unknown_tokens=generated.usage.unknown_tokens or 0,
        generated_tokens=sum(generated.num_tokens),
        num_ended=finishes.count("end"),
        num_stopped=finishes.count("stop"),
        num_cut=finishes.count("length"),
    )


class GenerateRows(Protocol):
    """A writer of records."""

    def head(self) -> bytes:
        """Return the bytes before the first record."""

    def rows(self, record: Record, generated: Generated) -> bytes:
        """Return the continuations of one prompt."""

    def problem(self, problem: Problem) -> bytes:
        """Return the record of a bad line."""


def generate_rows(options: GenerateOptions) -> GenerateRows:
    """Return the writer that the options ask for."""
    if options.format == "tsv":
        return SampleRows(options)
    return JsonLines(options) if options.format == "jsonl" else TextLines()


class JsonLines:
    """Writes a JSON object a prompt."""

    def __init__(self, options: GenerateOptions) -> None:
        self._carried = CarriedFields(options)
        self._names = [_encode(name) for name in figure_names(options)]
        self.problem = self._carried.problem

    def head(self) -> bytes:
        """Return nothing: JSONL has no head."""
        return b""

    def rows(self, record: Record, generated: Generated) -> bytes:
        """Return the object."""
        values = map(_encode, (generated.seed, generated.choices, generated.usage))
        figures = (b"%b:%b" % pair for pair in zip(self._names, values, strict=True))
        return self._carried.opening(record) + b"," + b",".join(figures) + b"}\n"


class SampleRows:
    """Writes a row a sample; `logprob` is the sum over its tokens, `unknown_tokens` are those of the prompt."""

    def __init__(self, options: GenerateOptions) -> None:
        self._columns = CarriedColumns(options, with_text=options.with_text)
        self.head, self.problem = self._columns.head, self._columns.problem

    def rows(self, record: Record, generated: Generated) -> bytes:
        """Return the rows."""
        samples = zip(generated.choices, generated.num_tokens, generated.logprobs, strict=True)
        return self._columns.rows(record, [_cells(*sample, generated.usage.unknown_tokens or 0) for sample in samples])


class TextLines:
    """Writes a line a sample, its line ends and backslashes escaped as in a cell of TSV."""

    def head(self) -> bytes:
        """Return nothing: text has no head."""
        return b""

    def rows(self, record: Record, generated: Generated) -> bytes:
        """Return the lines."""
        return "".join(on_one_line(choice.text) + "\n" for choice in generated.choices).encode("utf-8")

    def problem(self, problem: Problem) -> bytes:
        """Return an empty line: text has no other place for a problem."""
        return b"\n"


def _cells(choice: Choice, num_tokens: int, logprob: float, num_unknown: int) -> list[str]:
    figures = (choice.seed, choice.index, choice.finish_reason, num_tokens, logprob, num_unknown, choice.text)
    return [cell(figure) for figure in figures]
