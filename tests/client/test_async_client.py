"""Test the client for asyncio against a real service, and both clients against servers that fail."""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import meari
from meari.client.errors import BadAnswer, Refused, Unreachable
from tests.client.test_service import OVERLOADED, serving
from tests.drills.processes import workers_of
from tests.patience import PATIENCE, until
from tests.runtime.tiny_bundle import write_tiny_bundle
from tests.service.running import ROOT, Server, free_port, full_server, running_server
from tests.service.test_server import metric
from tests.service.test_tls import make_certificate

KEY = "k" * 32
ENDLESS: dict[str, Any] = {"max_tokens": 100_000, "logit_bias": {0: -100.0}}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles")
    write_tiny_bundle(folder / "letters", peak=3.0, decay=0.01)
    return folder


@pytest.fixture(scope="module")
def server(bundles: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("service")
    with running_server(folder, bundles=bundles, api_keys=KEY, max_tokens=100_000) as running:
        running.client.headers["Authorization"] = f"Bearer {KEY}"
        yield running


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def run(server: Server, use: Callable[[meari.AsyncClient], Awaitable[Any]], **options: Any) -> Any:
    """Call a function with a client of the service, in an event loop of its own."""

    async def main() -> Any:
        async with meari.AsyncClient(address(server), key=KEY, **options) as client:
            return await use(client)

    return asyncio.run(main())


def address(server: Server) -> str:
    return f"http://127.0.0.1:{server.port}"


@contextmanager
def answering(*answers: bytes, requests: int = 1) -> Iterator[tuple[str, list[int]]]:
    """Serve raw answers, so many on a connection, then close it; yields the number of requests of each connection."""
    left, counts = list(answers), list[int]()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            counts.append(0)
            while counts[-1] < requests and left:
                length, line = 0, self.rfile.readline()
                if not line:
                    return
                while line.strip():
                    name, _, value = line.partition(b":")
                    length = int(value) if name.lower() == b"content-length" else length
                    line = self.rfile.readline()
                self.rfile.read(length)
                counts[-1] += 1
                self.wfile.write(left.pop(0))

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.server_address[1]}", counts
        finally:
            listening.shutdown()
            thread.join()


