"""Test the service under real gunicorn: streams, refusals, disconnects and shutdown."""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import onnx
import pytest

from meari.errors import Bound
from tests.patience import PATIENCE, until
from tests.runtime.tiny_bundle import rewrite_manifest, write_tiny_bundle
from tests.service.metrics.exposition import Exposition
from tests.service.running import (
    ROOT,
    Server,
    clean_environment,
    command,
    events,
    free_port,
    running_server,
    unread_stream,
)

ENDLESS = {"model": "letters", "logit_bias": {"0": -100}, "temperature": 0}  # never samples the end token


def metric(server: Server, name: str, model: str = "letters") -> float:
    lines = server.client.get("/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f'{name}{{model="{model}"'))


def refused_by(server: Server, bound: Bound) -> float:
    """Return how many requests met a bound, of all models."""
    return Exposition(server.client.get("/metrics").text).value("meari_refusals_total", reason=bound)


def raw_post(body: bytes, *headers: bytes, path: bytes = b"/generate") -> bytes:
    lines = [b"POST %b HTTP/1.1" % path, b"Host: x", b"Content-Type: application/json", *headers]
    if not any(header.startswith((b"Transfer-Encoding", b"Content-Length")) for header in headers):
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def test_service_is_ready_when_every_worker_is(server: Server) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: server.post("/generate", max_tokens=1).status_code, range(40)))
    assert answers == [200] * 40


def test_stream_consists_of_server_sent_events(server: Server) -> None:
    response = server.post("/generate", prompt="w", temperature=0, stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert (response.headers["cache-control"], response.headers["x-accel-buffering"]) == ("no-store", "no")
    assert response.headers["x-request-id"]
    *parts, usage, done = events(response)
    assert done == "[DONE]"
    choices = [json.loads(part)["choices"][0] for part in parts]
    assert "".join(choice["text"] for choice in choices) == "xyz"
    assert choices[-1]["finish_reason"] == "end"
    assert json.loads(usage)["usage"] == {"prompt_tokens": 1, "cached_tokens": 0, "generated_tokens": 4}


def test_stream_arrives_while_it_is_generated(server: Server) -> None:
    body = {**ENDLESS, "max_tokens": 200_000, "stream": True}
    with server.client.stream("POST", "/generate", json=body) as response:
        lines = response.iter_lines()
        assert next(lines).startswith('data: {"choices":[{"index":0,"text":"a')
    until(lambda: metric(server, "meari_running_sequences") == 0)


@pytest.mark.parametrize("stream", [False, True])
def test_disconnected_client_frees_its_slot(bundles: Path, tmp_path: Path, stream: bool) -> None:
    with running_server(tmp_path, bundles=bundles, max_slots=1, max_tokens=1_000_000) as server:
        with server.connect() as connection:
            body = json.dumps({**ENDLESS, "max_tokens": 1_000_000, "stream": stream}).encode()
            connection.sendall(raw_post(body))
            if stream:
                assert connection.recv(20)
            else:
                until(lambda: metric(server, "meari_running_sequences") == 1)
        answer = server.post("/generate", model="letters", max_tokens=1)
        assert answer.status_code == 200
        until(lambda: metric(server, "meari_running_sequences") == 0)
        until(lambda: metric(server, "meari_generated_tokens_total") > 0)
        assert metric(server, "meari_generated_tokens_total") < 1_000_000, "nobody waited for the rest"
        if not stream:
            until(lambda: ' 499"' in server.log)


def test_requests_beyond_the_bounds_are_refused_at_once(bundles: Path, tmp_path: Path) -> None:
    limits: dict[str, Any] = {
        "max_requests": 3,
        "max_slots": 1,
        "max_waiting": 1,
        "max_tokens": 1_000_000,
        "max_inflight_bytes": 2**32,
    }
    body = {**ENDLESS, "max_tokens": 1_000_000, "stream": True}
    with running_server(tmp_path, bundles=bundles, **limits) as server:
        with server.client.stream("POST", "/generate", json=body) as running:
            lines = running.iter_lines()
            assert next(lines).startswith("data: ")
            waiting = server.connect()
            waiting.sendall(raw_post(json.dumps(body).encode()))
            until(lambda: metric(server, "meari_waiting_requests") == 1)
            until(lambda: metric(server, "meari_waiting_tokens") == body["max_tokens"])
            refused = server.post("/generate", model="letters")
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "overloaded")
            assert int(refused.headers["retry-after"]) >= 1
            assert server.post("/score", model="flat", text="ab").status_code == 200, "another model has its own queue"
            with ThreadPoolExecutor(30) as pool:
                many = list(pool.map(lambda _: server.post("/generate", model="letters").status_code, range(60)))
            assert set(many) == {429}
            assert server.client.get("/healthz").status_code == server.client.get("/readyz").status_code == 200
            assert metric(server, "meari_waiting_requests") == 1, "the refusals waited for nothing"
            waiting.close()
        until(lambda: server.post("/generate", model="letters", max_tokens=1).status_code == 200)
        assert metric(server, "meari_refusals_total") + metric(server, "meari_refusals_total", "") >= 61
        assert refused_by(server, Bound.QUEUE) >= 1


