"""Test files and folders that are replaced whole or not at all, and the lock of their one writer."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from meari.models import files
from meari.models.errors import FolderInUse
from meari.models.files import current_folder, locked, locked_beside, replaced_folder, write_file


class Crash(BaseException):
    """Simulated power loss."""


def save(folder: Path, text: str) -> None:
    with replaced_folder(folder) as new:
        (new / "a").write_text(text)
        (new / "b").write_text(text)


def fill_half(folder: Path) -> None:
    with replaced_folder(folder) as new:
        (new / "a").write_text("two")
        raise Crash


def read(folder: Path) -> set[str]:
    return {path.read_text() for path in current_folder(folder).iterdir()}


def test_write_file_replaces_the_content(tmp_path: Path) -> None:
    write_file(tmp_path / "file", b"one")
    write_file(tmp_path / "file", b"two")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"two"]


def test_crash_while_filling_a_folder_keeps_the_old_one(tmp_path: Path) -> None:
    folder = tmp_path / "last"
    save(folder, "one")
    with pytest.raises(Crash):
        fill_half(folder)
    assert read(folder) == {"one"}
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


@pytest.mark.parametrize("num_done", [0, 1, 2])
def test_crash_at_any_rename_leaves_a_complete_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_done: int
) -> None:
    monkeypatch.setattr(files, "_exchange", lambda _one, _other: False)  # as on a file system that cannot
    folder = tmp_path / "last"
    save(folder, "one")
    rename = Path.rename
    calls: list[Path] = []

    def crashing(path: Path, target: Path) -> Path:
        if len(calls) == num_done:
            raise Crash
        calls.append(path)
        return rename(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", crashing)
        try:
            save(folder, "two")
        except Crash:
            assert read(folder) == {"one"}
        else:
            assert read(folder) == {"two"}
    save(folder, "three")
    assert read(folder) == {"three"}
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


def test_folder_is_never_absent_while_it_is_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "last"
    save(folder, "one")
    program = "import os, sys\nprint(flush=True)\nwhile True: os.stat(sys.argv[1])"
    with subprocess.Popen([sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE) as reader:
        assert reader.stdout is not None
        reader.stdout.readline()
        for number in range(50):
            save(folder, str(number))
        still_reads = reader.poll() is None
        reader.kill()
    assert still_reads
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


def test_crash_before_the_old_folder_is_removed_keeps_the_new_one(tmp_path: Path) -> None:
    folder = tmp_path / "last"
    save(folder, "two")
    save(tmp_path / "last.old", "one")
    assert read(folder) == {"two"}
    save(folder, "three")
    assert read(folder) == {"three"}


HOLD = """
import sys
from pathlib import Path
from meari.models.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""
RACE = """
import sys
from pathlib import Path
from meari.models import files
from meari.models.errors import FolderInUse
from meari.models.files import locked
folder = Path(sys.argv[1])
entered = 0
while entered < 200:
    try:
        with locked(folder):
            (folder / "inside").touch(exist_ok=False)
            (folder / "inside").unlink()
            entered += 1
    except FolderInUse:
        pass
"""


def started(script: str, folder: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", script, str(folder)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_lock_is_released_when_its_process_is_killed(tmp_path: Path, number: signal.Signals) -> None:
    holder = started(HOLD, tmp_path / "run")
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(FolderInUse, match=rf"run: another run is writing to it \(process {holder.pid} on "):
            locked(tmp_path / "run").__enter__()
        holder.send_signal(number)
        holder.communicate()
    finally:
        holder.kill()
    with locked(tmp_path / "run"):
        pass
    assert list((tmp_path / "run").iterdir()) == []


def test_lock_is_held_by_one_process_at_a_time(tmp_path: Path) -> None:
    racers = [started(RACE, tmp_path) for _ in range(3)]
    try:
        assert [racer.wait() for racer in racers] == [0, 0, 0]
    finally:
        for racer in racers:
            racer.kill()
            racer.communicate()


def test_locked_beside_locks_a_folder_that_need_not_exist(tmp_path: Path) -> None:
    target = tmp_path / "bundles" / "gru"
    with locked_beside(target):
        assert not target.exists()
        with pytest.raises(FolderInUse, match="bundles/gru: another run is writing to it"):
            locked_beside(target).__enter__()
    assert list(tmp_path.iterdir()) == []
