"""Test that a text at which the model fails is a bad line, named by its number, and takes no other line with it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from meari.bulk import long_text
from meari.bulk.backends import open_local
from meari.bulk.frames import Done, Part
from meari.bulk.options import ScoreOptions
from meari.bulk.score import ScoreWork
from meari.bulk.totals import ScoreTotals
from tests.bulk.command import meari
from tests.runtime.tiny_bundle import FAULT_AFTER, KINDS_OF_FAULTS, Z, write_tiny_bundle
from tests.service.running import running_server

BROKEN = "a" * FAULT_AFTER + "z"  # at its last token the graph fails


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make bundles that fail in each of the ways, and a file with a text at which they do in line 2."""
    folder = tmp_path_factory.mktemp("faulty")
    for kind in KINDS_OF_FAULTS:
        write_tiny_bundle(folder / kind, peak=4.0, fault=kind, fault_token=Z, work=256)
    (folder / "short.txt").write_text(f"ab\n{BROKEN}\ncd\n")
    return folder


@pytest.fixture(scope="module")
def url(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run a service with the same bundles."""
    log = tmp_path_factory.mktemp("log")
    with running_server(log, bundles=folder, default_model=KINDS_OF_FAULTS[0], log_level="error") as server:
        yield f"http://127.0.0.1:{server.port}"


@pytest.mark.parametrize("kind", KINDS_OF_FAULTS)
@pytest.mark.parametrize("verb", ["score", "generate"])
def test_text_at_which_the_model_fails_is_a_bad_line(folder: Path, kind: str, verb: str) -> None:
    file = folder / "short.txt"
    words = [verb, file] if verb == "score" else [verb, "--prompts", file, "--max-tokens", 3, "--temperature", 0]
    command = [*words, "--model", folder / kind, "--format", "jsonl", "--no-progress"]
    skipped = meari(*command, "--skip-bad")
    assert skipped.returncode == 0, skipped.stderr
    first, bad, last = map(json.loads, skipped.stdout.splitlines())
    assert (first["line"], last["line"]) == (1, 3)
    assert "error" not in first
    assert "error" not in last
    assert bad["line"] == 2
    assert "failed" in bad["error"] or "not finite" in bad["error"]

    ended = meari(*command)
    assert ended.returncode == 1
    assert f"{file}: line 2: {bad['error']}" in ended.stderr.decode()
    assert [json.loads(line)["line"] for line in ended.stdout.splitlines()] == [1]


@pytest.mark.parametrize(("verb", "kind"), [("score", KINDS_OF_FAULTS[0]), ("generate", KINDS_OF_FAULTS[1])])
def test_text_at_which_a_service_fails_is_a_bad_line(folder: Path, url: str, verb: str, kind: str) -> None:
    file = folder / "short.txt"
    words = [verb, file] if verb == "score" else [verb, "--prompts", file, "--max-tokens", 3, "--temperature", 0]
    command = [*words, "--model", kind, "--format", "jsonl", "--no-progress", "--server", url]
    skipped = meari(*command, "--skip-bad")
    assert skipped.returncode == 0, skipped.stderr
    records = list(map(json.loads, skipped.stdout.splitlines()))
    assert [(record["line"], "error" in record) for record in records] == [(1, False), (2, True), (3, False)]
    assert records[1]["error"].startswith(f"{url}: 500 internal: ")

    ended = meari(*command)
    assert ended.returncode == 1
    assert f"{file}: line 2: {records[1]['error']}" in ended.stderr.decode()
    assert [json.loads(line)["line"] for line in ended.stdout.splitlines()] == [1]


@pytest.mark.parametrize("kind", KINDS_OF_FAULTS)
def test_long_text_at_which_the_model_fails_is_a_bad_line(
    folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(long_text, "PIECE_CHARS", 100)
    backend = open_local(folder / kind)
    work = ScoreWork(backend, ScoreOptions(bundle="", input_format="text", format="jsonl", skip_bad=True))
    long = work.begin_long(5)
    for piece in ("ab" * 200, BROKEN + "ab" * 200, "ab\n"):
        long.feed(piece.encode(), ends=piece.endswith("\n"))
    *parts, done = long.messages()
    backend.close()
    assert isinstance(done, Done)
    assert done.totals() == msgspec.structs.asdict(ScoreTotals(num_bad_lines=1))
    record = json.loads(b"".join(part.data for part in parts if isinstance(part, Part)))
    assert record["line"] == 5
    assert "failed" in record["error"] or "not finite" in record["error"]
