"""A file from the web, checked by its hash.

Input: a URL, the SHA-256 that its bytes must have, bounds. Output: the file, whole and as expected, or an error of one
line. Must not know: what the file holds.

Only http and https are spoken, also after a redirect. The hash, not the connection, says whether the bytes are right.
"""

from __future__ import annotations

import hashlib
import http.client
import re
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

from meari.client.errors import BadAnswer, Refused, RemoteError, Unreachable

__all__ = ["HASH_FORM", "download", "is_hash", "shown_url", "split_hash"]

SILENCE_SECONDS: Final = 30.0
CHUNK_BYTES: Final = 1 << 18
HASH_FORM: Final = "64 hexadecimal digits"


def split_hash(url: str) -> tuple[str, str]:
    """Return a URL without its fragment, and the hash in `#sha256=…`, "" if there is none. Raises ValueError."""
    try:
        parts = urlsplit(url)
        is_web = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_web = False
    if not is_web or any(character.isspace() or not character.isprintable() for character in url):
        raise ValueError("expected http://HOST/PATH or https://HOST/PATH, with #sha256=… at its end")
    if "@" in parts.netloc:
        raise ValueError("got a URL with a name and password, which are not sent; expected one without")
    fields = parse_qsl(parts.fragment, keep_blank_values=True)
    if parts.fragment and [name for name, _ in fields] != ["sha256"]:
        raise ValueError(f"got #{parts.fragment[:100]}, expected #sha256=… with {HASH_FORM}")
    return parts._replace(fragment="").geturl(), fields[0][1] if fields else ""


def is_hash(text: str) -> bool:
    """Return whether a text is a SHA-256 in hexadecimal digits."""
    return re.fullmatch(r"[0-9a-fA-F]{64}", text) is not None


def shown_url(url: str) -> str:
    """Return a URL for messages: without user, password and query, which may be secret."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def download(url: str, path: Path, sha256: str, *, max_bytes: int, max_seconds: float) -> None:
    """Write the bytes of a URL to a new file. Raises RemoteError if they are not those of the hash; FileExistsError.

    max_bytes    past it the download ends
    max_seconds  for all of it; a server that is silent for 30 seconds is given up earlier
    """
    shown, silence = shown_url(url), min(SILENCE_SECONDS, max_seconds)
    try:
        with path.open("xb") as file, _opener().open(url, timeout=silence) as answer:
            digest = _copy(shown, answer, file, max_bytes, time.monotonic() + max_seconds)
    except RemoteError:
        raise
    except urllib.error.HTTPError as error:
        with error:
            raise Refused(shown, error.code, "", error.reason or "no reason given") from None
    except FileExistsError:
        raise
    except (http.client.HTTPException, ValueError) as error:
        raise BadAnswer(shown, f"got no answer in HTTP ({type(error).__name__})") from None
    except OSError as error:
        if error.filename is not None:  # of this machine's disk
            raise
        raise Unreachable(shown, _reason(error, silence)) from None
    if digest != sha256.lower():
        raise BadAnswer(shown, f"SHA-256: got {digest}, expected {sha256.lower()}; nothing of it was used")


def _copy(shown: str, answer: Any, file: Any, max_bytes: int, until: float) -> str:
    """Copy an answer's bytes; return their SHA-256. Raises BadAnswer."""
    digest, size = hashlib.sha256(), 0
    length = answer.headers.get("Content-Length", "")
    expected = int(length) if length.isascii() and length.isdigit() else None
    while max(size, expected or 0) <= max_bytes:
        chunk = answer.read1(CHUNK_BYTES)
        if not chunk:
            break
        if time.monotonic() > until:
            raise BadAnswer(shown, f"took too long: {size:,} bytes had come, nothing of it was used")
        size += len(chunk)
        digest.update(chunk)
        file.write(chunk)
    else:
        raise BadAnswer(shown, f"got {max(size, expected or 0):,} bytes or more, expected at most {max_bytes:,}")
    if expected is not None and size != expected:
        raise BadAnswer(shown, f"was cut off after {size:,} of {expected:,} bytes; nothing of it was used")
    return digest.hexdigest()


def _opener() -> urllib.request.OpenerDirector:
    """Return an opener that speaks http and https alone, with the environment's proxies and authorities."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    opener.addheaders = [("User-Agent", "meari"), ("Accept", "*/*")]
    return opener


def _reason(error: OSError, silence: float) -> str:
    reason = getattr(error, "reason", error)
    if isinstance(reason, TimeoutError):
        return f"silent for {silence:g} seconds"
    return str(getattr(reason, "strerror", None) or reason)
