"""Test changes of the bundles while two workers serve them, by renames in the folder and by an admin over HTTP."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from meari.service.app import create_app
from meari.service.settings import Settings
from tests.patience import PATIENCE, until
from tests.runtime.tiny_bundle import write_tiny_bundle
from tests.service.log.test_odd_clients import error_of, received
from tests.service.running import Server, running_server

NAMES = ("alpha", "beta", "letters")
ADMIN = {"Authorization": "Bearer the-key-of-an-admin"}
ENDLESS = {"logit_bias": {"0": -100}, "seed": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles")
    for name in NAMES:
        write_tiny_bundle(folder / name, decay=0.01)
    return folder


@pytest.fixture(scope="module")
def host(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Run two workers over a folder that tests change; each test leaves NAMES in it."""
    runtime = tmp_path_factory.mktemp("runtime")
    with running_server(
        tmp_path_factory.mktemp("server"),
        bundles=folder,
        default_model="letters",
        workers=2,
        max_tokens=200_000,
        runtime_folder=runtime,
        admin_keys="the-key-of-an-admin",
        api_keys="the-key-of-a-user",
        log_format="json",
    ) as server:
        server.client.headers.update(ADMIN)
        yield server


def test_every_worker_takes_a_new_bundle_and_a_stream_ends_on_the_old_one(host: Server, folder: Path) -> None:
    body = {"model": "alpha", "max_tokens": 6_000, "stream": True, "logprobs": 0, **ENDLESS}
    with host.client.stream("POST", "/generate", json=body) as response:
        lines = response.iter_lines()
        begun = [next(lines)]
        put(folder, "alpha", decay=0.02)
        await_hash(host, folder, "alpha")
        begun += list(lines)
    assert "data: [DONE]" in begun
    after = host.post("/generate", **body).text.splitlines()
    put(folder, "alpha", decay=0.01)
    await_hash(host, folder, "alpha")
    before = host.post("/generate", **body).text.splitlines()
    assert figures(begun) == figures(before) != figures(after)
    assert len(figures(begun)) == 6_000


def test_state_of_the_bundle_before_is_refused(host: Server, folder: Path) -> None:
    body = {"model": "alpha", "prompt": "ab", "max_tokens": 2}
    state = host.post("/generate", **body, return_state=True).json()["choices"][0]["state"]
    put(folder, "alpha", decay=0.03)
    await_hash(host, folder, "alpha")
    refused = host.post("/generate", **body, state=state)
    assert refused.status_code == 400
    assert "a token of another model or another export of it" in refused.json()["error"]["message"]


def test_bundle_that_arrives_file_by_file_is_taken_when_it_is_whole(host: Server, folder: Path) -> None:
    old = host.client.get("/models/alpha").json()["hashes"]["bundle"]
    new = write_tiny_bundle(folder / ".new" / "alpha", decay=0.04)
    looks = []
    for name in ("manifest.json", "tokenizer.json", "golden.npz", "cell.onnx"):
        looks.append(host.client.get("/models/alpha").json()["hashes"]["bundle"])
        shutil.copyfile(new / name, folder / "alpha" / name)
        time.sleep(0.7)  # longer than from one look of a worker to the next
    shutil.rmtree(new)
    assert set(looks) == {old}
    await_hash(host, folder, "alpha")
    assert host.client.get("/readyz").json()["failed"] == {}
    assert '"error"' not in "".join(line for line in host.log.splitlines() if "alpha" in line and "bundle" in line)


def test_broken_bundle_is_named_and_the_old_one_served(host: Server, folder: Path) -> None:
    old = host.client.get("/models/beta").json()["hashes"]["bundle"]
    new = write_tiny_bundle(folder / ".new" / "beta", decay=0.05)
    data = (new / "cell.onnx").read_bytes()
    (new / "cell.onnx").write_bytes(data[:-1] + b"?")
    replace(folder / "beta", new)
    until(lambda: "SHA-256" in host.client.get("/readyz").json()["failed"].get("beta", ""))
    assert host.client.get("/models/beta").json()["hashes"]["bundle"] == old
    until(lambda: "\nmeari_failed_bundles 1.0" in host.client.get("/metrics").text)
    assert 'meari_bundle_failed{bundle="beta"} 1.0' in host.client.get("/metrics").text
    refused = host.client.post("/models/beta/load")
    assert refused.status_code == 409
    assert "cell.onnx: SHA-256" in refused.json()["error"]["message"]
    assert refused.json()["error"]["message"].endswith("; the one before is still served")
    (folder / "beta" / "cell.onnx").write_bytes(data)
    await_hash(host, folder, "beta")
    until(lambda: host.client.get("/readyz").json()["failed"] == {})
    until(lambda: 'meari_bundle_failed{bundle="beta"} 0.0' in host.client.get("/metrics").text)
    assert 1 <= host.log.count("bundle beta cannot be served") <= 2  # once a worker


