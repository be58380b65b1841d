"""Continued prompts → bytes of the output: JSONL as /generate answers, TSV with a row a sample, or text."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Protocol, Self

import msgspec

from meari.bulk.carried import CarriedColumns, CarriedFields
from meari.bulk.names import figure_names
from meari.bulk.options import GenerateOptions
from meari.bulk.records import Problem, Record
from meari.bulk.tsv import cell, on_one_line
from meari.runtime.answers import Choice, GenerateUsage
from meari.runtime.completion import Completion

__all__ = ["Continued", "GenerateRows", "generate_rows"]

_encode: Final = msgspec.json.Encoder().encode


@dataclass(frozen=True)
class Continued:
    """What came of one prompt; of each choice the number of its tokens and the sum of their log-probabilities."""

    seed: int
    choices: list[Choice]
    usage: GenerateUsage
    num_tokens: list[int]
    logprobs: list[float]

    @classmethod
    def of(cls, completion: Completion) -> Self:
        """Wait for it. Raises MeariError."""
        completion.generation.wait_end()
        completion.generation.raise_for_failure()
        choices = list(completion.news())
        samples = [writer.sample for writer in completion.writers]
        return cls(
            completion.seed,
            choices,
            completion.usage(),
            [len(sample.token_ids) for sample in samples],
            [math.fsum(sample.logprobs) for sample in samples],
        )


class GenerateRows(Protocol):
    """How records are written."""

    def head(self) -> bytes:
        """What stands before the first record."""

    def rows(self, record: Record, continued: Continued) -> bytes:
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
        self._names = [_encode(name) for name in figure_names(options)]

    def head(self) -> bytes:
        """Nothing."""
        return b""

    def rows(self, record: Record, continued: Continued) -> bytes:
        """The object."""
        values = map(_encode, (continued.seed, continued.choices, continued.usage))
        figures = (b"%b:%b" % pair for pair in zip(self._names, values, strict=True))
        return self._carried.opening(record) + b"," + b",".join(figures) + b"}\n"

    def problem(self, problem: Problem) -> bytes:
        """An object with `line` and `error`."""
        return self._carried.problem(problem)


class SampleRows:
    """A row a sample; `logprob` is the sum over its tokens, `unknown_tokens` are those of the prompt."""

    def __init__(self, options: GenerateOptions) -> None:
        self._columns = CarriedColumns(options, with_text=options.with_text)

    def head(self) -> bytes:
        """The row of names."""
        return self._columns.head()

    def rows(self, record: Record, continued: Continued) -> bytes:
        """The rows."""
        samples = zip(continued.choices, continued.num_tokens, continued.logprobs, strict=True)
        return self._columns.rows(record, [_cells(*sample, continued.usage.unknown_tokens or 0) for sample in samples])

    def problem(self, problem: Problem) -> bytes:
        """A row with the line's number and what is wrong."""
        return self._columns.problem(problem)


class TextLines:
    """A line a sample, its line ends and backslashes written as in a cell of TSV."""

    def head(self) -> bytes:
        """Nothing."""
        return b""

    def rows(self, record: Record, continued: Continued) -> bytes:
        """The lines."""
        return "".join(on_one_line(choice.text) + "\n" for choice in continued.choices).encode("utf-8")

    def problem(self, problem: Problem) -> bytes:
        """An empty line: there is no other place for it."""
        return b"\n"


def _cells(choice: Choice, num_tokens: int, logprob: float, num_unknown: int) -> list[str]:
    figures = (choice.seed, choice.index, choice.finish_reason, num_tokens, logprob, num_unknown, choice.text)
    return [cell(figure) for figure in figures]
