"""Test Parquet in and out: the figures and fields of the same rows in JSONL, and parts of a corpus."""

from __future__ import annotations

import datetime as dt
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from meari.bulk.parquet_output import write_parquet
from tests.bulk.command import file_records, meari, records

ROWS: list[dict[str, Any]] = [
    {"text": "ab" * (n % 9) + "é\u2028", "id": n, "third": n / 3, "tags": ["x"] * (n % 3), "of": {"a": n, "b": None}}
    for n in range(400)
]
FIGURES = ["score"]
TEXTS = ["generate", "--seed", 3, "--max-tokens", 4, "--field", "text", "--prompts"]


def write_rows(folder: Path, rows: list[dict[str, Any]], name: str = "in", group: int = 70) -> tuple[Path, Path]:
    """Write the rows as JSONL and as Parquet, a row group of `group` rows."""
    jsonl, parquet = folder / f"{name}.jsonl", folder / f"{name}.parquet"
    jsonl.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), parquet, row_group_size=group)
    return jsonl, parquet


def rows_of(path: Path) -> list[dict[str, Any]]:
    with pq.ParquetFile(path) as file:
        found: list[dict[str, Any]] = file.read().to_pylist()
    return found


def with_nulls(record: dict[str, Any], names: list[str]) -> dict[str, Any]:
    return {name: record.get(name) for name in names}


@pytest.mark.parametrize("verb", [FIGURES, TEXTS])
def test_rows_of_parquet_have_the_records_of_the_same_lines_of_jsonl(
    bundles: Path, tmp_path: Path, verb: list[object]
) -> None:
    jsonl, parquet = write_rows(tmp_path, [*ROWS[:7], {**ROWS[7], "text": None}, *ROWS[8:]])
    expected = meari(*verb, jsonl, "--bundles", bundles, "--skip-bad")
    assert expected.returncode == 0, expected.stderr
    found = meari(*verb, parquet, "--bundles", bundles, "--skip-bad", "-j", 2)
    assert found.stdout == expected.stdout
    assert records(found.stdout)[7]["error"] == "text: got null, expected a string"


@pytest.mark.parametrize("verb", [[*FIGURES, "--tokens", "--top", 2], TEXTS])
def test_parquet_output_holds_what_jsonl_holds_bit_for_bit(bundles: Path, tmp_path: Path, verb: list[object]) -> None:
    jsonl, parquet = write_rows(tmp_path, ROWS)
    out, again = tmp_path / "out.parquet", tmp_path / "again.jsonl"
    for source, output in ((parquet, out), (jsonl, again)):
        head, *last = verb
        done = meari(head, *last, source, "--bundles", bundles, "-o", output)
        assert done.returncode == 0, done.stderr
    found = rows_of(out)
    for one, other in zip(found, file_records(again), strict=True):
        flat = {name: value for name, value in one.items() if not isinstance(value, dict | list)}
        assert flat == {name: other[name] for name in flat}
        assert json.dumps(one["tags"]) == json.dumps(other["tags"])
        assert one["of"] == other["of"]
        if "tokens" in other:
            logprobs = [token["logprob"] for token in other["tokens"]]
            assert [token["logprob"] for token in one["tokens"]] == logprobs
        if "choices" in other:
            assert [choice["text"] for choice in one["choices"]] == [choice["text"] for choice in other["choices"]]
    assert sorted(path.name for path in tmp_path.iterdir() if "out" in path.name) == ["out.parquet"]


def test_interrupted_run_to_parquet_continues_and_a_finished_one_is_known(bundles: Path, tmp_path: Path) -> None:
    bad = {**ROWS[0], "text": None}
    _, parquet = write_rows(tmp_path, [*ROWS[:250], bad, *ROWS[250:]])
    out, whole = tmp_path / "out.parquet", tmp_path / "whole.jsonl"
    words = ["score", parquet, "--bundles", bundles, "-o"]
    stopped = meari(*words, out)
    assert stopped.returncode == 1
    assert b"line 251: text: got null" in stopped.stderr
    assert not out.exists()
    refused = meari(*words, out)
    assert b"--resume goes on with it" in refused.stderr
    summary = tmp_path / "summary.json"
    done = meari(*words, out, "--resume", "--max-bad", 1, "--summary", summary)
    assert done.returncode == 0, done.stderr
    assert meari(*words, whole, "--skip-bad").returncode == 0
    found = rows_of(out)
    assert found == [with_nulls(record, list(found[0])) for record in file_records(whole)]
    written = out.read_bytes()
    once_more = meari(*words, out, "--resume", "--max-bad", 1, "--summary", tmp_path / "again.json")
    assert once_more.returncode == 0, once_more.stderr
    assert out.read_bytes() == written
    assert json.loads((tmp_path / "again.json").read_text()) == json.loads(summary.read_text())
    other = meari(*words, out, "--resume", "--log-base", 2)
    assert other.returncode == 1
    assert b"log_base: got '2', the run to resume had 'e'" in other.stderr