def whole(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


def chunked(*chunks: bytes, last: bytes = b"0\r\n\r\n") -> bytes:
    return (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        + b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
        + last
    )


def test_answers_are_those_of_the_other_client(server: Server) -> None:
    async def ask(client: meari.AsyncClient) -> list[Any]:
        fields: dict[str, Any] = {"max_tokens": 12, "seed": 5, "n": 2, "logprobs": 1}
        return [
            (await client.generate("ab", **fields)).choices,
            (await client.complete("wx", n=3)).completions,
            (await client.score(["abc", "x"], tokens=True, context="ab")).results,
            await client.tokenize("abx"),
            await client.detokenize([3, 4]),
            await client.models(),
            await client.model("letters"),
        ]

    with meari.Client(address(server), key=KEY) as client:
        expected = [
            client.generate("ab", max_tokens=12, seed=5, n=2, logprobs=1).choices,
            client.complete("wx", n=3).completions,
            client.score(["abc", "x"], tokens=True, context="ab").results,
            client.tokenize("abx"),
            client.detokenize([3, 4]),
            client.models(),
            client.model("letters"),
        ]
    assert run(server, ask) == expected


def test_both_clients_have_the_same_methods_and_arguments() -> None:
    names = [name for name in vars(meari.Client) if not name.startswith("_")]
    assert [name for name in vars(meari.AsyncClient) if not name.startswith("_")] == names
    for name in [*names, "__init__"]:
        one, other = (inspect.signature(getattr(kind, name)) for kind in (meari.Client, meari.AsyncClient))
        assert one.parameters == other.parameters, name


def test_stream_can_be_read_in_each_way(server: Server) -> None:
    async def read(client: meari.AsyncClient) -> list[str]:
        loose = "".join([piece.text async for piece in client.stream("ab", max_tokens=12, seed=5)])
        async with client.stream("ab", max_tokens=12, seed=5) as held:
            inside = "".join([piece.text async for piece in held])
        sent = await client.stream("ab", max_tokens=12, seed=5)
        awaited = "".join([piece.text async for piece in sent])
        assert sent.seed == 5
        assert held.usage is not None
        assert held.usage.generated_tokens == 12
        return [loose, inside, awaited]

    with meari.Client(address(server), key=KEY) as client:
        expected = client.generate("ab", max_tokens=12, seed=5).text
    assert run(server, read) == [expected] * 3


def test_many_requests_run_at_once(server: Server) -> None:
    async def ask(client: meari.AsyncClient) -> list[str]:
        answers = [client.generate("ab", max_tokens=8, seed=seed) for seed in range(40)]
        return [str(answer) for answer in await asyncio.gather(*answers)]

    with meari.Client(address(server), key=KEY) as client:
        expected = [client.generate("ab", max_tokens=8, seed=seed).text for seed in range(40)]
    assert run(server, ask) == expected


def test_connection_is_kept_after_each_kind_of_answer() -> None:
    stream = b'data: {"choices": [{"index": 0, "text": "a"}]}\n\ndata: [DONE]\n\n'
    answers = [whole(b'{"text": "a"}'), chunked(stream[:20], stream[20:]), chunked(b'{"text"', b': "b"}')]
    answers.append(b"HTTP/1.1 100 Continue\r\n\r\n" + whole(b'{"text": "c"}'))

    async def main(url: str) -> list[str]:
        async with meari.AsyncClient(url) as client:
            first = await client.detokenize([1])
            pieces = [piece.text async for piece in client.stream("a")]
            return [first, *pieces, await client.detokenize([2]), await client.detokenize([3])]

    with answering(*answers, requests=4) as (url, counts):
        assert asyncio.run(main(url)) == ["a", "a", "b", "c"]
    assert counts == [4]


def test_kept_connection_that_was_closed_meanwhile_is_replaced() -> None:
    async def main(url: str) -> list[str]:
        async with meari.AsyncClient(url) as client:
            return [await client.detokenize([number]) for number in range(3)]

    with answering(*[whole(b'{"text": "a"}')] * 3) as (url, counts):
        assert asyncio.run(main(url)) == ["a"] * 3
    assert counts == [1, 1, 1]


def test_closed_client_goes_on_in_another_event_loop(server: Server) -> None:
    client = meari.AsyncClient(address(server), key=KEY)

    async def ask() -> str:
        async with client:
            return await client.detokenize([3])

    assert asyncio.run(ask()) == asyncio.run(ask())


def test_refused_request_waits_as_told_while_other_tasks_run() -> None:
    ticks = list[float]()

    async def tick() -> None:
        while True:
            ticks.append(time.monotonic())
            await asyncio.sleep(0.01)

    async def main(url: str) -> tuple[str, float]:
        beside = asyncio.create_task(tick())
        async with meari.AsyncClient(url) as client:
            started = time.monotonic()
            text = await client.detokenize([1])
            beside.cancel()
            return text, time.monotonic() - started

    refusals = [(429, {"Retry-After": "1"}, OVERLOADED), (503, {"Retry-After": "0"}, OVERLOADED)]
    with serving(*refusals, (200, {}, b'{"text": "a"}')) as (url, script):
        text, seconds = asyncio.run(main(url))
    assert text == "a"
    assert seconds >= 1.0
    assert len(ticks) > 3
    assert len({body for _, _, body in script.received}) == 1


def test_full_service_is_asked_again_only_as_long_as_patience_lasts(bundles: Path, tmp_path: Path) -> None:
    with full_server(tmp_path, bundles, key=KEY) as full, pytest.raises(Refused) as refused:
        run(full, lambda client: client.generate("ab", max_tokens=2), patience=0)
    assert (refused.value.status, refused.value.code) == (429, "overloaded")


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (chunked(b'data: {"choices": [{"index": 0, "text": "a"}]}\n\n', last=b"40\r\ndata"), BadAnswer, "cut off"),
        (
            chunked(b'data: {"choices": [{"index": 0, "text": "a"}]}\n\n', last=b""),
            BadAnswer,
            "cut off|before the text did",
        ),
        (whole(b'data: {"choices": [{"index": 0, "text": "a"}]}\n\n'), BadAnswer, "before the text did"),
        (whole(b'data: {"error": {"code": "internal", "message": "oh"}}\n\n'), Refused, "internal: oh"),
        (whole(b"data: {}\n\n"), BadAnswer, "without the fields of the contract"),
        (b"SSH-2.0-OpenSSH\r\n", BadAnswer, "no answer in HTTP"),
        (b"", Unreachable, "closed the connection"),
    ],
)
def test_stream_that_fails_is_told_alike_by_both_clients(answer: bytes, kind: type[Exception], message: str) -> None:
    async def main(url: str) -> None:
        async with meari.AsyncClient(url) as client, client.stream("a") as pieces:
            async for piece in pieces:
                assert piece.text == "a"

    with answering(answer, answer) as (url, _):
        with pytest.raises(kind, match=message):
            asyncio.run(main(url))
        with meari.Client(url) as client, pytest.raises(kind, match=message):
            list(client.stream("a"))


