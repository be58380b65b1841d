"""Test that workers share the bundles that the master has opened, and serve no other ones than the folder has."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from meari.bundle_format.reader import read_manifest
from meari.bundle_format.signatures import make_private_key, sign_manifest
from tests.drills.processes import held_by, workers_of
from tests.patience import PATIENCE, until
from tests.runtime.tiny_bundle import write_tiny_bundle
from tests.service.running import ROOT, Server, running_server

RELEASED = ROOT / "bundles"
TEXT = {"text": "abcd", "tokens": True}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("changing", "staying"):
        write_tiny_bundle(tmp_path / "bundles" / name, decay=0.01)
    return tmp_path / "bundles"


@pytest.fixture
def server(folder: Path, tmp_path: Path) -> Iterator[Server]:
    with running_server(tmp_path, bundles=folder, default_model="staying", workers=2) as server:
        yield server


def replace(folder: Path, name: str, decay: float) -> None:
    """Put another bundle in the place of one."""
    (folder / name).rename(folder.parent / f"{name}-{decay}")
    write_tiny_bundle(folder.parent / "new" / name, decay=decay).rename(folder / name)


def kill_workers(server: Server) -> None:
    """Kill all workers, and wait for others that are ready."""
    old = set(workers_of(server.process.pid))
    for pid in old:
        os.kill(pid, signal.SIGKILL)
    until(lambda: old.isdisjoint(workers_of(server.process.pid)) and is_complete(server))


def is_complete(server: Server) -> bool:
    found = httpx.get(f"{server.client.base_url}/readyz", trust_env=False, timeout=PATIENCE).json()
    return dict(found["workers"]) == {"expected": 2, "ready": 2, "loading": 0, "failed": 0, "draining": 0}


def scored(server: Server, model: str) -> list[float]:
    """Return the log-probability of each token, from a connection of its own."""
    body = {"model": model, **TEXT}
    found = httpx.post(f"{server.client.base_url}/score", json=body, trust_env=False, timeout=PATIENCE).json()
    return [token["logprob"] for token in found["results"][0]["tokens"]]


def test_workers_hold_weights_graphs_and_tokenizers_together(tmp_path: Path) -> None:
    graphs_mb = sum(path.stat().st_size for path in RELEASED.glob("*/*.onnx")) / (1 << 20)
    with running_server(tmp_path, bundles=RELEASED, workers=2, cache_bytes=0) as server:
        held = [held_by(pid) for pid in workers_of(server.process.pid)]
    assert len(held) == 2
    for each in held:
        assert each.resident_mb > 2 * graphs_mb  # a graph that reads and one that writes hold the weights
        assert each.private_mb < 1.5 * graphs_mb  # five times as much where each opens the bundles for itself


def test_new_workers_serve_the_bundle_that_has_taken_the_place_of_an_opened_one(server: Server, folder: Path) -> None:
    first, staying = scored(server, "changing"), scored(server, "staying")
    replace(folder, "changing", decay=0.02)
    until(lambda: scored(server, "changing") != first)
    kill_workers(server)
    second = scored(server, "changing")
    assert second != first
    assert {tuple(scored(server, "changing")) for _ in range(8)} == {tuple(second)}
    replace(folder, "changing", decay=0.01)  # the very first one again, which the workers have not taken
    until(lambda: scored(server, "changing") == first)
    kill_workers(server)
    assert {tuple(scored(server, "changing")) for _ in range(8)} == {tuple(first)}
    assert scored(server, "staying") == staying


def test_new_workers_do_not_serve_an_opened_bundle_that_is_gone_or_damaged(server: Server, folder: Path) -> None:
    (folder / "changing").rename(folder.parent / "gone")
    until(lambda: "changing" not in server.client.get("/readyz").json()["models"])
    kill_workers(server)
    assert server.client.get("/readyz").json()["models"] == ["staying"]
    (folder.parent / "gone").rename(folder / "changing")
    until(lambda: "changing" in server.client.get("/readyz").json()["models"])
    with (folder / "changing" / "cell.onnx").open("r+b") as file:
        file.write(b"damaged")
    kill_workers(server)
    ready = server.client.get("/readyz").json()
    assert ready["models"] == ["staying"]
    assert "cell.onnx" in ready["failed"]["changing"]


def test_worker_that_answers_while_bundles_are_opened_is_none_of_the_service(server: Server) -> None:
    assert len(workers_of(server.process.pid)) == 2
    assert "meari_worker_starts_total 2.0" in server.client.get("/metrics").text.splitlines()


def test_reload_shares_what_was_opened_at_the_start(server: Server) -> None:
    before, held = scored(server, "staying"), [held_by(pid).private_mb for pid in workers_of(server.process.pid)]
    old = set(workers_of(server.process.pid))
    server.process.send_signal(signal.SIGHUP)
    until(lambda: old.isdisjoint(workers_of(server.process.pid)) and is_complete(server))
    assert scored(server, "staying") == before
    after = [held_by(pid).private_mb for pid in workers_of(server.process.pid)]
    assert max(after) < max(held) + 8


def test_opened_bundle_that_nobody_signed_is_refused_from_the_reload_on(folder: Path, tmp_path: Path) -> None:
    key = make_private_key(tmp_path / "key.pem")
    sign_manifest(folder / "staying", read_manifest(folder / "staying")[1], tmp_path / "key.pem")
    settings = tmp_path / "settings"
    settings.write_text("", "utf-8")
    with running_server(tmp_path, bundles=folder, settings_file=settings, workers=2) as server:
        staying, old = scored(server, "staying"), set(workers_of(server.process.pid))
        assert scored(server, "changing")
        settings.write_text(f"MEARI_SIGNING_KEYS={key.text}\n", "utf-8")
        server.process.send_signal(signal.SIGHUP)
        until(lambda: old.isdisjoint(workers_of(server.process.pid)) and is_complete(server))
        for act in (lambda: None, lambda: kill_workers(server)):
            act()
            ready = server.client.get("/readyz").json()
            assert ready["models"] == ["staying"]
            assert "signature.json" in ready["failed"]["changing"]
            assert scored(server, "staying") == staying
        (folder / "staying" / "signature.json").unlink()
        before = workers_of(server.process.pid)
        server.process.send_signal(signal.SIGHUP)
        until(lambda: "MEARI_SIGNING_KEYS: no bundle could be served" in server.log)
        assert workers_of(server.process.pid) == before
        assert scored(server, "staying") == staying, "as it was when they opened it"
