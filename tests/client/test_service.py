"""Test the client against small servers with scripted responses."""

from __future__ import annotations

import http.server
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from click.testing import CliRunner

import meari
from meari.cli.main import group
from meari.client.errors import BadAnswer, Refused, RemoteError, Unreachable
from meari.client.service import RemoteService, all_models, checked_url, find_model, retry_seconds
from tests.service.running import free_port

OVERLOADED = b'{"error": {"code": "overloaded", "message": "too many requests", "request_id": "1"}}'


@dataclass
class Script:
    """Responses that a server sends, in order, and the requests that it received."""

    responses: list[tuple[int, dict[str, str], bytes]]
    received: list[tuple[str, str | None, bytes]] = field(default_factory=list)


@contextmanager
def serving(*responses: tuple[int, dict[str, str], bytes]) -> Iterator[tuple[str, Script]]:
    script = Script(list(responses))

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            script.received.append((self.path, self.headers.get("Authorization"), body))
            status, headers, body = script.responses.pop(0)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if "Content-Length" not in headers:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.server_port}", script
        finally:
            listening.shutdown()
            thread.join()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def test_refused_request_is_retried_after_the_given_seconds() -> None:
    slept: list[float] = []
    refusals = [(429, {"Retry-After": "3"}, OVERLOADED), (503, {"Retry-After": "2"}, OVERLOADED)]
    with serving(*refusals, (200, {}, b"done")) as (url, script):
        assert RemoteService(url, sleep=slept.append).post("/score", b"{}") == b"done"
    assert slept == [3.0, 2.0]
    assert [body for _, _, body in script.received] == [b"{}"] * 3


def test_date_of_a_proxy_is_waited_for() -> None:
    refused = Refused("", 429, "overloaded", "too many requests")
    date = "Sun, 06 Nov 1994 08:49:37 GMT"
    assert retry_seconds(refused, date, 0.0, 10.0, lambda: 784111770.0) == 7.0
    assert retry_seconds(refused, date, 0.0, 10.0, lambda: 784111780.0) == 0.1
    assert retry_seconds(refused, date, 4.0, 10.0, lambda: 784111770.0) is None
    assert retry_seconds(refused, "tomorrow", 0.0, 10.0) == 1.0


@pytest.mark.parametrize("header", ["0", "-5", "Sun, 06 Nov 1994 08:49:37 GMT"])
def test_refusal_that_names_no_time_to_come_is_asked_less_and_less_often_until_patience_ends(header: str) -> None:
    slept: list[float] = []
    with serving(*[(429, {"Retry-After": header}, OVERLOADED)] * 6) as (url, script):
        with pytest.raises(Refused, match="429 overloaded"):
            RemoteService(url, patience_seconds=1.0, sleep=slept.append).post("/score", b"{}")
        assert len(script.received) == 5
        with pytest.raises(Refused, match="429 overloaded"):
            RemoteService(url, patience_seconds=0.0, sleep=slept.append).post("/score", b"{}")
    assert slept == [0.1, 0.1, 0.2, 0.4]


