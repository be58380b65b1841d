"""A job on Ray: partitions of a corpus to actors with one engine each, a committed part from each of them.

Input: files, options, a bundle. Output: a folder of parts with a manifest (`commits.py`), and the sums. Must not know:
the command line, how lines are scored.

Lines are read and written by the actors. Ray's own readers of text and JSON lose line numbers, bytes that are not UTF-8
and the way numbers were written, and its checkpoints hold an id for every row; commits hold one for every partition.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec

from meari.bulk.commits import Commit, commit, commits_of, score_parts
from meari.bulk.errors import BadLine, BulkError, CannotResume
from meari.bulk.frames import Setup
from meari.bulk.options import GenerateOptions, ScoreOptions
from meari.bulk.output import check_same
from meari.bulk.partitions import File, Partition, numbered, ranges_of, survey
from meari.bulk.plan import SKIP_HINT, RunResult, settings_of, totals_of
from meari.bulk.ray_cluster import RayCluster
from meari.bulk.storage import Folder
from meari.bulk.worker import open_backend, open_work
from meari.bundle_format.signatures import PublicKey

__all__ = [
    "FORMAT",
    "JOB",
    "MANIFEST",
    "Job",
    "RayPlan",
    "check_free",
    "files_digest",
    "read_job",
    "run_on_ray",
    "seed_of_job",
    "write_manifest",
]

JOB: Final = "job.json"
MANIFEST: Final = "manifest.json"
FORMAT: Final = 1
AnyOptions = ScoreOptions | GenerateOptions


@dataclass(frozen=True)
class RayPlan:
    """The output of a job and its manner of working.

    output           folder or URL
    partition_bytes  size of a partition, about
    suffix           of the parts: .jsonl, .tsv, .txt or .parquet
    max_bad          None: the first bad line ends the job
    like             folder of a job on the same files, whose partitions are taken
    """

    output: str
    partition_bytes: int
    suffix: str
    resume: bool = False
    overwrite: bool = False
    max_bad: int | None = None
    signing_keys: tuple[PublicKey, ...] = ()
    like: str = ""


class Job(msgspec.Struct, frozen=True):
    """The content of job.json."""

    meari_job: int
    run: dict[str, Any]
    files: list[File]
    partitions: list[Partition]


def run_on_ray(files: Sequence[File], options: AnyOptions, plan: RayPlan, cluster: RayCluster) -> RunResult:
    """Work on every line with the actors of a cluster. Raises BulkError."""
    folder = Folder(plan.output)
    plan = replace(plan, output=folder.name)  # actors have another working folder
    earlier: Job | None = None
    if check_free(folder, [JOB], resume=plan.resume, overwrite=plan.overwrite):
        earlier = read_job(folder)
    job = _job(files, options, plan, earlier, cluster)
    if earlier is None:
        folder.write(msgspec.json.encode(job), JOB)
    commits = _work(job, options, plan, folder, cluster)
    totals = write_manifest(folder, job, commits)
    return RunResult(Path(options.bundle).name, totals_of(options, totals), sum(one.seconds for one in commits))


def seed_of_job(output: str, default: int) -> int:
    """Return the seed of the job to resume, `default` if there is none."""
    folder = Folder(output)
    return int(read_job(folder).run.get("seed", default)) if folder.has(JOB) else default


def check_free(folder: Folder, job: Sequence[str], *, resume: bool, overwrite: bool) -> bool:
    """Return whether there is a job to resume; one to overwrite is removed.

    job  path of the file that shows that the folder is that of such a job
    Raises BulkError if the folder holds something that nobody asked to replace.
    """
    is_there = folder.has(*job)
    if overwrite and is_there:
        folder.clear()
        return False
    if is_there:
        if not resume:
            raise BulkError(f"{folder.name}: holds a job; --resume goes on with it, --overwrite begins anew")
        return True
    if names := [name for name in folder.names() if name]:
        raise BulkError(f"{folder.name}: got a folder with {names[0]}, expected one for the output of this job alone")
    return False


def read_job(folder: Folder) -> Job:
    """Return the job of a folder. Raises CannotResume if that file is damaged."""
    try:
        return msgspec.json.decode(folder.read(JOB), type=Job)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CannotResume(f"{folder.path(JOB)}: damaged ({error}), expected the job to resume") from None


def _job(files: Sequence[File], options: AnyOptions, plan: RayPlan, earlier: Job | None, cluster: RayCluster) -> Job:
    """Return the job: the earlier one if it is the same, else a new one whose lines are counted."""
    settings = plain({**settings_of(options, None), "suffix": plan.suffix, **files_digest(files)})
    if earlier is not None:
        check_same(Folder(plan.output).path(JOB), plain(earlier.run), settings)
        return earlier
    like = read_job(Folder(plan.like)).partitions if plan.like else None
    return Job(FORMAT, settings, list(files), like or _counted(files, plan.partition_bytes, cluster))


def _counted(files: Sequence[File], max_bytes: int, cluster: RayCluster) -> list[Partition]:
    """Return the partitions of files, once tasks have counted their lines."""
    items = [msgspec.json.encode(one) for file in files for one in ranges_of(file, max_bytes)]
    found = dict(cluster.in_tasks(items, _survey, max_bytes=max_bytes))
    return numbered(msgspec.json.decode(found[number], type=list[Partition]) for number in range(len(items)))


def _survey(item: bytes, max_bytes: int) -> bytes:
    """Return the partitions that begin in a range."""
    file, start, end = msgspec.json.decode(item, type=tuple[File, int, int])
    return msgspec.json.encode(survey(file, start, end, max_bytes))


def files_digest(files: Sequence[File]) -> dict[str, object]:
    """Return what tells the inputs from others before they are read: the partitions know their bytes."""
    digest = hashlib.sha256(msgspec.json.encode([(file.name, file.size) for file in files])).hexdigest()
    return {"input_files": len(files), "input_names_and_sizes": digest}


def plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as JSON gives them back."""
    found: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(settings))
    return found


