"""Test that workers are replaced without a failed request, and leave nothing behind."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from meari.bundle_format.reader import read_manifest
from meari.bundle_format.signatures import make_private_key, sign_manifest
from meari.service.process.master import FIRST_PAUSE
from meari.service.process.start import MEMORY
from tests.drills.processes import workers_of
from tests.patience import PATIENCE, until
from tests.runtime.tiny_bundle import write_tiny_bundle
from tests.service.metrics.exposition import Exposition
from tests.service.running import ROOT, Server, clean_environment, command, events, free_port, running_server
from tests.service.test_server import ENDLESS

GROW = "the pauses before further tries grow"
BODIES: list[tuple[str, dict[str, Any]]] = [
    ("/generate", {"prompt": "w", "seed": 5, "max_tokens": 30}),
    ("/generate", {"prompt": "w", "seed": 5, "max_tokens": 30, "stream": True}),
    ("/score", {"text": "abcdef", "tokens": True}),
]


def counts(server: Server) -> dict[str, int]:
    """Return the counts of /readyz, from a new connection."""
    answer = httpx.get(f"{server.client.base_url}/readyz", trust_env=False, timeout=PATIENCE)
    return dict(answer.json()["workers"])


def all_ready(server: Server) -> bool:
    found = counts(server)
    return found["ready"] == found["expected"] and not found["draining"]


@contextlib.contextmanager
def clients(server: Server, number: int = 6) -> Iterator[list[str]]:
    """Ask all the time from several connections; yield the list of what has failed so far."""
    failures: list[str] = []
    wanted = [_result(server.client.post(path, json=body)) for path, body in BODIES]
    stop = threading.Event()

    def ask(which: int) -> None:
        with httpx.Client(base_url=server.client.base_url, timeout=PATIENCE, trust_env=False) as client:
            while not stop.is_set():
                path, body = BODIES[which % len(BODIES)]
                try:
                    found = _result(client.post(path, json=body))
                except httpx.HTTPError as error:
                    failures.append(repr(error))
                else:
                    if found != wanted[which % len(BODIES)]:
                        failures.append(f"{path}: {found}")
                which += 1

    threads = [threading.Thread(target=ask, args=(which,)) for which in range(number)]
    for thread in threads:
        thread.start()
    try:
        yield failures
    finally:
        stop.set()
        for thread in threads:
            thread.join(PATIENCE)


def _result(answer: httpx.Response) -> tuple[int, object]:
    """Return what does not depend on caches, nor on the pieces in which a text arrives."""
    if answer.headers["Content-Type"].startswith("text/event-stream"):
        choices = [choice for event in events(answer)[:-1] for choice in json.loads(event).get("choices", [])]
        return answer.status_code, ("".join(choice["text"] for choice in choices), events(answer)[-1])
    return answer.status_code, re.sub(r'"(cached|computed)_tokens":\d+', "", answer.text)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("replacement") / "bundles"
    write_tiny_bundle(folder / "letters")
    write_tiny_bundle(folder / "words")
    return folder


@pytest.fixture(scope="module")
def settings_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("settings") / "settings"
    path.write_text("# limits\nMEARI_MAX_TOKENS = '100'\n\n", "utf-8")
    return path


@pytest.fixture(scope="module")
def server(folder: Path, settings_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Run two workers; each test leaves them ready, and the last one ends them."""
    settings: dict[str, Any] = {"bundles": folder, "settings_file": settings_file, "default_model": "letters"}
    with running_server(tmp_path_factory.mktemp("server"), workers=2, **settings) as server:
        yield server


def runtime_folder(server: Server) -> Path:
    opened = {each.readlink() for each in Path(f"/proc/{workers_of(server.process.pid)[0]}/fd").iterdir()}
    [lock] = [path for path in opened if path.name == "lock"]
    return lock.parent


def replaced(server: Server, act: Callable[[], object]) -> None:
    """Act, and wait until all workers are others and ready."""
    before = set(workers_of(server.process.pid))
    act()
    until(lambda: not before.intersection(workers_of(server.process.pid)) and all_ready(server))


def kill_all(server: Server) -> None:
    for pid in workers_of(server.process.pid):
        os.kill(pid, signal.SIGKILL)


