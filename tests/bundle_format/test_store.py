"""Test that bundles are added whole, checked and once, from folders and from zip files that nobody has to trust."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import meari
from meari.bundle_format.folders import find_bundles, hiding_entry
from meari.bundle_format.lookup import find_bundle
from meari.bundle_format.places import BUILT_IN, parse_roots, usual_roots
from meari.bundle_format.reader import read_manifest
from meari.bundle_format.signatures import make_private_key, sign_manifest
from meari.bundle_format.store import MAX_MEMBERS, add_folder, add_zip, remove_bundle
from meari.errors import BundleError
from tests.runtime.tiny_bundle import write_tiny_bundle
from tests.service.running import ROOT, clean_environment

KILLED = """
import os, signal, sys
from pathlib import Path
from meari.bundle_format import store
store._put = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
store.add_folder(Path(sys.argv[1]), Path(sys.argv[2]))
"""

HOMELESS = """
import os
from meari.bundle_format.places import data_folder, usual_roots
usual_roots()
os.setuid(54321)
del os.environ["HOME"]
print(data_folder(), *usual_roots())
"""


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny_bundle(tmp_path / "source" / "tiny")


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return tmp_path / "own"


def packed(folder: Path, path: Path, inner: str = "tiny/") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, inner + file.name)
    return path


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_folder_is_copied_with_the_files_of_its_manifest_alone(tiny: Path, own: Path) -> None:
    before = contents(tiny)
    (tiny / "notes.txt").write_text("not of the bundle")
    added = add_folder(tiny, own)
    assert (added.name, added.folder, added.is_new) == ("tiny", own / "tiny", True)
    assert added.bundle_hash == read_manifest(tiny)[1]
    assert contents(own / "tiny") == before
    assert names(own) == ["tiny"]


@pytest.mark.parametrize(("inner", "name"), [("", "tiny"), ("other/", "other")])
def test_zip_has_the_bundle_at_the_top_or_in_one_folder(tiny: Path, own: Path, inner: str, name: str) -> None:
    archive = packed(tiny, tiny.parent / "a.zip", inner)
    with zipfile.ZipFile(archive, "a") as more:
        more.writestr("__MACOSX/._manifest.json", "of the one who packed it")
    added = add_zip(archive, own)
    assert added.name == name
    assert contents(own / name) == contents(tiny)
    assert add_zip(archive, own, name="third").folder == own / "third"


def test_same_bundle_again_changes_nothing_and_another_of_its_name_is_refused(tiny: Path, own: Path) -> None:
    assert add_folder(tiny, own).is_new
    before = (own / "tiny").stat().st_ino
    assert not add_zip(packed(tiny, tiny.parent / "a.zip"), own).is_new
    other = write_tiny_bundle(tiny.parent / "other", decay=0.1)
    with pytest.raises(BundleError, match=r"name: tiny: there is another of this name in .*meari bundles remove tiny"):
        add_folder(other, own, name="tiny")
    assert (own / "tiny").stat().st_ino == before
    (own / "tiny" / "golden.npz").write_bytes(b"damaged")
    with pytest.raises(BundleError, match="there is another of this name"):
        add_folder(tiny, own)


def link(info: zipfile.ZipInfo) -> zipfile.ZipInfo:
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


def add_many(archive: zipfile.ZipFile) -> None:
    for number in range(MAX_MEMBERS):
        archive.writestr(str(number), "")


EVIL: dict[str, tuple[Callable[[zipfile.ZipFile], None], str]] = {
    "above": (lambda archive: archive.writestr("tiny/../../evil", "x"), "leads out of its folder"),
    "absolute": (lambda archive: archive.writestr("/evil", "x"), "leads out of its folder"),
    "drive": (lambda archive: archive.writestr("C:/evil", "x"), "leads out of its folder"),
    "link": (lambda archive: archive.writestr(link(zipfile.ZipInfo("tiny/x")), "/etc/passwd"), "is a link"),
    "bzip2": (lambda archive: archive.writestr("x", "x", zipfile.ZIP_BZIP2), "compressed by method 12"),
    "two": (lambda archive: archive.writestr("b/manifest.json", "{}"), "got 2 bundles, expected one"),
    "many": (add_many, "expected at most"),
}


@pytest.mark.parametrize(("add", "says"), EVIL.values(), ids=EVIL)
def test_zip_with_members_that_no_bundle_has_is_refused(
    tiny: Path, own: Path, add: Callable[[zipfile.ZipFile], None], says: str
) -> None:
    with zipfile.ZipFile(packed(tiny, tiny.parent / "a.zip"), "a") as archive:
        add(archive)
    with pytest.raises(BundleError, match=says):
        add_zip(tiny.parent / "a.zip", own)
    assert not own.exists() or names(own) == []
    assert not (own.parent / "evil").exists()


def test_bomb_is_read_no_further_than_its_stated_size(tiny: Path, own: Path) -> None:
    bomb = tiny.parent / "bomb"
    shutil.copytree(tiny, bomb)
    with (bomb / "golden.npz").open("r+b") as file:
        file.truncate(1 << 25)
    archive = packed(bomb, tiny.parent / "bomb.zip")
    assert archive.stat().st_size < 1 << 20
    with pytest.raises(BundleError, match=r"golden\.npz: got more than [\d,]+ bytes"):
        add_zip(archive, own)
    (bomb / "manifest.json").write_bytes(b" " * (1 << 22))
    with pytest.raises(BundleError, match=r"manifest\.json: got more than 1,048,576 bytes"):
        add_zip(packed(bomb, tiny.parent / "bomb.zip"), own)
    assert names(own) == []


def test_source_that_would_never_answer_is_refused(own: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.zip")
    with pytest.raises(BundleError, match=r"pipe\.zip: got a FIFO, expected a file"):
        add_zip(tmp_path / "pipe.zip", own)


def test_bundle_too_deep_in_a_zip_is_told_with_its_place(tiny: Path, own: Path) -> None:
    with zipfile.ZipFile(tiny.parent / "deep.zip", "w") as archive:
        archive.write(tiny / "manifest.json", "a/b/manifest.json")
    with pytest.raises(
        BundleError, match=r"got a bundle in a/b/, expected one bundle, with manifest\.json at the top or"
    ):
        add_zip(tiny.parent / "deep.zip", own)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_half_of_a_zip_is_refused(tiny: Path, own: Path, share: float) -> None:
    data = packed(tiny, tiny.parent / "a.zip").read_bytes()
    (tiny.parent / "half.zip").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(BundleError, match="zip file"):
        add_zip(tiny.parent / "half.zip", own)


def test_damaged_bytes_in_a_zip_are_refused(tiny: Path, own: Path) -> None:
    data = packed(tiny, tiny.parent / "a.zip").read_bytes()
    for place in range(40, len(data), len(data) // 40):
        (tiny.parent / "bad.zip").write_bytes(data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :])
        try:
            added = add_zip(tiny.parent / "bad.zip", own, name="bad")
        except BundleError:
            continue
        assert contents(added.folder) == contents(tiny)  # a byte that no reader needs: a time, say
        remove_bundle("bad", own)
    assert names(own) == []


@pytest.mark.parametrize("name", ["", ".hidden", "..", "a/b", "a.part", "x" * 101, "네", "a\nb", "DEFAULT"])
def test_name_that_no_bundle_can_have_is_refused(tiny: Path, own: Path, name: str) -> None:
    if name:
        with pytest.raises(BundleError, match="name: got"):
            add_folder(tiny, own, name=name)
    with pytest.raises(BundleError, match="name: got"):
        remove_bundle(name, own)
    assert not own.exists() or names(own) == []


def test_default_beside_the_bundles_is_no_bundle_to_remove(tiny: Path, own: Path) -> None:
    add_folder(tiny, own)
    (own / "DEFAULT").write_text("tiny")
    with pytest.raises(BundleError, match=r"got 'DEFAULT', expected .*, not DEFAULT"):
        remove_bundle("DEFAULT", own)
    assert sorted(names(own)) == ["DEFAULT", "tiny"]


def test_folder_with_other_files_than_its_manifest_says_is_refused(tiny: Path, own: Path) -> None:
    (tiny / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match=r"tokenizer\.json: got 2 bytes"):
        add_folder(tiny, own)
    (tiny / "tokenizer.json").unlink()
    (tiny / "tokenizer.json").symlink_to("/etc/hostname")
    with pytest.raises(BundleError, match="a link out of its folder"):
        add_folder(tiny, own)
    assert names(own) == []


def test_only_signed_bundles_are_added_where_keys_are_given(tiny: Path, own: Path, tmp_path: Path) -> None:
    key = make_private_key(tmp_path / "key.pem")
    with pytest.raises(BundleError, match=r"signature\.json: missing"):
        add_folder(tiny, own, keys=[key])
    sign_manifest(tiny, read_manifest(tiny)[1], tmp_path / "key.pem")
    assert add_zip(packed(tiny, tmp_path / "a.zip"), own, keys=[key]).is_new
    assert (own / "tiny" / "signature.json").is_file()


def test_what_a_killed_copy_left_is_no_bundle_and_is_removed_by_the_next(tiny: Path, own: Path) -> None:
    own.mkdir()
    arguments = [sys.executable, "-c", KILLED, str(tiny), str(own)]
    done = subprocess.run(arguments, cwd=ROOT, env=clean_environment(), check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(names(own)) == 1
    assert not find_bundles(own).folders
    assert not find_bundles(own).failed
    add_folder(tiny, own)
    assert names(own) == ["tiny"]


def test_removed_bundle_is_gone_and_a_link_to_one_leaves_its_target(tiny: Path, own: Path) -> None:
    add_folder(tiny, own)
    (own / "linked").symlink_to(tiny)
    remove_bundle("linked", own)
    assert tiny.is_dir()
    remove_bundle("tiny", own)
    assert names(own) == []
    with pytest.raises(BundleError, match="there is no bundle 'tiny'"):
        remove_bundle("tiny", own)


def test_name_belongs_to_the_first_of_several_folders(tiny: Path, own: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for root, name in [(first, "a"), (first, "b"), (second, "b"), (second, "c")]:
        add_folder(tiny, root, name=name)
    found = find_bundles((first, own, second))
    assert found.folders == {"a": first / "a", "b": first / "b", "c": second / "c"}
    assert found.hidden == (second / "b",)
    (second / "DEFAULT").write_text("b")
    assert find_bundles((first, second)).default == "b"
    (first / "DEFAULT").write_text("c")
    assert find_bundles((first, second)).default == "c"
    (first / "DEFAULT").write_text("nobody")
    found = find_bundles((first, second))
    assert (found.default, list(found.failed)) == ("b", ["DEFAULT"])
    with pytest.raises(BundleError, match="there is no folder"):
        find_bundles((own, tmp_path / "neither"))


def test_setting_names_one_folder_or_several(tmp_path: Path) -> None:
    (tmp_path / "a:b").mkdir()
    assert parse_roots(str(tmp_path / "a:b")) == tmp_path / "a:b"
    assert parse_roots("a:b") == (Path("a"), Path("b"))
    assert parse_roots("a") == Path("a")


def test_built_in_bundle_is_looked_at_only_where_there_is_no_other(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    assert list(find_bundles(usual_roots()).folders) == ["shakespeare-rnn"]
    add_folder(tiny, tmp_path / "data" / "meari" / "bundles")
    assert list(find_bundles(usual_roots()).folders) == ["tiny"]
    (tmp_path / "bundles").mkdir()
    remove_bundle("tiny", tmp_path / "data" / "meari" / "bundles")
    assert find_bundles(usual_roots()).folders == {}


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes a user whom the system does not know, as only root can")
def test_user_without_a_home_has_the_built_in_bundle_and_no_data_folder(tmp_path: Path) -> None:
    environment = clean_environment() | {"HOME": "/"}
    command = [sys.executable, "-c", HOMELESS]
    told = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert told.stdout.split() == ["None", "bundles", str(BUILT_IN)], told.stderr


def test_folder_that_cannot_be_written_is_named_whole(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    root = tmp_path / "file" / "meari" / "bundles"
    with pytest.raises(BundleError, match=f"^{root}: cannot be changed: Not a directory$"):
        add_folder(tiny, root)


def test_damaged_entry_keeps_its_name_and_the_messages_say_where_it_is(tiny: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    add_folder(tiny, second)
    first.mkdir()
    (first / "tiny").symlink_to("nowhere")
    (second / "other").symlink_to("nowhere")
    found = find_bundles((first, second))
    reason = f"{first / 'tiny'}: cannot be read: No such file or directory"
    assert found.failed == {"tiny": reason, "other": f"{second / 'other'}: cannot be read: No such file or directory"}
    assert (found.folders, found.hidden) == ({}, (second / "tiny",))
    assert hiding_entry((first, second), second / "tiny") == first / "tiny"
    with pytest.raises(BundleError, match=f"^model: tiny: {reason}; it hides {second / 'tiny'}$"):
        find_bundle((first, second), "tiny")
    (first / "tiny").unlink()
    add_folder(tiny, first)
    add_folder(tiny, first, name="other")
    assert find_bundles((first, second)).failed == {}
    (first / "tiny" / "manifest.json").write_text("{")
    with pytest.raises(BundleError, match=f"^{first / 'tiny'}: manifest.json: got other than JSON"):
        meari.load(first / "tiny")
