"""Connections to one service, kept open between requests.

Input: paths and bodies. Output: answers that are read, whole or line by line. Must not know: what they mean.

Each request has a connection of its own while it lasts; idle ones wait for the next request of any thread. Connections
are the standard library's: proxies and certificates as the environment says.
"""

from __future__ import annotations

import base64
import functools
import http.client
import os
import select
import ssl
import threading
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from typing import Final
from urllib.parse import SplitResult, unquote, urlsplit

__all__ = [
    "CLOSED_MEANWHILE",
    "CONNECT_SECONDS",
    "MAX_IDLE",
    "Answer",
    "Connections",
    "proxy_authorization",
    "proxy_of",
    "tls_context",
]

CONNECT_SECONDS: Final = 10.0
MAX_IDLE: Final = 64
CLOSED_MEANWHILE: Final = (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError)


class Answer:
    """An answer whose body is still to be read. `close` gives the connection back once all of it was read."""

    def __init__(
        self,
        connection: http.client.HTTPConnection,
        response: http.client.HTTPResponse,
        keep: Callable[[http.client.HTTPConnection], None],
    ) -> None:
        self._connection = connection
        self._response = response
        self._keep = keep
        self._is_closed = self._is_whole = False
        self.status = response.status
        self.reason = response.reason
        self.headers = response.headers

    def read(self) -> bytes:
        """Return the rest of the body."""
        try:
            data = self._response.read()
            self._is_whole = True
            return data
        finally:
            self.close()

    def lines(self) -> Iterator[bytes]:
        """Yield the body line by line as it comes."""
        for line in self._response:  # noqa: UP028 (`yield from` would close it when this generator is left early)
            yield line
        self._is_whole = True
        self.close()

    def close(self) -> None:
        """Give the connection back, or close it if part of the answer was not read."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._is_whole and self._response.isclosed() and not self._response.will_close:
            self._keep(self._connection)
        else:
            self._response.close()
            self._connection.close()


class Connections:
    """The connections to one service; safe from several threads, and in a forked process, which makes its own."""

    def __init__(self, url: str, answer_seconds: float) -> None:
        """answer_seconds: of silence, after which an answer is given up."""
        self._parts = urlsplit(url)
        self._answer_seconds = answer_seconds
        self._lock = threading.Lock()
        self._idle: list[http.client.HTTPConnection] = []
        self._process = os.getpid()

    def request(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> Answer:
        """Send a request; a kept connection that was closed meanwhile is replaced. Raises OSError, HTTPException."""
        connection = self._take()
        while connection is not None:
            try:
                return self._send(connection, method, path, body, headers)
            except CLOSED_MEANWHILE:
                connection = self._take()
        return self._send(self._connect(), method, path, body, headers)

    def close(self) -> None:
        """Close the idle connections; further requests open new ones."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _send(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        body: bytes | None,
        headers: Mapping[str, str],
    ) -> Answer:
        target, more = self._parts.path + path, {}
        if self._proxy is not None and self._parts.scheme == "http":
            target = f"http://{self._parts.netloc}{target}"
            more = proxy_authorization(self._proxy)
        try:
            connection.request(method, target, body, {**headers, **more})
            return Answer(connection, connection.getresponse(), self._keep)
        except BaseException:
            connection.close()
            raise

    def _take(self) -> http.client.HTTPConnection | None:
        """Return an idle connection that the service has not closed, None if there is none."""
        with self._lock:
            if self._process != os.getpid():
                self._idle, self._process = [], os.getpid()
            while self._idle:
                connection = self._idle.pop()
                if not _was_closed(connection):
                    return connection
                connection.close()
        return None

    def _keep(self, connection: http.client.HTTPConnection) -> None:
        with self._lock:
            if len(self._idle) < MAX_IDLE and self._process == os.getpid():
                self._idle.append(connection)
                return
        connection.close()

    def _connect(self) -> http.client.HTTPConnection:
        """Return a connection; one that is not made soon is given up earlier than an answer."""
        service, proxy = self._parts, self._proxy
        host, port = (service.hostname, service.port) if proxy is None else (proxy.hostname, proxy.port)
        is_secure = service.scheme == "https"
        made = (
            http.client.HTTPSConnection(host or "", port, timeout=CONNECT_SECONDS, context=self._tls)
            if is_secure
            else http.client.HTTPConnection(host or "", port, timeout=CONNECT_SECONDS)
        )
        if proxy is not None and is_secure:
            made.set_tunnel(service.hostname or "", service.port, proxy_authorization(proxy))
        made.connect()
        made.sock.settimeout(self._answer_seconds)
        return made

    @functools.cached_property
    def _proxy(self) -> SplitResult | None:
        return proxy_of(self._parts)

    @functools.cached_property
    def _tls(self) -> ssl.SSLContext:
        return tls_context()


def proxy_of(service: SplitResult) -> SplitResult | None:
    """Return the proxy of the environment for a service, None if there is none."""
    url = urllib.request.getproxies().get(service.scheme)
    if not url or urllib.request.proxy_bypass(service.netloc):
        return None
    return urlsplit(url if "://" in url else f"http://{url}")


def tls_context() -> ssl.SSLContext:
    """Return the settings of TLS: the certificates that the environment trusts."""
    return ssl.create_default_context()


def proxy_authorization(proxy: SplitResult) -> dict[str, str]:
    """Return the header that names the user of a proxy; none without one."""
    if proxy.username is None:
        return {}
    credentials = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": "Basic " + base64.b64encode(credentials.encode()).decode("ascii")}


def _was_closed(connection: http.client.HTTPConnection) -> bool:
    """Tell whether the other end has closed a connection: nothing else arrives between two requests."""
    poll = select.poll()
    poll.register(connection.sock, select.POLLIN)
    return bool(poll.poll(0))