def test_killed_worker_is_replaced_while_the_other_serves_everything(server: Server) -> None:
    first, second = workers_of(server.process.pid)
    os.kill(first, signal.SIGSTOP)  # so that its connections are not those of the clients below
    with httpx.Client(base_url=server.client.base_url, timeout=PATIENCE, trust_env=False) as fresh:
        whole = Server(server.process, server.port, server.log_path, fresh)
        with clients(whole) as failures:
            os.kill(first, signal.SIGKILL)
            until(lambda: first not in workers_of(server.process.pid))
            until(lambda: all_ready(whole))
        assert second in workers_of(server.process.pid)
    assert not failures


def test_worker_that_gets_sigterm_alone_is_replaced_without_a_failed_request(server: Server) -> None:
    with clients(server) as failures:
        for pid in workers_of(server.process.pid):
            os.kill(pid, signal.SIGTERM)
            until(lambda pid=pid: pid not in workers_of(server.process.pid) and all_ready(server))  # type: ignore[misc]
    assert not failures


def test_only_worker_serves_until_its_successor_is_ready(folder: Path, tmp_path: Path) -> None:
    with running_server(tmp_path, bundles=folder, default_model="letters", workers=1) as server:
        with clients(server, 3) as failures:
            replaced(server, lambda: os.kill(workers_of(server.process.pid)[0], signal.SIGTERM))
        assert not failures
        [pid] = workers_of(server.process.pid)
        os.kill(pid, signal.SIGKILL)
        assert server.post("/generate", max_tokens=1).status_code == 200, "it waits for the bundles"


def test_sighup_takes_over_settings_without_a_failed_request(server: Server, settings_file: Path) -> None:
    runtime = runtime_folder(server)
    with clients(server) as failures:
        settings_file.write_text("MEARI_MAX_TOKENS=50\nMEARI_WORKERS=1\n", "utf-8")
        server.process.send_signal(signal.SIGHUP)  # the number of workers is that of the environment
        until(lambda: server.post("/generate", max_tokens=51).status_code == 400)
        until(lambda: all_ready(server))
        replaced(server, lambda: server.process.send_signal(signal.SIGHUP))
        assert server.post("/generate", max_tokens=51).status_code == 400
    assert not failures
    assert counts(server)["expected"] == 2
    assert runtime_folder(server) == runtime


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("MEARI_PORT=1\nMEARI_MAX_TOKENS=0", "MEARI_MAX_TOKENS: got '0'"),
        ("MEARI_MAX_TOKEN=5", "did you mean MEARI_MAX_TOKENS"),
        ("MAX_TOKENS=5", "got 'MAX_TOKENS' on line 1 of"),
        ("MEARI_KEYS_FILE=/nowhere", "MEARI_KEYS_FILE: /nowhere: No such file"),
    ],
)
def test_wrong_settings_change_nothing(server: Server, settings_file: Path, text: str, says: str) -> None:
    before, right = workers_of(server.process.pid), settings_file.read_text("utf-8")
    settings_file.write_text(text, "utf-8")
    server.process.send_signal(signal.SIGHUP)
    until(lambda: says in server.log)
    assert "nothing was reloaded" in server.log
    assert workers_of(server.process.pid) == before
    settings_file.write_text(right, "utf-8")


def test_bundle_that_breaks_keeps_a_new_worker_away_while_another_serves_it(server: Server, folder: Path) -> None:
    shutil.copytree(folder / "words", folder / ".broken")
    (folder / ".broken" / "cell.onnx").write_bytes(b"broken")
    (folder / "words").rename(folder / ".words")
    (folder / ".broken").rename(folder / "words")
    os.kill(workers_of(server.process.pid)[0], signal.SIGKILL)
    until(lambda: counts(server)["failed"] == 1)
    with clients(server) as failures:
        for _ in range(20):
            with httpx.Client(base_url=server.client.base_url, timeout=PATIENCE, trust_env=False) as fresh:
                assert fresh.post("/generate", json={"model": "words", "max_tokens": 1}).status_code == 200
        ready = server.client.get("/readyz")
        assert (ready.status_code, ready.json()["models"]) == (200, ["letters", "words"])
        assert "cell.onnx" in ready.json()["failed"]["words"]
        (folder / "words").rename(folder / ".broken")
        (folder / ".words").rename(folder / "words")
        until(lambda: all_ready(server))
    assert not failures