def test_admin_unloads_and_loads_a_model_on_every_worker(host: Server) -> None:
    unloaded = host.client.post("/models/alpha/unload")
    assert unloaded.status_code == 200
    answer = unloaded.json()
    assert (answer["name"], answer["status"], answer["hash"]) == ("alpha", "unloaded", None)
    assert (len(answer["workers"]["done"]), answer["workers"]["waiting"]) == (2, [])
    for error in of_every_worker(host, "alpha"):
        assert (error.status_code, error.json()["error"]["code"]) == (404, "unknown_model")
    assert [model["name"] for model in host.client.get("/models").json()["models"]] == ["beta", "letters"]
    assert '"alpha"' not in host.client.get("/openapi.json").text
    until(lambda: 'meari_slots{model="alpha"} 0.0' in host.client.get("/metrics").text)
    os.kill(answer["workers"]["done"][0], signal.SIGKILL)
    until(lambda: has_new_worker(host, answer["workers"]["done"]))
    for error in of_every_worker(host, "alpha"):
        assert error.status_code == 404
    [loaded] = (answer.json() for answer in on_new_connections(host, "POST", "/models/alpha/load", 1))
    assert (loaded["status"], len(loaded["hash"]), len(loaded["workers"]["done"])) == ("loaded", 64, 2)
    for described in of_every_worker(host, "alpha"):
        assert described.json()["hashes"]["bundle"] == loaded["hash"]


def test_every_model_can_be_unloaded(host: Server) -> None:
    for name in NAMES:
        assert host.client.post(f"/models/{name}/unload").status_code == 200
    not_ready = host.client.get("/readyz")
    assert (not_ready.status_code, not_ready.json()["reason"]) == (503, "no model is loaded")
    assert host.post("/generate").status_code == 503
    for name in NAMES:
        assert host.client.post(f"/models/{name}/load").status_code == 200
    until(lambda: host.client.get("/readyz").status_code == 200)


@pytest.mark.parametrize(
    ("path", "key", "body", "status", "message"),
    [
        ("/models/alpha/load", "", b"", 401, "expected Bearer"),
        ("/models/alpha/unload", "the-key-of-a-user", b"", 403, "is no admin key"),
        ("/models/alhpa/unload", None, b"", 404, "did you mean alpha?"),
        ("/models/../unload", None, b"", 404, ""),
        ("/models/.new/load", None, b"", 404, "got '.new'"),
        ("/models/alpha/unload", None, b'{"force": true}', 400, "body: got 15 bytes"),
    ],
)
def test_others_and_other_names_are_refused(
    host: Server, path: str, key: str | None, body: bytes, status: int, message: str
) -> None:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"} if key else {"Authorization": ""}
    refused = host.client.post(path, content=body, headers=headers)
    assert refused.status_code == status
    assert message in refused.json()["error"]["message"]
    assert host.client.get("/models/alpha").status_code == 200


def test_malformed_body_of_an_admin_is_a_mistake_of_the_client(host: Server) -> None:
    head = f"POST /models/alpha/load HTTP/1.1\r\nHost: x\r\nAuthorization: {host.client.headers['Authorization']}\r\n"
    with host.connect() as connection:
        connection.sendall(f"{head}Connection: close\r\nTransfer-Encoding: chunked\r\n\r\nno size\r\n".encode())
        status, error, _ = error_of(received(connection))
    assert (status, error["code"]) == (400, "invalid_request")


def test_nobody_changes_models_where_no_key_is_set(folder: Path) -> None:
    app = create_app(Settings(bundles=folder, workers=1, log_level="error"))
    refused = app.test_client().post("/models/alpha/unload")
    assert (refused.status_code, refused.get_json()["error"]["code"]) == (403, "forbidden")
    assert "MEARI_ADMIN_KEYS" in refused.get_json()["error"]["message"]
    app.extensions["meari"].registry.stop()


def put(folder: Path, name: str, **changes: Any) -> None:
    """Put a new bundle in the place of one that is there."""
    replace(folder / name, write_tiny_bundle(folder / ".new" / name, **changes))


def replace(old: Path, new: Path) -> None:
    """Replace a folder by two renames, as an export does."""
    old.rename(old.with_name(f"{old.name}.old"))
    new.rename(old)
    shutil.rmtree(old.with_name(f"{old.name}.old"))


def of_every_worker(host: Server, name: str) -> list[httpx.Response]:
    """Ask about a model on so many connections that no worker is left out."""
    return on_new_connections(host, "GET", f"/models/{name}", 12)


def on_new_connections(host: Server, method: str, path: str, times: int) -> list[httpx.Response]:
    """Send a request on a connection of its own each time: others may have ended with their worker."""
    url = f"http://127.0.0.1:{host.port}{path}"
    return [httpx.request(method, url, headers=ADMIN, timeout=PATIENCE, trust_env=False) for _ in range(times)]


def has_new_worker(host: Server, known: list[int]) -> bool:
    """Tell whether an admin's answer names as many workers as before, and not the same ones."""
    try:
        [answer] = on_new_connections(host, "POST", "/models/beta/load", 1)
    except httpx.TransportError:  # it came to the worker that ends
        return False
    done = answer.json()["workers"]["done"] if answer.is_success else []
    return len(done) == len(known) and done != known


def await_hash(host: Server, folder: Path, name: str) -> str:
    """Wait until every worker serves the bundle that is in the folder; return its hash."""
    wanted = hashlib.sha256((folder / name / "manifest.json").read_bytes()).hexdigest()
    until(lambda: {each.json()["hashes"]["bundle"] for each in of_every_worker(host, name)} == {wanted})
    return wanted


def figures(lines: list[str]) -> list[str]:
    """Return the log-probabilities of a stream's tokens as they are written."""
    return re.findall(r'"logprob":([^,}]+)', "".join(lines))
