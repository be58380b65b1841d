"""Test rules for all responses: unknown paths, headers that change a body, and response headers."""

from __future__ import annotations

import datetime as dt
import gzip
import http.client
import json
import shutil
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from meari.service.app import create_app
from meari.service.settings import Settings
from tests.patience import PATIENCE
from tests.runtime.tiny_bundle import write_tiny_bundle
from tests.service.running import Server
from tests.service.test_server import raw_post

EVIL = 'evil.example"><script>'
POSTS = ["/generate", "/score", "/complete", "/tokenize", "/detokenize", "/states", "/v1/completions"]
UNKNOWN = [
    "//generate",
    "/generate/",
    "/generate//",
    "/v1//completions",
    "/v1/completions/",
    "//v1/completions",
    "/v1/./completions",
    "/./generate",
    "/models//",
    "/models/",
    "//",
    "/docs/",
    "/docs//swagger-ui.css",
    "/web//app.js",
    "/web",
    "/generate;a=1",
    "/%2fgenerate",
    "/v1%2Fcompletions",
    "/v1%2fmodels",
    "/models/letters/",
    "/GENERATE",
    "/nowhere",
]


@pytest.fixture(scope="module", params=[(), ("a-key",)], ids=["open", "keys"])
def answered(request: pytest.FixtureRequest, letters: Path) -> Iterator[FlaskClient]:
    app = create_app(Settings(bundles=letters, api_keys=request.param, workers=1, log_level="error"))
    assert app.extensions["meari"].registry.wait_loaded(PATIENCE)
    yield app.test_client()
    app.extensions["meari"].registry.stop()


def ask(server: Server, request: bytes) -> tuple[http.client.HTTPResponse, bytes]:
    """Send these bytes and return the response."""
    with server.connect() as connection:
        connection.sendall(request)
        answer = http.client.HTTPResponse(connection, method=request.split(b" ")[0].decode())
        answer.begin()
        return answer, answer.read()


@pytest.mark.parametrize("path", UNKNOWN)
@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "OPTIONS", "DELETE"])
def test_unknown_path_gets_a_json_404_with_and_without_a_key(answered: FlaskClient, method: str, path: str) -> None:
    target = {"RAW_URI": path, "PATH_INFO": urllib.parse.unquote(path)}
    response = answered.open("/", method=method, headers={"Host": EVIL}, environ_overrides=target)
    assert (response.status_code, response.content_type) == (404, "application/json")
    assert "evil" not in str(response.headers) + response.text
    assert "Location" not in response.headers
    if method != "HEAD":
        error = response.get_json()["error"]
        assert error["code"] == "not_found"
        assert error["message"].startswith(f"path: got {path}, expected ")
        assert ("type" in error) == ("v1" in path)


