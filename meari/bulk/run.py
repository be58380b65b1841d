"""A whole run: an input, work for every line of it, an output in order, and a summary."""

from __future__ import annotations

import contextlib
import secrets
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import msgspec

from meari.bulk.bundles import bundle_hash
from meari.bulk.crew import Crew, Result, Share
from meari.bulk.display import Display
from meari.bulk.errors import BadLine, BulkError, CannotResume, Interrupted
from meari.bulk.frames import Done, Setup
from meari.bulk.journal import Checkpoint, Journal, check_place, is_interrupted, journal_path, read_run
from meari.bulk.options import GenerateOptions, ScoreOptions
from meari.bulk.output import Output
from meari.bulk.source import Source
from meari.bulk.totals import GenerateTotals, ScoreTotals

__all__ = ["Outcome", "Plan", "ServedBundle", "run", "seed_of"]

CHECKPOINT_SECONDS: Final = 1.0
SKIP_HINT: Final = "--skip-bad writes an error record in its place and goes on"
SCORE_SHARE: Final = Share(lines=512, min_bytes=2048, max_bytes=1 << 16, lines_held=1024, bytes_held=1 << 20)
GENERATE_SHARE: Final = Share(lines=32, min_bytes=256, max_bytes=1 << 15, lines_held=384, bytes_held=1 << 20)
AnyTotals = ScoreTotals | GenerateTotals


@dataclass(frozen=True)
class Plan:
    """What a run is told, beside its options.

    output     None is standard output
    resume     go on where the output ends
    overwrite  replace what an interrupted run has left
    display    whether a progress bar is drawn
    served     the service that does the work, where it is none of our own engines
    max_bad    bad lines that are skipped, at most; the next one ends the run. None: the first one does
    """

    output: Path | None
    num_workers: int
    resume: bool = False
    overwrite: bool = False
    display: bool = False
    served: ServedBundle | None = None
    max_bad: int | None = None


@dataclass(frozen=True)
class ServedBundle:
    """What of a service's model is known before the work begins.

    hash     of the bundle, as a local one's would be
    api_key  for the service
    """

    hash: str
    api_key: str = field(default="", repr=False)


@dataclass(frozen=True)
class Outcome:
    """What a run came to. `seconds` are those of all runs that it took."""

    model: str
    totals: AnyTotals
    seconds: float


def run(source: Source, options: ScoreOptions | GenerateOptions, plan: Plan) -> Outcome:
    """Do the work. Raises BulkError, Interrupted, ReaderGone."""
    _check_output(plan)
    share = SCORE_SHARE if isinstance(options, ScoreOptions) else GENERATE_SHARE
    with Crew(_num_workers(source, plan, share), _setup(options, plan), share) as crew:
        described = _described(source, options, plan) if plan.output is not None else {}
        ready = crew.wait_ready()
        output = Output(plan.output)
        try:
            begun = _resume(source, output, described) if plan.resume else None
            begun = begun or _begin(output, described, ready.head)
            done = begun if begun.at.complete else _work(crew, source, begun, plan)
        finally:
            output.close()
    return Outcome(ready.model, done.totals(options), done.at.seconds)


def seed_of(plan: Plan) -> int:
    """The seed of the run to resume, else a random one. Raises CannotResume."""
    earlier = read_run(plan.output) if plan.resume and plan.output is not None else None
    return secrets.randbits(53) if earlier is None else int(earlier.get("seed", 0))


@dataclass
class Run:
    """A run under way. `at` is replaced whole, so that an interruption finds it as it was or as it will be."""

    output: Output
    journal: Journal | None
    at: Checkpoint

    def advance(self, result: Result, done: Done, seconds: float) -> None:
        """A chunk is written."""
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

    def note(self) -> None:
        """Make it durable how far the run is."""
        if self.journal is not None:
            self.output.sync()
            self.journal.note(self.at)

    def totals(self, options: ScoreOptions | GenerateOptions) -> AnyTotals:
        """The sums so far."""
        kind = ScoreTotals if isinstance(options, ScoreOptions) else GenerateTotals
        return kind(**(self.at.totals or {}))

    def num_bad(self) -> int:
        """Bad lines so far."""
        return (self.at.totals or {}).get("num_bad_lines", 0)

    def num_tokens(self) -> int:
        """What rates are counted in."""
        totals = self.at.totals or {}
        return totals.get("num_tokens", 0) + totals.get("prompt_tokens", 0) + totals.get("generated_tokens", 0)


