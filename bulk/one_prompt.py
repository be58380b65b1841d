"""One prompt, in this process → bytes of the output, text as it comes. Raises BundleError, InvalidRequest."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path

from bulk.generate import Completions
from bulk.generate_rows import generate_rows
from bulk.options import GenerateOptions, OutputFormat
from bulk.records import Record
from bulk.worker import open_model
from service.answers.completion import Completion
from service.registry import Model
from service.requests.schema import GenerateRequest

__all__ = ["continue_prompt"]

SEPARATOR = "---\n"  # between the texts of several samples


def continue_prompt(folder: Path, request: GenerateRequest, output_format: OutputFormat) -> Generator[bytes]:
    """What is to be written, as soon as it is known."""
    model = open_model(str(folder))
    try:
        yield from _pieces(folder, model, request, output_format)
    finally:
        model.engine.stop()


def _pieces(folder: Path, model: Model, request: GenerateRequest, output_format: OutputFormat) -> Iterator[bytes]:
    completion = Completions(model).begin(request)
    if output_format == "text":
        num_samples = len(completion.writers)
        yield from _stream(completion) if num_samples == 1 else _texts(completion)
        return
    options = GenerateOptions(bundle=str(folder), input_format="text", format=output_format, request=request, seed=0)
    rows = generate_rows(options)
    _await(completion)
    yield rows.head() + rows.rows(Record(1, request.prompt), completion)


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
    _await(completion)
    yield SEPARATOR.join(f"{choice.text}\n" for choice in completion.news()).encode("utf-8")


def _await(completion: Completion) -> None:
    completion.generation.wait_end()
    completion.generation.raise_for_failure()