def _work(job: Job, options: AnyOptions, plan: RayPlan, folder: Folder, cluster: RayCluster) -> list[Commit]:
    """Do all partitions that are not committed; return the commits of all, in order."""
    done = commits_of(folder)
    limit = plan.max_bad or 0
    num_bad = sum(one.totals.get("num_bad_lines", 0) for one in done.values())
    pending = [partition for partition in job.partitions if partition.number not in done]
    if not pending:
        return in_order(job, done)
    bundle = Path(options.bundle)
    holder = cluster.share({path.name: path.read_bytes() for path in bundle.iterdir() if path.is_file()})
    setup = Setup(options, signing_keys=plan.signing_keys)
    items = [msgspec.json.encode(one) for one in pending]
    for _, result in cluster.in_actors(items, Engine, name=bundle.name, bundle=holder, setup=setup, plan=plan):
        one = msgspec.json.decode(result, type=Commit)
        done[one.partition] = one
        num_bad += one.totals.get("num_bad_lines", 0)
        if num_bad > limit:
            raise BadLine(
                f"got {num_bad:,} bad lines, expected at most {limit:,} (--max-bad); what is done is kept, --resume "
                "with a higher limit goes on"
            )
    return in_order(job, done)


def in_order(job: Job, done: Mapping[int, Commit]) -> list[Commit]:
    """Return the commits of all partitions, in order. Raises BulkError if some have none."""
    if len(done) != len(job.partitions):
        raise BulkError(f"{len(job.partitions) - len(done):,} partitions have no part; --resume does them")
    return [done[partition.number] for partition in job.partitions]


def write_manifest(folder: Folder, job: Job, commits: Sequence[Commit]) -> dict[str, int]:
    """Write the manifest of a job that is done; return its sums."""
    totals: dict[str, int] = {}
    for one in commits:
        for name, count in one.totals.items():
            totals[name] = totals.get(name, 0) + count
    parts = [
        {**msgspec.to_builtins(part), "input": partition.name, "first_line": partition.first_line}
        for partition, one in zip(job.partitions, commits, strict=True)
        for part in one.parts
    ]
    seconds, cpu = (round(sum(getattr(one, name) for one in commits), 3) for name in ("seconds", "cpu_seconds"))
    about = {"meari_manifest": FORMAT, "run": job.run, "seconds": seconds, "cpu_seconds": cpu, "totals": totals}
    lines = sum(part["lines"] for part in parts)
    folder.write(msgspec.json.format(msgspec.json.encode({**about, "lines": lines, "parts": parts})), MANIFEST)
    return totals


class Engine:
    """An actor that holds an engine. It opens the bundle from the job, so nodes need no folder in common for it."""

    def __init__(self, name: str, bundle: Sequence[Any], setup: Setup, plan: RayPlan) -> None:
        from meari.runtime.machine import freeze_objects, keep_freed_memory

        keep_freed_memory()
        self._scratch = tempfile.TemporaryDirectory(prefix="meari-")
        folder = Path(self._scratch.name) / name
        folder.mkdir()
        for file, data in RayCluster.shared(bundle).items():
            (folder / file).write_bytes(data)
        self._folder = Folder(plan.output)
        own = msgspec.structs.replace(setup, options=msgspec.structs.replace(setup.options, bundle=str(folder)))
        work = open_work(open_backend(own), own)
        self._plan, self._options, self._work = plan, setup.options, work
        freeze_objects()  # of Ray and pandas, too

    def __call__(self, item: bytes) -> bytes:
        """Return the commit of a partition."""
        partition, plan = msgspec.json.decode(item, type=Partition), self._plan
        max_bad = plan.max_bad or 0
        work = partial(score_parts, partition, self._work, self._options, suffix=plan.suffix, max_bad=max_bad)
        try:
            return msgspec.json.encode(commit(partition.number, self._folder, work))
        except BadLine as error:
            hint = SKIP_HINT if plan.max_bad is None else "that is one more than --max-bad"
            raise BadLine(f"{error}; {hint}; what is done is kept, --resume goes on") from None