def test_bodies_are_bounded_with_and_without_a_content_length(bundles: Path, tmp_path: Path) -> None:
    with running_server(tmp_path, bundles=bundles, max_body_bytes=2000, default_model="letters") as server:
        assert server.post("/tokenize", text="a" * 3000).json()["error"]["code"] == "too_large"

        def chunks(count: int) -> Iterator[bytes]:
            yield b'{"text": "'
            for _ in range(count):
                yield b"a" * 100
            yield b'"}'

        for count, status in [(10, 200), (30, 413)]:
            response = server.client.post(
                "/tokenize", content=chunks(count), headers={"Content-Type": "application/json"}
            )
            assert response.status_code == status, response.text
        with server.connect() as connection:
            connection.sendall(raw_post(b"zz\r\n", b"Transfer-Encoding: chunked", path=b"/tokenize"))
            assert connection.recv(100).startswith(b"HTTP/1.1 400")
        with server.connect() as connection:  # announced, never sent
            connection.sendall(raw_post(b"", b"Content-Length: 99999999999", path=b"/tokenize"))
            assert connection.recv(100).startswith(b"HTTP/1.1 413")
        assert server.post("/tokenize", text="a").status_code == 200


def test_refusal_reaches_a_client_that_sends_its_whole_body_first(server: Server) -> None:
    body = b" " * 20_000_000
    for path, status in [("/tokenize", 413), ("/nowhere", 404)]:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        assert connection.getresponse().status == status
        connection.close()


def test_connection_is_usable_after_a_response_without_a_body(server: Server) -> None:
    assert server.client.head("/healthz").headers["content-length"] == "15"
    assert server.client.options("/generate").status_code == 200
    assert server.client.get("/healthz").json() == {"status": "ok"}


def test_pipelined_requests_are_answered_in_order(server: Server) -> None:
    texts = [b"a", b"bc", b"d"]
    with server.connect() as connection:
        requests = [raw_post(b'{"text": "%b"}' % text, path=b"/tokenize") for text in texts]
        last = raw_post(b'{"text": "z"}', b"Connection: close", path=b"/tokenize")
        connection.sendall(b"".join(requests) + last)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.count(b"HTTP/1.1 200 OK") == 4
    places = [answer.index(b'"text":"%c"' % text[0]) for text in [*texts, b"z"]]
    assert places == sorted(places)


def test_long_text_is_scored_in_constant_memory(server: Server) -> None:
    text = "abcdefghij" * 2_000

    def peak() -> int:
        return max(_peak_memory_bytes(pid) for pid in _children(server.process.pid))

    for _ in range(4):
        assert server.post("/score", text=text[:1000], tokens=True, words=True, top=20).status_code == 200
    before = peak()
    answer = server.post("/score", text=text, tokens=True, words=True, top=20)
    assert answer.status_code == 200
    result = answer.json()["results"][0]
    assert len(result["tokens"]) == result["num_tokens"] == 20_001
    assert len(answer.content) > 15_000_000
    assert peak() - before < 30_000_000


def _children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()
    return [int(child) for child in found]


def _peak_memory_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text("ascii")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


def test_seeds_determine_texts_under_any_load(server: Server) -> None:
    def text(seed: int) -> Any:
        return server.post("/generate", model="flat", seed=seed, max_tokens=50).json()["choices"][0]["text"]

    alone = [text(seed) for seed in range(12)]
    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(text, range(12))) == alone


