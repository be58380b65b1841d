"""One writer at a time in a folder, with real processes: refused while one writes, free whichever way it ends."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from meari.models.errors import FolderInUse
from meari.models.lock import locked, locked_beside

HOLD = """
import sys
from pathlib import Path
from meari.models.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""
RACE = """
import sys
from pathlib import Path
from meari.models.errors import FolderInUse
from meari.models.lock import locked
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
def test_a_folder_is_free_again_however_its_writer_ended(tmp_path: Path, number: signal.Signals) -> None:
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


def test_of_many_writers_no_two_are_inside_at_once(tmp_path: Path) -> None:
    racers = [started(RACE, tmp_path) for _ in range(3)]
    try:
        assert [racer.wait() for racer in racers] == [0, 0, 0]
    finally:
        for racer in racers:
            racer.kill()
            racer.communicate()


def test_a_folder_that_is_swapped_as_a_whole_is_locked_from_beside(tmp_path: Path) -> None:
    target = tmp_path / "bundles" / "gru"
    with locked_beside(target):
        assert not target.exists()
        with pytest.raises(FolderInUse, match="bundles/gru: another run is writing to it"):
            locked_beside(target).__enter__()
    assert list(tmp_path.iterdir()) == []