def test_columns_of_any_type_stand_in_the_records(bundles: Path, tmp_path: Path) -> None:
    when = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
    table = pa.table({
        "text": pa.array(["ab", "cd"]).dictionary_encode(),
        "when": pa.array([when.replace(tzinfo=None), None], pa.timestamp("ns")),
        "day": pa.array([when.date(), None]),
        "price": pa.array([1, 2], pa.decimal128(5, 2)),
        "raw": pa.array([b"\xff", None]),
        "small": pa.array([0.1, float("nan")], pa.float32()),
    })  # fmt: skip
    pq.write_table(table, tmp_path / "in.parquet")
    done = meari("score", tmp_path / "in.parquet", "--bundles", bundles)
    first, second = records(done.stdout)
    assert first["when"] == "2026-01-02 03:04:05.000000000"
    assert (first["day"], first["price"], first["raw"]) == ("2026-01-02", "1.00", "/w==")
    assert first["small"] == float(table["small"][0].as_py())
    assert (second["when"], second["raw"], second["small"]) == (None, None, None)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--field", "id"], 1, "id: got a column of int64, expected one of string"),
        (["--field", "of"], 1, "of: got a column of struct<a: int64, b: null>"),
        (["--field", "body"], 1, "got the columns text, id, third, tags, of, expected one called body"),
        (["--input-format", "text"], 2, "got text for"),
        (["--format", "parquet"], 2, "got parquet for standard output, expected -o FILE.parquet"),
        (["--format", "tsv", "-o", "x.parquet"], 2, "got x.parquet with --format tsv"),
        (["--json", "-o", "x.parquet"], 2, "got x.parquet with --json"),
    ],
)
def test_columns_and_options_that_do_not_fit_are_refused_by_name(
    bundles: Path, tmp_path: Path, words: list[str], code: int, message: str
) -> None:
    _, parquet = write_rows(tmp_path, ROWS[:3])
    done = meari("score", parquet, "--bundles", bundles, *words)
    assert done.returncode == code
    assert message in " ".join(done.stderr.decode().split())


def test_damaged_misnamed_and_piped_parquet_is_refused(bundles: Path, tmp_path: Path) -> None:
    _, parquet = write_rows(tmp_path, ROWS[:30])
    data = parquet.read_bytes()
    (tmp_path / "cut.parquet").write_bytes(data[:-9])
    (tmp_path / "text.parquet").write_text("ab\n")
    for name, message in (
        ("cut.parquet", "got damaged Parquet"),
        ("text.parquet", "got a .parquet that is not Parquet"),
    ):
        done = meari("score", tmp_path / name, "--bundles", bundles)
        assert (done.returncode, message in done.stderr.decode()) == (1, True), done.stderr
    piped = meari("score", "-", "--bundles", bundles, stdin=data)
    assert "got Parquet, whose index is at its end" in piped.stderr.decode()


def test_folder_of_parquet_is_read_in_order_and_takes_no_output(bundles: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for number in (1, 2):
        _, parquet = write_rows(tmp_path, ROWS[number : number + 3], f"part-{number}")
        parquet.rename(folder / parquet.name)
    done = meari("score", folder, "--bundles", bundles)
    found = [(Path(record["file"]).name, record["line"], record["id"]) for record in records(done.stdout)]
    assert found == [(f"part-{n}.parquet", line, n + line - 1) for n in (1, 2) for line in (1, 2, 3)]
    inside = meari("score", folder, "--bundles", bundles, "-o", folder / "out.parquet")
    assert inside.returncode == 2
    assert "which the next run would read as well" in inside.stderr.decode()
    (folder / "more.txt").write_text("ab\n")
    assert "expected files of one kind" in meari("score", folder, "--bundles", bundles).stderr.decode()


def test_filter_sorts_rows_with_all_columns_and_types(bundles: Path, tmp_path: Path) -> None:
    jsonl, parquet = write_rows(tmp_path, ROWS)
    for source, output in ((jsonl, "lines"), (parquet, "rows")):
        done = meari("filter", source, "--bundles", bundles, "--head", 30, "--middle", 40, "-o", tmp_path / output)
        assert done.returncode == 0, done.stderr
    for part in ("head", "middle", "tail"):
        rows = tmp_path / "rows" / f"{part}.parquet"
        assert rows_of(rows) == file_records(tmp_path / "lines" / f"{part}.jsonl")
        assert pq.read_schema(rows).equals(pq.read_schema(parquet))
    mixed = meari("filter", jsonl, parquet, "--bundles", bundles, "-o", tmp_path / "mixed")
    assert "expected files of one kind" in mixed.stderr.decode()


def test_values_without_a_common_type_are_written_as_json(tmp_path: Path) -> None:
    lines = [{"a": 1, "b": {}, "c": 1, "d": 2**60 + 1}] * 3 + [{"a": "x", "b": {}, "c": 2.5, "d": 0.5}, {"e": [[]]}]
    (tmp_path / "in.jsonl").write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
    write_parquet(tmp_path / "in.jsonl", tmp_path / "out.parquet", {"figure": float}, b"{}")
    found = rows_of(tmp_path / "out.parquet")
    assert found[0] == {"a": "1", "b": "{}", "c": 1.0, "d": "1152921504606846977", "e": None, "figure": None}
    assert [row["a"] for row in found[3:]] == ["x", None]
    assert found[4]["e"] == [[]]


def test_row_group_of_any_size_is_read_in_flat_memory(tmp_path: Path) -> None:
    path = tmp_path / "large.parquet"
    texts = pa.array([f"{n} " + "abcdefgh" * 128 for n in range(1000)])
    with pq.ParquetWriter(path, pa.schema([("text", pa.string())]), compression="none", use_dictionary=False) as writer:
        writer.write_table(pa.table({"text": pa.chunked_array([texts] * 200)}), row_group_size=200_000)  # 200 MB
    read = f"""
import resource
from meari.bulk.source import Source
source, count = Source([{str(path)!r}]), 0
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
while not source.is_done:
    while (chunk := source.take(512, 1 << 16, partial=True)) is not None:
        count += chunk.num_lines
    if source.wants_more:
        source.read()
print(count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", read], capture_output=True, text=True, check=True)
    count, grown_kib = map(int, done.stdout.split())
    assert count == 200_000
    assert grown_kib < 80 * 1024
