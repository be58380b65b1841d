"""Test partitions without Ray: their borders, their lines, and what is refused."""

from __future__ import annotations

import gzip
import json
import random
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import click
import fsspec
import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.utils import infer_storage_options

from meari.bulk.backends import open_local
from meari.bulk.commits import Commit, commit, commits_of, score_parts
from meari.bulk.errors import BadLine, BulkError
from meari.bulk.options import SCORE_SHARE, ScoreOptions
from meari.bulk.partitions import Partition, chunks_of, list_inputs, numbered, ranges_of, survey
from meari.bulk.score import ScoreWork
from meari.bulk.storage import Folder, join, names_below
from meari.cli.main import group
from tests.bulk.command import meari

LINES = [b"ab\n", b"\n", b"c" * 40 + b"\n", b"dd\r\n", "é한\n".encode(), b"\n", b"last"]


def partitions_of(*paths: Path | str, size: int) -> list[Partition]:
    files = list_inputs([str(path) for path in paths])
    return numbered(survey(*one, size) for file in files for one in ranges_of(file, size))


def lines_in(partition: Partition) -> bytes:
    return b"".join(chunk.data for chunk in chunks_of(partition, SCORE_SHARE))


@pytest.mark.parametrize("seed", range(40))
def test_partitions_of_any_size_hold_each_line_once_with_its_number(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    data = b"".join(draw.choices(LINES[:-1], k=draw.randint(0, 30))) + draw.choice([b"", b"last", b"x\n"])
    path = tmp_path / "lines.txt"
    path.write_bytes(data)
    found = partitions_of(path, size=draw.choice([1, 2, 3, 7, 50, 1000]))
    assert b"".join(map(lines_in, found)) == data
    assert [one.number for one in found] == list(range(len(found)))
    for one in found:
        assert one.first_line == data[: one.start].count(b"\n") + 1
        assert one.num_lines == len(data[one.start : one.end].removesuffix(b"\n").split(b"\n"))


def test_lines_of_several_files_are_counted_in_each(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("ab\n" * 10)
    (tmp_path / "c.gz").write_bytes(gzip.compress(b"ab\n" * 10))
    found = partitions_of(tmp_path / "a.txt", tmp_path / "b.txt", tmp_path / "c.gz", size=15)
    places = [(Path(one.name).name, one.first_line, one.num_lines) for one in found]
    assert places == [("a.txt", 1, 5), ("a.txt", 6, 5), ("b.txt", 1, 5), ("b.txt", 6, 5), ("c.gz", 1, None)]
    assert lines_in(found[-1]) == b"ab\n" * 10


@pytest.mark.parametrize("name", ["a.txt", "a.gz", "a.parquet"])
def test_lines_of_a_file_that_is_named_twice_are_counted_anew(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "a.parquet":
        pq.write_table(pa.table({"text": ["ab"] * 10}), path, row_group_size=5)
    else:
        path.write_bytes(b"ab\n" * 10 if name == "a.txt" else gzip.compress(b"ab\n" * 10))
    once = [(one.first_line, one.num_lines) for one in partitions_of(path, size=15)]
    twice = [(one.first_line, one.num_lines) for one in partitions_of(path, path, size=15)]
    assert twice == once * 2
    assert once[0][0] == 1


def test_row_groups_of_parquet_are_partitions(tmp_path: Path) -> None:
    rows = [{"text": f"ab{n}", "id": n} for n in range(25)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet", row_group_size=10)
    found = partitions_of(tmp_path / "in.parquet", size=1)
    assert [(one.start, one.end, one.first_line) for one in found] == [(0, 10, 1), (10, 20, 11), (20, 25, 21)]
    assert b"".join(map(lines_in, found)) == b"".join(msgspec.json.encode(row) + b"\n" for row in rows)


class RangeHandler(SimpleHTTPRequestHandler):
    """Sends a range of a file, if it is told to."""

    def do_GET(self) -> None:
        begin, end = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"]).groups()  # type: ignore[union-attr]
        data = Path(self.translate_path(self.path)).read_bytes()
        part = data[int(begin) : int(end) + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {begin}-{int(begin) + len(part) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, *_: object) -> None: ...


@contextmanager
def served(folder: Path, handler: type[SimpleHTTPRequestHandler]) -> Iterator[str]:
    """Serve the files of a folder over HTTP; yield the URL."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_files_of_a_server_are_read_over_http_by_ranges_alone(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    data = b"ab\n" * 20
    (tmp_path / "in.txt").write_bytes(data)
    with served(tmp_path, RangeHandler) as url:
        found = partitions_of(f"{url}/in.txt", size=15)
        assert [one.first_line for one in found] == [1, 6, 11, 16]
        assert b"".join(map(lines_in, found)) == data


def test_server_that_sends_whole_files_alone_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    (tmp_path / "in.txt").write_bytes(b"ab\n" * 4_000_000)
    with (
        served(tmp_path, SimpleHTTPRequestHandler) as url,
        pytest.raises(BulkError, match="expected a file of which any range can be read"),
    ):
        list_inputs([f"{url}/in.txt"])


def test_url_of_any_file_system_is_read_and_written(bundles: Path, tmp_path: Path) -> None:
    memory = MemoryFileSystem()
    memory.pipe("/corpus/b.txt", b"cd\n")
    memory.pipe("/corpus/a.txt", b"ab\n" * 8)
    memory.pipe("/corpus/ignored.bin", b"\0")
    found = partitions_of("memory://corpus", size=12)
    assert [(one.name, one.first_line) for one in found] == [
        ("memory:///corpus/a.txt", 1),
        ("memory:///corpus/a.txt", 5),
        ("memory:///corpus/b.txt", 1),
    ]
    folder = Folder("memory://out")
    done = commit_one(bundles, found[1], folder)
    records = [json.loads(line) for line in memory.cat("/out/parts/part-00001.jsonl").splitlines()]
    assert [record["line"] for record in records] == [5, 6, 7, 8]
    assert commits_of(folder) == {1: done}


class FileSystemOfHosts(MemoryFileSystem):  # type: ignore[misc]
    """Files of several hosts by URLs as those of HDFS: an empty host is one of its own."""

    protocol = "hosts"
    stores: ClassVar[dict[str, dict[str, Any]]] = {}

    def __init__(self, host: str = "", **more: Any) -> None:
        super().__init__(**more)
        self.store, self.pseudo_dirs = self.stores.setdefault(host, {}), [""]

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        own = infer_storage_options(path)["path"] if "://" in path else path
        return str(MemoryFileSystem._strip_protocol(own))

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, str]:
        return {"host": infer_storage_options(path).get("host", "")}


@pytest.fixture
def stores() -> Iterator[dict[str, dict[str, Any]]]:
    fsspec.register_implementation("hosts", FileSystemOfHosts, clobber=True)
    yield FileSystemOfHosts.stores
    FileSystemOfHosts.stores.clear()
    FileSystemOfHosts.clear_instance_cache()


HOSTS = [("hosts:///", ""), ("hosts:///deep/", ""), ("hosts://one", "one"), ("hosts://one:99/deep/er", "one")]


@pytest.mark.parametrize(("url", "host"), HOSTS)
def test_files_of_a_url_stay_on_its_host_even_on_an_empty_one(
    stores: dict[str, dict[str, Any]], url: str, host: str
) -> None:
    Folder(url).write(b"ab\n", "in", "a.txt")
    folder = Folder(join(url, "in"))
    folder.write(b"cd\n", "b.txt")
    assert {name for name, files in stores.items() if files} == {host}
    names = [join(url, "in", name) for name in ("a.txt", "b.txt")]
    assert sorted(folder.names()) == ["a.txt", "b.txt"]
    for given in (join(url, "in"), join(url, "in") + "/", join(url, "in", "*.txt")):
        found = partitions_of(given, size=100)
        assert [one.name for one in found] == names
        assert b"".join(map(lines_in, found)) == b"ab\ncd\n"
    Folder(url).clear()
    assert Folder(url).names() == []


def test_output_given_as_a_url_keeps_its_slashes(stores: dict[str, dict[str, Any]], bundles: Path) -> None:
    Folder("hosts:///out").write(b"{}", "job.json")
    Folder("hosts:///out").write(b"{}", "scores", "job.json")
    Folder("hosts:///").write(b"ab\n", "in.txt")
    for words in (["score", "hosts:///in.txt"], ["filter", "hosts:///in.txt", "--model", "letters"]):
        command = [*words, "--engine", "ray", "--bundles", str(bundles), "-o", "hosts:///out/", "-q"]
        with pytest.raises((BulkError, click.ClickException), match="hosts:///out: holds a job"):
            group(command, standalone_mode=False)


@pytest.mark.parametrize(
    ("name", "below", "expected"),
    [
        ("hdfs:///", (), "hdfs:///"),
        ("hdfs:///", ("a", "b"), "hdfs:///a/b"),
        ("hdfs://host//", ("a",), "hdfs://host/a"),
        ("memory://", ("a",), "memory://a"),
        ("s3://bucket/a/", (), "s3://bucket/a"),
        ("/", ("a",), "/a"),
        ("", ("a",), "a"),
        ("a/", ("b",), "a/b"),
    ],
)
def test_names_are_joined_to_the_root_of_a_file_system_as_well(
    name: str, below: tuple[str, ...], expected: str
) -> None:
    assert join(name, *below) == expected


def test_files_are_found_by_a_chain_of_urls(stores: dict[str, dict[str, Any]]) -> None:
    Folder("hosts://one/in").write(b"ab\n", "a.txt")
    [found] = partitions_of("simplecache::hosts://one/in", size=100)
    assert found.name == "simplecache::hosts://one/in/a.txt"
    assert lines_in(found) == b"ab\n"
    names = names_below("zip://deep/*.txt::s3://b/in.zip", None, "deep/*.txt", ["deep/a.txt"])
    assert names == ["zip://deep/a.txt::s3://b/in.zip"]
    assert names_below("zip://::s3://b/in.zip", None, "", ["a.txt"]) == ["zip://a.txt::s3://b/in.zip"]


def commit_one(bundles: Path, partition: Partition, folder: Folder, **options: Any) -> Commit:
    scoring = ScoreOptions(bundle=str(bundles / "letters"), input_format="text", format="jsonl", **options)
    backend = open_local(bundles / "letters")
    try:
        work = ScoreWork(backend, scoring)
        parts = partial(score_parts, partition, work, scoring, suffix=".jsonl", max_bad=0)
        return commit(partition.number, folder, parts)
    finally:
        backend.close()


def test_parts_are_the_bytes_of_a_run_without_ray_and_written_once(bundles: Path, tmp_path: Path) -> None:
    path = tmp_path / "in.txt"
    path.write_bytes(b"".join(LINES[:-1] * 20) + b"a" * 600_000 + b"\n" + LINES[-1])
    found = partitions_of(path, size=900)
    folder = Folder(str(tmp_path / "out"))
    commits = [commit_one(bundles, partition, folder) for partition in found]
    whole = meari("score", path, "--bundles", bundles)
    parts = [tmp_path / "out" / "parts" / f"part-{number:05}.jsonl" for number in range(len(found))]
    assert b"".join(part.read_bytes() for part in parts) == whole.stdout
    parts[0].write_bytes(b"not again")
    assert commit_one(bundles, found[0], folder) == commits[0]
    assert parts[0].read_bytes() == b"not again"


def test_input_that_changed_since_the_job_began_is_refused(bundles: Path, tmp_path: Path) -> None:
    path, folder = tmp_path / "in.txt", Folder(str(tmp_path / "out"))
    path.write_text("ab\ncd\n")
    [partition] = partitions_of(path, size=100)
    path.write_text("ab\nce\n")
    with pytest.raises(BulkError, match="got other bytes than when the job began"):
        commit_one(bundles, partition, folder)
    assert commits_of(folder) == {}
    assert not (tmp_path / "out").exists()


def test_bad_line_beyond_the_limit_ends_its_partition_without_a_part(bundles: Path, tmp_path: Path) -> None:
    path, folder = tmp_path / "in.txt", Folder(str(tmp_path / "out"))
    path.write_bytes(b"ab\n\xff\n")
    [partition] = partitions_of(path, size=100)
    with pytest.raises(BadLine, match=f"{path}: line 2: got bytes that are not UTF-8 at byte 1, expected UTF-8"):
        commit_one(bundles, partition, folder)
    assert commits_of(folder) == {}
    path.write_bytes(b"ab\n" + "이 영화는 정말 재미있습니다\n".encode("cp949"))
    [partition] = partitions_of(path, size=100)
    with pytest.raises(BadLine, match=f"it looks like CP949 .*: `iconv -f CP949 -t UTF-8 {path}` converts it"):
        commit_one(bundles, partition, folder)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["score", "-"], "got standard input with --engine ray"),
        (["score", "x.txt", "--server", "http://localhost:1"], "--server: got http://localhost:1 with --engine ray"),
        (["score", "x.txt"], "--output: missing, expected -o DIR"),
        (["score", "x.txt", "--resume", "--overwrite", "-o", "out"], "--resume and --overwrite exclude each other"),
        (["score", "memory://x.txt", "-o", "out"], "memory://x.txt: got the memory of one process"),
        (["score", "zip://x::memory://x.zip", "-o", "out"], "memory://x.zip: got the memory of one process"),
        (["score", "x.txt", "-o", "memory://out"], "memory://out: got the memory of one process"),
        (["score", "x.txt", "-o", "out", "--partition-mb", "nan"], "nan is not in the range"),
        (["score", "--text", "ab"], "--engine ray: got it with --text"),
        (["generate", "ab"], "--engine ray: got it without --prompts"),
    ],
)
def test_options_that_do_not_fit_ray_are_refused(bundles: Path, words: list[str], message: str) -> None:
    where = [] if "--server" in words else ["--bundles", bundles]
    done = meari(*words, "--engine", "ray", *where)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.decode().split())
