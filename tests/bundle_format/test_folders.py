"""Test that service, command line and completion find the same bundles in a folder with arbitrary other entries."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest

from meari.bundle_format.folders import IN_PASSING, bundle_name, find_bundles
from meari.bundle_format.lookup import find_bundle
from meari.cli._options import complete_bundle
from meari.cli.generate import command
from meari.errors import BundleError
from meari.export.errors import ExportError
from meari.export.target import check_target
from tests.bulk.command import meari
from tests.runtime.tiny_bundle import make_large, make_socket, write_tiny_bundle
from tests.service.running import ROOT, clean_environment, running_server

STOPPED_EXPORT = """
import os, shutil, sys
from pathlib import Path
from meari.models.files import replaced_folder
source, target = map(Path, sys.argv[1:])
with replaced_folder(target) as new:
    for path in source.iterdir():
        shutil.copyfile(path, new / path.name)
    os.kill(os.getpid(), 9)
"""


@pytest.fixture
def bundles(tmp_path: Path) -> Path:
    """Make bundles "letters" and "more", and "aaa.new", the remains of a killed export, first in the alphabet."""
    folder = tmp_path / "bundles"
    for name in ("letters", "more"):
        write_tiny_bundle(folder / name)
    stopped = [sys.executable, "-c", STOPPED_EXPORT, str(folder / "letters"), str(folder / "aaa")]
    assert subprocess.run(stopped, cwd=ROOT, env=clean_environment(), check=False).returncode == -9
    assert (folder / "aaa.new" / "manifest.json").is_file()
    return folder


@pytest.fixture
def restless(bundles: Path) -> Iterator[Path]:
    """Return the bundles while "more" and DEFAULT come and go all the time."""
    stopping = threading.Event()

    def rename() -> None:
        while not stopping.is_set():
            (bundles / "more").rename(bundles / ".more.old")
            (bundles / ".more.old").rename(bundles / "more")
            (bundles / "DEFAULT").write_text("letters")
            (bundles / "DEFAULT").unlink()

    thread = threading.Thread(target=rename)
    thread.start()
    yield bundles
    stopping.set()
    thread.join()


def offered(bundles: Path) -> list[str]:
    context = click.Context(command)
    context.params["bundles"] = str(bundles)
    return [item.value for item in complete_bundle(context, click.Argument(["model"]), "")]


def test_remains_of_a_killed_export_are_never_the_default(bundles: Path) -> None:
    assert list(find_bundles(bundles).folders) == offered(bundles) == ["letters", "more"]
    assert find_bundles(bundles).failed == {}
    assert find_bundle(bundles, None) == bundles / "letters"
    shown = json.loads(meari("models", "--bundles", bundles, "--json").stdout)
    assert [model["name"] for model in shown["models"]] == ["letters", "more"]
    assert (shown["default"], shown["failed"]) == ("letters", {})
    scored = meari("score", "--text", "ab", "--bundles", bundles, "--json")
    assert scored.returncode == 0, scored.stderr


def test_bundle_that_is_being_replaced_is_no_broken_one(restless: Path) -> None:
    found = [find_bundles(restless) for _ in range(3000)]
    assert {name: reason for each in found for name, reason in each.failed.items() if "read" in reason} == {}
    assert {len(each.folders) for each in found} == {1, 2}


@pytest.mark.parametrize("name", ["aaa.new", "aaa.old", "aaa.part", "aaa.partial", "aaa.tmp", ".aaa", "_aaa", "aaa"])
def test_temporary_folders_and_folders_without_bundle_files_are_ignored(bundles: Path, name: str) -> None:
    (bundles / name).mkdir(exist_ok=True)
    (bundles / name / "notes.txt").touch()
    (bundles / "aaa").mkdir(exist_ok=True)  # aaa.old without aaa is reported as a stopped export
    (bundles / ".letters.lock").touch()
    assert list(find_bundles(bundles).folders) == ["letters", "more"]
    assert find_bundles(bundles).failed == {}


@pytest.mark.parametrize("ending", IN_PASSING)
def test_export_rejects_names_that_are_ignored(tmp_path: Path, ending: str) -> None:
    with pytest.raises(ExportError, match="bundle name"):
        check_target(tmp_path / f"echo{ending}", overwrite=False)


def test_bundle_stopped_between_two_renames_is_reported_with_the_remedy(bundles: Path) -> None:
    (bundles / "letters").rename(bundles / "letters.old")
    found = find_bundles(bundles)
    assert list(found.folders) == ["more"]
    assert found.failed == {
        "letters.old": "its export was stopped while it took the place of letters; rename it to that"
    }


def test_incomplete_bundle_is_reported_and_never_the_default(bundles: Path) -> None:
    (bundles / "half").mkdir()
    (bundles / "half" / "cell.onnx").touch()
    assert list(find_bundles(bundles).folders) == ["half", "letters", "more"]
    assert find_bundle(bundles, None) == bundles / "letters"
    done = meari("models", "--bundles", bundles)
    assert b"half: manifest.json: cannot be read: No such file or directory" in done.stderr
    assert b"letters *" in done.stdout


@pytest.mark.parametrize("verb", [("score", "--text", "ab"), ("generate", "ab")])
def test_manifest_that_is_a_fifo_is_not_waited_for_and_its_folder_is_named(bundles: Path, verb: tuple[str]) -> None:
    (bundles / "more" / "manifest.json").unlink()
    os.mkfifo(bundles / "more" / "manifest.json")
    done = meari(*verb, "--bundles", bundles, "--model", "more")
    assert done.returncode == 1
    assert done.stderr.decode() == f"meari: {bundles / 'more'}: manifest.json: got a FIFO, expected a file\n"


def test_path_is_a_bundle_if_it_has_the_files_of_one(bundles: Path) -> None:
    assert find_bundle(bundles, str(bundles / "more")) == bundles / "more"
    assert (
        find_bundle(bundles, str(bundles / "aaa.new")) == bundles / "aaa.new"
    )  # a path is not checked for temporary names
    with pytest.raises(BundleError, match=r"model: got 'aaa\.new', expected letters, more, or the path of a bundle"):
        find_bundle(bundles, "aaa.new")
    with pytest.raises(BundleError, match="expected letters, more, or the path of a bundle"):
        find_bundle(bundles, str(bundles))


def test_path_of_a_bundle_is_a_folder_of_one_bundle(bundles: Path) -> None:
    (bundles / "link").symlink_to("letters")
    for folder, name in [(bundles / "letters", "letters"), (bundles / "link", "link")]:
        assert list(find_bundles(folder).folders) == [name]
    assert bundle_name(bundles / "letters" / ".." / "more") == "more"
    assert bundle_name(bundles / "more" / "..") == "bundles"


def make_half(path: Path) -> None:
    path.mkdir()
    (path / "manifest.json").touch()


BAD_ENTRIES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a-fifo": (os.mkfifo, "got a FIFO, expected the folder of a bundle"),
    "a-socket": (make_socket, "got a socket, expected the folder of a bundle"),
    "a-device": (lambda path: path.symlink_to("/dev/zero"), "got a device, expected the folder of a bundle"),
    "a-loop": (lambda path: path.symlink_to(path.name), "cannot be read: Too many levels of symbolic links"),
    "a-link-to-nothing": (lambda path: path.symlink_to("nothing"), "cannot be read: No such file or directory"),
    "line\nend": (make_half, "name: got other than printable UTF-8; rename the folder"),
    os.fsdecode(b"\xff\xfe"): (make_half, "name: got other than printable UTF-8; rename the folder"),
}
BAD_DEFAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "folder": (Path.mkdir, "DEFAULT: got a folder, expected a file"),
    "FIFO": (os.mkfifo, "DEFAULT: got a FIFO, expected a file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "DEFAULT: got a device, expected a file"),
    "nothing": (lambda path: path.symlink_to("nothing"), "DEFAULT: cannot be read: No such file or directory"),
    "bytes": (lambda path: path.write_bytes(b"\xff\xfe"), "got other than UTF-8, expected a bundle's name"),
    "huge": (make_large, "DEFAULT: got 3,221,225,472 bytes, expected at most 4,096"),
    "missing": (lambda path: path.write_text("gone\n"), "got 'gone', expected one of letters, more"),
    "elsewhere": (lambda path: path.write_text("../bundles/letters"), "got '../bundles/letters', expected one of"),
    "stopped": (lambda path: path.write_text("aaa.new"), "got 'aaa.new', expected one of letters, more"),
}


@pytest.mark.parametrize("kind", BAD_DEFAULTS)
def test_invalid_default_is_reported_and_ignored(bundles: Path, kind: str) -> None:
    make, reason = BAD_DEFAULTS[kind]
    make(bundles / "DEFAULT")
    found = find_bundles(bundles)
    assert found.default == ""
    assert found.failed["DEFAULT"].startswith(reason)
    assert find_bundle(bundles, None) == bundles / "letters"


@pytest.mark.parametrize("text", ["", "\n", "  more \n", "more"])
def test_default_names_a_bundle_or_nothing(bundles: Path, text: str) -> None:
    (bundles / "DEFAULT").write_text(text, "utf-8")
    assert find_bundles(bundles).default == text.strip()
    assert find_bundles(bundles).failed == {}
    assert find_bundle(bundles, None).name == (text.strip() or "letters")


def test_unusual_printable_names_are_served(bundles: Path) -> None:
    for name in ("한국어", "it's", 'a "b"', "a b", "-x", "a,b"):
        (bundles / "letters").rename(bundles / name)
        assert find_bundle(bundles, name) == bundles / name
        (bundles / name).rename(bundles / "letters")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (Path.touch, "got a file, expected a folder"),
        (os.mkfifo, "got a FIFO, expected a folder"),
        (lambda path: path.symlink_to(path.name), "Too many levels of symbolic links"),
        (lambda path: None, "there is no folder"),
        (Path.mkdir, "there is no bundle in"),
    ],
)
def test_path_without_bundles_is_reported(tmp_path: Path, make: Callable[[Path], object], reason: str) -> None:
    place = tmp_path / "place"
    make(place)
    assert offered(place) == [""]  # the shell completes paths instead
    with pytest.raises(BundleError, match=reason):
        find_bundle(place, None)
    with pytest.raises(BundleError, match="model: got 'letters', expected a bundle in"):
        find_bundle(place, "letters")
    if "no bundle" not in reason:
        with pytest.raises(BundleError, match=reason):
            find_bundles(place)


def test_bad_entries_are_reported_and_all_others_served(bundles: Path) -> None:
    """Check the service, its log and the command line."""
    expected = {}
    for name, (make, reason) in BAD_ENTRIES.items():
        make(bundles / name)
        expected[os.fsencode(name).decode("utf-8", "backslashreplace").replace("\n", "\\n")] = reason
    for file, (make, reason) in {
        "cell.onnx": (os.mkfifo, "cell.onnx: got a FIFO, expected a file"),
        "manifest.json": (make_large, "manifest.json: got 3,221,225,472 bytes, expected at most 1,048,576"),
        "tokenizer.json": (make_large, "tokenizer.json: got 3,221,225,472 bytes"),
        "golden.npz": (lambda path: path.symlink_to("/dev/zero"), "golden.npz: got a device, expected a file"),
        "README.md": (os.mkfifo, "README.md: got a FIFO, expected a file"),
    }.items():
        folder = write_tiny_bundle(bundles / f"bad-{file}")
        (folder / file).unlink()
        make(folder / file)
        expected[folder.name] = reason
    (bundles / "DEFAULT").mkdir()
    expected["DEFAULT"] = "DEFAULT: got a folder, expected a file"
    with running_server(bundles.parent, bundles=bundles) as server:
        ready = server.client.get("/readyz").json()
        models = server.client.get("/models").json()
        scored = server.client.post("/score", json={"text": "ab"}).json()
        log = server.log
    assert ready["models"] == [model["name"] for model in models["models"]] == ["letters", "more"]
    assert (models["default"], scored["model"]) == ("letters", "letters")
    assert ready["failed"].keys() == expected.keys()
    for name, reason in expected.items():
        assert ready["failed"][name].startswith(reason)
        assert json.dumps(name)[1:-1] in log
    listed = json.loads(meari("models", "--bundles", bundles, "--json").stdout)
    assert listed["default"] == "letters"
    assert {"letters", "more"} <= {model["name"] for model in listed["models"]}
    for name in [
        *(n for n in expected if not n.startswith("bad-")),
        "bad-manifest.json",
    ]:  # `meari models` opens only manifests
        assert listed["failed"][name].startswith(expected[name])
    scored_here = meari("score", "--text", "ab", "--bundles", bundles, "--json")
    assert scored_here.returncode == 0, scored_here.stderr
    refused = meari("score", "--text", "ab", "--bundles", bundles, "--model", "bad-cell.onnx")
    assert (refused.returncode, b"cell.onnx: got a FIFO" in refused.stderr) == (1, True)