def test_service_that_dies_in_a_stream_is_an_error(bundles: Path, tmp_path: Path) -> None:
    async def read(client: meari.AsyncClient) -> None:
        async with client.stream("ab", **ENDLESS) as pieces:
            await anext(pieces)
            os.kill(workers.pop(), signal.SIGKILL)
            async for _ in pieces:
                pass

    with running_server(tmp_path, bundles=bundles, api_keys=KEY, max_tokens=100_000) as dying:
        workers = workers_of(dying.process.pid)
        with pytest.raises(meari.RemoteError, match=address(dying)):
            run(dying, read)


def test_task_that_is_cancelled_and_stream_that_is_left_end_their_work(server: Server) -> None:
    def is_running(count: int) -> Callable[[], bool]:
        return lambda: metric(server, "meari_running_sequences") == count

    async def leave(client: meari.AsyncClient) -> None:
        stream = await client.stream("ab", **ENDLESS)
        await anext(stream)
        await stream.aclose()
        task = asyncio.create_task(client.generate("ab", **ENDLESS))
        await asyncio.to_thread(until, is_running(1))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(until, is_running(0))

    run(server, leave)


def test_stream_that_is_left_closes_its_connection() -> None:
    def answer() -> bytes:
        connection, _ = listening.accept()
        with connection:
            connection.settimeout(PATIENCE)
            request = b""
            while not request.endswith(b"}"):
                request += connection.recv(1 << 16)
            connection.sendall(chunked(b'data: {"choices": [{"index": 0, "text": "a"}]}\n\n', last=b""))
            return connection.recv(1)

    with socket.create_server(("127.0.0.1", 0)) as listening, ThreadPoolExecutor(1) as pool:
        answering = pool.submit(answer)
        with meari.Client(f"http://127.0.0.1:{listening.getsockname()[1]}") as client:
            with client.stream() as stream:
                assert next(stream).text == "a"
            assert answering.result() == b"", "the service is not told that nobody reads on"


def test_silent_service_is_given_up() -> None:
    async def main(port: int) -> None:
        async with meari.AsyncClient(f"http://127.0.0.1:{port}", timeout=0.05) as client:
            await client.models()

    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(Unreachable, match="no answer in time"):
        asyncio.run(main(silent.getsockname()[1]))
    with pytest.raises(Unreachable, match="connection refused"):
        asyncio.run(main(free_port()))


def test_key_and_wrong_fields_are_told_by_the_service(server: Server) -> None:
    with pytest.raises(Refused, match="n: got 0") as refused:
        run(server, lambda client: client.complete("a", n=0))
    assert refused.value.code == "invalid_request"

    async def ask() -> None:
        async with meari.AsyncClient(address(server)) as client:
            await client.models()

    with pytest.raises(Refused, match="unauthorized"):
        asyncio.run(ask())
    with pytest.raises(ValueError, match="expected http://HOST:PORT"):
        meari.AsyncClient("localhost:8000")
    with pytest.raises(ValueError, match="printable ASCII characters"):
        meari.AsyncClient(address(server), key="a\r\nX: y")


def test_certificate_of_the_service_is_checked(bundles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate, key = make_certificate(tmp_path / "certificate", "service")

    async def ask(port: int) -> dict[str, Any]:
        async with meari.AsyncClient(f"https://127.0.0.1:{port}") as client:
            return await client.models()

    with running_server(
        tmp_path, bundles=bundles, authority=certificate, tls_certificate=certificate, tls_key=key
    ) as secure:
        with pytest.raises(Unreachable, match="certificate"):
            asyncio.run(ask(secure.port))
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert asyncio.run(ask(secure.port))["default"] == "letters"


def test_clients_import_neither_torch_nor_flask_nor_numpy() -> None:
    code = """
import sys, meari
meari.Client("http://127.0.0.1:1"), meari.AsyncClient("http://127.0.0.1:1")
assert not {"torch", "flask", "werkzeug", "gunicorn", "numpy", "onnxruntime", "msgspec"} & set(sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stderr
