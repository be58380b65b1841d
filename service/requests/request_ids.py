"""The id of a request: the caller's own where it is a sane one, else a new one."""

from __future__ import annotations

import re
import secrets
from typing import Final

__all__ = ["request_id"]

_SANE: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")


def request_id(sent: str | None) -> str:
    """The id to log and to send back."""
    return sent if sent is not None and _SANE.fullmatch(sent) else secrets.token_hex(8)
