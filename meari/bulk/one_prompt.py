"""One prompt, in this process → bytes of the output, text as it comes. Raises BundleError, InvalidRequest."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from pathlib import Path

from meari.bulk.generate import Completions
from meari.bulk.generate_rows import Continued, generate_rows
from meari.bulk.options import GenerateOptions, OutputFormat
from meari.bulk.records import Record
from meari.bulk.worker import open_model
from meari.runtime.answers import GenerateUsage
from meari.runtime.completion import Completion
from meari.runtime.requests import GenerateRequest
from meari.runtime.text.json_lines import escape_line_ends

__all__ = ["SEPARATOR", "continue_prompt", "rows_of_one"]

SEPARATOR = "---\n"  # between the texts of several samples


def continue_prompt(
    folder: Path, request: GenerateRequest, output_format: OutputFormat, note_usage: Callable[[GenerateUsage], None]
) -> Generator[bytes]:
    """What is to be written, as soon as it is known; then `note_usage` is told of the tokens."""
    model = open_model(str(folder))
    try:
        completion = Completions(model).begin(request)
        yield from _pieces(completion, request, output_format)
        note_usage(completion.usage())
    finally:
        model.engine.stop()


def _pieces(completion: Completion, request: GenerateRequest, output_format: OutputFormat) -> Iterator[bytes]:
    if output_format == "text":
        num_samples = len(completion.writers)
        yield from _stream(completion) if num_samples == 1 else _texts(completion)
        return
    yield rows_of_one(request, output_format, Continued.of(completion))


def rows_of_one(request: GenerateRequest, output_format: OutputFormat, continued: Continued) -> bytes:
    """The output of one prompt, as if it were the only line of a file."""
    rows = generate_rows(
        GenerateOptions(bundle="", input_format="text", format=output_format, request=request, seed=continued.seed)
    )
    data = rows.head() + rows.rows(Record(1, request.prompt), continued)
    return escape_line_ends(data) if output_format == "jsonl" else data


def _stream(completion: Completion) -> Iterator[bytes]:
    """The one sample, as it comes, and a line end."""
    while not completion.done:
        completion.generation.wait()
        completion.generation.raise_for_failure()
        text = "".join(choice.text for choice in completion.news())
        if text:
            yield text.encode("utf-8")
    yield b"\n"


def _texts(completion: Completion) -> Iterator[bytes]:
    """Several samples, each with a line end."""
    yield SEPARATOR.join(f"{choice.text}\n" for choice in Continued.of(completion).choices).encode("utf-8")
