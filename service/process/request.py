"""gunicorn's parser of requests, which here does not wait for what will never come.

A head has to be there within HEAD_SECONDS of its first byte: silence, and bytes one by one, would hold a thread. What
does not begin like HTTP (TLS on the plain port, say) is refused at its first bytes, for its client waits for an answer.
What is refused knows how far it was understood: `error.request`.
"""

from __future__ import annotations

import re
import time
from typing import Any, Final

from gunicorn.http.errors import InvalidRequestLine, ParseException
from gunicorn.http.message import Request
from gunicorn.http.parser import RequestParser

__all__ = ["HEAD_SECONDS", "PromptParser", "WaitingBody"]

HEAD_SECONDS: Final = 10.0
_ORIGIN: Final = re.compile(rb"^origin:[ \t]*([!-~]*)[ \t]*\r?$", re.IGNORECASE | re.MULTILINE)
_TOKEN: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


class PromptRequest(Request):  # type: ignore[misc]
    """A request; raises TimeoutError where its head takes too long."""

    uri: str | None

    def __init__(self, *arguments: Any) -> None:
        self._until = time.monotonic() + HEAD_SECONDS
        self.fields = b""
        try:
            super().__init__(*arguments)
        except ParseException as error:
            error.request = self
            raise

    @property
    def origin(self) -> str | None:
        """Of the page that asks, also where other fields are malformed."""
        found = _ORIGIN.search(self.fields)
        return None if found is None else found[1].decode("ascii")

    def read_into(self, unreader: Any, buf: Any, stop: bool = False) -> None:
        """One more piece of the head."""
        if time.monotonic() > self._until:
            raise TimeoutError("the head of a request took too long")
        super().read_into(unreader, buf, stop)

    def read_line(self, unreader: Any, buf: Any, limit: int = 0) -> Any:
        """The first line."""
        if buf and not _TOKEN.match(buf):
            raise InvalidRequestLine("it does not begin with a method")
        return super().read_line(unreader, buf, limit)

    def parse_headers(self, data: bytes, from_trailer: bool = False) -> Any:
        """Keep the fields as they came, for those that cannot be parsed."""
        self.fields = self.fields or data
        return super().parse_headers(data, from_trailer)


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