def _work(crew: Crew, source: Source, run: Run, plan: Plan) -> Run:
    """Write everything that is left, and note how far it came, whatever ends it."""
    num_done = source.bytes_before(run.at.file) + run.at.input_bytes
    display = Display(source.num_bytes, num_done, time.monotonic) if plan.display else None
    try:
        _write_results(crew, source, run, display, plan)
        run.note()
    except BaseException as ending:
        if isinstance(ending, Interrupted) and run.journal is not None:
            ending.line, ending.file = run.at.line, source.label(run.at.file)
        with contextlib.suppress(BulkError):  # what ended the run is the one to tell
            run.note()
        raise
    finally:
        if display is not None:
            display.end()
    return run


def _write_results(crew: Crew, source: Source, run: Run, display: Display | None, plan: Plan) -> None:
    started = noted = time.monotonic()
    seconds_before, tokens_before = run.at.seconds, run.num_tokens()
    num_bad = run.num_bad()
    for result in crew.results(source):
        if result.problem:
            num_bad += 1
            if num_bad > (plan.max_bad or 0):  # the output ends before this line, the checkpoint before its chunk
                raise BadLine(f"{source.name(result.chunk.file)}: {result.problem}; {_bad_hint(plan)}")
        if result.done is None:
            run.output.write(result.data)
            continue
        now = time.monotonic()
        run.advance(result, result.done, seconds_before + now - started)
        assert run.num_bad() == num_bad
        if now - noted >= CHECKPOINT_SECONDS:
            run.note()
            noted = now
        if display is not None:
            num_bytes = source.bytes_before(run.at.file) + run.at.input_bytes
            display.show(num_bytes, run.at.num_lines, run.num_tokens() - tokens_before)
    run.at = replace(run.at, seconds=seconds_before + time.monotonic() - started, complete=True)


def _bad_hint(plan: Plan) -> str:
    if plan.max_bad is None:
        return SKIP_HINT
    kept = "the records of all lines before are written"
    resumed = "; --resume with a higher limit goes on from there" if plan.output is not None else ""
    return f"that is one bad line more than the {plan.max_bad:,} of --max-bad; {kept}{resumed}"


def _begin(output: Output, described: dict[str, Any], head: bytes) -> Run:
    """From the first line on."""
    journal = None
    if output.is_file and output.path is not None:
        journal = Journal.begin(output.path, described)
    output.start_at(0, 0)
    output.write(head)
    return Run(output, journal, Checkpoint(output_bytes=output.num_bytes, output_crc=output.crc))


def _resume(source: Source, output: Output, described: dict[str, Any]) -> Run | None:
    """From where the output ends; None where there is nothing to go on with."""
    path = output.path
    if path is None or not output.is_file:
        raise CannotResume(f"{path or 'standard output'}: no file that was written before, expected one after -o")
    if not journal_path(path).exists():
        if path.stat().st_size:
            raise CannotResume(
                f"{path}: there is no {journal_path(path).name} beside it, so nobody knows what it is of"
            )
        return None
    journal, at = Journal.resume(path, described)
    if not at.output_bytes:
        journal.close()
        return None
    output.start_at(at.output_bytes, at.output_crc)
    if not at.complete:
        source.skip(at.file, at.input_bytes, at.line + 1, at.input_digest)
    return Run(output, journal, at)


def _check_output(plan: Plan) -> None:
    """Raises BulkError where the output would destroy something."""
    if plan.output is None or (plan.output.exists() and not plan.output.is_file()):
        return
    check_place(plan.output)
    if plan.output.exists() and not plan.resume and not plan.overwrite and is_interrupted(plan.output):
        raise BulkError(
            f"{plan.output}: holds what an interrupted run has done; --resume goes on with it, --overwrite begins anew"
        )


def _setup(options: ScoreOptions | GenerateOptions, plan: Plan) -> Setup:
    return Setup(options) if plan.served is None else Setup(options, plan.served.api_key, plan.num_workers)


def _described(source: Source, options: ScoreOptions | GenerateOptions, plan: Plan) -> dict[str, Any]:
    """Everything on which the output depends, flat: of the bundle what it holds, not where it is."""
    settings: dict[str, Any] = msgspec.to_builtins(options)
    settings = {**settings.pop("request", {}), **settings}
    settings["bundle"] = bundle_hash(Path(options.bundle)) if plan.served is None else plan.served.hash
    del settings["server"]
    if options.format != "tsv":
        del settings["skip_bad"]  # lines that are no bad ones come out the same
    settings |= {f"input_{name}": value for name, value in source.identity().items()}
    flat: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(settings))
    return flat


def _num_workers(source: Source, plan: Plan, share: Share) -> int:
    """No more than there is work for; with a service one, which asks it several things at a time."""
    if plan.served is not None:
        return 1
    if source.num_bytes is None:
        return plan.num_workers
    return min(plan.num_workers, 1 + source.num_bytes // (4 * share.min_bytes))
