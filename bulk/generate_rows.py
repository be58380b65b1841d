"""Finished completions → bytes of the output: JSONL as /generate answers, TSV with a row a sample, or text."""

from __future__ import annotations

import math
import re
from typing import Final, Protocol

import msgspec

from bulk.carried import CarriedColumns, CarriedFields
from bulk.options import GenerateOptions
from bulk.records import Problem, Record
from bulk.tsv import cell
from service.answers.bodies import Choice
from service.answers.completion import ChoiceWriter, Completion

__all__ = ["GenerateRows", "generate_rows"]

_encode: Final = msgspec.json.Encoder().encode
_ESCAPED: Final = {"\n": r"\n", "\r": r"\r", "\\": r"\\"}


class GenerateRows(Protocol):
    """How records are written."""

    def head(self) -> bytes:
        """What stands before the first record."""

    def rows(self, record: Record, completion: Completion) -> bytes:
        """What came of one prompt."""

    def problem(self, problem: Problem) -> bytes:
        """A bad line."""


def generate_rows(options: GenerateOptions) -> GenerateRows:
    """The way that `options` ask for."""
    if options.format == "tsv":
        return SampleRows(options)
    return JsonLines(options) if options.format == "jsonl" else TextLines()


class JsonLines:
    """A JSON object a prompt."""

    def __init__(self, options: GenerateOptions) -> None:
        self._carried = CarriedFields(options)

    def head(self) -> bytes:
        """Nothing."""
        return b""

    def rows(self, record: Record, completion: Completion) -> bytes:
        """The object."""
        choices = _encode(list(completion.news()))
        usage = _encode(completion.answer([]).usage)
        opening = self._carried.opening(record)
        return b'%b,"seed":%d,"choices":%b,"usage":%b}\n' % (opening, completion.seed, choices, usage)

    def problem(self, problem: Problem) -> bytes:
        """An object with `line` and `error`."""
        return self._carried.problem(problem)


class SampleRows:
    """A row a sample; `logprob` is the sum over its tokens."""

    def __init__(self, options: GenerateOptions) -> None:
        self._columns = CarriedColumns(options, with_text=options.with_text)

    def head(self) -> bytes:
        """The row of names."""
        return self._columns.head()

    def rows(self, record: Record, completion: Completion) -> bytes:
        """The rows."""
        pairs = zip(completion.news(), completion.writers, strict=True)
        return self._columns.rows(record, [_cells(completion.seed, choice, writer) for choice, writer in pairs])

    def problem(self, problem: Problem) -> bytes:
        """A row with the line's number and what is wrong."""
        return self._columns.problem(problem)


class TextLines:
    """A line a sample, its line ends written as \\n and \\r, its backslashes as \\\\."""

    def head(self) -> bytes:
        """Nothing."""
        return b""

    def rows(self, record: Record, completion: Completion) -> bytes:
        """The lines."""
        texts = (re.sub(r"[\n\r\\]", lambda match: _ESCAPED[match[0]], choice.text) for choice in completion.news())
        return "".join(text + "\n" for text in texts).encode("utf-8")

    def problem(self, problem: Problem) -> bytes:
        """An empty line: there is no other place for it."""
        return b"\n"


def _cells(seed: int, choice: Choice, writer: ChoiceWriter) -> list[str]:
    logprob = math.fsum(writer.sample.logprobs)
    figures = (seed, choice.index, choice.finish_reason, len(writer.sample.token_ids), logprob, choice.text)
    return [cell(figure) for figure in figures]
