"""HTTP requests to a container, with nothing but the standard library."""

import json
from collections.abc import Iterator, Mapping
from http.client import HTTPConnection, HTTPResponse
from typing import Any

Address = tuple[str, int]


def post(address: Address, path: str, body: Mapping[str, object]) -> dict[str, Any]:
    """The answer to one request, which has to be 200."""
    response = send(address, path, body)
    data = response.read()
    assert response.status == 200, data
    answer: dict[str, Any] = json.loads(data)
    return answer


def send(address: Address, path: str, body: Mapping[str, object]) -> HTTPResponse:
    """The answer's head; its body is read by the caller."""
    connection = HTTPConnection(*address, timeout=120)
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    return connection.getresponse()


def is_ready(address: Address) -> bool:
    """Whether /readyz says so; a server that takes no connections is not ready."""
    connection = HTTPConnection(*address, timeout=10)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def events_of(response: HTTPResponse) -> Iterator[dict[str, Any]]:
    """The events of a stream until `[DONE]`; a stream that ends without it raises AssertionError."""
    for line in response:
        data = line.removeprefix(b"data:").strip()
        if data == b"[DONE]":
            return
        if line.startswith(b"data:"):
            yield json.loads(data)
    raise AssertionError("the stream ended without [DONE]")
