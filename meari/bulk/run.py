"""A whole run: an input, work for every line of it, an output in order, and a summary.

Input: a source of lines, or a few texts, with options. Output: records in the order of the input, and the sums. Must
not know: the command line.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from meari.bulk.errors import BadLine, BulkError, CannotResume, Interrupted
from meari.bulk.frames import Bad, Done, Part, Setup
from meari.bulk.lines import Chunk
from meari.bulk.options import GenerateOptions, ScoreOptions, Share, figure_types, share_of
from meari.bulk.output import (
    Checkpoint,
    Journal,
    Output,
    check_journal,
    check_same,
    is_interrupted,
    journal_paths,
    read_run,
)
from meari.bulk.parquet import PARQUET_SUFFIX, is_parquet, require_pyarrow
from meari.bulk.parquet_output import read_note, write_parquet
from meari.bulk.plan import SKIP_HINT, RunPlan, RunResult, settings_of, totals_of
from meari.bulk.progress import Progress
from meari.bulk.records import guess_encoding
from meari.bulk.source import Source, TextSource
from meari.bulk.totals import GenerateTotals, ScoreTotals
from meari.bulk.worker_pool import Result, WorkerPool

__all__ = ["rows_of", "run", "run_texts", "score_texts", "seed_of"]

CHECKPOINT_SECONDS: Final = 1.0


class Lines(Protocol):
    """The source of a run's lines, as messages and checkpoints need it; see `Source`."""

    num_bytes: int | None

    def name(self, number: int) -> str:
        """Return the name of a file in messages."""

    def label(self, number: int) -> str:
        """Return the name of a file in records."""

    def bytes_before(self, number: int) -> int:
        """Return the bytes of all files before one of them."""

    def identity(self) -> dict[str, object]:
        """Return what tells this input from others."""


def run(source: Source, options: ScoreOptions | GenerateOptions, plan: RunPlan) -> RunResult:
    """Work on every line with worker processes. Raises BulkError, Interrupted, ReaderGone."""
    if plan.output is not None and plan.output.suffix.lower() == PARQUET_SUFFIX:
        return _run_to_parquet(source, options, plan, plan.output)
    _check_output(plan)
    share = share_of(options)
    with WorkerPool(_num_workers(source, plan, share), _setup(options, plan, plan.num_workers), share) as workers:
        described = _described(source, options, plan) if plan.output is not None else {}
        ready = workers.wait_ready()
        output = Output(plan.output)
        try:
            begun = _resume(source, output, described) if plan.resume else None
            begun = begun or _begin(output, described, ready.head)
            done = begun if begun.at.complete else _work(workers.results(source), source, begun, plan)
        finally:
            output.close()
    return RunResult(ready.model, done.totals(options), done.at.seconds)


def rows_of(output: Path) -> Path:
    """Return the JSONL file that a run to a Parquet file fills, and which is gone once that is there."""
    return output.with_name(output.name + ".jsonl")


def _run_to_parquet(source: Source, options: ScoreOptions | GenerateOptions, plan: RunPlan, output: Path) -> RunResult:
    """Work as `run` with a JSONL file, then write that as Parquet. A note in it lets a finished run be known again."""
    require_pyarrow()
    rows = rows_of(output)
    if plan.resume and not rows.exists() and is_parquet(output):
        return _finished(output, options, _described(source, options, plan))
    result = run(source, options, replace(plan, output=rows))
    note = {"run": read_run(rows), "model": result.model, "seconds": result.seconds}
    write_parquet(
        rows,
        output,
        figure_types(options),
        msgspec.json.encode({**note, "totals": msgspec.structs.asdict(result.totals)}),
    )
    for path in (rows, *journal_paths(rows)):
        path.unlink(missing_ok=True)
    return result


def _finished(output: Path, options: ScoreOptions | GenerateOptions, described: dict[str, Any]) -> RunResult:
    """Return the result of the run that wrote a Parquet file. Raises CannotResume if it was another one."""
    try:
        note = msgspec.json.decode(read_note(output) or b"{}")
        found = {name: value for name, value in note["run"].items() if name != "meari_progress"}
        totals = totals_of(options, note["totals"])
    except (msgspec.DecodeError, KeyError):
        raise CannotResume(f"{output}: it holds no run of this command, expected one to resume") from None
    check_same(output, found, described)
    return RunResult(note["model"], totals, note["seconds"])


