"""Test that interrupted runs resume without lost or repeated lines."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from meari.bulk.output import journal_paths
from tests.bulk.command import file_records, meari, started
from tests.patience import PATIENCE

NUM_LINES = 30_000


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write numbered lines of many lengths."""
    path = tmp_path_factory.mktemp("texts") / "many.txt"
    path.write_text("".join(f"{'abcdefgh' * (i % 7)} {i}\n" for i in range(1, NUM_LINES + 1)))
    return path


@pytest.fixture(scope="module")
def whole(text: Path, bundles: Path) -> Path:
    """Run without interruption; the summary is beside the output."""
    output = text.with_name("whole.jsonl")
    done = meari("score", text, "--bundles", bundles, "-o", output, "--summary", text.with_name("whole.json"))
    assert done.returncode == 0, done.stderr
    return output


def ended(process: subprocess.Popen[bytes], output: Path, num_bytes: int, number: signal.Signals) -> int:
    """Send a signal to a run when its output has `size` bytes."""
    with process:
        while process.poll() is None and (not output.exists() or output.stat().st_size < num_bytes):
            os.sched_yield()
        process.send_signal(number)
        return process.wait(PATIENCE)


def without_time(path: Path) -> dict[str, object]:
    found = json.loads(path.read_text())
    assert isinstance(found, dict)
    return {name: value for name, value in found.items() if name not in ("seconds", "tokens_per_second")}


def test_run_killed_many_times_gives_the_same_bytes(text: Path, whole: Path, bundles: Path, tmp_path: Path) -> None:
    output, summary = tmp_path / "out.jsonl", tmp_path / "summary.json"
    words = ["score", text, "--bundles", bundles, "-o", output, "--resume", "--summary", summary]
    size = whole.stat().st_size
    for share in (0.0, 0.05, 0.5, 0.55):
        code = ended(started(*words), output, int(share * size), signal.SIGKILL)
        assert code == -signal.SIGKILL
        assert whole.read_bytes().startswith(output.read_bytes() if output.exists() else b"")
    done = meari(*words)
    assert done.returncode == 0, done.stderr
    assert output.read_bytes() == whole.read_bytes()
    assert without_time(summary) == without_time(text.with_name("whole.json"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_each_signal_has_its_exit_code(
    text: Path, whole: Path, bundles: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    output = tmp_path / "out.jsonl"
    words = ["score", text, "--bundles", bundles, "-o", output]
    process = started(*words)
    assert ended(process, output, whole.stat().st_size // 4, number) == code
    refused = meari(*words)
    assert refused.returncode == 1
    assert b"--resume goes on with it, --overwrite begins anew" in refused.stderr
    done = meari(*words, "--resume")
    assert done.returncode == 0, done.stderr
    assert output.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("share", [0.0, 0.4, 0.999])
def test_output_truncated_anywhere_is_completed(
    whole: Path, text: Path, bundles: Path, tmp_path: Path, share: float
) -> None:
    output = tmp_path / "out.jsonl"
    output.write_bytes(whole.read_bytes()[: int(share * whole.stat().st_size) - 3])
    journal_paths(output)[0].write_bytes(journal_paths(whole)[0].read_bytes())
    done = meari("score", text, "--bundles", bundles, "-o", output, "--resume")
    assert done.returncode == 0, done.stderr
    assert output.read_bytes() == whole.read_bytes()


def test_resuming_a_finished_run_changes_nothing(whole: Path, text: Path, bundles: Path) -> None:
    before, changed = whole.read_bytes(), whole.stat().st_mtime_ns
    done = meari("score", text, "--bundles", bundles, "-o", whole, "--resume")
    assert done.returncode == 0
    assert f"{NUM_LINES:,} texts".encode() in done.stderr
    assert (whole.read_bytes(), whole.stat().st_mtime_ns) == (before, changed)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--log-base", "2"], "log_base: got '2', the run to resume had 'e'"),
        (["--tokens"], "tokens: got True, the run to resume had False"),
        (["--model", "bytes"], "bundle: got "),
        (["--input-format", "jsonl"], "input_format: got 'jsonl', the run to resume had 'text'"),
    ],
)
def test_changed_settings_are_refused_and_reported(
    whole: Path, text: Path, bundles: Path, words: list[str], message: str
) -> None:
    before = whole.read_bytes()
    done = meari("score", text, "--bundles", bundles, "-o", whole, "--resume", *words)
    assert done.returncode == 1
    assert message in done.stderr.decode()
    assert whole.read_bytes() == before


@pytest.mark.parametrize("change", ["first", "last", "longer"])
def test_changed_input_is_refused(whole: Path, text: Path, bundles: Path, tmp_path: Path, change: str) -> None:
    other = tmp_path / "other.txt"
    data = text.read_bytes()
    other.write_bytes({"first": b"x" + data[1:], "last": data[:-2] + b"x\n", "longer": data + b"more\n"}[change])
    done = meari("score", other, "--bundles", bundles, "-o", whole, "--resume")
    assert done.returncode == 1
    assert b"input_sha256: got" in done.stderr


def test_pipe_with_the_same_content_can_be_resumed(text: Path, whole: Path, bundles: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    data = text.read_bytes()
    words = ["score", "-", "--bundles", bundles, "-o", output]
    bad = data[: len(data) // 2].rpartition(b"\n")[0] + b"\n\xff\n"
    assert meari(*words, stdin=bad).returncode == 1
    other = meari(*words, "--resume", stdin=b"y" + data[1:])
    assert other.returncode == 1
    assert b"differ from those of the run to resume" in other.stderr
    done = meari(*words, "--resume", stdin=data)
    assert done.returncode == 0, done.stderr
    assert output.read_bytes() == whole.read_bytes()


def test_output_without_a_journal_is_refused(text: Path, bundles: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    output.write_text("precious\n")
    done = meari("score", text, "--bundles", bundles, "-o", output, "--resume")
    assert done.returncode == 1
    assert b"no out.jsonl.progress beside it" in done.stderr
    assert output.read_text() == "precious\n"


def test_resume_without_an_output_starts_a_new_run(bundles: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.tsv"
    done = meari("score", "-", "--bundles", bundles, "-o", output, "--resume", "--format", "tsv", stdin="a\nb\n")
    assert done.returncode == 0, done.stderr
    assert output.read_text().count("\n") == 3


def test_second_run_with_the_same_output_is_refused(bundles: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    with started("score", "-", "--bundles", bundles, "-o", output) as process:
        assert process.stdin is not None
        process.stdin.write(b"a\n")
        process.stdin.flush()
        while not output.exists() or not output.stat().st_size:
            os.sched_yield()
        other = meari("score", "-", "--bundles", bundles, "-o", output, "--overwrite", stdin="b\n")
        assert other.returncode == 1
        assert b"another run is writing to it" in other.stderr
        process.communicate(b"c\n", timeout=PATIENCE)
    assert [record["text"] for record in file_records(output)] == ["a", "c"]


def test_workers_of_a_killed_run_end(bundles: Path, tmp_path: Path) -> None:
    with started("score", "-", "--bundles", bundles, "--jobs", 2) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"a\n")
        process.stdin.flush()
        process.stdout.readline()
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.kill()
    assert len(children) == 2
    for child in children:
        code = f"import os, sys\nwhile os.path.exists('/proc/{child}'): os.sched_yield()"
        subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE)
