"""gunicorn's parser of requests, which here does not wait for what will never come.

A head has to be there within HEAD_SECONDS of its first byte: silence, and bytes one by one, would hold a thread. What
does not begin like HTTP (TLS on the plain port, say) is refused at its first bytes, for its client waits for an answer.
What is refused knows how far it was understood: `error.request`.
"""

from __future__ import annotations

import re
import time
from typing import Any, Final

from gunicorn.http.errors import InvalidRequestLine, LimitRequestLine, NoMoreData, ParseException
from gunicorn.http.message import Request
from gunicorn.http.parser import RequestParser

from meari.service.process.connection import has_come

__all__ = ["HEAD_SECONDS", "PromptParser", "WaitingBody"]

HEAD_SECONDS: Final = 10.0
REST_SECONDS: Final = 0.2  # for more of a head that is refused before its fields are reached
REST_BYTES: Final = 65536
_ORIGIN: Final = re.compile(rb"^origin:[ \t]*([!-~]*)[ \t]*\r?$", re.IGNORECASE | re.MULTILINE)
_TOKEN: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


class PromptRequest(Request):  # type: ignore[misc]
    """A request; raises TimeoutError where its head takes too long."""

    uri: str | None

    def __init__(self, cfg: Any, unreader: Any, *arguments: Any) -> None:
        self._until = time.monotonic() + HEAD_SECONDS
        self._head = bytearray()  # or the end of it, as far as it has come
        try:
            super().__init__(cfg, unreader, *arguments)
        except ParseException as error:
            error.request = self
            if isinstance(error, LimitRequestLine):
                self._read_on(unreader)
            raise

    def _read_on(self, unreader: Any) -> None:
        """Read the fields after a first line that is too long, where they come at once."""
        while b"\r\n\r\n" not in self._head and len(self._head) < REST_BYTES and has_come(unreader.sock, REST_SECONDS):
            try:
                super().read_into(unreader, self._head)
            except (OSError, NoMoreData):
                return

    @property
    def origin(self) -> str | None:
        """Of the page that asks, also where other fields are malformed."""
        found = _ORIGIN.search(self._head.partition(b"\r\n\r\n")[0])
        return None if found is None else found[1].decode("ascii")

    @property
    def target(self) -> str:
        """What is asked for, also where the first line is too long."""
        return self.uri or self._head.partition(b" ")[2][:100].decode("latin-1")

    def read_into(self, unreader: Any, buf: Any, stop: bool = False) -> None:
        """One more piece of the head."""
        if time.monotonic() > self._until:
            raise TimeoutError("the head of a request took too long")
        super().read_into(unreader, buf, stop)
        self._head = buf

    def read_line(self, unreader: Any, buf: Any, limit: int = 0) -> Any:
        """The first line."""
        if buf and not _TOKEN.match(buf):
            raise InvalidRequestLine("it does not begin with a method")
        return super().read_line(unreader, buf, limit)


class WaitingBody:
    """The body of a client that waits to be told to send it (Expect: 100-continue): told when it is first read.

    So what is refused before, by its head alone, is never sent.
    """

    def __init__(self, body: Any, connection: Any) -> None:
        self._body = body
        self._connection = connection
        self._is_told = False
        self.is_refused = False

    def refuse(self) -> None:
        """To be called when the answer begins: from then on nobody is told to send anything."""
        self.is_refused = not self._is_told

    def read(self, size: int | None = None) -> bytes:
        """As gunicorn's bodies do."""
        if self.is_refused:
            return b""
        if not self._is_told:
            self._is_told = True
            self._connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        data: bytes = self._body.read(size)
        return data


class PromptParser(RequestParser):  # type: ignore[misc]
    """The requests of a connection."""

    mesg_class = PromptRequest
