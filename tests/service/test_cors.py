"""Test CORS headers on every response, and a real page of another origin in a real browser."""

from __future__ import annotations

import http.client
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from meari.service.app import create_app
from meari.service.settings import Settings
from tests.patience import PATIENCE
from tests.service.running import Server, running_server
from tests.service.web.conftest import browser  # noqa: F401 (a fixture)

ORIGIN = "https://app.example"
KEY = "a-key"
ASKED = {
    "Origin": ORIGIN,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type,x-request-id,x-stainless-os",
}


EXPOSED = (
    "X-Request-Id, Retry-After, RateLimit, RateLimit-Policy, "
    "x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens"
)


def client_of(letters: Path, *origins: str, keys: tuple[str, ...] = ()) -> Iterator[FlaskClient]:
    app = create_app(Settings(bundles=letters, cors_origins=origins, api_keys=keys, workers=1, log_level="error"))
    assert app.extensions["meari"].registry.wait_loaded(PATIENCE)
    yield app.test_client()
    app.extensions["meari"].registry.stop()


@pytest.fixture(scope="module", params=[(), (KEY,)], ids=["open", "keys"])
def named(request: pytest.FixtureRequest, letters: Path) -> Iterator[FlaskClient]:
    yield from client_of(letters, "http://localhost:5173", ORIGIN, keys=request.param)


@pytest.fixture(scope="module")
def wild(letters: Path) -> Iterator[FlaskClient]:
    yield from client_of(letters, "*", keys=(KEY,))


def cors_of(response: Any) -> dict[str, str]:
    return {name: value for name, value in response.headers.items() if name.lower().startswith("access-control-")}


@pytest.mark.parametrize("path", ["/generate", "/v1/completions", "/models", "/nowhere", "/v1//completions"])
def test_preflight_needs_no_key(named: FlaskClient, path: str) -> None:
    response = named.options(path, headers=ASKED)
    assert (response.status_code, response.data) == (204, b"")
    assert cors_of(response) == {
        "Access-Control-Allow-Origin": ORIGIN,
        "Access-Control-Allow-Methods": "GET, HEAD, POST",
        "Access-Control-Allow-Headers": ASKED["Access-Control-Request-Headers"],
        "Access-Control-Max-Age": "3600",
        "Access-Control-Expose-Headers": EXPOSED,
    }
    assert response.headers["Vary"] == "Origin"


def test_invalid_header_lists_are_not_echoed(named: FlaskClient) -> None:
    response = named.options("/generate", headers=ASKED | {"Access-Control-Request-Headers": "a<b>(c)"})
    assert response.headers["Access-Control-Allow-Headers"] == "Authorization, Content-Type, X-Request-Id"


def test_private_network_access_is_allowed_only_to_listed_origins(named: FlaskClient, wild: FlaskClient) -> None:
    asked = ASKED | {"Access-Control-Request-Private-Network": "true"}
    assert named.options("/generate", headers=asked).headers["Access-Control-Allow-Private-Network"] == "true"
    assert "Access-Control-Allow-Private-Network" not in wild.options("/generate", headers=asked).headers


@pytest.mark.parametrize("origin", ["https://evil.example", "https://app.example.evil", "http://app.example", "null"])
def test_unlisted_origin_gets_no_cors_headers(named: FlaskClient, origin: str) -> None:
    for response in (
        named.options("/generate", headers=ASKED | {"Origin": origin}),
        named.get("/models", headers={"Origin": origin, "Authorization": f"Bearer {KEY}"}),
        named.get("/healthz"),
    ):
        assert cors_of(response) == {}
        assert response.headers["Vary"] == "Origin"


def test_cors_is_off_without_the_setting(client: FlaskClient) -> None:
    for response in (client.options("/generate", headers=ASKED), client.get("/models", headers={"Origin": ORIGIN})):
        assert cors_of(response) == {}
        assert "Vary" not in response.headers


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/generate", {"max_tokens": 1}, 200),
        ("POST", "/generate", {"max_tokens": 1, "stream": True}, 200),
        ("POST", "/v1/completions", {"max_tokens": 1, "stream": True}, 200),
        ("POST", "/v1/completions", {"top_p": 9}, 400),
        ("GET", "/generate", None, 405),
        ("GET", "/nowhere", None, 404),
        ("GET", "/models", None, 200),
        ("GET", "/", None, 200),
        ("GET", "/docs", None, 200),
    ],
)
def test_every_response_can_be_read(
    named: FlaskClient, wild: FlaskClient, method: str, path: str, body: Any, status: int
) -> None:
    headers = {"Origin": ORIGIN, "Authorization": f"Bearer {KEY}"}
    for client, origin in ((named, ORIGIN), (wild, "*")):
        response = client.open(path, method=method, json=body, headers=headers)
        assert response.status_code == status
        assert cors_of(response) == {
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Expose-Headers": EXPOSED,
        }


