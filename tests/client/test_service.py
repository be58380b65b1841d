"""A service seen from outside, against small servers that answer as they are told."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from meari.client.errors import BadAnswer, Refused, RemoteError, Unreachable
from meari.client.service import RemoteService, all_models, checked_url, find_model
from tests.service.running import free_port

OVERLOADED = b'{"error": {"code": "overloaded", "message": "too many requests", "request_id": "1"}}'


@dataclass
class Told:
    """What a server is to answer, in order, and what it was asked."""

    answers: list[tuple[int, dict[str, str], bytes]]
    asked: list[tuple[str, str | None, bytes]] = field(default_factory=list)


@contextmanager
def serving(*answers: tuple[int, dict[str, str], bytes]) -> Iterator[tuple[str, Told]]:
    told = Told(list(answers))

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            told.asked.append((self.path, self.headers.get("Authorization"), body))
            status, headers, answer = told.answers.pop(0)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if "Content-Length" not in headers:
                self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.server_port}", told
        finally:
            listening.shutdown()
            thread.join()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def test_refusal_is_asked_again_after_the_seconds_it_names() -> None:
    slept: list[float] = []
    refusals = [(429, {"Retry-After": "3"}, OVERLOADED), (503, {"Retry-After": "2"}, OVERLOADED)]
    with serving(*refusals, (200, {}, b"done")) as (url, told):
        assert RemoteService(url, sleep=slept.append).post("/score", b"{}") == b"done"
    assert slept == [3.0, 2.0]
    assert [body for _, _, body in told.asked] == [b"{}"] * 3


def test_patience_ends() -> None:
    slept: list[float] = []
    with serving(*[(429, {"Retry-After": "4"}, OVERLOADED)] * 3) as (url, told):
        with pytest.raises(Refused, match=r"429 overloaded: too many requests$") as refused:
            RemoteService(url, patience_seconds=10, sleep=slept.append).post("/score", b"{}")
        assert (refused.value.status, refused.value.code) == (429, "overloaded")
    assert slept == [4.0, 4.0]
    assert told.answers == []


def test_error_of_the_contract_is_one_line_with_status_and_code() -> None:
    body = b'{"error": {"code": "unknown_model", "message": "model: got \'x\',\\nexpected y", "request_id": "1"}}'
    with serving((404, {}, body)) as (url, _), pytest.raises(Refused) as refused:
        RemoteService(url).get("/models/x")
    assert str(refused.value) == f"{url}: 404 unknown_model: model: got 'x', expected y"


def test_error_of_something_else_says_what_http_says() -> None:
    with serving((502, {}, b"<html>")) as (url, _), pytest.raises(Refused, match=r"502: Bad Gateway$"):
        RemoteService(url).get("/models")


def test_nobody_there() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(Unreachable, match=f"^{url}: connection refused: is the service running there"):
        RemoteService(url).get("/models")


def test_key_is_sent_and_not_shown() -> None:
    with serving((200, {}, b"")) as (url, told):
        service = RemoteService(url, "s3cret")
        service.get("/models")
    assert told.asked == [("/models", "Bearer s3cret", b"")]
    assert "s3cret" not in repr(service)


def test_stream_gives_each_event_and_leaves_pings_out() -> None:
    stream = b'data: {"a": 1}\n\n: ping\n\ndata: {"a": 2}\n\ndata: [DONE]\n\n'
    with serving((200, {}, stream)) as (url, _):
        assert list(RemoteService(url).stream("/generate", b"{}")) == [b'{"a": 1}', b'{"a": 2}']


@pytest.mark.parametrize(
    ("stream", "error", "message"),
    [
        (b'data: {"a": 1}\n\n', BadAnswer, "the stream ended before the text did"),
        (b'data: {"a": 1}\n\ndata: {"error": {"code": "internal", "message": "oh"}}\n\n', Refused, "internal: oh"),
    ],
)
def test_stream_that_breaks_off_is_an_error(stream: bytes, error: type[RemoteError], message: str) -> None:
    found: list[bytes] = []
    with serving((200, {}, stream)) as (url, _), pytest.raises(error, match=message):
        found.extend(RemoteService(url).stream("/generate", b"{}"))


def test_answer_that_is_cut_off_is_an_error() -> None:
    answer = (200, {"Content-Length": "1000"}, b"{}")
    with serving(answer) as (url, _), pytest.raises(BadAnswer, match="cut off"):
        RemoteService(url).get("/models")


def test_another_kind_of_service_is_told_apart() -> None:
    with serving((200, {}, b"<html>"), (200, {}, b"[]")) as (url, _):
        for ask in (all_models, lambda service: find_model(service, "a/b")):
            with pytest.raises(BadAnswer, match="expected a meari service"):
                ask(RemoteService(url))


def test_default_model_is_the_one_that_the_service_names() -> None:
    models = b'{"models": [{"name": "a"}, {"name": "b"}], "default": "b"}'
    with serving((200, {}, models), (200, {}, b'{"hashes": {}}')) as (url, told):
        assert find_model(RemoteService(url), None) == {"name": "b"}
        find_model(RemoteService(url), "a/b")
    assert [path for path, _, _ in told.asked] == ["/models", "/models/a%2Fb"]


@pytest.mark.parametrize(
    "url", ["localhost:8000", "http://", "ftp://a", "http://a:x", "http://a:0", "http://a b", "http://a?b"]
)
def test_what_is_no_address_of_a_service(url: str) -> None:
    with pytest.raises(ValueError, match="expected http://HOST:PORT"):
        checked_url(url)


def test_address_may_have_a_path_and_a_slash_at_its_end() -> None:
    assert checked_url("https://a.example/meari/") == "https://a.example/meari"
