"""Test that the bulk verbs with `--server` write the same bytes as with local engines."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from meari.bulk.lines import LONG_BYTES
from meari.service.requests.keys import change_keys, make_key
from tests.bulk.command import file_records, meari, records, started
from tests.bulk.test_resume import ended
from tests.runtime.tiny_bundle import rewrite_manifest, write_tiny_bundle
from tests.service.running import Server, running_server

TEXTS = ["abc", "", 'say "a"', "a\tb", "abcabc", "abz", "한글", "abc"]
MAX_TEXT_CHARS = 300_000


@pytest.fixture(scope="module")
def server(bundles: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Run a service with low limits, which split chunks into several requests."""
    log = tmp_path_factory.mktemp("log")
    with running_server(log, bundles=bundles, max_texts=3, max_text_chars=MAX_TEXT_CHARS) as running:
        yield running


@pytest.fixture(scope="module")
def url(server: Server) -> str:
    return f"http://127.0.0.1:{server.port}"


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    lines = [json.dumps({"id": i, "text": text, "context": "ab" * (i % 2)}) for i, text in enumerate(TEXTS)]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--tokens", "--top", 2, "--words", "--log-base", 10, "--no-end"],
        ["--format", "tsv", "--log-base", 2],
        ["--format", "tsv", "--tokens", "--top", 1],
        ["--format", "tsv", "--words", "--no-text"],
        ["--prefix", "m_", "--tokens", "--words", "--field", "text"],
        ["--words", "unicode"],
    ],
)
def test_score_writes_the_same_bytes(texts: Path, bundles: Path, url: str, tmp_path: Path, words: list[object]) -> None:
    here, there = tmp_path / "here.json", tmp_path / "there.json"
    words = ["score", texts, "--model", "words", *words]
    local = meari(*words, "--bundles", bundles, "--summary", here)
    served = meari(*words, "--server", url, "--summary", there)
    assert served.returncode == 0, served.stderr
    assert served.stdout == local.stdout
    figures = [json.loads(path.read_text()) for path in (here, there)]
    for summary in figures:
        del summary["seconds"], summary["tokens_per_second"]
    assert figures[0] == figures[1]