def run_texts(texts: Sequence[str], options: ScoreOptions, plan: RunPlan) -> None:
    """Score a few texts in this process, as if they were lines of a file. Raises as `run`, RemoteError, MeariError."""
    _check_output(plan)
    source = TextSource(texts)
    described = _described(source, options, plan) if plan.output is not None else {}
    with contextlib.closing(_results(source, options, plan)) as results:
        head = next(results).data  # the bundle is opened before the output is touched
        with contextlib.closing(Output(plan.output)) as output:
            _work(results, source, _begin(output, described, head), plan)


def score_texts(texts: Sequence[str], options: ScoreOptions, plan: RunPlan) -> bytes:
    """Score a few texts in this process and return their records. Raises as `run_texts`."""
    source = TextSource(texts)
    with contextlib.closing(_results(source, options, plan)) as results:
        return b"".join(_without_bad(results, source, plan))


def seed_of(plan: RunPlan) -> int:
    """Return the seed of the run to resume, else a random one. Raises CannotResume."""
    earlier = _earlier(plan.output) if plan.resume and plan.output is not None else None
    return secrets.randbits(53) if earlier is None else int(earlier.get("seed", 0))


def _earlier(output: Path) -> dict[str, Any] | None:
    if output.suffix.lower() != PARQUET_SUFFIX:
        return read_run(output)
    if is_parquet(output) and not rows_of(output).exists():
        return dict(msgspec.json.decode(read_note(output) or b"{}").get("run", {}))
    return read_run(rows_of(output))


@dataclass
class Run:
    """A run under way. `at` is replaced whole, so that an interruption finds it before or after a chunk."""

    output: Output
    journal: Journal | None
    at: Checkpoint

    def advance(self, result: Result, done: Done, seconds: float) -> None:
        """Count a chunk that has been written."""
        chunk = result.chunk
        added = done.totals()
        before = self.at.totals or {}
        self.at = Checkpoint(
            line=chunk.first_line + chunk.num_lines - 1,
            file=chunk.file,
            num_lines=self.at.num_lines + chunk.num_lines,
            input_bytes=chunk.end_offset,
            input_digest=chunk.digest,
            output_bytes=self.output.num_bytes,
            output_crc=self.output.crc,
            seconds=seconds,
            totals={name: before.get(name, 0) + count for name, count in added.items()},
        )

    def checked(self, plan: RunPlan, before: Checkpoint) -> Checkpoint:
        """Return the checkpoint. If the bundle of a service was replaced, go back to the one before, and raise."""
        try:
            if plan.remote is not None:
                plan.remote.check_same()
        except Exception:
            self.at = before
            raise
        return self.at

    def note(self) -> None:
        """Make the checkpoint durable."""
        if self.journal is not None:
            self.output.sync()
            self.journal.note(self.at)

    def totals(self, options: ScoreOptions | GenerateOptions) -> ScoreTotals | GenerateTotals:
        """Return the sums so far."""
        return totals_of(options, self.at.totals or {})

    def num_bad(self) -> int:
        """Return the number of bad lines so far."""
        return (self.at.totals or {}).get("num_bad_lines", 0)

    def num_tokens(self) -> int:
        """Return the number of tokens so far, in which speed is counted."""
        totals = self.at.totals or {}
        return totals.get("num_tokens", 0) + totals.get("prompt_tokens", 0) + totals.get("generated_tokens", 0)


def _work(results: Iterable[Result], source: Lines, run: Run, plan: RunPlan) -> Run:
    """Write all results, and note how far the output is, whatever ends the run."""
    num_done = source.bytes_before(run.at.file) + run.at.input_bytes
    progress = Progress(source.num_bytes, num_done, time.monotonic) if plan.progress else None
    try:
        _write_results(results, source, run, progress, plan)
        run.note()
    except BaseException as ending:
        if isinstance(ending, Interrupted) and run.journal is not None:
            ending.line, ending.file = run.at.line, source.label(run.at.file)
        with contextlib.suppress(BulkError):  # the error that ended the run is the one to report
            run.note()
        raise
    finally:
        if progress is not None:
            progress.end()
    return run


def _write_results(
    results: Iterable[Result], source: Lines, run: Run, progress: Progress | None, plan: RunPlan
) -> None:
    started = noted = time.monotonic()
    checked = run.at
    seconds_before, tokens_before = run.at.seconds, run.num_tokens()
    num_bad = run.num_bad()
    for result in results:
        if result.problem:
            num_bad += 1
            if num_bad > (plan.max_bad or 0):  # the output ends before this line, the checkpoint before its chunk
                raise _bad_line(result, source, plan)
        if result.done is None:
            run.output.write(result.data)
            continue
        now = time.monotonic()
        run.advance(result, result.done, seconds_before + now - started)
        assert run.num_bad() == num_bad
        if now - noted >= CHECKPOINT_SECONDS:
            checked = run.checked(plan, checked)
            run.note()
            noted = now
        if progress is not None:
            num_bytes = source.bytes_before(run.at.file) + run.at.input_bytes
            progress.show(num_bytes, run.at.num_lines, run.num_tokens() - tokens_before)
    run.checked(plan, checked)
    run.at = replace(run.at, seconds=seconds_before + time.monotonic() - started, complete=True)


