"""Test the bulk verbs on a Ray cluster of this machine, which all tests share: the bytes of runs without Ray."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import signal
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import click
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from meari.bulk.errors import Interrupted, interruptible
from meari.bulk.ray_cluster import RayCluster
from meari.cli.main import group
from tests.bulk.command import meari, records
from tests.bulk.test_filter import corpus, found_parts, two_models
from tests.bulk.test_partitions import RangeHandler, served

ray = pytest.importorskip("ray")
__all__ = ["two_models"]  # a fixture: a folder of two models
pytestmark = pytest.mark.filterwarnings("ignore")  # those of Ray itself


@pytest.fixture(scope="module", autouse=True)
def shared_cluster() -> Iterator[None]:
    from tests.drills.ray_nodes import head

    cluster = head()
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()
    cluster.shutdown()


def run(*words: object) -> None:
    """Run a verb in this process, which knows the cluster. Raises what ends the verb."""
    group([*map(str, words), "-q"], prog_name="meari", standalone_mode=False)


def on_ray(*words: object, size_mb: float = 1e-3) -> None:
    run(*words, "--engine", "ray", "--partition-mb", size_mb)


def manifest_of(folder: Path) -> dict[str, Any]:
    """Return a manifest whose checksums and lines are those of its parts."""
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_bytes())
    for part in manifest["parts"]:
        data = (folder / "parts" / part["part"]).read_bytes()
        assert (hashlib.sha256(data).hexdigest(), len(data)) == (part["sha256"], part["bytes"])
    return manifest


def parts_of(folder: Path, below: str = "") -> list[Path]:
    """Return the parts that a manifest lists, in order."""
    names = [part["part"] for part in manifest_of(folder)["parts"]]
    return [folder / "parts" / name for name in names if name.startswith(below)]


def joined(folder: Path, below: str = "") -> bytes:
    return b"".join(path.read_bytes() for path in parts_of(folder, below))


def write_jsonl(path: Path, count: int, **more: object) -> Path:
    lines = [{"id": number, "text": text, **more} for number, text in enumerate(corpus(count))]
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), "utf-8")
    return path


def test_generated_parts_are_the_bytes_of_a_run_without_ray_and_are_resumed_with_their_random_seed(
    bundles: Path, tmp_path: Path
) -> None:
    prompts, out = tmp_path / "prompts.txt", tmp_path / "text"
    prompts.write_text("".join(f"{text}\n" for text in corpus(60)), "utf-8")
    words = ["generate", "--prompts", prompts, "--n", 2, "--max-tokens", 5, "--bundles", bundles, "--format"]

    def seed() -> int:
        return int(json.loads((out / "job.json").read_bytes())["run"]["seed"])

    on_ray(*words, "text", "-o", out, size_mb=1.5e-4)
    drawn = seed()
    run(*words, "text", "--seed", drawn, "-o", tmp_path / "here.txt")
    assert len(parts_of(out)) > 2
    assert joined(out) == (tmp_path / "here.txt").read_bytes()
    for name in ("00000", "00002"):
        (out / "commits" / f"{name}.json").unlink()
    on_ray(*words, "text", "-o", out, "--resume", size_mb=1.5e-4)
    assert seed() == drawn
    assert joined(out) == (tmp_path / "here.txt").read_bytes()
    on_ray(*words, "jsonl", "--seed", drawn, "-o", tmp_path / "jsonl")
    run(*words, "jsonl", "--seed", drawn, "-o", tmp_path / "here.jsonl")
    assert joined(tmp_path / "jsonl") == (tmp_path / "here.jsonl").read_bytes()


def test_tsv_has_the_rows_of_a_run_without_ray_and_names_in_each_part(bundles: Path, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "in.jsonl", 60, url="x")
    words = ["score", path, "--format", "tsv", "--words", "--bundles", bundles]
    run(*words, "-o", tmp_path / "here.tsv")
    on_ray(*words, "-o", tmp_path / "out")
    head, rows = (tmp_path / "here.tsv").read_bytes().split(b"\n", 1)
    parts = [path.read_bytes().split(b"\n", 1) for path in parts_of(tmp_path / "out")]
    assert len(parts) > 1
    assert {own for own, _ in parts} == {head}
    assert b"".join(own for _, own in parts) == rows


def test_parquet_in_and_out_has_the_rows_of_a_run_without_ray(bundles: Path, tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    rows = records(write_jsonl(tmp_path / "in.jsonl", 60).read_bytes())
    table = {name: [row[name] for row in rows] for name in ("id", "text")}
    pq.write_table(pa.table(table), path, row_group_size=20)
    run("score", path, "--bundles", bundles, "-o", tmp_path / "here.parquet")
    on_ray("score", path, "--bundles", bundles, "--format", "parquet", "-o", tmp_path / "out", size_mb=1e-5)
    parts = [pq.read_table(one).to_pylist() for one in parts_of(tmp_path / "out")]
    assert [len(part) for part in parts] == [20, 20, 20, 2]
    assert list(chain.from_iterable(parts)) == pq.read_table(tmp_path / "here.parquet").to_pylist()


def test_urls_are_read_and_written(bundles: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("b.txt", "a.txt"):
        (tmp_path / "in" / name).write_text("\n".join(corpus(30)) + "\n", "utf-8")
    on_ray("score", f"file://{tmp_path}/in", "--bundles", bundles, "--no-text", "-o", f"local://{tmp_path}/out/")
    found = records(joined(tmp_path / "out"))
    assert [(record["file"], record["line"]) for record in found] == [
        (f"file://{tmp_path}/in/{name}", line) for name in ("a.txt", "b.txt") for line in range(1, 33)
    ]


def test_files_in_archives_are_scored_as_those_alone(bundles: Path, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "in.jsonl", 40)
    text = path.read_bytes()
    with zipfile.ZipFile(tmp_path / "in.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("deep/a.jsonl", text)
        packed.writestr("deep/b.jsonl.gz", gzip.compress(text))
    with tarfile.open(tmp_path / "in.tar.gz", "w:gz") as tar:
        tar.add(path, "c.jsonl")
    names = [
        f"zip://deep/*::file://{tmp_path}/in.zip",
        f"tar://c.jsonl::file://{tmp_path}/in.tar.gz",
        f"simplecache::file://{path}",
    ]
    on_ray("score", *names, "--bundles", bundles, "-o", tmp_path / "out")
    run("score", path, "--bundles", bundles, "-o", tmp_path / "here.jsonl")
    found = [(record.pop("file"), record) for record in records(joined(tmp_path / "out"))]
    expected = records((tmp_path / "here.jsonl").read_bytes())
    assert [record for _, record in found] == expected * 4
    assert list(dict(found)) == [*(names[0].replace("*", name) for name in ("a.jsonl", "b.jsonl.gz")), *names[1:]]


def test_inputs_of_a_server_are_scored_over_http_as_files_are(bundles: Path, tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    text = "".join(f"{line}\n" for line in corpus(100)).encode()
    (tmp_path / "a.txt").write_bytes(text)
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(text))
    words = ["--bundles", bundles, "--words", "-o"]
    with served(tmp_path, RangeHandler) as url:
        on_ray("score", f"{url}/a.txt", f"{url}/b.txt.gz", *words, tmp_path / "out", size_mb=3e-4)
        found = joined(tmp_path / "out")
    assert len(parts_of(tmp_path / "out")) > 2
    run("score", tmp_path / "a.txt", tmp_path / "b.txt.gz", *words, tmp_path / "here.jsonl")
    assert found.replace(url.encode(), str(tmp_path).encode()) == (tmp_path / "here.jsonl").read_bytes()


def test_job_without_an_address_starts_a_ray_and_says_so(
    bundles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "in.txt.gz"
    path.write_bytes(gzip.compress(b"ab\ncd\n"))
    words = ["score", path, "--bundles", bundles]
    assert "RAY_ADDRESS" not in os.environ
    monkeypatch.setenv("RAY_worker_niceness", "0")
    done = meari(*words, "--engine", "ray", "-j", 1, "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert b"without RAY_ADDRESS, a Ray with 1 CPUs starts here, for this run alone" in done.stderr
    run(*words, "-o", tmp_path / "here.jsonl")
    assert joined(tmp_path / "out") == (tmp_path / "here.jsonl").read_bytes()


def test_lines_are_divided_by_a_reference_as_without_ray(two_models: Path, tmp_path: Path) -> None:
    pool, clean, bad = tmp_path / "pool.txt", tmp_path / "clean.txt.gz", b"\xff\xfe\n"
    pool.write_bytes("\r\n".join(corpus(300)).encode() + b"\n" + bad + b"a" * 400_000)
    clean.write_bytes(gzip.compress("".join(f"{line}\n" for line in corpus(50)).encode()))
    words = ["filter", pool, "--model", "one", "--bundles", two_models, "--reference", clean, "--skip-bad"]
    words += ["--head", 30, "--middle", 40]
    run(*words, "-o", tmp_path / "here", "--summary", tmp_path / "here.json")
    on_ray(*words, "-o", tmp_path / "out", "--summary", tmp_path / "out.json")
    assert len(parts_of(tmp_path / "out", "head")) > 2
    assert [joined(tmp_path / "out", part) for part in ("head", "middle", "tail")] == found_parts(tmp_path / "here")
    thresholds = [(tmp_path / folder / "thresholds.json").read_bytes() for folder in ("here", "out")]
    assert thresholds[0] == thresholds[1]
    summaries = [json.loads((tmp_path / name).read_bytes()) for name in ("here.json", "out.json")]
    assert [list(one.pop("files").values()) for one in summaries] == [
        [data.count(b"\n") for data in found_parts(tmp_path / "here")]
    ] * 2
    assert summaries[0] == summaries[1]


def test_difference_of_two_models_divides_as_without_ray_and_is_resumed(two_models: Path, tmp_path: Path) -> None:
    pool, out = write_jsonl(tmp_path / "pool.jsonl", 200, url="x"), tmp_path / "out"
    words = ["filter", pool, "--model", "one", "--against", "other", "--head", 20, "--middle", 0]
    words += ["--bundles", two_models]
    run(*words, "-o", tmp_path / "here")
    on_ray(*words, "-o", out)

    def check() -> None:
        assert [joined(out, part) for part in ("head", "middle", "tail")] == found_parts(tmp_path / "here", ".jsonl")
        assert (out / "thresholds.json").read_bytes() == (tmp_path / "here" / "thresholds.json").read_bytes()

    check()
    with pytest.raises(Exception, match="holds a job; --resume goes on with it, --overwrite begins anew"):
        on_ray(*words, "-o", out)
    for name in ("commits/00001.json", "scores-against/commits/00000.json", "manifest.json"):
        (out / name).unlink()
    untouched = (out / "parts" / "head" / "part-00002.jsonl").stat().st_mtime_ns
    on_ray(*words, "-o", out, "--resume")
    check()
    assert (out / "parts" / "head" / "part-00002.jsonl").stat().st_mtime_ns == untouched
    scored = (out / "scores" / "parts" / "part-00000.tsv").stat().st_mtime_ns
    on_ray(*words, "--head", 50, "-o", out, "--resume")  # other shares: lines are divided anew
    run(*words, "--head", 50, "-o", tmp_path / "here", "--resume")
    check()
    assert (out / "scores" / "parts" / "part-00000.tsv").stat().st_mtime_ns == scored


def test_rows_of_parquet_are_divided_as_without_ray(two_models: Path, tmp_path: Path) -> None:
    rows = records(write_jsonl(tmp_path / "in.jsonl", 60).read_bytes())
    table = pa.table({name: [row[name] for row in rows] for name in ("id", "text")})
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=20)
    words = ["filter", tmp_path / "in.parquet", "--model", "one", "--bundles", two_models]
    run(*words, "-o", tmp_path / "here")
    on_ray(*words, "-o", tmp_path / "out", size_mb=1e-5)
    for part in ("head", "middle", "tail"):
        own = [pq.read_table(path) for path in parts_of(tmp_path / "out", part)]
        whole = pq.read_table(tmp_path / "here" / f"{part}.parquet")
        assert list(chain.from_iterable(one.to_pylist() for one in own)) == whole.to_pylist()
        assert all(one.schema == whole.schema for one in own)


def test_signal_that_comes_while_tasks_work_interrupts_their_driver(tmp_path: Path) -> None:
    ended = tmp_path / "ended"

    def work(item: bytes, driver: int) -> bytes:
        os.kill(driver, signal.SIGTERM)
        while not ended.exists():
            threading.Event().wait(0.05)
        return item

    with interruptible(), pytest.raises(Interrupted), RayCluster(1, print) as cluster:
        list(cluster.in_tasks([b"x"], work, driver=os.getpid()))
    ended.touch()


def test_output_in_a_folder_that_is_read_or_around_one_is_refused(two_models: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("ab\n")
    for output in ("in/out", "in", "."):
        with pytest.raises(
            click.UsageError, match=r"--output: got .*which (the next run would|is|holds what is) read as well"
        ):
            on_ray("filter", tmp_path / "in", "--model", "one", "--bundles", two_models, "-o", tmp_path / output)
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["a.txt"]