def test_long_line_is_one_request_and_a_longer_one_is_a_bad_line(bundles: Path, url: str) -> None:
    long = "ab" * (LONG_BYTES // 2 + 1) + "\nab\n"
    words = ["score", "-", "--no-text", "--quiet"]
    local = records(meari(*words, "--bundles", bundles, stdin=long).stdout)
    stdin = f"{long}{'ab' * MAX_TEXT_CHARS}\n"
    *whole, cut = records(meari(*words, "--server", url, "--skip-bad", stdin=stdin).stdout)
    assert whole == local
    assert cut["line"] == 3
    assert f"expected at most {MAX_TEXT_CHARS:,}, which {url} takes in one request" in cut["error"]
    refused = meari(*words, "--server", url, stdin=f"ab\n{'ab' * MAX_TEXT_CHARS}\n")
    assert refused.returncode == 1
    assert b"line 2: got" in refused.stderr


def test_bulk_work_is_divided_and_waits_for_the_limits_of_its_key(bundles: Path, tmp_path: Path) -> None:
    key, entry = make_key("bulk", tokens_per_minute=1200, requests_at_once=1)
    change_keys(tmp_path / "keys.json", lambda _: [entry])
    stdin = "abc\n" * 420
    local = meari("score", "-", "--model", "letters", "--no-end", "--bundles", bundles, stdin=stdin)
    with running_server(tmp_path, bundles=bundles, keys_file=tmp_path / "keys.json") as server:
        target = ["--server", f"http://127.0.0.1:{server.port}", "--api-key", key]
        served = meari("score", "-", "--model", "letters", "--no-end", *target, "--jobs", 2, stdin=stdin)
        assert served.returncode == 0, served.stderr
        assert served.stdout == local.stdout
        assert all(code in server.log for code in ('"too_large"', '"rate_limit_exceeded"'))


@pytest.mark.parametrize(
    "words",
    [
        ["--format", "text"],
        ["--format", "tsv"],
        ["--logprobs", 2, "--stop", "c"],
        ["--num-beams", 3, "--format", "tsv"],
    ],
)
def test_generate_writes_the_same_texts(bundles: Path, url: str, words: list[object]) -> None:
    words = ["generate", "--prompts", "-", "--seed", 3, "--n", 2, "--max-tokens", 9, *words]
    stdin = "ab\n\nabc\n" * 4
    local = meari(*words, "--bundles", bundles, stdin=stdin)
    served = meari(*words, "--server", url, "--jobs", 3, stdin=stdin)
    assert served.returncode == 0, served.stderr
    if "--format" in words:
        assert served.stdout == local.stdout
    else:  # a service also reports cached tokens
        for here, there in zip(records(local.stdout), records(served.stdout), strict=True):
            assert there | {"usage": 0} == here | {"usage": 0}


def test_local_run_resumes_on_a_service(bundles: Path, url: str, tmp_path: Path) -> None:
    text, output = tmp_path / "many.txt", tmp_path / "out.jsonl"
    text.write_text("".join(f"{'abcdefgh' * (i % 7)} {i}\n" for i in range(1, 6001)))
    words = ["score", text, "-o", output, "--resume", "--quiet"]
    assert ended(started(*words, "--bundles", bundles), output, 300_000, signal.SIGKILL) == -signal.SIGKILL
    done = meari(*words, "--server", url)
    assert done.returncode == 0, done.stderr
    assert [record["line"] for record in file_records(output)] == list(range(1, 6001))
    assert output.read_bytes() == meari("score", text, "--bundles", bundles, "--quiet").stdout
    other = meari(*words, "--server", url, "--model", "words")
    assert other.returncode == 1
    assert b"bundle: got" in other.stderr
    assert url.encode() not in Path(f"{output}.progress").read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "nowhere"], "404 unknown_model: model: got 'nowhere', expected one of bytes, letters, words"),
        (["--model", "nowhere", "--format", "tsv"], "404 unknown_model"),
    ],
)
def test_error_of_the_service_is_one_line(url: str, words: list[object], message: str) -> None:
    for verb in (["score", "-"], ["generate", "--prompts", "-"], ["generate", "ab"]):
        done = meari(*verb, *words, "--server", url, stdin="ab\n")
        assert done.returncode == 1
        assert done.stdout == b""
        assert done.stderr.decode().startswith(f"meari: {url}: ")
        assert message in done.stderr.decode()
        assert done.stderr.count(b"\n") == 1


def test_run_ends_where_the_service_replaces_the_bundle(tmp_path: Path) -> None:
    folder, output = tmp_path / "bundles", tmp_path / "out.jsonl"
    write_tiny_bundle(folder / "letters")
    with running_server(tmp_path, bundles=folder) as server:
        url = f"http://127.0.0.1:{server.port}"
        before = server.client.get("/models/letters").json()["hashes"]["bundle"]
        words = ["score", "-", "-o", output, "--quiet", "--server", url]
        process = started(*words)
        assert process.stdin is not None
        process.stdin.write(b"ab\n" * 2000)
        process.stdin.flush()
        while not output.exists() or not output.stat().st_size:
            assert process.poll() is None
        shutil.rmtree(folder / "letters")
        write_tiny_bundle(folder / "letters", peak=5.0)
        while server.client.get("/models/letters").json()["hashes"]["bundle"] == before:
            pass
        _, told = process.communicate(b"ab\n" * 2000)
        assert process.returncode == 1
        assert told.decode().startswith(f"meari: the service has replaced its bundle {before[:12]} by ")
        resumed = meari(*words, "--resume", stdin="ab\n" * 4000)
        assert resumed.returncode == 1
        assert b"bundle: got" in resumed.stderr


def test_default_of_add_end_comes_from_the_served_model(tmp_path: Path) -> None:
    folder = tmp_path / "bundles"
    rewrite_manifest(write_tiny_bundle(folder / "stream"), corpus={"has_ends": False})
    with running_server(tmp_path, bundles=folder) as server:
        url = f"http://127.0.0.1:{server.port}"
        counts = [
            records(meari("score", "--text", "ab", "--server", url, "--json", *words).stdout)[0]["num_tokens"]
            for words in ([], ["--end"], ["--no-end"])
        ]
    assert counts == [2, 3, 2]
