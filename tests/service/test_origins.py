"""Test whose address and name a request has: behind proxies, and under names that DNS rebinding uses."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from meari.service.requests.origins import believe_proxies, client_network, may_answer_host
from tests.service.log.test_requests import line_of
from tests.service.running import Server, running_server

PEER = "10.0.0.9"


def seen(hops: int, **headers: str) -> tuple[str, str, str]:
    environ: dict[str, Any] = {"REMOTE_ADDR": PEER, "wsgi.url_scheme": "http", "HTTP_HOST": "inside"}
    environ |= {f"HTTP_{name.upper()}": value for name, value in headers.items()}
    believe_proxies(environ, hops)
    return environ["REMOTE_ADDR"], environ["wsgi.url_scheme"], environ["HTTP_HOST"]


@pytest.mark.parametrize(
    ("hops", "header", "address"),
    [
        (0, "1.1.1.1", PEER),
        (1, "1.1.1.1", "1.1.1.1"),
        (1, "6.6.6.6, 1.1.1.1", "1.1.1.1"),
        (2, "6.6.6.6, 1.1.1.1, 2.2.2.2", "1.1.1.1"),
        (2, "2.2.2.2", "2.2.2.2"),
        (1, "1.1.1.1:4711", "1.1.1.1"),
        (1, "2001:db8::1", "2001:db8::1"),
        (1, "[2001:db8::1]:4711", "2001:db8::1"),
        (1, "", PEER),
        (1, "unknown", PEER),
        (1, "1.1.1.1, <script>", PEER),
        (1, "999.1.1.1", PEER),
    ],
)
def test_address_is_that_seen_by_the_outermost_trusted_proxy(hops: int, header: str, address: str) -> None:
    assert seen(hops, x_forwarded_for=header)[0] == address


def test_scheme_and_host_are_believed_for_trusted_hops_only() -> None:
    headers = {"x_forwarded_proto": "https", "x_forwarded_host": "api.example.com"}
    assert seen(1, **headers) == (PEER, "https", "api.example.com")
    assert seen(0, **headers) == (PEER, "http", "inside")
    assert seen(1, x_forwarded_proto="gopher")[1] == "http"


@pytest.mark.parametrize(
    ("hops", "header", "found"),
    [
        (1, "for=1.1.1.1;proto=https;host=a.example", ("1.1.1.1", "https", "a.example")),
        (1, 'For="[2001:db8::1]:80"; Proto=HTTPS', ("2001:db8::1", "https", "inside")),
        (1, "for=6.6.6.6, for=1.1.1.1", ("1.1.1.1", "http", "inside")),
        (2, "for=6.6.6.6, for=1.1.1.1;proto=https, for=2.2.2.2;proto=http", ("1.1.1.1", "https", "inside")),
        (1, 'for="1.1.1.1', (PEER, "http", "inside")),
        (1, "for=_hidden", (PEER, "http", "inside")),
        (1, 'host="a, for=6.6.6.6"', (PEER, "http", "a, for=6.6.6.6")),
        (0, "for=1.1.1.1", (PEER, "http", "inside")),
    ],
)
def test_forwarded_header_is_read_as_the_standard_says(hops: int, header: str, found: tuple[str, str, str]) -> None:
    assert seen(hops, forwarded=header) == found


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ({"forwarded": "for=6.6.6.6;host=localhost", "x_forwarded_for": "1.1.1.1"}, (PEER, "http", "inside")),
        ({"forwarded": "for=1.1.1.1", "x_forwarded_for": "6.6.6.6", "x_forwarded_host": "a"}, (PEER, "http", "inside")),
        ({"forwarded": "", "x_forwarded_for": "1.1.1.1"}, (PEER, "http", "inside")),
        (
            {"forwarded": 'for="1.1.1.1:80";proto=HTTPS, for=2.2.2.2', "x_forwarded_for": "1.1.1.1, 2.2.2.2",
             "x_forwarded_proto": "https"},
            ("1.1.1.1", "https", "inside"),
        ),
    ],
)  # fmt: skip
def test_of_both_kinds_of_headers_only_what_both_say_is_taken(
    headers: dict[str, str], found: tuple[str, str, str]
) -> None:
    """A proxy that writes one kind passes on the other as its client wrote it."""
    assert seen(2 if "," in headers["x_forwarded_for"] else 1, **headers) == found


def test_malformed_header_of_a_proxy_takes_no_longer_than_others() -> None:
    started = time.process_time()
    for _ in range(20):
        assert seen(1, forwarded="for=" + " " * 8100 + '"') == (PEER, "http", "inside")
    assert time.process_time() - started < 5, "a second each where two parts of a pattern can match the same"


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("1.2.3.4", "1.2.3.4"),
        ("::ffff:1.2.3.4", "1.2.3.4"),
        ("2001:db8:0:1:2:3:4:5", "2001:db8:0:1::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
    ],
)
def test_clients_are_counted_by_address_and_by_network_of_ipv6(address: str, network: str) -> None:
    assert client_network(address) == network


@pytest.mark.parametrize(
    "host",
    ["localhost", "LocalHost:8000", "127.0.0.1:1", "[::1]:8000", "192.168.1.7", "meari:8000", "meari.local", "",
     "a.svc.cluster.local:80", "meari.internal", "api.localhost", "api.example.com", "API.example.com.:443",
     "x.wild.example"],
)  # fmt: skip
def test_own_names_are_answered(host: str) -> None:
    assert may_answer_host(host, ("api.example.com", "*.wild.example"))


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8000", "api.example.com.evil.example", "127.0.0.1.evil.example", "wild.example",
     "localhost.evil.example", "@evil.example/", "evil.example:80:80", "1.2.3.4.5", "notwild.example"],
)  # fmt: skip
def test_public_names_of_others_are_not_answered(host: str) -> None:
    assert not may_answer_host(host, ("api.example.com", "*.wild.example"))
    assert may_answer_host(host, ("*",))


@pytest.mark.parametrize("path", ["/", "/healthz", "/models", "/metrics", "/v1/models", "/docs"])
def test_request_under_a_public_name_gets_421_without_that_name(client: FlaskClient, path: str) -> None:
    response = client.get(path, headers={"Host": "evil.example:8000"})
    assert response.status_code == 421
    error = response.get_json()["error"]
    assert error["code"] == "invalid_request"
    assert error["message"].startswith("Host: got another public name, expected ")
    assert "evil" not in str(response.headers) + response.text


@pytest.fixture(scope="module")
def proxied(letters: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("proxied")
    with running_server(folder, bundles=letters, trusted_hops=1, allowed_hosts="api.example.com") as server:
        yield server


def test_log_has_the_address_that_the_proxy_reports(proxied: Server) -> None:
    headers = {"X-Forwarded-For": "6.6.6.6, 1.2.3.4", "X-Forwarded-Host": "api.example.com"}
    headers["X-Request-Id"] = "forwarded"
    assert proxied.client.get("/models", headers=headers).status_code == 200
    assert line_of(proxied, "forwarded")["client_address"] == "1.2.3.4"


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Forwarded-Host": "evil.example"},
        {"Host": "evil.example", "X-Forwarded-Host": "localhost"},
        {"Host": "evil.example", "Forwarded": "host=api.example.com"},
    ],
)
def test_neither_the_host_that_the_proxy_reports_nor_that_which_it_passes_on_is_another_public_name(
    proxied: Server, headers: dict[str, str]
) -> None:
    """A page that an evil name led here writes all headers itself but `Host`."""
    refused = proxied.client.post("/generate", json={}, headers=headers)
    assert (refused.status_code, json.loads(refused.text)["error"]["code"]) == (421, "invalid_request")


def test_headers_of_proxies_mean_nothing_by_default(server: Server) -> None:
    headers = {"X-Forwarded-For": "1.2.3.4", "Forwarded": "for=1.2.3.4;host=evil.example", "X-Request-Id": "direct"}
    assert server.client.get("/models", headers=headers).status_code == 200
    assert line_of(server, "direct")["client_address"] == "127.0.0.1"