def test_error_for_a_missing_key_can_be_read(wild: FlaskClient) -> None:
    response = wild.post("/generate", json={}, headers={"Origin": ORIGIN})
    assert (response.status_code, response.headers["Access-Control-Allow-Origin"]) == (401, "*")


@pytest.fixture(scope="module")
def page_origin() -> Iterator[str]:
    """Serve an empty page from another origin."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), EmptyPage) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


class EmptyPage(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.send_header("Content-Type", "text/html")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module", params=[None, KEY], ids=["open", "keys"])
def served(
    request: pytest.FixtureRequest, letters: Path, page_origin: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Server, str | None]]:
    settings: dict[str, Any] = {"api_keys": request.param} if request.param else {}
    folder = tmp_path_factory.mktemp("cors")
    with running_server(
        folder, bundles=letters, default_model="letters", cors_origins=page_origin, **settings
    ) as server:
        yield server, request.param


@pytest.mark.parametrize(
    ("line", "header", "status"),
    [
        (b"POST /generate HTTP/1.1", b"X-Long: " + b"a" * 9000, 431),
        (b"POST /generate HTTP/1.1", b"\r\n".join(b"X-%d: a" % number for number in range(101)), 431),
        (b"POST /generate HTTP/1.1", b"\r\n".join([b"X-Long: " + b"a" * 8000] * 110), 431),
        (b"POST /generate HTTP/1.1", b"no colon", 400),
        (b"POST /generate HTTP/1.1", b"X-Bare: a\nb", 400),
        (b"POST /generate HTTP/1.1", b"Transfer-Encoding: br, chunked", 501),
        (b"POST /generate HTTP/1.1", b"Expect: tea", 417),
        (b"POST /generate HTTP/3.0", b"X: a", 505),
        (b"POST /generate SMTP", b"X: a", 400),
        (b"GET /models?" + b"a" * 9000 + b" HTTP/1.1", b"X: a", 414),
        (b"GET /v1/models?" + b"a" * 40_000 + b" HTTP/1.1", b"X: a", 414),
    ],
    ids=["long", "many", "large", "colon", "bare", "coding", "expect", "version", "protocol", "target", "longer"],
)
def test_error_for_malformed_http_can_be_read(
    served: tuple[Server, str | None], page_origin: str, line: bytes, header: bytes, status: int
) -> None:
    head = b"%b\r\nHost: x\r\nOrigin: %b\r\n%b\r\n\r\n" % (line, page_origin.encode(), header)
    for sent, origin in ((head, page_origin), (head.replace(b"Origin", b"Origins"), None)):
        with served[0].connect() as connection:
            connection.sendall(sent)
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            error = json.loads(answer.read())["error"]
        assert answer.status == status
        assert ("type" in error) == (b" /v1/" in line)
        assert answer.headers["Access-Control-Allow-Origin"] == origin


FETCH = """async ([url, key, body]) => {
  const headers = {"Content-Type": "application/json", "X-Request-Id": "page-1"};
  if (key) headers.Authorization = `Bearer ${key}`;
  const response = await fetch(url, body === null ? {headers} : {method: "POST", headers, body: JSON.stringify(body)});
  return [response.status, response.headers.get("X-Request-Id"), await response.text()];
}"""


def test_page_of_an_allowed_origin_reads_responses_streams_and_errors(
    browser: Any,  # noqa: F811
    served: tuple[Server, str | None],
    page_origin: str,
) -> None:
    server, key = served
    page = browser.new_page()
    page.goto(page_origin)

    def fetch(path: str, body: Any, sent_key: str | None = key) -> list[Any]:
        found: list[Any] = page.evaluate(FETCH, [f"http://127.0.0.1:{server.port}{path}", sent_key, body])
        return found

    wanted = {"prompt": "w", "temperature": 0}
    status, request_id, text = fetch("/generate", wanted)
    assert (status, request_id) == (200, "page-1")
    assert '"text":"xyz"' in text
    assert fetch("/v1/completions", {**wanted, "stream": True})[2].endswith("data: [DONE]\n\n")
    assert fetch("/models", None)[0] == 200
    assert fetch("/nowhere", {})[0] == 404
    assert fetch("/generate", {"top_p": 9})[0] == 400
    assert fetch("/generate", wanted, "wrong")[0] == (401 if key else 200)
    page.goto(f"http://localhost:{page_origin.rsplit(':', 1)[1]}")  # the same page under another name
    with pytest.raises(Exception, match="Failed to fetch"):
        fetch("/generate", wanted)
    page.close()