def test_new_worker_has_the_settings_of_the_others_whatever_their_files_say_now(folder: Path, tmp_path: Path) -> None:
    """The default model is gone, the file of signing keys is another one, then gone."""
    make_private_key(tmp_path / "key.pem")
    bundles = tmp_path / "bundles"
    shutil.copytree(folder, bundles)
    for each in bundles.iterdir():
        sign_manifest(each, read_manifest(each)[1], tmp_path / "key.pem")
    public = tmp_path / "key.pem.pub"
    with running_server(tmp_path, bundles=bundles, default_model="letters", signing_keys=public, workers=2) as server:
        make_private_key(tmp_path / "other.pem")
        (tmp_path / "other.pem.pub").replace(public)
        (bundles / "letters").rename(bundles / ".letters")
        until(lambda: server.client.get("/readyz").json()["models"] == ["words"])
        replaced(server, lambda: kill_all(server))
        assert server.post("/generate", model="words", max_tokens=1).status_code == 200
        public.unlink()
        replaced(server, lambda: kill_all(server))
        assert server.post("/generate", model="words", max_tokens=1).status_code == 200
        assert server.client.get("/readyz").json()["failed"] == {}


def test_counts_of_ended_workers_are_kept_in_one_file_each(server: Server) -> None:
    def told() -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        families = Exposition(server.client.get("/metrics").text).families.values()
        kept = [family for family in families if family.type != "gauge" and not family.name.startswith("meari_worker")]
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in kept
            for sample in family.samples
            if "seconds" not in sample.name and not {"/metrics", "/readyz"}.intersection(sample.labels.values())
        }

    for path, body in BODIES * 3:
        server.client.post(path, json=body)
    metrics = runtime_folder(server) / "metrics"
    until(lambda: told()["vllm:generation_tokens_total", (("model_name", "letters"),)] > 0)
    replaced(server, lambda: server.process.send_signal(signal.SIGHUP))
    before = told()
    for _ in range(2):
        *_, killed = workers_of(server.process.pid)
        os.kill(killed, signal.SIGKILL)
        until(partial(_is_replaced, server, killed))
    assert {name: value for name, value in told().items() if name in before} == before
    assert len(list(metrics.iterdir())) <= 2 * 4 + 2  # of each worker, and of all dead ones
    until(lambda: len(list((metrics.parent / "models").glob("*.worker.json"))) == 2)


def _is_replaced(server: Server, killed: int) -> bool:
    """Tell whether the master knows that a worker has ended, and another is ready."""
    found = workers_of(server.process.pid)
    return killed not in found and len(found) == 2 and all_ready(server)


# Each child counts as a worker does and is killed; the parent folds its files, as the master does.
DEATHS = """
import os, signal, sys
from pathlib import Path
from meari.service.metrics import Metrics, fold_metrics
from meari.service.workers import Board
folder, board, metrics = Path(sys.argv[1]), Board.of_one(), Metrics()
def told():
    lines = Metrics(board, folder).exposition().decode().splitlines()
    return [line for line in lines if line.startswith(("meari_requests_total", "meari_request_seconds_"))]
for number in range(25):
    child = os.fork()
    if not child:
        metrics = Metrics(board, folder)
        metrics.requests.labels("/score", "200").inc(number)
        metrics.seconds.labels("/score", "letters").observe(number / 8)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    before = told()
    fold_metrics(board, folder, child)
    assert sorted(told()) == sorted(before), (told(), before)
fold_metrics(board, folder, child)  # nothing is left to fold
(folder / "counter_1.db").write_bytes(b"")  # of a worker that died while it made the file
fold_metrics(board, folder, 1)
print(*(line for line in told() if "_total" in line or "_sum" in line), sep="\\n")
print(sorted(file.name for file in folder.iterdir() if str(os.getpid()) not in file.name))
"""


def test_counts_of_twenty_five_deaths_are_the_same_before_and_after_folding(tmp_path: Path) -> None:
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    arguments = [sys.executable, "-c", DEATHS, str(tmp_path)]
    done = subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        'meari_requests_total{route="/score",status="200"} 300.0',
        'meari_request_seconds_sum{model="letters",route="/score"} 37.5',
        "['counter_dead.db', 'histogram_dead.db']",
    ]
    assert _size(tmp_path) < 8 * 65536


def _size(folder: Path) -> int:
    return sum(file.stat().st_blocks * 512 for file in folder.iterdir())


