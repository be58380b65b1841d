"""TLS on a connection, and the certificate that new connections get.

Input: accepted sockets, files with a certificate and its key. Output: connections whose bytes are encrypted on their
way. Must not know: the worker's loop, HTTP but for the first byte of a handshake.

OpenSSL works on memory here, not on the socket: what `Connection` does with the socket (time-outs of the kernel, looks
that take nothing out, sends that never block) stays as it is.
"""

from __future__ import annotations

import binascii
import calendar
import contextlib
import logging
import re
import ssl
import time
from pathlib import Path
from typing import Any, Final

from meari.errors import InvalidRequest, Problem
from meari.service.clients import Connection

__all__ = ["Certificate", "NotTls", "TlsConnection", "expiry_of", "load_context"]

HANDSHAKE: Final = b"\x16"  # the first byte of every TLS connection
RECORD_BYTES: Final = 16384
RECEIVE_BYTES: Final = 65536
PIECE_BYTES: Final = 4096  # of what is received, given to OpenSSL together
PEM: Final = re.compile(r"-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-----([^-]*)-----END ")
SEQUENCE: Final = 0x30
VERSION: Final = 0xA0
UTC_TIME: Final = 0x17

log = logging.getLogger("meari.service.tls")  # as operators know it


class NotTls(InvalidRequest):
    """A client speaks plain HTTP, or something else."""

    quotes_request = False

    def __init__(self) -> None:
        super().__init__(Problem("request", "bytes that are no TLS", "https://", "this port takes TLS alone"))


def load_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """Return a context for TLS 1.2 and later. Raises OSError (ssl.SSLError is one) where the files do not fit."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    context.load_cert_chain(certificate, key, password=_no_password)
    return context


def expiry_of(certificates: str) -> float | None:
    """Return when the first of the certificates in PEM expires, in Unix seconds; None if that cannot be read."""
    try:
        return min(_not_after(binascii.a2b_base64(body)) for body in PEM.findall(certificates))
    except (ValueError, IndexError):
        return None


def _not_after(der: bytes) -> float:
    """Return the field notAfter of a certificate (RFC 5280, 4.1). Raises ValueError, IndexError."""
    _, at, _ = _element(der, 0)
    _, at, _ = _element(der, at)  # tbsCertificate
    fields: list[tuple[int, int]] = []
    while len(fields) < 4:  # serial number, algorithm, issuer, validity
        tag, begin, end = _element(der, at)
        if tag != VERSION:
            fields.append((tag, begin))
        at = end
    tag, begin = fields[-1]
    if tag != SEQUENCE:
        raise ValueError("expected the validity")
    _, _, at = _element(der, begin)  # notBefore
    tag, begin, end = _element(der, at)
    text = der[begin:end].decode("ascii")
    if tag == UTC_TIME:
        text = ("19" if text >= "50" else "20") + text
    return calendar.timegm(time.strptime(text, "%Y%m%d%H%M%SZ"))


def _element(der: bytes, at: int) -> tuple[int, int, int]:
    """Return the tag of the element at a place, and where its content begins and ends."""
    length, begin = der[at + 1], at + 2
    if length >= 0x80:
        size = length - 0x80
        length, begin = int.from_bytes(der[begin : begin + size]), begin + size
    return der[at], begin, begin + length


def _no_password() -> str:
    raise ssl.SSLError("the key is encrypted; expected one without a password")


class Certificate:
    """The context of new connections, made again when a file changes; a broken change leaves the old one in use.

    Raises OSError where the first one cannot be made.

    expires_at  Unix time at which the first of its certificates expires, None if that could not be read
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        self._files = certificate, key
        self._seen = self._stamps()
        self._load()

    def refresh(self) -> None:
        """Look whether the files have changed."""
        stamps = self._stamps()
        if stamps == self._seen:
            return
        self._seen = stamps
        try:
            self._load()
        except OSError as error:
            log.error("%s", _problem(self._files, error))  # noqa: TRY400 (the files are at fault, not the code)
        else:
            log.info("new connections get the certificate that is now in %s", self._files[0])

    def _load(self) -> None:
        context = load_context(*self._files)
        self.expires_at = expiry_of(self._files[0].read_text("latin-1"))
        self.context = context

    def _stamps(self) -> list[tuple[int, int, int] | None]:
        """Return what changes with a file; None for a missing one."""
        stamps: list[tuple[int, int, int] | None] = []
        for file in self._files:
            try:
                status = file.stat()
                stamps.append((status.st_mtime_ns, status.st_size, status.st_ino))
            except OSError:
                stamps.append(None)
        return stamps