def test_request_target_without_a_path_gets_the_page(server: Server) -> None:
    answer, _ = ask(server, b"GET http://evil.example HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert b"evil" not in bytes(answer.headers)


@pytest.mark.parametrize(
    "target", ["//generate", "/v1//completions", "http://evil.example/v1//completions", "http://evil.example//generate"]
)
@pytest.mark.parametrize("host", [b"evil.example", EVIL.encode(), b"", b"evil.example:99999", b"@evil.example/"])
def test_host_header_is_not_echoed(server: Server, target: str, host: bytes) -> None:
    head = b"POST %b HTTP/1.1\r\nHost: %b\r\nContent-Length: 2\r\n\r\n{}"
    answer, body = ask(server, head % (target.encode(), host))
    assert answer.status == 404
    assert json.loads(body)["error"]
    assert b"evil" not in bytes(answer.headers) + body


@pytest.mark.parametrize(
    "path", ["/", "/docs", "/openapi.json", "/models", "/v1/models", "/readyz", "/metrics", "/web"]
)
def test_pages_and_documents_do_not_contain_the_host_header(client: FlaskClient, path: str) -> None:
    response = client.get(path, headers={"Host": "evil.example", "X-Forwarded-Host": "evil.example"})
    assert "evil" not in str(response.headers) + response.text


@pytest.mark.parametrize("path", ["/generate", "/v1/completions"])
def test_absolute_request_target_is_accepted(server: Server, path: str) -> None:
    body = b'{"prompt": "a", "max_tokens": 1}'
    answer, _ = ask(server, raw_post(body, path=b"http://anywhere" + path.encode()))
    assert answer.status == 200


def test_only_pages_are_html(client: FlaskClient) -> None:
    for path in ("/generate", "/healthz", "/models", "/v1/models"):
        for method in ("OPTIONS", "PUT", "TRACE", "POST", "GET", "HEAD"):
            response = client.open(path, method=method)
            assert "html" not in (response.content_type or ""), (method, path)
    allowed = client.options("/generate")
    assert (allowed.status_code, allowed.data) == (200, b"")
    assert "POST" in allowed.headers["Allow"]


def json_error(response: Any, path: str, status: int, code: str) -> str:
    assert response.status_code == status, response.text
    error = response.get_json()["error"]
    assert error["code"] == code
    assert ("type" in error) == path.startswith("/v1/")
    return str(error["message"])


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("coding", ["gzip", "GZIP", "x-gzip", "deflate", "br", "zstd", "identity, gzip", "gzip,,br"])
def test_encoded_body_is_refused_with_the_name_of_the_header(client: FlaskClient, path: str, coding: str) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": coding}
    response = client.post(path, data=gzip.compress(b"{}"), headers=headers)
    message = json_error(response, path, 415, "unsupported_media_type")
    assert message.startswith(f"Content-Encoding: got {coding}, expected none")
    assert response.headers["Accept-Encoding"] == "identity"


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize(
    "kind",
    [
        "application/json; charset=utf-16",
        'application/json; charset="latin-1"',
        "application/json;charset=iso-8859-1",
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/xml+json",
        "",
    ],
)
def test_body_of_another_content_type_is_refused_with_the_name_of_the_header(
    client: FlaskClient, path: str, kind: str
) -> None:
    response = client.post(path, data=b"{}", headers={"Content-Type": kind})
    message = json_error(response, path, 415, "unsupported_media_type")
    assert message == f"Content-Type: got {kind or 'nothing'}, expected application/json in UTF-8"


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "application/json; charset=UTF-8"},
        {"Content-Type": 'application/json;charset="Utf-8"'},
        {"Content-Type": "Application/JSON; charset=utf8"},
        {"Content-Encoding": "identity"},
        {"Content-Encoding": "Identity, IDENTITY"},
        {"Content-Encoding": ""},
        {"Accept": "text/html"},
        {"Accept-Charset": "utf-16"},
        {"Content-MD5": "bm90IGl0"},
        {"Content-Range": "bytes 0-1/2"},
        {"Content-Language": "ko"},
    ],
)
def test_headers_without_effect_on_the_body_are_accepted(client: FlaskClient, headers: dict[str, str]) -> None:
    response = client.post("/tokenize", data=b'{"text": "a"}', headers={"Content-Type": "application/json"} | headers)
    assert response.status_code == 200


@pytest.mark.parametrize(
    ("header", "status", "code"),
    [
        (b"Transfer-Encoding: gzip, chunked", 501, "not_implemented"),
        (b"Transfer-Encoding: br, chunked", 501, "not_implemented"),
        (b"Transfer-Encoding: gzip", 400, "invalid_request"),
        (b"Content-Length: 12\r\nTransfer-Encoding: chunked", 400, "invalid_request"),
        (b"Content-Length: 12\r\nContent-Length: 12", 400, "invalid_request"),
        (b"Content-Encoding: gzip", 415, "unsupported_media_type"),
    ],
)
@pytest.mark.parametrize("path", ["/tokenize", "/v1/completions"])
def test_body_with_unsupported_framing_is_refused_and_the_service_continues(
    server: Server, path: str, header: bytes, status: int, code: str
) -> None:
    answer, body = ask(server, raw_post(b'{"text": "a"}', header, path=path.encode()))
    error = json.loads(body)["error"]
    assert (answer.status, error["code"]) == (status, code)
    assert header.split(b":")[0].decode().lower() in error["message"].lower()
    assert server.post("/tokenize", text="a").status_code == 200