def test_start_removes_the_folder_of_a_service_that_was_killed_whole(folder: Path, tmp_path: Path) -> None:
    with running_server(tmp_path, bundles=folder, default_model="letters", workers=1) as server:
        runtime = runtime_folder(server)
        [worker] = workers_of(server.process.pid)
        server.process.kill()
        os.kill(worker, signal.SIGKILL)
        server.process.wait(PATIENCE)
    assert runtime.exists()
    with running_server(tmp_path, bundles=folder, default_model="letters", workers=1) as server:
        assert not runtime.exists()
        other = runtime_folder(server)
        with running_server(tmp_path, bundles=folder, default_model="letters", workers=1):
            assert other.exists(), "it is in use"


def test_full_memory_of_files_lets_workers_die_at_growing_intervals(folder: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "none", str(small)], check=False)
    if mounted.returncode:
        pytest.skip("no file system can be mounted")
    log = tmp_path / "log"
    environment = clean_environment(bundles=folder, workers=2, port=free_port(), runtime_folder=small)
    try:
        with log.open("wb") as stream:
            process = subprocess.Popen(command(), cwd=ROOT, env=environment, stdout=stream, stderr=stream)
        until(lambda: log.read_text("utf-8").count("was sent SIG") >= 4)
        process.terminate()
        assert process.wait(PATIENCE) == 0
        assert GROW in log.read_text("utf-8")
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def test_pauses_grow_if_workers_end_by_themselves_soon_after_they_were_ready(folder: Path, tmp_path: Path) -> None:
    with running_server(tmp_path, bundles=folder, default_model="letters", workers=1) as server:

        def newest(number: int) -> int:
            until(lambda: server.log.count("serving letters, words") >= number)
            [worker] = workers_of(server.process.pid)
            return worker

        os.kill(newest(1), signal.SIGKILL)  # which says nothing of the worker
        second = newest(2)
        assert GROW not in server.log
        os.kill(second, signal.SIGSEGV)
        os.kill(newest(3), signal.SIGSEGV)
        os.kill(newest(4), signal.SIGSEGV)
        newest(5)
        lines = [json.loads(line) for line in server.log.splitlines() if line.startswith("{")]
        log = [(datetime.fromisoformat(line["time"]), line["message"]) for line in lines]
    ends = [when for when, message in log if "was sent SIGSEGV" in message]
    starts = [when for when, message in log if message.startswith("Booting")][-3:]
    pauses = [(start - end).total_seconds() for end, start in zip(ends, starts, strict=True)]
    assert sum(GROW in message for _, message in log) == 1
    assert all(pause >= FIRST_PAUSE * 2**number - 0.01 for number, pause in enumerate(pauses)), pauses


def test_nothing_is_left_in_memory(folder: Path, tmp_path: Path) -> None:
    before = set(MEMORY.glob("meari-*"))
    with running_server(tmp_path, bundles=folder, default_model="letters", workers=1) as server:
        runtime = runtime_folder(server)
        replaced(server, lambda: server.process.send_signal(signal.SIGHUP))
        server.terminate()
        assert server.wait() == 0
    assert not runtime.exists()
    assert runtime not in before


def test_workers_of_a_killed_master_end_and_the_last_one_removes_the_folder(server: Server) -> None:
    runtime, workers = runtime_folder(server), workers_of(server.process.pid)
    body = {**ENDLESS, "max_tokens": 40, "stream": True}
    with server.client.stream("POST", "/generate", json=body) as response:
        server.process.kill()
        server.process.wait(PATIENCE)
        assert "[DONE]" in response.read().decode()
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
    assert not runtime.exists()


def test_worker_that_is_told_to_end_the_moment_it_starts_ends(bundles: Path, tmp_path: Path) -> None:
    with running_server(tmp_path, bundles=bundles) as server:

        def others(pid: int) -> list[int]:
            return [each for each in workers_of(server.process.pid) if each != pid]

        for _ in range(3):
            [worker] = workers_of(server.process.pid)
            os.kill(worker, signal.SIGKILL)
            until(partial(_has_one, others, worker))
            [started] = others(worker)
            os.kill(started, signal.SIGTERM)
            until(partial(_is_gone, server.process.pid, started))
            until(partial(all_ready, server))


def _has_one(others: Callable[[int], list[int]], pid: int) -> bool:
    return len(others(pid)) == 1


def _is_gone(master: int, pid: int) -> bool:
    return pid not in workers_of(master)