def _problem(files: tuple[Path, Path], error: OSError) -> str:
    return f"the certificate in {files[0]} and the key in {files[1]} cannot be used, the old ones stay: {error}"


class TlsConnection(Connection):
    """A connection that encrypts what it sends. Until `shake_hands` has returned True nothing else may be called.

    A buffer of OpenSSL keeps the most that it ever held, so it gets little at once, and that is taken out at once.
    """

    own_bytes = 20_000  # of OpenSSL, measured
    _tls: ssl.SSLObject
    _has_begun = False
    _has_ended = False
    _late = bytearray()  # the end of an encrypted probe that the system did not take

    def begin(self, context: ssl.SSLContext) -> None:
        """Prepare for the handshake."""
        self._received, self._sent = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._received, self._sent, server_side=True)

    def shake_hands(self) -> bool:
        """Go on with the handshake as far as the client's bytes have come; True at its end. Raises NotTls, OSError."""
        data = super().recv_now(PIECE_BYTES)
        if data is None:
            return False
        if not data:
            raise ConnectionResetError("the client left in the middle of a handshake")
        if not self._has_begun and not data.startswith(HANDSHAKE):
            raise NotTls
        self._has_begun = True
        self._received.write(data)
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        finally:
            self._send_pending()
        return True

    def recv_now(self, size: int, flags: int = 0) -> bytes | None:
        """Receive what has come, all of it; None where nothing has, and no bytes at the end."""
        raw = super().recv_now(RECEIVE_BYTES)
        data = self._read() if raw is None else self._decrypted(raw)
        return data or (b"" if self._has_ended else None)

    def recv(self, bufsize: int, flags: int = 0) -> bytes:
        """Wait, and receive all that has come. Raises TimeoutError."""
        until = time.monotonic() + self._seconds
        data = self._read()
        while not data and not self._has_ended:
            left = until - time.monotonic()
            if left <= 0:
                raise TimeoutError("the client sent nothing whole in time")
            self.settimeout(left)  # a record may come in many pieces
            data = self._decrypted(super().recv(RECEIVE_BYTES))
        return data

    def _send_all(self, data: Any) -> None:
        super()._send_all(self._encrypted(data))

    def shutdown(self, how: int) -> None:
        """Tell the client that no more follows, then end the sending half."""
        with contextlib.suppress(OSError):  # it has not answered yet
            self._tls.unwrap()
        self._send_pending()
        super().shutdown(how)

    def _send_probe(self, byte: bytes) -> int:
        encrypted = self._encrypted(byte)
        self._late = encrypted[self._send_now(encrypted) :]
        return len(byte)

    def _encrypted(self, data: Any) -> bytearray:
        encrypted, self._late = self._late + self._sent.read(), bytearray()
        left = memoryview(data)
        while left:
            left = left[self._tls.write(left[:RECORD_BYTES]) :]
            encrypted += self._sent.read()
        return encrypted

    def _decrypted(self, raw: bytes) -> bytes:
        """Take in what was received. OpenSSL is not told of the end: it would refuse to send the answer."""
        self._has_ended = self._has_ended or not raw
        pieces = [self._read()]  # what came with the end of the handshake
        for start in range(0, len(raw), PIECE_BYTES):
            self._received.write(raw[start : start + PIECE_BYTES])
            pieces.append(self._read())
        return b"".join(pieces)

    def _read(self) -> bytes:
        """Return what can be decrypted. Raises ssl.SSLError, an OSError, for bytes that are no TLS."""
        pieces = []
        try:
            while piece := self._tls.read(RECEIVE_BYTES):
                pieces.append(piece)
            self._has_ended = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self._has_ended = True
        if self._sent.pending:  # an answer of TLS itself
            self._send_pending()
        return b"".join(pieces)

    def _send_pending(self) -> None:
        encrypted = self._encrypted(b"")
        if self._rest:  # of an answer, which comes first
            self._late = encrypted
            return
        with contextlib.suppress(OSError):
            self._late = encrypted[self._send_now(encrypted) :]