def test_metrics_count_the_work_of_all_workers(server: Server) -> None:
    before = metric(server, "meari_generated_tokens_total", "words")
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda i: server.post("/generate", model="words", seed=i).json(), range(20)))
    generated = sum(answer["usage"]["generated_tokens"] for answer in answers)
    until(lambda: metric(server, "meari_generated_tokens_total", "words") - before >= generated)
    assert metric(server, "meari_generated_tokens_total", "words") - before == generated


@pytest.mark.parametrize("kept_alive", [False, True])
def test_shutdown_fails_readiness_then_waits_for_open_streams(bundles: Path, tmp_path: Path, kept_alive: bool) -> None:
    with running_server(tmp_path, bundles=bundles, default_model="letters", max_tokens=1_000_000) as server:
        prober = (
            server.client
            if kept_alive
            else httpx.Client(base_url=server.client.base_url, timeout=PATIENCE, trust_env=False)
        )
        with unread_stream(server, "/generate", {**ENDLESS, "max_tokens": 2000, "logprobs": 20}) as response:
            lines = response.iter_lines()
            assert next(lines).startswith("data: ")
            server.terminate()
            until(lambda: prober.get("/readyz").status_code == 503)
            not_ready = prober.get("/readyz")
            assert "shutting down" in not_ready.json()["error"]["message"]
            assert not_ready.headers["retry-after"]
            assert prober.post("/generate", json={}).json()["error"]["code"] == "not_ready"
            assert prober.get("/healthz").status_code == 200
            rest = [line for line in lines if line.startswith("data: ")]
        prober.close()
        assert rest[-1] == "data: [DONE]"
        assert json.loads(rest[-3].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
        assert server.wait() == 0
        assert "terminate called" not in server.log
        assert "Traceback" not in server.log
        assert "SIGABRT" not in server.log


def test_kept_connection_gets_one_more_response_during_shutdown(bundles: Path, tmp_path: Path) -> None:
    with running_server(
        tmp_path, bundles=bundles, default_model="letters", max_tokens=1_000_000, max_inflight_bytes=2**32
    ) as server:
        short_seconds = max(2.0, 2 * server.start_seconds)  # long enough to see that both are in flight
        with unread_stream(server, "/generate", {**ENDLESS, "max_tokens": 2000, "logprobs": 20}) as response:
            lines = response.iter_lines()
            assert next(lines).startswith("data: ")
            kept = http.client.HTTPConnection("127.0.0.1", server.client.base_url.port, timeout=PATIENCE)
            body = json.dumps({**ENDLESS, "max_tokens": 1_000_000, "timeout_seconds": short_seconds})
            kept.request("POST", "/generate", body, {"Content-Type": "application/json"})
            until(lambda: "\nmeari_requests_in_flight 2.0\n" in server.client.get("/metrics").text)
            server.terminate()
            answer = kept.getresponse()
            assert (answer.status, answer.getheader("connection")) == (200, "keep-alive")
            assert answer.read()
            time.sleep(0.5)  # longer than a turn of the worker's loop
            kept.request("GET", "/readyz")
            answer = kept.getresponse()
            assert (answer.status, answer.getheader("connection")) == (503, "close")
            kept.close()
            assert list(lines)[-2:] == ["data: [DONE]", ""]
        assert server.wait() == 0


def test_unfinished_requests_end_with_partial_results_at_the_shutdown_timeout(bundles: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"default_model": "letters", "max_tokens": 1_000_000, "graceful_timeout_seconds": 2}
    with running_server(tmp_path, bundles=bundles, **settings) as server:
        body = {**ENDLESS, "max_tokens": 1_000_000}
        with ThreadPoolExecutor(2) as pool:
            whole = pool.submit(lambda: httpx.post(f"{server.client.base_url}/generate", json=body, timeout=PATIENCE))
            until(lambda: metric(server, "meari_running_sequences") == 1)
            server.terminate()
            answer = whole.result(PATIENCE)
        assert answer.json()["choices"][0]["finish_reason"] == "timeout"
        assert server.wait() == 0


def test_idle_service_stops_at_once(bundles: Path, tmp_path: Path) -> None:
    with running_server(tmp_path, bundles=bundles) as server:
        server.client.close()
        server.terminate()
        assert server.wait() == 0, "its grace of 310 s is for requests in flight"


def test_killed_worker_is_replaced(bundles: Path, tmp_path: Path) -> None:
    with running_server(tmp_path, bundles=bundles, default_model="letters") as server:
        (pid,) = _children(server.process.pid)
        subprocess.run(["kill", "-KILL", str(pid)], check=True)
        until(lambda: _children(server.process.pid) not in ([pid], []))
        until(lambda: _is_ready(server))
        assert server.post("/generate", max_tokens=1).status_code == 200
        assert metric(server, "meari_running_sequences") == 0


def _is_ready(server: Server) -> bool:
    try:
        return httpx.get(f"{server.client.base_url}/readyz", timeout=PATIENCE, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def test_connections_are_spread_more_evenly_over_workers_than_by_chance(bundles: Path, tmp_path: Path) -> None:
    """Compare with a fair coin, which leaves two workers 2.71 connections of 12 apart on average.

    On a busy machine one worker may accept several at once; therefore the test uses the mean over many pools.
    """
    apart_by_chance = 12 * math.comb(11, 5) / 2**11
    apart: list[int] = []
    with running_server(tmp_path, bundles=bundles, default_model="letters", workers=2) as server:
        server.client.close()
        while len(apart) < 8 or (statistics.mean(apart) > 0.75 * apart_by_chance and len(apart) < 60):
            until(lambda: _connections_by_worker(server) == [0, 0])
            with contextlib.ExitStack() as stack:
                connections = [
                    stack.enter_context(server.connect()) for _ in range(12)
                ]  # like the connections of a pool
                for connection in connections:
                    connection.sendall(raw_post(b'{"max_tokens": 1}'))
                    assert connection.recv(100).startswith(b"HTTP/1.1 200")
                first, second = _connections_by_worker(server)
            assert first + second == 12
            apart.append(abs(first - second))
    assert statistics.mean(apart) <= 0.75 * apart_by_chance, apart


def _connections_by_worker(server: Server) -> list[int]:
    """Return the number of established connections of each worker, found by the inodes of their sockets."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text("ascii").splitlines()[1:]]
    port = f":{server.port:04X}"
    sockets = {f"socket:[{row[9]}]" for row in rows if row[1].endswith(port) and row[3] == "01"}
    return [len(sockets.intersection(_open_files(pid))) for pid in _children(server.process.pid)]


def _open_files(pid: int) -> Iterator[str]:
    """Return the targets of a process's descriptors, without those closed meanwhile."""
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            yield str(file.readlink())


def test_broken_bundle_is_logged(bundles: Path, tmp_path: Path) -> None:
    with running_server(tmp_path, bundles=bundles) as server:
        assert "broken" in server.client.get("/readyz").json()["failed"]
        assert "bundle broken cannot be served: cell.onnx" in server.log


def test_load_error_is_reported_in_plain_words_and_logged_with_the_library_message(tmp_path: Path) -> None:
    folder = tmp_path / "bundles"
    write_tiny_bundle(folder / "letters")
    broken = write_tiny_bundle(folder / "unknown")
    model = onnx.load(broken / "cell.onnx")
    model.graph.node[-1].op_type = "Frobnicate"
    (broken / "cell.onnx").write_bytes(model.SerializeToString())
    rewrite_manifest(broken)
    with running_server(tmp_path, bundles=folder, default_model="letters") as server:
        reason = "cell.onnx: operator Frobnicate is not known in operator set 21"
        assert server.client.get("/readyz").json()["failed"] == {"unknown": reason}
        refused = server.post("/generate", model="unknown")
        assert refused.json()["error"]["message"] == f"model: 'unknown' could not be loaded: {reason}"
        assert "No Op registered for Frobnicate" in server.log


def test_meari_serve_accepts_its_options(bundles: Path, tmp_path: Path) -> None:
    port = free_port()
    arguments = ["serve", "--port", str(port), "--bundles", str(bundles), "--workers", "1"]
    log = tmp_path / "log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [command()[0], "-c", "from meari.cli.main import main; main()", *arguments],
            cwd=ROOT, env=clean_environment(), stdout=stream, stderr=stream,
        )  # fmt: skip
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            until(lambda: _is_ready(Server(process, port, log, client)))
    finally:
        process.terminate()
        assert process.wait(PATIENCE) == 0


def test_two_hundred_connections_all_get_responses(server: Server) -> None:
    barrier = threading.Barrier(100)

    def ask(number: int) -> int:
        barrier.wait(PATIENCE)
        return httpx.post(f"{server.client.base_url}/score", json={"text": "abc"}, timeout=PATIENCE).status_code

    with ThreadPoolExecutor(100) as pool:
        statuses = list(pool.map(ask, range(100)))
    assert set(statuses) <= {200, 429}
