"""Test the progress of an output: checkpoints, resumption and damaged journals."""

from __future__ import annotations

import zlib
from dataclasses import replace
from pathlib import Path

import pytest

from meari.bulk.errors import CannotResume
from meari.bulk.output import Checkpoint, Journal, is_interrupted, journal_paths

RUN = {"log_base": "e", "input_sha256": "ab"}
DATA = b"first\nsecond\nthird\n"


def checkpoint(line: int, size: int, **more: object) -> Checkpoint:
    return Checkpoint(line=line, input_bytes=10 * line, output_bytes=size, output_crc=zlib.crc32(DATA[:size]), **more)  # type: ignore[arg-type]


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Make an output with checkpoints after the first and second line."""
    path = tmp_path / "out.jsonl"
    path.write_bytes(DATA)
    journal = Journal.begin(path, RUN)
    journal.note(checkpoint(1, 6, totals={"num_texts": 1}))
    journal.note(checkpoint(2, 13))
    journal.close()
    return path


def resumed(path: Path) -> Checkpoint:
    journal, found = Journal.resume(path, RUN)
    journal.close()
    return found


@pytest.mark.parametrize(("size", "line"), [(19, 2), (14, 2), (13, 2), (12, 1), (6, 1), (5, 0), (0, 0)])
def test_run_resumes_from_the_last_checkpoint_within_the_output(output: Path, size: int, line: int) -> None:
    output.write_bytes(DATA[:size])
    assert resumed(output).line == line


def test_incomplete_checkpoint_is_ignored(output: Path) -> None:
    path = journal_paths(output)[0]
    path.write_bytes(path.read_bytes()[:-7])
    assert resumed(output).line == 1
    journal, _ = Journal.resume(output, RUN)
    journal.note(checkpoint(3, 19))
    journal.close()
    assert resumed(output).line == 3


@pytest.mark.parametrize(
    "line", [b'{"output_bytes": "13"}', b'{"output_bytes": []}', b'{"line": -1}', b'{"input_digest": "\xff"}']
)
def test_checkpoint_with_another_kind_of_value_is_ignored(output: Path, line: bytes) -> None:
    with journal_paths(output)[0].open("ab") as file:
        file.write(line + b"\n")
    assert resumed(output).line == 2


def test_zeros_after_a_power_failure_are_ignored(output: Path) -> None:
    with journal_paths(output)[0].open("ab") as file:
        file.write(b"\x00" * 100 + b"\n")
    assert resumed(output).line == 2


def test_sums_are_restored(output: Path) -> None:
    output.write_bytes(DATA[:6])
    assert resumed(output).totals == {"num_texts": 1}


def test_changed_settings_are_reported(output: Path) -> None:
    with pytest.raises(CannotResume, match="log_base: got '2', the run to resume had 'e'"):
        Journal.resume(output, {**RUN, "log_base": "2"})


def test_changed_output_is_refused(output: Path) -> None:
    output.write_bytes(DATA.replace(b"first", b"fifth"))
    with pytest.raises(CannotResume, match="it was changed"):
        Journal.resume(output, RUN)


def test_damaged_or_foreign_journal_is_refused(output: Path) -> None:
    journal_paths(output)[0].write_bytes(b"not json\n")
    with pytest.raises(CannotResume, match="damaged"):
        Journal.resume(output, RUN)
    journal_paths(output)[0].unlink()
    with pytest.raises(CannotResume, match="No such file"):
        Journal.resume(output, RUN)


def test_run_without_a_final_checkpoint_counts_as_interrupted(output: Path) -> None:
    assert is_interrupted(output)
    journal, last = Journal.resume(output, RUN)
    journal.note(replace(last, complete=True))
    journal.close()
    assert not is_interrupted(output)
    output.write_bytes(DATA[:8])
    resumed(output)
    assert is_interrupted(output)
