"""Test keys: who a caller is, what they may do, and the file that says so."""

from __future__ import annotations

import base64
import json
import logging
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner
from flask.testing import FlaskClient

from meari.cli.main import group
from meari.errors import Forbidden, MeariError, Unauthorized
from meari.service.app import create_app
from meari.service.process.start import StartError, check_start
from meari.service.requests.keys import (
    ANYBODY,
    CHECK_SECONDS,
    COPY,
    Caller,
    KeyRing,
    change_keys,
    make_key,
    read_keys,
)
from meari.service.settings import Settings
from tests.patience import PATIENCE, until
from tests.service.running import Server, running_server


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def added(path: Path, name: str, **limits: object) -> str:
    """Add a key to the file and return it."""
    key, entry = make_key(name, **limits)  # type: ignore[arg-type]
    change_keys(path, lambda keys: [*keys, entry])
    return key


def keys_of(path: Path, *words: str) -> str:
    """Run `meari keys` and return its standard output."""
    result = CliRunner().invoke(group, ["keys", *words, "--file", str(path)])
    assert result.exit_code == 0, result.output
    return result.stdout


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


class Clock:
    """Time that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_admin_key_is_known_beside_the_other_keys() -> None:
    ring = KeyRing(Settings(workers=1, api_keys=("first", "second"), admin_keys=("admin",)))
    assert ring.caller("Bearer second") == Caller("api_keys:2")
    ring.caller("Bearer admin").require_admin()
    with pytest.raises(Forbidden, match="api_keys:1 is no admin key"):
        ring.caller("Bearer first").require_admin()
    for header in (None, "Bearer", "Bearer other", "Basic first", "first", "Bearer é"):
        with pytest.raises(Unauthorized):
            ring.caller(header)


def test_admin_keys_alone_close_nothing_but_what_is_for_admins() -> None:
    ring = KeyRing(Settings(workers=1, admin_keys=("admin",)))
    assert ring.caller(None) == ring.caller("Bearer other") == ANYBODY
    ring.caller("Bearer admin").require_admin()
    for header in (None, "Bearer other"):
        with pytest.raises(Unauthorized):
            ring.caller(header).require_admin()
        with pytest.raises(Unauthorized):
            ring.caller(header, must_know=True)


def test_login_of_a_browser_is_a_key_but_no_admin() -> None:
    ring = KeyRing(Settings(workers=1, api_keys=("first",), admin_keys=("admin",)))
    for login in (b"anybody:first", b"first:", b"first"):
        assert ring.caller("Basic " + base64.b64encode(login).decode()).name == "api_keys:1"
    admin = ring.caller("Basic " + base64.b64encode(b":admin").decode())
    assert (admin.name, admin.is_admin) == ("admin_keys:1", False)


def test_key_of_the_file_brings_its_rights_and_limits(path: Path) -> None:
    key = added(path, "bob", models=["a", "b"], tokens_per_minute=600, requests_at_once=2)
    admin = added(path, "root", admin=True)
    ring = KeyRing(Settings(workers=1, keys_file=path, api_keys=("simple",)))
    caller = ring.caller(f"Bearer {key}")
    assert (caller.name, caller.models) == ("bob", ("a", "b"))
    assert (caller.tokens_per_minute, caller.requests_at_once, caller.is_admin) == (600, 2, False)
    assert ring.caller(f"bearer {admin}").is_admin
    assert ring.caller("Bearer simple").name == "api_keys:1"
    altered = key[:-1] + ("A" if key[-1] != "A" else "B")
    for wrong in (altered, key + "A", key[:-1], "meari_000000000000_" + "A" * 43):
        with pytest.raises(Unauthorized):
            ring.caller(f"Bearer {wrong}")


def test_file_holds_no_key_and_is_for_its_owner_alone(path: Path) -> None:
    key = keys_of(path, "add", "alice").strip()
    assert key.startswith("meari_")
    assert key.removeprefix("meari_") not in path.read_text("utf-8")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "alice" in keys_of(path, "list")
    keys_of(path, "revoke", "alice")
    assert read_keys(path) == []


@pytest.mark.parametrize(
    ("to", "says"), [("/dev/full", "No space left"), ("pipe", "Broken pipe"), ("", "Bad file descriptor")]
)
@pytest.mark.parametrize("more", [[], ["--json"]])
def test_key_that_could_not_be_shown_is_not_added(path: Path, to: str, says: str, more: list[str]) -> None:
    added(path, "alice")
    command = [sys.executable, "-m", "meari", "keys", "add", "bob", "--file", str(path), *more]
    if to == "":
        command = ["sh", "-c", 'exec "$@" >&-', "sh", *command]
    read, write = os.pipe()
    os.close(read)
    with Path("/dev/full").open("wb") as full, os.fdopen(write, "wb", buffering=0) as pipe:
        out = full if to == "/dev/full" else pipe
        done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"meari: standard output: {says}")
    assert last.endswith("no key was added")
    assert [key.name for key in read_keys(path)] == ["alice"]


def test_keys_verb_says_what_is_wrong(path: Path) -> None:
    added(path, "alice")
    for words, status, message in [
        (["add", "alice"], 1, "there is a key alice already"),
        (["revoke", "alic"], 1, "did you mean alice?"),
        (["add"], 2, "say whose key"),
        (["add", "two words"], 2, "1 to 64 letters"),
        (["add", "bob", "--models", "a,,b"], 2, "--models"),
        (["revoke", "alice", "--admin"], 2, "for add"),
    ]:
        result = CliRunner().invoke(group, ["keys", *words, "--file", str(path)])
        assert result.exit_code == status, result.output
        assert message in result.output
    assert [key.name for key in read_keys(path)] == ["alice"]
    assert CliRunner().invoke(group, ["keys", "list"], env={"MEARI_KEYS_FILE": ""}).exit_code == 2


def test_writers_beside_one_another_lose_no_key(path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: added(path, f"key-{number}"), range(40)))
    assert sorted(key.name for key in read_keys(path)) == sorted(f"key-{number}" for number in range(40))
    assert [each.name for each in path.parent.iterdir() if each.name.endswith(".new")] == []


def test_linked_file_is_written_where_it_is(path: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.json"
    added(path, "alice")
    link.symlink_to(path)
    added(link, "bob")
    assert link.is_symlink()
    assert [key.name for key in read_keys(path)] == ["alice", "bob"]


def test_change_of_the_file_is_taken_over_within_seconds(path: Path) -> None:
    first = added(path, "first")
    clock = Clock()
    ring = KeyRing(Settings(workers=1, keys_file=path), clock=clock)
    second = added(path, "second")
    change_keys(path, lambda keys: keys[1:])
    clock.now += CHECK_SECONDS
    assert ring.caller(f"Bearer {second}").name == "second"
    with pytest.raises(Unauthorized):
        ring.caller(f"Bearer {first}")


@pytest.mark.parametrize(
    ("break_it", "why"),
    [
        (lambda path: path.write_text("{"), "malformed JSON"),
        (lambda path: path.write_text('{"keys": [{"id": "a"}]}'), "keys[0].name: missing"),
        (lambda path: path.write_text('{"keys": [], "more": 1}'), "more: got an unknown field"),
        (lambda path: path.write_bytes(b"\xff"), "not UTF-8"),
        (lambda path: path.unlink(), "No such file"),
        (lambda path: (path.unlink(), path.mkdir()), "Is a directory"),
    ],
)
def test_broken_file_leaves_the_keys_valid_and_is_logged_once(
    path: Path, tmp_path: Path, break_it: Callable[[Path], object], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    key = added(path, "alice")
    clock = Clock()
    shared = tmp_path / "shared"
    shared.mkdir()
    settings = Settings(workers=1, keys_file=path, runtime_folder=shared)
    ring = KeyRing(settings, clock=clock)
    break_it(path)
    with caplog.at_level(logging.ERROR, "meari.service.keys"):
        for _ in range(3):
            clock.now += CHECK_SECONDS
            assert ring.caller(f"Bearer {key}").name == "alice"
    assert len(caplog.messages) == 1
    assert why in caplog.messages[0]
    assert KeyRing(settings).caller(f"Bearer {key}").name == "alice"  # a worker that starts now has the copy
    (shared / COPY).unlink()
    with pytest.raises(Unauthorized):
        KeyRing(settings).caller(f"Bearer {key}")


def test_no_message_shows_a_key_in_the_place_of_a_hash(path: Path) -> None:
    entry = {"id": "0" * 12, "name": "alice", "hash": "meari_secret"}
    path.write_text(json.dumps({"keys": [entry]}), "utf-8")
    with pytest.raises(MeariError, match=r"keys\[0\]\.hash") as raised:
        read_keys(path)
    assert "secret" not in str(raised.value)


def test_name_or_id_may_not_come_twice(path: Path) -> None:
    added(path, "alice")
    with pytest.raises(MeariError, match="alice twice"):
        added(path, "alice")
    assert len(read_keys(path)) == 1


def test_service_does_not_start_without_its_file(path: Path, letters: Path) -> None:
    settings = Settings(workers=1, bundles=letters, keys_file=path)
    with pytest.raises(StartError, match="meari keys add"):
        check_start(settings)
    path.write_text('{"keys": 1}', "utf-8")
    with pytest.raises(StartError, match="keys: got 1"):
        check_start(settings)


@pytest.fixture(scope="module")
def limited(bundles: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FlaskClient, str, str]]:
    """Serve all bundles; with a key for two of them, and one for a model that there is not."""
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    key, nothing = added(path, "bob", models=["words", "bytes"]), added(path, "eve", models=["absent"])
    app = create_app(Settings(bundles=bundles, default_model="letters", workers=1, log_level="error", keys_file=path))
    assert app.extensions["meari"].registry.wait_loaded(PATIENCE)
    yield app.test_client(), key, nothing
    app.extensions["meari"].registry.stop()


def test_key_for_some_models_knows_of_no_other(limited: tuple[FlaskClient, str, str]) -> None:
    client, key, _ = limited
    headers = bearer(key)
    listed = client.get("/models", headers=headers).get_json()
    assert ([model["name"] for model in listed["models"]], listed["default"]) == (["bytes", "words"], "words")
    cards = client.get("/v1/models", headers=headers).get_json()["data"]
    assert [card["id"] for card in cards] == ["bytes", "words"]
    for path in ("/models/letters", "/v1/models/letters", "/models/broken"):
        response = client.get(path, headers=headers)
        assert (response.status_code, response.get_json()["error"]["code"]) == (404, "unknown_model")
        assert "flat" not in response.text
    assert client.get("/models/words", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/generate", {"prompt": "good", "max_tokens": 1}),
        ("/v1/completions", {"prompt": "good", "max_tokens": 1}),
        ("/score", {"text": "good"}),
        ("/complete", {"text": "good"}),
        ("/states", {"text": "good"}),
        ("/tokenize", {"text": "good"}),
        ("/detokenize", {"tokens": [1]}),
    ],
)
def test_request_of_a_key_goes_to_its_models_alone(
    limited: tuple[FlaskClient, str, str], path: str, body: dict[str, object]
) -> None:
    client, key, nothing = limited
    assert client.post(path, json=body, headers=bearer(key)).get_json()["model"] == "words"
    assert client.post(path, json={**body, "model": "bytes"}, headers=bearer(key)).get_json()["model"] == "bytes"
    for refused, name in (
        (key, "letters"),
        (key, "broken"),
        (nothing, "letters"),
        (nothing, None),
        (nothing, "absent"),
    ):
        asked = body if name is None else {**body, "model": name}
        response = client.post(path, json=asked, headers=bearer(refused))
        assert (response.status_code, response.get_json()["error"]["code"]) == (404, "unknown_model")
        assert "flat" not in response.text


def test_running_service_takes_over_a_new_key_and_a_revoked_one(path: Path, letters: Path, tmp_path: Path) -> None:
    first = keys_of(path, "add", "first").strip()
    with running_server(tmp_path, bundles=letters, keys_file=path, workers=2, api_keys="simple") as server:
        assert server.client.get("/models", headers=bearer(first)).status_code == 200
        assert server.client.get("/models", headers=bearer("simple")).status_code == 200
        second = keys_of(path, "add", "second").strip()
        keys_of(path, "revoke", "first")
        until(lambda: _statuses(server, second) == {200})
        until(lambda: _statuses(server, first) <= {401, 429})  # 429 after many tries
        server.client.get("/models", headers=bearer(second))
        until(lambda: '"key": "second"' in server.log or '"key":"second"' in server.log)
        assert first not in server.log
        assert second not in server.log


def _statuses(server: Server, key: str) -> set[int]:
    """Ask on connections of their own, so that several workers answer."""
    url = f"http://127.0.0.1:{server.port}/models"
    return {httpx.get(url, headers=bearer(key), timeout=PATIENCE, trust_env=False).status_code for _ in range(6)}
