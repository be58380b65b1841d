"""Files and folders are replaced whole or not at all, wherever a crash comes."""

from pathlib import Path

import pytest

from meari.models.atomic import replaced_folder, settled, write_file


class Crash(BaseException):
    """Power loss, as far as a test can tell."""


def save(folder: Path, text: str) -> None:
    with replaced_folder(folder) as new:
        (new / "a").write_text(text)
        (new / "b").write_text(text)


def fill_half(folder: Path) -> None:
    with replaced_folder(folder) as new:
        (new / "a").write_text("two")
        raise Crash


def read(folder: Path) -> set[str]:
    return {path.read_text() for path in settled(folder).iterdir()}


def test_a_file_is_replaced(tmp_path: Path) -> None:
    write_file(tmp_path / "file", b"one")
    write_file(tmp_path / "file", b"two")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"two"]


def test_a_crash_while_filling_a_folder_leaves_the_old_one(tmp_path: Path) -> None:
    folder = tmp_path / "last"
    save(folder, "one")
    with pytest.raises(Crash):
        fill_half(folder)
    assert read(folder) == {"one"}
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


@pytest.mark.parametrize("num_done", [0, 1, 2])
def test_a_crash_at_any_rename_leaves_a_whole_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_done: int
) -> None:
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


def test_a_crash_before_the_old_one_is_removed_leaves_the_new_one(tmp_path: Path) -> None:
    folder = tmp_path / "last"
    save(folder, "two")
    save(tmp_path / "last.old", "one")
    assert read(folder) == {"two"}
    save(folder, "three")
    assert read(folder) == {"three"}
