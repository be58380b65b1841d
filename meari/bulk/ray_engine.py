"""A job on Ray Data: partitions of a corpus to actors with one engine each, a committed part from each of them.

Input: files, options, a bundle. Output: a folder of parts with a manifest (`partitions.py`), and the sums. Must not
know: the command line, how lines are scored.

Ray Data has the actors, the retries when one dies with its node, and the queue; through its object store pass only
partitions and commits, some hundred bytes each. Lines are read and written by the actors. Ray's own readers of text and
JSON lose line numbers, bytes that are not UTF-8 and the way numbers were written, and its checkpoints hold an id for
every row; commits hold one for every partition.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

import msgspec

from meari.bulk.errors import BadLine, BulkError, CannotResume
from meari.bulk.frames import Setup
from meari.bulk.options import GenerateOptions, ScoreOptions
from meari.bulk.output import check_same
from meari.bulk.partitions import (
    Commit,
    File,
    Folder,
    Partition,
    commit_partition,
    numbered,
    ranges_of,
    survey,
)
from meari.bulk.run import SKIP_HINT, RunResult, settings_of, totals_of
from meari.bulk.worker import open_backend, open_work
from meari.bundle_format.signatures import PublicKey
from meari.errors import MeariError

__all__ = ["RayPlan", "run_on_ray", "seed_of_job"]

FORMAT: Final = 1
MAX_BLOCKS: Final = 10_000
OBJECT_STORE_BYTES: Final = 128 << 20  # of a Ray that is started here: only partitions and commits pass through it
AnyOptions = ScoreOptions | GenerateOptions


@dataclass(frozen=True)
class RayPlan:
    """The output of a job and its manner of working.

    output           folder or URL
    num_actors       None for one on each CPU of the cluster
    partition_bytes  size of a partition, about
    suffix           of the parts: .jsonl, .tsv, .txt or .parquet
    max_bad          None: the first bad line ends the job
    """

    output: str
    num_actors: int | None
    partition_bytes: int
    suffix: str
    resume: bool = False
    overwrite: bool = False
    max_bad: int | None = None
    signing_keys: tuple[PublicKey, ...] = ()


class Job(msgspec.Struct, frozen=True):
    """The content of job.json."""

    meari_job: int
    run: dict[str, Any]
    files: list[File]
    partitions: list[Partition]


def run_on_ray(files: Sequence[File], options: AnyOptions, plan: RayPlan) -> RunResult:
    """Work on every line with the actors of a cluster. Raises BulkError."""
    folder = Folder(plan.output)
    plan = replace(plan, output=folder.name)  # actors have another working folder
    earlier = _earlier(folder, plan)
    with _Cluster(plan.num_actors) as cluster:
        job = _job(files, options, plan, earlier, cluster)
        if earlier is None:
            folder.make()
            folder.write(msgspec.json.encode(job), "job.json")
        commits = _work(job, options, plan, folder, cluster)
    totals: dict[str, int] = {}
    for commit in commits:
        for name, count in commit.totals.items():
            totals[name] = totals.get(name, 0) + count
    folder.write(_manifest(job, commits, totals), "manifest.json")
    return RunResult(Path(options.bundle).name, totals_of(options, totals), sum(one.seconds for one in commits))


def seed_of_job(output: str, default: int) -> int:
    """Return the seed of the job to resume, `default` if there is none."""
    folder = Folder(output)
    return int(_read_job(folder).run.get("seed", default)) if "job.json" in folder.names() else default


def _earlier(folder: Folder, plan: RayPlan) -> Job | None:
    """Return the job to resume. Raises BulkError if the folder holds something that nobody asked to replace."""
    names = [name for name in folder.names() if name]
    if plan.overwrite and "job.json" in names:
        folder.clear()
        return None
    if "job.json" in names:
        if not plan.resume:
            raise BulkError(f"{folder.name}: holds a job; --resume goes on with it, --overwrite begins anew")
        return _read_job(folder)
    if names:
        raise BulkError(f"{folder.name}: got a folder with {names[0]}, expected one for the output of this job alone")
    return None


def _read_job(folder: Folder) -> Job:
    try:
        return msgspec.json.decode(folder.read("job.json"), type=Job)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CannotResume(f"{folder.path('job.json')}: damaged ({error}), expected the job to resume") from None


def _job(files: Sequence[File], options: AnyOptions, plan: RayPlan, earlier: Job | None, cluster: _Cluster) -> Job:
    """Return the job: the earlier one if it is the same, else a new one whose lines are counted."""
    settings = {**settings_of(options, None), "suffix": plan.suffix}
    if earlier is not None:
        check_same(Path(plan.output) / "job.json", _plain(earlier.run), _plain(settings | _files_digest(files)))
        return earlier
    ranges = [one for file in files for one in ranges_of(file, plan.partition_bytes)]
    partitions = numbered(cluster.survey(ranges, plan.partition_bytes))
    return Job(FORMAT, _plain(settings | _files_digest(files)), list(files), partitions)


def _files_digest(files: Sequence[File]) -> dict[str, object]:
    """Return what tells the inputs from others before they are read: the partitions know their bytes."""
    digest = hashlib.sha256(msgspec.json.encode([(file.name, file.size) for file in files])).hexdigest()
    return {"input_files": len(files), "input_names_and_sizes": digest}


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(settings))
    return plain


def _work(job: Job, options: AnyOptions, plan: RayPlan, folder: Folder, cluster: _Cluster) -> list[Commit]:
    """Do all partitions that are not committed; return the commits of all, in order."""
    done = {commit.partition: commit for commit in folder.commits()}
    limit = plan.max_bad or 0
    num_bad = sum(commit.totals.get("num_bad_lines", 0) for commit in done.values())
    pending = [partition for partition in job.partitions if partition.number not in done]
    for commit in cluster.commits(pending, options, plan):
        done[commit.partition] = commit
        num_bad += commit.totals.get("num_bad_lines", 0)
        if num_bad > limit:
            raise BadLine(
                f"got {num_bad:,} bad lines, expected at most {limit:,} (--max-bad); what is done is kept, --resume "
                "with a higher limit goes on"
            )
    if len(done) != len(job.partitions):
        raise BulkError(f"{len(job.partitions) - len(done):,} partitions have no part; --resume does them")
    return [done[partition.number] for partition in job.partitions]


def _manifest(job: Job, commits: Sequence[Commit], totals: dict[str, int]) -> bytes:
    parts = [
        {
            **{name: getattr(commit, name) for name in ("part", "lines", "bytes", "sha256")},
            "input": partition.name,
            "first_line": partition.first_line,
        }
        for partition, commit in zip(job.partitions, commits, strict=True)
    ]
    seconds, cpu = (round(sum(getattr(one, name) for one in commits), 3) for name in ("seconds", "cpu_seconds"))
    about = {"meari_manifest": FORMAT, "run": job.run, "seconds": seconds, "cpu_seconds": cpu, "totals": totals}
    return msgspec.json.format(
        msgspec.json.encode({**about, "lines": sum(commit.lines for commit in commits), "parts": parts})
    )


class _Cluster:
    """The Ray that works: that of RAY_ADDRESS, or one that is started here and ends with the job."""

    def __init__(self, num_actors: int | None) -> None:
        self._num_actors = num_actors
        self._is_ours = False

    def __enter__(self) -> Self:
        try:
            import ray
            from ray.data import DataContext
        except ImportError:
            raise BulkError("--engine ray: got an installation without Ray, expected meari[ray]") from None
        if not ray.is_initialized():
            self._is_ours = True
            try:
                self._start()
            except Exception as error:  # noqa: BLE001 (Ray raises nothing narrower)
                raise BulkError(f"Ray: {error}; expected a cluster at RAY_ADDRESS, or one that starts here") from None
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        context = DataContext.get_current()
        context.enable_progress_bars = False
        self._num_actors = self._num_actors or max(1, int(ray.cluster_resources().get("CPU", 1)))
        return self

    def _start(self) -> None:
        import ray

        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if address := os.environ.get("RAY_ADDRESS"):
            ray.init(address=address, **quiet)
            return
        from meari.runtime.machine import granted_cpus

        num_cpus = self._num_actors or granted_cpus()
        own: dict[str, Any] = {"object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
        ray.init(address="local", num_cpus=num_cpus, **own, **quiet)

    def __exit__(self, *_: object) -> None:
        import ray

        if self._is_ours:
            ray.shutdown()

    def survey(self, ranges: Sequence[tuple[File, int, int]], max_bytes: int) -> Iterator[list[Partition]]:
        """Yield the partitions of every range, in order."""
        items = [{"number": n, "item": msgspec.json.encode(one)} for n, one in enumerate(ranges)]
        found: dict[int, bytes] = {}
        for row in self._rows(items, _survey, fn_kwargs={"max_bytes": max_bytes}):
            found[row["number"]] = row["result"]
        for number in range(len(items)):
            yield msgspec.json.decode(found[number], type=list[Partition])

    def commits(self, partitions: Sequence[Partition], options: AnyOptions, plan: RayPlan) -> Iterator[Commit]:
        """Yield the commits of partitions as they come. Raises BadLine, BulkError."""
        if not partitions:
            return
        import ray
        from ray.data import ActorPoolStrategy

        folder = Path(options.bundle)
        bundle = ray.put({path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()})
        items = [{"number": one.number, "item": msgspec.json.encode(one)} for one in partitions]
        given = {"name": folder.name, "bundle": [bundle], "setup": Setup(options, signing_keys=plan.signing_keys)}
        count = min(self._num_actors or 1, len(items))
        pool = ActorPoolStrategy(min_size=1, max_size=count, initial_size=count)
        for row in self._rows(items, _Engine, fn_constructor_kwargs={**given, "plan": plan}, compute=pool):
            if row["problem"]:
                hint = SKIP_HINT if plan.max_bad is None else "that is one more than --max-bad"
                raise BadLine(f"{row['problem']}; {hint}; what is done is kept, --resume goes on")
            yield msgspec.json.decode(row["result"], type=Commit)

    @staticmethod
    def _rows(items: list[dict[str, Any]], work: Callable[..., Any], **given: Any) -> Iterator[dict[str, Any]]:
        """Yield the row that the work makes of each item, as they come. Raises BulkError."""
        import ray.data
        import ray.exceptions

        if not items:
            return
        blocks = ray.data.from_items(items, override_num_blocks=min(len(items), MAX_BLOCKS))
        rows = blocks.map_batches(work, batch_size=1, batch_format="pyarrow", num_cpus=1, **given)
        try:
            for row in rows.iter_rows():
                if row["failure"]:
                    raise BulkError(row["failure"])
                yield row
        except ray.exceptions.RayError as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            raise BulkError(f"Ray: {reason}; what is done is kept, --resume goes on") from error


def _survey(batch: Any, max_bytes: int) -> Any:
    """Return the partitions that begin in a range."""
    [(number, item)] = _items(batch)
    file, start, end = msgspec.json.decode(item, type=tuple[File, int, int])
    try:
        return _row(number, msgspec.json.encode(survey(file, start, end, max_bytes)))
    except BulkError as error:
        return _row(number, failure=str(error))


class _Engine:
    """An actor that holds an engine. It opens the bundle from the job, so nodes need no folder in common for it."""

    def __init__(self, name: str, bundle: Sequence[Any], setup: Setup, plan: RayPlan) -> None:
        import ray

        from meari.runtime.machine import keep_freed_memory

        keep_freed_memory()
        self._scratch = tempfile.TemporaryDirectory(prefix="meari-")
        folder = Path(self._scratch.name) / name
        folder.mkdir()
        for file, data in ray.get(bundle[0]).items():
            (folder / file).write_bytes(data)
        self._plan, self._options = plan, setup.options
        options = msgspec.structs.replace(setup.options, bundle=str(folder))
        self._failure, self._work = "", None
        try:
            own = msgspec.structs.replace(setup, options=options)
            self._work = open_work(open_backend(own), own)
        except (BulkError, MeariError) as error:
            self._failure = str(error)

    def __call__(self, batch: Any) -> Any:
        """Return the commit of a partition."""
        [(number, item)] = _items(batch)
        if self._work is None:
            return _row(number, failure=self._failure)
        partition = msgspec.json.decode(item, type=Partition)
        plan = self._plan
        try:
            done = commit_partition(
                partition, self._work, self._options, Folder(plan.output), suffix=plan.suffix, max_bad=plan.max_bad or 0
            )
        except (BulkError, MeariError) as error:
            return _row(number, failure=str(error))
        return _row(number, problem=done) if isinstance(done, str) else _row(number, msgspec.json.encode(done))


def _items(batch: Any) -> list[tuple[int, bytes]]:
    return list(zip(batch["number"].to_pylist(), batch["item"].to_pylist(), strict=True))


def _row(number: int, result: bytes = b"", *, problem: str = "", failure: str = "") -> Any:
    import pyarrow as pa

    return pa.table({"number": [number], "result": [result], "problem": [problem], "failure": [failure]})