def _results(source: TextSource, options: ScoreOptions, plan: RunPlan) -> Generator[Result]:
    """Yield the head of the output, then the results of a few texts, scored in this process."""
    from meari.bulk.worker import open_backend, open_work

    setup = _setup(options, plan, 0)
    chunk = Chunk(source.data, 1, source.num_lines, len(source.data))
    with contextlib.closing(open_backend(setup)) as backend:
        work = open_work(backend, setup)
        yield Result(chunk, data=work.head)
        for message in work.begin(source.data, 1).messages():
            match message:
                case Part():
                    yield Result(chunk, data=message.data)
                case Bad():
                    yield Result(chunk, problem=message.problem)
                case Done():
                    yield Result(chunk, done=message)


def _without_bad(results: Iterable[Result], source: Lines, plan: RunPlan) -> Iterator[bytes]:
    for result in results:
        if result.problem:
            raise _bad_line(result, source, plan)
        yield result.data


def _bad_line(result: Result, source: Lines, plan: RunPlan) -> BadLine:
    name = source.name(result.chunk.file)
    guess = guess_encoding(result.problem, [result.chunk.data], name)
    return BadLine(f"{name}: {result.problem}{guess}; {_bad_hint(plan)}")


def _bad_hint(plan: RunPlan) -> str:
    if plan.max_bad is None:
        return SKIP_HINT
    kept = "the records of all lines before are written"
    resumed = "; --resume with a higher limit goes on from there" if plan.output is not None else ""
    return f"that is one bad line more than the {plan.max_bad:,} of --max-bad; {kept}{resumed}"


def _begin(output: Output, described: dict[str, Any], head: bytes) -> Run:
    """Begin with the first line."""
    journal = None
    if output.is_file and output.path is not None:
        journal = Journal.begin(output.path, described)
    output.start_at(0, 0)
    output.write(head)
    return Run(output, journal, Checkpoint(output_bytes=output.num_bytes, output_crc=output.crc))


def _resume(source: Source, output: Output, described: dict[str, Any]) -> Run | None:
    """Continue where the output ends; None if there is nothing to continue."""
    path = output.path
    if path is None or not output.is_file:
        raise CannotResume(f"{path or 'standard output'}: no file that was written before, expected one after -o")
    journal_path, _ = journal_paths(path)
    if not journal_path.exists():
        if path.stat().st_size:
            raise CannotResume(f"{path}: there is no {journal_path.name} beside it, so nobody knows what it is of")
        return None
    journal, at = Journal.resume(path, described)
    if not at.output_bytes:
        journal.close()
        return None
    output.start_at(at.output_bytes, at.output_crc)
    if not at.complete:
        source.skip(at.file, at.input_bytes, at.line + 1, at.input_digest)
    return Run(output, journal, at)


def _check_output(plan: RunPlan) -> None:
    """Raise BulkError if the output would destroy another file or the work of an interrupted run."""
    if plan.output is None or (plan.output.exists() and not plan.output.is_file()):
        return
    check_journal(plan.output)
    if plan.output.exists() and not plan.resume and not plan.overwrite and is_interrupted(plan.output):
        raise BulkError(
            f"{plan.output}: holds what an interrupted run has done; --resume goes on with it, --overwrite begins anew"
        )


def _setup(options: ScoreOptions | GenerateOptions, plan: RunPlan, num_requests: int) -> Setup:
    api_key = "" if plan.remote is None else plan.remote.api_key
    return Setup(options, api_key, num_requests, plan.signing_keys)


def _described(source: Lines, options: ScoreOptions | GenerateOptions, plan: RunPlan) -> dict[str, Any]:
    """Return all that the output depends on, flat."""
    settings = settings_of(options, plan.remote)
    settings |= {f"input_{name}": value for name, value in source.identity().items()}
    flat: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(settings))
    return flat


def _num_workers(source: Source, plan: RunPlan, share: Share) -> int:
    """Return no more than there is work for; for a service one, which sends several requests at a time."""
    if plan.remote is not None:
        return 1
    if source.num_bytes is None:
        return plan.num_workers
    return min(plan.num_workers, 1 + source.num_bytes // (4 * share.min_bytes))
