"""The ways in which a request to a service can fail.

RemoteError
├── Refused       the service answered with an error; `status` and `code` are those of the contract
├── Unreachable   nobody answers there
└── BadAnswer     the answer is not one of this service, or is cut off

`str(error)` is one line that begins with the service's address.
"""

from __future__ import annotations

from typing import Any, Final

from meari.errors import rebuild_error

__all__ = ["OTHER_FIELDS", "BadAnswer", "Refused", "RemoteError", "Unreachable"]

OTHER_FIELDS: Final = "got an answer without the fields of the contract, expected a meari service"


class RemoteError(Exception):
    """The root."""

    def __init__(self, url: str, message: str) -> None:
        super().__init__(f"{url}: {' '.join(message.split())}")

    def __reduce__(self) -> tuple[Any, ...]:
        return rebuild_error, (type(self), self.args, vars(self))


class Refused(RemoteError):
    """The service's own refusal. `status` is None in the middle of a stream; `message` is the service's own."""

    def __init__(self, url: str, status: int | None, code: str, message: str) -> None:
        self.status = status
        self.code = code
        self.message = message
        super().__init__(url, " ".join(filter(None, [str(status or ""), code])) + f": {message}")


class Unreachable(RemoteError):
    """No connection, or none that lasted."""


class BadAnswer(RemoteError):
    """An answer that does not keep the contract."""
