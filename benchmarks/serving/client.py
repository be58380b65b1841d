"""Client that sends one request after another and measures times; for probes, which need no driver.

Input: a port and bodies. Output: answers with their times. Must not know: loads.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


class UnexpectedAnswer(Exception):
    """An answer that differs from the expected one."""


@dataclass(frozen=True)
class TimedAnswer:
    """An answer and its time; `first_seconds` to the first text, of a whole answer to its end."""

    body: dict[str, Any]
    seconds: float
    first_seconds: float


class Client:
    """Client with a connection that is kept alive."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def post(self, path: str, body: Mapping[str, object]) -> TimedAnswer:
        """Send a request and wait for the whole answer. Raises UnexpectedAnswer."""
        begin = time.perf_counter()
        response = self._send(path, body)
        data = response.read()
        seconds = time.perf_counter() - begin
        if response.status != 200:
            raise UnexpectedAnswer(f"{path}: status {response.status}: {data[:300].decode('utf-8', 'replace')}")
        return TimedAnswer(json.loads(data), seconds, seconds)

    def stream(self, path: str, body: Mapping[str, object]) -> TimedAnswer:
        """Send a request for a stream; the body is `text`, and `usage` as in its event. Raises UnexpectedAnswer."""
        begin = time.perf_counter()
        response = self._send(path, {**body, "stream": True})
        if response.status != 200:
            raise UnexpectedAnswer(f"{path}: status {response.status}: {response.read(300).decode('utf-8', 'replace')}")
        text, first = "", 0.0
        usage: dict[str, Any] = {}
        while line := response.readline():
            if not line.startswith(b"data:") or line.strip().endswith(b"[DONE]"):
                continue
            event = json.loads(line[5:])
            piece = "".join(choice.get("text", "") for choice in event.get("choices", []))
            first = first or (time.perf_counter() - begin if piece else 0.0)
            text += piece
            usage = event.get("usage", usage)
        return TimedAnswer({"text": text, "usage": usage}, time.perf_counter() - begin, first)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _send(self, path: str, body: Mapping[str, object]) -> http.client.HTTPResponse:
        data = json.dumps(body, ensure_ascii=False).encode()
        self._connection.request("POST", path, data, {"Content-Type": "application/json"})
        return self._connection.getresponse()
