"""Test `meari bundles`: folders, zip files and URLs into the user's data folder, where the other verbs find them."""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from click.testing import CliRunner, Result

from meari.cli.main import group
from meari.client.errors import RemoteError
from meari.errors import BundleError
from tests.runtime.tiny_bundle import write_tiny_bundle


class Server(http.server.BaseHTTPRequestHandler):
    """Answers with a file, half of it, a redirect, or without an end."""

    data: ClassVar[bytes] = b""

    def do_GET(self) -> None:
        """Answer as the path says."""
        if self.path.startswith("/moved"):
            self.send_response(302)
            self.send_header("Location", "file:///etc/passwd" if "file" in self.path else "/tiny.zip")
            self.end_headers()
            return
        if self.path == "/missing.zip":
            self.send_error(404)
            return
        self.send_response(200)
        if self.path != "/endless.zip":
            self.send_header("Content-Length", str(len(self.data)))
        self.end_headers()
        if self.path == "/half.zip":
            self.wfile.write(self.data[: len(self.data) // 2])
        elif self.path == "/endless.zip":
            while not self.server.stopping.wait(0.01):  # type: ignore[attr-defined]
                self.wfile.write(b"x")
        else:
            self.wfile.write(self.data)

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a bundle and its zip file; work in an empty folder, with an empty data folder."""
    folder = write_tiny_bundle(tmp_path / "made" / "tiny")
    shutil.make_archive(str(folder), "zip", folder.parent, "tiny")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data" / "meari" / "bundles"


@pytest.fixture
def url(tiny: Path) -> Iterator[str]:
    Server.data = tiny.with_suffix(".zip").read_bytes()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.stopping = threading.Event()  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.stopping.set()  # type: ignore[attr-defined]
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def sha256(tiny: Path) -> str:
    return hashlib.sha256(tiny.with_suffix(".zip").read_bytes()).hexdigest()


def run(*arguments: object) -> Result:
    return CliRunner().invoke(group, ["bundles", *map(str, arguments)])


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def answer(*arguments: object) -> Any:
    done = run(*arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_added_bundle_is_found_by_every_verb_and_removed_again(tiny: Path, data: Path) -> None:
    assert run("add", tiny).output == f"tiny is now in {data}\n"
    assert run("add", f"{tiny}.zip").output == f"tiny was already in {data}\n"
    models = CliRunner().invoke(group, ["models", "--json"])
    assert [model["name"] for model in json.loads(models.stdout)["models"]] == ["tiny"]
    scored = CliRunner().invoke(group, ["score", "--text", "ab", "--json"])
    assert scored.exit_code == 0, scored.output
    assert run("remove", "tiny").output == f"tiny is no longer in {data}\n"
    assert names(data) == []


def test_each_of_several_sources_is_told_until_one_fails_by_its_name(tiny: Path, data: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.zip"
    cut.write_bytes(tiny.with_suffix(".zip").read_bytes()[:100])
    done = run("add", tiny, cut, tiny.with_suffix(".zip"))
    assert done.exit_code == 1
    assert done.stdout == f"tiny is now in {data}\n"
    assert str(cut) in str(done.exception)
    done = run("add", tiny, cut, "--json")
    assert done.exit_code == 1
    assert [each["name"] for each in json.loads(done.stdout)["added"]] == ["tiny"]
    assert run("add", cut, "--json").stdout == ""


def test_list_shows_every_folder_and_which_bundle_is_hidden(tiny: Path, data: Path) -> None:
    run("add", tiny)
    shutil.copytree(tiny, "bundles/tiny")
    shutil.copytree(tiny, "bundles/other")
    Path("bundles/DEFAULT").write_text("other")
    listed = answer("list")
    assert listed["folders"] == ["bundles", str(data)]
    assert listed["default"] == "other"
    rows = [(row["name"], row["folder"], row["hidden_by"], row["problem"]) for row in listed["bundles"]]
    assert rows == [
        ("other", "bundles/other", None, None),
        ("tiny", "bundles/tiny", None, None),
        ("tiny", str(data / "tiny"), "bundles/tiny", None),
    ]
    assert "hidden by bundles/tiny" in run("list").stdout
    told = CliRunner().invoke(group, ["models"])
    assert f"meari: {data / 'tiny'} is hidden by bundles/tiny, which comes first" in told.stderr


def test_json_tells_of_every_action(tiny: Path, data: Path) -> None:
    [added] = answer("add", tiny, "--name", "mine")["added"]
    assert (added["name"], added["folder"], added["is_new"]) == ("mine", str(data / "mine"), True)
    assert [row["bundle_hash"] for row in answer("list")["bundles"]] == [added["bundle_hash"]]
    assert answer("remove", "mine") == {"name": "mine", "folder": str(data / "mine")}
    assert [row["name"] for row in answer("list")["bundles"]] == ["shakespeare-rnn"]


def test_url_is_fetched_checked_and_added(url: str, data: Path, sha256: str) -> None:
    added = answer("add", f"{url}/tiny.zip#sha256={sha256.upper()}", f"{url}/moved#sha256={sha256}")["added"]
    assert [each["is_new"] for each in added] == [True, False]
    assert not answer("add", f"{url}/moved", "--sha256", sha256)["added"][0]["is_new"]
    assert names(data) == ["tiny"]


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("tiny.zip#sha256=" + "0" * 64, "SHA-256: got .*, expected 0000"),
        ("missing.zip#sha256=" + "0" * 64, "404"),
        ("half.zip#sha256=" + "0" * 64, "was cut off after"),
        ("moved-to-a-file#sha256=" + "0" * 64, ""),
    ],
)
def test_download_that_is_not_as_expected_leaves_nothing(url: str, data: Path, path: str, says: str) -> None:
    done = run("add", f"{url}/{path}")
    assert isinstance(done.exception, RemoteError)
    assert done.exit_code == 1
    assert re.search(says, str(done.exception))
    assert names(data) == []


def test_server_that_never_ends_is_given_up(url: str, data: Path) -> None:
    done = run("add", f"{url}/endless.zip#sha256={'0' * 64}", "--timeout", "1")
    assert "took too long" in str(done.exception)
    assert names(data) == []


def test_url_without_a_hash_or_with_a_wrong_one_is_a_wrong_use(url: str) -> None:
    for end, says in [("", "missing"), ("#sha256=abc", "got 'abc'"), ("#md5=abc", "got #md5=abc")]:
        done = run("add", f"{url}/tiny.zip{end}")
        assert (done.exit_code, says in done.output) == (2, True), done.output
    assert run("add", "ftp://example.org/tiny.zip#sha256=" + "0" * 64).exit_code == 2
    assert run("add", f"{url}/tiny.zip#sha256={'0' * 64}", "--sha256", "1" * 64).exit_code == 2


def test_secrets_of_a_url_are_not_shown(url: str) -> None:
    error = str(run("add", f"{url}/missing.zip?token=secret#sha256={'0' * 64}").exception)
    assert "/missing.zip: SHA-256: got " in error
    assert "secret" not in error
    done = run("add", url.replace("//", "//user:secret@") + "/tiny.zip#sha256=" + "0" * 64)
    assert (done.exit_code, "secret" in done.output) == (2, False)
    assert "name and password, which are not sent" in done.output


def test_silent_server_is_given_up_after_the_time_that_is_told(tiny: Path, data: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        done = run("add", f"http://127.0.0.1:{port}/tiny.zip#sha256={'0' * 64}", "--timeout", "1")
    assert str(done.exception) == f"http://127.0.0.1:{port}/tiny.zip: silent for 1 seconds"
    assert names(data) == []


def test_hash_of_a_local_zip_file_is_checked(tiny: Path, sha256: str, data: Path) -> None:
    assert isinstance(run("add", f"{tiny}.zip", "--sha256", "0" * 64).exception, BundleError)
    assert not data.exists()
    assert run("add", f"{tiny}.zip", "--sha256", sha256).exit_code == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["add"],
        ["remove"],
        ["list", "x"],
        ["remove", "x", "--name", "y"],
        ["add", "x", "--sha256", "y"],
        ["remove", "x", "y"],
    ],
)
def test_wrong_use_is_told(arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2


def test_bundle_of_another_folder_is_not_removed(tiny: Path) -> None:
    shutil.copytree(tiny, "bundles/tiny")
    done = run("remove", "tiny")
    assert "bundles/tiny is not in it: --bundles DIR" in str(done.exception)
    assert run("remove", "tiny", "--bundles", "bundles").exit_code == 0


def test_folder_that_no_verb_looks_at_is_told(tiny: Path, monkeypatch: pytest.MonkeyPatch, data: Path) -> None:
    monkeypatch.setenv("MEARI_BUNDLES", str(tiny.parent))
    assert "MEARI_BUNDLES is set" in run("add", tiny).stderr
    assert (data / "tiny").is_dir()
    monkeypatch.setenv("MEARI_BUNDLES", f"{tiny.parent}:{data}")
    assert run("remove", "tiny").stderr == ""
