"""The output of a job on many machines: parts that are committed, each partition once.

Input: a partition and the work on its lines, or the parts of a corpus. Output: files in a folder or at a URL. Must not
know: Ray, or who works on which partition when.

    job.json                 what the job is: its options, its files, its partitions with their checksums
    parts/part-00012.jsonl   records of partition 12, in the order of its lines
    commits/00012.json       written after its parts: lines, bytes and SHA-256. A part without it does not count
    manifest.json            written last: all parts

The parts of a partition depend on its lines and the options alone, so it does no harm if two workers do it: both write
the same bytes, and each file is replaced whole. A partition that is committed is not done again.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from meari.bulk.errors import BadLine
from meari.bulk.frames import Bad, Begun, Done, LineWork, LongLine, Part
from meari.bulk.lines import LONG_BYTES, Chunk
from meari.bulk.options import Share, WorkOptions, figure_types, share_of
from meari.bulk.parquet import PARQUET_SUFFIX
from meari.bulk.parquet_output import write_parquet
from meari.bulk.partitions import Partition, chunks_of
from meari.bulk.records import guess_encoding
from meari.bulk.storage import Folder

__all__ = ["COMMITS", "PARTS", "Commit", "CommittedPart", "Work", "WrittenPart", "commit", "commits_of", "score_parts"]

PARTS: Final = "parts"
COMMITS: Final = "commits"


class CommittedPart(msgspec.Struct, frozen=True):
    """A part that is complete; `part` is its path below `parts`, `lines` are those of the input."""

    part: str
    lines: int
    bytes: int
    sha256: str


class Commit(msgspec.Struct, frozen=True):
    """A partition that is done: its parts, the seconds of the worker, and the sums."""

    partition: int
    parts: list[CommittedPart]
    seconds: float
    cpu_seconds: float
    totals: dict[str, int]


@dataclass(frozen=True)
class WrittenPart:
    """A part as the work leaves it in its scratch folder; see `CommittedPart`."""

    part: str
    file: Path
    lines: int


@dataclass(frozen=True)
class Work:
    """Result of the work on a partition."""

    parts: Sequence[WrittenPart]
    totals: dict[str, int]


def commits_of(folder: Folder) -> dict[int, Commit]:
    """Return the partitions that are done."""
    names = sorted(name for name in folder.names(COMMITS) if name.endswith(".json") and not name.startswith("."))
    commits = [msgspec.json.decode(folder.read(COMMITS, name), type=Commit) for name in names]
    return {commit.partition: commit for commit in commits}


def commit(number: int, folder: Folder, work: Callable[[Path], Work]) -> Commit:
    """Do the work on a partition and commit it, unless that is done already.

    work  fills a scratch folder
    Raises BulkError; with BadLine, nothing of the partition is kept.
    """
    name = f"{number:05}.json"
    if folder.has(COMMITS, name):
        return msgspec.json.decode(folder.read(COMMITS, name), type=Commit)
    started, cpu_started = time.monotonic(), time.process_time()
    with tempfile.TemporaryDirectory() as scratch:
        done = work(Path(scratch))
        parts = [_put(part, folder) for part in done.parts]
    seconds = round(time.monotonic() - started, 3), round(time.process_time() - cpu_started, 3)
    made = Commit(number, parts, *seconds, done.totals)
    folder.write(msgspec.json.encode(made), COMMITS, name)
    return made


def _put(part: WrittenPart, folder: Folder) -> CommittedPart:
    with part.file.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    folder.put(part.file, PARTS, part.part)
    return CommittedPart(part.part, part.lines, part.file.stat().st_size, digest)


def score_parts(
    partition: Partition, work: LineWork, options: WorkOptions, scratch: Path, *, suffix: str, max_bad: int
) -> Work:
    """Write the records of a partition. Raises BadLine for the bad line that ends the run."""
    rows = scratch / "rows"
    totals = _write_rows(partition, work, options, rows, max_bad)
    lines = sum(totals.get(key, 0) for key in ("num_texts", "num_blank", "num_prompts", "num_bad_lines"))
    if suffix == PARQUET_SUFFIX:
        write_parquet(rows, scratch / "parquet", figure_types(options), b"{}")
        rows = scratch / "parquet"
    return Work([WrittenPart(f"part-{partition.number:05}{suffix}", rows, lines)], totals)


def _write_rows(partition: Partition, work: LineWork, options: WorkOptions, rows: Path, max_bad: int) -> dict[str, int]:
    """Write records as they come; return the sums."""
    share = share_of(options)
    label = partition.name if options.with_file else ""
    totals: dict[str, int] = {}
    num_bad = 0
    with rows.open("wb") as file:
        file.write(work.head)
        for message in _messages_of(work, chunks_of(partition, share), share, label):
            match message:
                case Part():
                    file.write(message.data)
                case Bad():
                    num_bad += 1
                    if num_bad > max_bad:
                        chunks = (chunk.data for chunk in chunks_of(partition, share))
                        guess = guess_encoding(message.problem, chunks, partition.name)
                        raise BadLine(f"{partition.name}: {message.problem}{guess}")
                case Done():
                    for key, count in message.totals().items():
                        totals[key] = totals.get(key, 0) + count
    return totals


def _messages_of(work: LineWork, chunks: Iterable[Chunk], share: Share, file: str) -> Iterator[Part | Bad | Done]:
    """Yield the results of chunks in order, while the engine has the next ones already."""
    begun: deque[tuple[Begun, int, int]] = deque()
    long: LongLine | None = None
    for chunk in chunks:
        if not chunk.is_long:
            begun.append((work.begin(chunk.data, chunk.first_line, file), chunk.num_lines, len(chunk.data)))
        else:
            if long is None:
                long = work.begin_long(chunk.first_line, file)
                begun.append((long, 1, LONG_BYTES))
            long.feed(chunk.data, ends=chunk.num_lines > 0)
            long = None if chunk.num_lines else long
        while _is_full(begun, share) and begun[0][0] is not long:
            yield from begun.popleft()[0].messages()
    while begun:
        yield from begun.popleft()[0].messages()


def _is_full(begun: deque[tuple[Begun, int, int]], share: Share) -> bool:
    lines, size = sum(lines for _, lines, _ in begun), sum(size for _, _, size in begun)
    return bool(begun) and (lines >= share.lines_held or size >= share.bytes_held)