def test_connection_is_usable_after_a_refused_body(server: Server) -> None:
    refused = raw_post(b"\x1f\x8b" * 50_000, b"Content-Encoding: gzip", path=b"/tokenize")
    with server.connect() as connection:
        connection.sendall(refused + raw_post(b'{"text": "a"}', b"Connection: close", path=b"/tokenize"))
        answers = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answers.count(b"HTTP/1.1 415 ") == answers.count(b"HTTP/1.1 200 ") == 1


def test_body_shorter_than_its_content_length_is_refused(server: Server) -> None:
    with server.connect() as connection:
        connection.sendall(raw_post(b'{"text": "a"}', b"Content-Length: 99", path=b"/tokenize"))
        connection.shutdown(1)
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        error = json.loads(answer.read())["error"]
    assert (answer.status, error["message"]) == (400, "body: got 13 bytes, expected 99 as Content-Length says")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/healthz", 200),
        ("GET", "/readyz", 200),
        ("GET", "/models", 200),
        ("GET", "/models/letters", 200),
        ("GET", "/v1/models", 200),
        ("GET", "/openapi.json", 200),
        ("GET", "/metrics", 200),
        ("HEAD", "/models", 200),
        ("OPTIONS", "/generate", 200),
        ("GET", "/nowhere", 404),
        ("GET", "/generate", 405),
        ("POST", "/generate", 415),
    ],
)
def test_responses_have_nosniff_and_no_store(client: FlaskClient, method: str, path: str, status: int) -> None:
    response = client.open(path, method=method)
    assert response.status_code == status
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("path", ["/generate", "/v1/completions"])
@pytest.mark.parametrize("stream", [False, True])
def test_whole_and_streamed_texts_have_no_store(client: FlaskClient, path: str, stream: bool) -> None:
    response = client.post(path, json={"model": "flat", "max_tokens": 2, "stream": stream})
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Cache-Control"] == "no-store"


def test_pages_have_their_own_cache_headers(client: FlaskClient) -> None:
    for path, kept in [("/", "no-cache"), ("/web/app.js", "no-cache"), ("/docs", "max-age"), ("/docs/start.js", "max")]:
        response = client.get(path)
        assert response.headers["Cache-Control"].startswith(kept)
        assert response.headers["X-Content-Type-Options"] == "nosniff"


@pytest.fixture
def removed(tmp_path: Path) -> Iterator[Flask]:
    """Make an application whose bundles have been deleted."""
    for name in ("letters", "other"):
        write_tiny_bundle(tmp_path / "bundles" / name)
    manifest = tmp_path / "bundles" / "other" / "manifest.json"
    fields = json.loads(manifest.read_bytes())
    fields["figures"]["training_ended"] = "2026-11-30"
    manifest.write_text(json.dumps(fields), encoding="utf-8")
    app = create_app(Settings(bundles=tmp_path / "bundles", workers=1, log_level="error"))
    assert app.extensions["meari"].registry.wait_loaded(PATIENCE)
    app.extensions["created"] = int((tmp_path / "bundles" / "letters" / "manifest.json").stat().st_mtime)
    shutil.rmtree(tmp_path / "bundles")
    yield app
    app.extensions["meari"].registry.stop()


def test_loaded_bundles_are_served_after_their_folder_is_deleted(removed: Flask) -> None:
    client = removed.test_client()
    for path in ("/models", "/models/letters", "/v1/models/letters", "/readyz", "/openapi.json", "/metrics", "/docs"):
        assert client.get(path).status_code == 200, path
    cards = client.get("/v1/models").get_json()["data"]
    ended = int(dt.datetime(2026, 11, 30, tzinfo=dt.UTC).timestamp())  # as the manifest of the other one says
    assert {card["id"]: card["created"] for card in cards} == {"letters": removed.extensions["created"], "other": ended}
    bodies: dict[str, dict[str, Any]] = {
        "/generate": {"prompt": "a", "return_state": True},
        "/score": {"text": "abc", "words": True},
        "/complete": {"text": "ab"},
        "/tokenize": {"text": "a"},
        "/detokenize": {"tokens": [1]},
        "/states": {"text": "ab"},
        "/v1/completions": {"prompt": "a"},
    }
    for path, body in bodies.items():
        response = client.post(path, json=body)
        assert response.status_code == 200, (path, response.text)
