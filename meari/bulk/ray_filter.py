"""Parts of a corpus on Ray: scores of jobs that are done → thresholds, and each partition's lines in three parts.

Input: folders of scores, the partitions that they are of. Output: a folder of parts, as of any job. Must not know: the
command line, how lines are scored.

    thresholds.json                  see `filtering.Thresholds`
    parts/head/part-00012.jsonl      those lines of partition 12; as well in `middle` and `tail`
    scores/, scores-against/         jobs of their own: the scores of one model each
    reference/, reference-against/   the same of the reference
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from meari.bulk.commits import COMMITS, PARTS, Commit, Work, WrittenPart, commit, commits_of
from meari.bulk.filtering import DIGIT_BITS, Counts, Scores, Thresholds, split_lines_by, split_rows_by
from meari.bulk.filtering import PARTS as OF_CORPUS
from meari.bulk.options import SCORE_SHARE
from meari.bulk.parquet import PARQUET_SUFFIX, RowRange, common_schema
from meari.bulk.partitions import Partition, chunks_of
from meari.bulk.ray_cluster import RayCluster
from meari.bulk.ray_engine import FORMAT, JOB, MANIFEST, Job, in_order, plain, read_job, write_manifest
from meari.bulk.storage import Folder

__all__ = ["LEFT_OUT", "THRESHOLDS", "RayScores", "split_on_ray"]

THRESHOLDS: Final = "thresholds.json"
LEFT_OUT: Final = "num_left_out"
GROUPS: Final = 4  # of partitions for each worker, when values are counted


@dataclass(frozen=True)
class RayScores:
    """Scores of the same lines by one model or two, in folders of jobs; see `Scores`."""

    cluster: RayCluster
    folders: tuple[str, ...]
    column: str

    @cached_property
    def of_partitions(self) -> list[Scores]:
        """The scores of each partition, in order."""
        names = [_part_names(Folder(name)) for name in self.folders]
        return [Scores(paths, self.column) for paths in zip(*names, strict=True)]

    def count_digits(self, shift: int, higher: int) -> Counts:
        """Count the values of all partitions by one digit, in tasks."""
        scores = self.of_partitions
        size = max(1, -(-len(scores) // (GROUPS * self.cluster.num_workers)))
        groups = [scores[at : at + size] for at in range(0, len(scores), size)]
        items = [msgspec.json.encode(group) for group in groups]
        counts = np.zeros(1 << DIGIT_BITS, np.int64)
        for _, counted in self.cluster.in_tasks(items, _count_digits, shift=shift, higher=higher):
            counts += np.frombuffer(counted, np.int64)
        return counts


def _part_names(folder: Folder) -> list[str]:
    return [
        folder.path(PARTS, part.part) for one in in_order(read_job(folder), commits_of(folder)) for part in one.parts
    ]


def _count_digits(item: bytes, shift: int, higher: int) -> bytes:
    counts = np.zeros(1 << DIGIT_BITS, np.int64)
    for scores in msgspec.json.decode(item, type=list[Scores]):
        counts += scores.count_digits(shift, higher)
    return counts.tobytes()


class _Item(msgspec.Struct, frozen=True):
    """A partition and its scores."""

    partition: Partition
    scores: Scores


def split_on_ray(thresholds: Thresholds, scores: RayScores, output: str, suffix: str) -> list[int]:
    """Write the lines of each partition to its parts, unless they are there; see `split_lines_by`. Raises BulkError.

    output  folder or URL, with the job of the scores in it
    """
    folder = Folder(output)
    scored = read_job(Folder(scores.folders[0]))
    if suffix == PARQUET_SUFFIX:
        common_schema(RowRange(file.name, file.path) for file in scored.files)
    run = plain({"thresholds": thresholds, "suffix": suffix, "scores": scored.run})
    job = Job(FORMAT, run, scored.files, scored.partitions)
    if not folder.has(JOB) or read_job(folder) != job:  # other thresholds: all lines are divided anew
        folder.clear(COMMITS)
        folder.clear(MANIFEST)
        folder.write(thresholds.encode(), THRESHOLDS)
        folder.write(msgspec.json.encode(job), JOB)
    done = commits_of(folder)
    items = [
        msgspec.json.encode(_Item(partition, own))
        for partition, own in zip(job.partitions, scores.of_partitions, strict=True)
        if partition.number not in done
    ]
    given = {"output": folder.name, "thresholds": thresholds, "suffix": suffix}
    for _, result in scores.cluster.in_tasks(items, _split, **given):
        one = msgspec.json.decode(result, type=Commit)
        done[one.partition] = one
    totals = write_manifest(folder, job, in_order(job, done))
    return [totals.get(name, 0) for name in (*OF_CORPUS, LEFT_OUT)]


def _split(item: bytes, output: str, thresholds: Thresholds, suffix: str) -> bytes:
    """Write the parts of a partition and return its commit."""
    one = msgspec.json.decode(item, type=_Item)
    work = partial(_split_parts, one, thresholds, suffix)
    return msgspec.json.encode(commit(one.partition.number, Folder(output), work))


def _split_parts(item: _Item, thresholds: Thresholds, suffix: str, scratch: Path) -> Work:
    partition = item.partition
    files = [scratch / part for part in OF_CORPUS]
    if suffix == PARQUET_SUFFIX:
        rows = RowRange(partition.name, partition.path, partition.start, partition.end)
        counts = split_rows_by(thresholds, item.scores, [rows], files)
    else:
        counts = split_lines_by(thresholds, item.scores, chunks_of(partition, SCORE_SHARE), files)
    name = f"part-{partition.number:05}{suffix}"
    parts = [WrittenPart(f"{file.name}/{name}", file, count) for file, count in zip(files, counts, strict=False)]
    return Work(parts, dict(zip((*OF_CORPUS, LEFT_OUT), counts, strict=True)))