@pytest.mark.parametrize("make", [meari.Client, meari.AsyncClient])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timeout": 0}, "timeout: got 0, expected a finite number of seconds over 0"),
        ({"timeout": "3"}, "timeout: got '3'"),
        ({"timeout": float("inf")}, "timeout: got inf"),
        ({"patience": -1.0}, "patience: got -1.0, expected a finite number of seconds of 0 or more"),
        ({"patience": True}, "patience: got True"),
        ({"key": "two\nlines"}, "key: got other characters"),
        ({"key": "\u00e9"}, "key: got other characters"),
        ({"key": b"bytes"}, "key: got other characters"),
    ],
)
def test_clients_refuse_options_that_no_request_could_use(make: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make("http://127.0.0.1:1", **options)


def test_retries_end_after_the_given_patience() -> None:
    slept: list[float] = []
    with serving(*[(429, {"Retry-After": "4"}, OVERLOADED)] * 3) as (url, script):
        with pytest.raises(Refused, match=r"429 overloaded: too many requests$") as refused:
            RemoteService(url, patience_seconds=10, sleep=slept.append).post("/score", b"{}")
        assert (refused.value.status, refused.value.code) == (429, "overloaded")
    assert slept == [4.0, 4.0]
    assert script.responses == []


def test_request_waits_longer_for_the_limit_of_its_key() -> None:
    slept: list[float] = []
    limited = b'{"error": {"code": "rate_limit_exceeded", "message": "no tokens are left", "request_id": "1"}}'
    with serving(*[(429, {"Retry-After": "60"}, limited)] * 5, (200, {}, b"done")) as (url, _):
        assert RemoteService(url, sleep=slept.append).post("/score", b"{}") == b"done"
    assert slept == [60.0] * 5
    with (
        serving((429, {"Retry-After": "3601"}, limited)) as (url, _),
        pytest.raises(Refused, match="rate_limit_exceeded"),
    ):
        RemoteService(url, sleep=slept.append).post("/score", b"{}")
    with serving((429, {"Retry-After": "1"}, limited)) as (url, _), pytest.raises(Refused, match="rate_limit_exceeded"):
        RemoteService(url, patience_seconds=0, sleep=slept.append).post("/score", b"{}")
    assert slept == [60.0] * 5


def test_error_of_a_meari_service_is_one_line_with_status_and_code() -> None:
    body = b'{"error": {"code": "unknown_model", "message": "model: got \'x\',\\nexpected y", "request_id": "1"}}'
    with serving((404, {}, body)) as (url, _), pytest.raises(Refused) as refused:
        RemoteService(url).get("/models/x")
    assert str(refused.value) == f"{url}: 404 unknown_model: model: got 'x', expected y"


def test_error_of_another_server_shows_the_http_status() -> None:
    with serving((502, {}, b"<html>")) as (url, _), pytest.raises(Refused, match=r"502: Bad Gateway$"):
        RemoteService(url).get("/models")


def test_unreachable_service_is_reported() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(Unreachable, match=f"^{url}: connection refused: is the service running there"):
        RemoteService(url).get("/models")


def test_key_is_sent_and_never_shown() -> None:
    with serving((200, {}, b"")) as (url, script):
        service = RemoteService(url, "s3cret")
        service.get("/models")
    assert script.received == [("/models", "Bearer s3cret", b"")]
    assert "s3cret" not in repr(service)


def test_stream_yields_each_event_without_pings() -> None:
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
def test_incomplete_stream_is_an_error(stream: bytes, error: type[RemoteError], message: str) -> None:
    found: list[bytes] = []
    with serving((200, {}, stream)) as (url, _), pytest.raises(error, match=message):
        found.extend(RemoteService(url).stream("/generate", b"{}"))


def test_truncated_response_is_an_error() -> None:
    answer = (200, {"Content-Length": "1000"}, b"{}")
    with serving(answer) as (url, _), pytest.raises(BadAnswer, match="cut off"):
        RemoteService(url).get("/models")


def test_another_kind_of_service_is_recognised() -> None:
    with serving((200, {}, b"<html>"), (200, {}, b"[]")) as (url, _):
        for ask in (all_models, lambda service: find_model(service, "a/b")):
            with pytest.raises(BadAnswer, match="expected a meari service"):
                ask(RemoteService(url))


def test_answer_that_is_nested_without_end_is_of_another_kind_of_service() -> None:
    nested = b"[" * 100_000
    with serving((200, {}, nested), (200, {}, nested), (500, {}, nested)) as (url, _):
        with pytest.raises(BadAnswer, match="expected a meari service"):
            all_models(RemoteService(url))
        with pytest.raises(BadAnswer, match="expected a meari service"):
            meari.Client(url).score("a")
        with pytest.raises(Refused, match="500"):
            meari.Client(url).score("a")


def described(name: str = "a") -> dict[str, Any]:
    """Return a description with all that is read of it."""
    return {
        "name": name,
        "family": "gru",
        "precision": "float32",
        "sizes": {"vocabulary": 3, "parameters": 9},
        "state": [{"name": "h", "shape": [1, "batch", 2]}],
        "tokenizer": {"kind": "char", "normalization": "NFC", "vocabulary_size": 3, "boundary": {"token": "|"}},
        "graphs": {"cell": {"operators": {"MatMul": 1}}},
        "corpus": {"name": "c"},
        "figures": {"test": {"perplexity": 2.5, "bits_per_char": 1}},
        "hashes": {"bundle": "0" * 64},
        "limits": {"max_texts": 8, "max_text_chars": 100},
        "self_test": {"golden_max_difference": 0.0, "rows_isolated": True, "batch_sizes": [1, 2]},
    }


def as_json(value: object) -> tuple[int, dict[str, str], bytes]:
    return (200, {}, json.dumps(value).encode())


def test_default_model_is_the_default_of_the_service() -> None:
    models = {"models": [described("a"), described("b")], "default": "b"}
    with serving(as_json(models), as_json(described("a/b"))) as (url, script):
        assert find_model(RemoteService(url), None) == described("b")
        find_model(RemoteService(url), "a/b")
    assert [path for path, _, _ in script.received] == ["/models", "/models/a%2Fb"]


def test_default_that_is_not_served_is_named_and_the_others_are_listed() -> None:
    for names, others in ((["b", "c"], "b, c"), ([], "none at all")):
        listed = as_json({"models": [described(name) for name in names], "default": ""})
        with serving(listed, listed) as (url, _):
            with pytest.raises(RemoteError, match=f"default model is not served, but {others}"):
                find_model(RemoteService(url), None)
            result = CliRunner().invoke(group, ["models", "--server", url])
            assert (result.exit_code, all(name in result.output for name in names)) == (0, True)


def changed(change: tuple[str, object]) -> dict[str, Any]:
    """Return a description that lacks a field, or has another value there."""
    path, value = change
    *parents, last = path.split(".")
    found = below = described()
    for each in parents:
        below = below[each]
    if value is None:
        del below[last]
    else:
        below[last] = value
    return found


NO_CHOICES = as_json(
    {
        "model": "a",
        "seed": 1,
        "choices": [],
        "usage": {"prompt_tokens": 1, "cached_tokens": 0, "generated_tokens": 0},
    }
)[2]
VALUES: list[object] = [3, "x", [0], {}]
WRONG: list[tuple[str, object]] = [
    *[(name, None) for name in described() if name != "name"],
    *[(name, value) for name in described() for value in VALUES if type(value) is not type(described()[name])],
    ("hashes.bundle", 3),
    ("sizes.vocabulary", None),
    ("sizes.parameters", "9"),
    ("figures.test", "x"),
    ("figures.test.perplexity", "x"),
    ("figures.test.perplexity", float("nan")),
    ("figures.test.perplexity", 10**400),
    ("figures.reported_part", ["test"]),
    ("limits.max_texts", True),
    ("corpus.name", "\ud800"),
    ("graphs.cell.operators", [1]),
    ("files", {"a": 1}),
]


@pytest.mark.parametrize("change", WRONG)
def test_description_of_another_kind_is_refused_by_every_verb(change: tuple[str, object]) -> None:
    bad = as_json(changed(change))
    listed = as_json({"models": [changed(change)], "default": "a"})
    with serving(bad, bad, bad, bad, listed, listed) as (url, script):
        for verb in (["inspect", "a"], ["score", "--text", "x", "--model", "a"]):
            result = CliRunner().invoke(group, [*verb, "--server", url])
            assert isinstance(result.exception, BadAnswer), result.output
        with pytest.raises(BadAnswer):
            meari.load(url, model="a")
        script.responses[:1] = []
        result = CliRunner().invoke(group, ["models", "--server", url])
        assert isinstance(result.exception, BadAnswer), result.output
        with pytest.raises(BadAnswer):
            meari.load(url)


def test_complete_description_is_shown() -> None:
    listed = as_json({"models": [described()], "default": "a"})
    with serving(as_json(described()), listed) as (url, _):
        for words in (["inspect", "a"], ["models"]):
            result = CliRunner().invoke(group, [*words, "--server", url])
            assert result.exit_code == 0, result.exception


@pytest.mark.parametrize(
    "body",
    [
        *[b"nope", b"\xff", b'"\xff"', b"[" * 100_000, b"{}", b"[]", b'{"results": []}', b'{"results": [{}]}'],
        NO_CHOICES,
    ],
)
def test_other_answers_of_the_work_are_refused(body: bytes) -> None:
    good = as_json(described())
    bad: tuple[int, dict[str, str], bytes] = (200, {}, body)
    with serving(good, good, bad, bad, good, good, bad, bad) as (url, script):
        for words in (["score", "--text", "x", "--model", "a"], ["generate", "x", "--model", "a", "--json"]):
            if words[0] == "generate":
                script.responses[:] = [bad]
            result = CliRunner().invoke(group, [*words, "--server", url])
            assert isinstance(result.exception, BadAnswer), (result.exception, result.output)
        script.responses[:] = [good, good, bad]
        with meari.load(url, model="a") as lm, pytest.raises(BadAnswer):
            lm.score("x")


def test_event_of_another_kind_is_refused() -> None:
    for event in (b"nope", b"{}", b'{"choices": 3}', b"\xff"):
        with serving((200, {}, b"data: " + event + b"\n\ndata: [DONE]\n\n")) as (url, _):
            result = CliRunner().invoke(group, ["generate", "x", "--model", "a", "--server", url])
            assert isinstance(result.exception, BadAnswer), (result.exception, result.output)


@pytest.mark.parametrize(
    "url",
    [
        *("localhost:8000", "http://", "ftp://a", "http://a:x", "http://a:0", "http://a b", "http://a?b"),
        *("http://a..b", f"http://{'a' * 64}", "http://a\udce9", "http://a/é"),
    ],
)
def test_invalid_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="expected http://HOST:PORT"):
        checked_url(url)


def test_url_that_is_no_text_is_refused() -> None:
    for url in (3, None, b"http://a", ["http://a"]):
        with pytest.raises(ValueError, match="expected http://HOST:PORT"):
            checked_url(url)  # type: ignore[arg-type]


def test_url_may_have_a_path_and_a_trailing_slash() -> None:
    assert checked_url("https://a.example/meari/") == "https://a.example/meari"
