"""HTTP client for containers, from the standard library."""

import json
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import Any

Address = tuple[str, int]


def post(address: Address, path: str, body: Mapping[str, object]) -> dict[str, Any]:
    """Send one request and return the JSON response; the status must be 200."""
    with sent(address, path, body) as response:
        data = response.read()
    assert response.status == 200, data
    answer: dict[str, Any] = json.loads(data)
    return answer


def get(address: Address, path: str) -> dict[str, Any]:
    """Send a GET request and return the JSON response; the status must be 200."""
    with closing(HTTPConnection(*address, timeout=30)) as connection:
        connection.request("GET", path)
        with connection.getresponse() as response:
            data = response.read()
    assert response.status == 200, data
    answer: dict[str, Any] = json.loads(data)
    return answer


@contextmanager
def sent(address: Address, path: str, body: Mapping[str, object]) -> Iterator[HTTPResponse]:
    """Send a request; the block reads the body of the response as it arrives."""
    with closing(HTTPConnection(*address, timeout=120)) as connection:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        with connection.getresponse() as response:
            yield response


def is_ready(address: Address) -> bool:
    """Return whether /readyz answers 200; a server that accepts no connections is not ready."""
    with closing(HTTPConnection(*address, timeout=10)) as connection:
        try:
            connection.request("GET", "/readyz")
            with connection.getresponse() as response:
                return response.status == 200
        except (OSError, HTTPException):
            return False


def events_of(response: HTTPResponse) -> Iterator[dict[str, Any]]:
    """Yield the events of a stream until `[DONE]`; raises AssertionError if the stream ends without it."""
    for line in response:
        data = line.removeprefix(b"data:").strip()
        if data == b"[DONE]":
            return
        if line.startswith(b"data:"):
            yield json.loads(data)
    raise AssertionError("the stream ended without [DONE]")
