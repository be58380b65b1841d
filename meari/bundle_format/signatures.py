"""Signatures of bundles by Ed25519: who vouches for a manifest, and by its hashes for every other file.

Input: a bundle's folder and the hash of its manifest, keys. Output: `signature.json`, the key that signed, or a
BundleError. Must not know: the content of the manifest.

What is signed is PURPOSE and the SHA-256 of `manifest.json`, the bundle's hash. No manifest lists `signature.json`, so
signing changes no hash. Keys are PEM files as OpenSSL writes them (RFC 8410): fixed bytes before 32 of the key.
PyNaCl is imported only where something is signed or verified.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from meari.bundle_format.folders import SIGNATURE, read_file
from meari.errors import BundleError, Problem
from meari.paths import expand_home

__all__ = [
    "PublicKey",
    "check_signature",
    "make_private_key",
    "parse_public_keys",
    "read_signature",
    "sign_manifest",
    "verifying_problem",
]

PURPOSE: Final = b"meari bundle manifest v1\n"  # no signature for another purpose fits
MAX_BYTES: Final = 1 << 16  # of a file of keys, or of a signature
KEY_BYTES: Final = 32
PRIVATE_PREFIX: Final = bytes.fromhex("302e020100300506032b657004220420")
PUBLIC_PREFIX: Final = bytes.fromhex("302a300506032b6570032100")
INSTALL: Final = "PyNaCl is not installed; `pip install 'meari[sign]'` installs it"


@dataclass(frozen=True)
class PublicKey:
    """A key that verifies signatures.

    raw  the 32 bytes of RFC 8032
    """

    raw: bytes

    @property
    def id(self) -> str:
        """Name of the key in messages: the beginning of its SHA-256."""
        return hashlib.sha256(self.raw).hexdigest()[:16]

    @property
    def text(self) -> str:
        """The key in base64, as its PEM file has it between the first line and the last."""
        return base64.b64encode(PUBLIC_PREFIX + self.raw).decode("ascii")


class Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Content of `signature.json`. The key is named for people; a server trusts only the keys of its own settings."""

    format_version: Literal[1]
    algorithm: Literal["ed25519"]
    key_id: str
    public_key: str
    signature: str


def verifying_problem() -> str:
    """Return why no signature can be verified here, "" where it can."""
    try:
        _bindings()
    except BundleError as error:
        return str(error)
    return ""


def make_private_key(path: Path) -> PublicKey:
    """Write a new key pair, PATH for its owner alone and PATH.pub for servers. Raises OSError where one exists."""
    raw, secret = _bindings().crypto_sign_keypair()
    _write_new(path, _pem("PRIVATE", PRIVATE_PREFIX + secret[:KEY_BYTES]), 0o600)
    try:
        _write_new(path.with_name(f"{path.name}.pub"), _pem("PUBLIC", PUBLIC_PREFIX + raw), 0o644)
    except OSError:
        path.unlink()
        raise
    return PublicKey(raw)


def sign_manifest(folder: Path, bundle_hash: str, key_file: Path) -> PublicKey:
    """Write `signature.json` in place of one that was there, whole or not at all. Raises BundleError, OSError.

    bundle_hash  SHA-256 of manifest.json, which the caller has compared with the other files
    """
    bindings = _bindings()
    raw, secret = bindings.crypto_sign_seed_keypair(_read_seed(key_file))
    key = PublicKey(raw)
    signed = bindings.crypto_sign(_message(bundle_hash), secret)
    signature = base64.b64encode(signed[: bindings.crypto_sign_BYTES]).decode("ascii")
    content = msgspec.json.encode(Signature(1, "ed25519", key.id, key.text, signature))
    _replace(folder / SIGNATURE, msgspec.json.format(content, indent=2) + b"\n")
    return key


def check_signature(folder: Path, bundle_hash: str, keys: Sequence[PublicKey]) -> None:
    """Raise BundleError unless one of the keys has signed the manifest with that hash."""
    expected = f"a signature by the key {' or '.join(key.id for key in keys)}"
    if not os.path.lexists(folder / SIGNATURE):
        raise BundleError(Problem(SIGNATURE, None, expected))
    key = read_signature(folder, bundle_hash)
    if key not in keys:
        raise BundleError(Problem(SIGNATURE, f"one by the key {key.id}", expected))


def read_signature(folder: Path, bundle_hash: str) -> PublicKey:
    """Return the key that has signed the manifest with that hash, whoever owns it. Raises BundleError."""
    data = read_file(folder / SIGNATURE, MAX_BYTES)
    try:
        found = msgspec.json.decode(data, type=Signature)
        [key] = _parse_keys([found.public_key])
        signature = base64.b64decode(found.signature, validate=True)
    except (ValueError, msgspec.MsgspecError, RecursionError):
        raise BundleError(f"{SIGNATURE}: got other than a signature, expected what `meari sign` writes") from None
    if found.key_id != key.id:
        raise BundleError(Problem(f"{SIGNATURE}: key_id", repr(found.key_id[:40]), f"{key.id}, that of public_key"))
    bindings = _bindings()
    try:
        signed = bindings.crypto_sign_open(signature + _message(bundle_hash), key.raw)
    except Exception as error:
        raise _unfit(key) from error
    if len(signature) != bindings.crypto_sign_BYTES or signed != _message(bundle_hash):
        raise _unfit(key)
    return key


def _unfit(key: PublicKey) -> BundleError:
    reason = f"the key {key.id} has not signed this manifest.json: one of the two was changed after the signing"
    return BundleError(f"{SIGNATURE}: {reason}")


def parse_public_keys(text: str) -> tuple[PublicKey, ...]:
    """Return the keys in a setting: the path of a PEM file, or keys in base64, separated by commas. Raises ValueError.

    An empty file has no keys, and nothing would be served: it raises too.
    """
    with contextlib.suppress(ValueError):
        return _parse_keys(text.split(","))
    try:
        content = read_file(Path(expand_home(text)), MAX_BYTES, inside=False).decode("ascii")
    except BundleError as error:
        raise ValueError(str(error)) from None
    return _parse_keys(_pem_bodies("PUBLIC", content))


def _parse_keys(texts: Sequence[str]) -> tuple[PublicKey, ...]:
    """Parse keys in base64. Raises ValueError where there are none, or where one is not an Ed25519 key."""
    found = [base64.b64decode("".join(text.split()), validate=True) for text in texts]
    length = len(PUBLIC_PREFIX) + KEY_BYTES
    if not found or any(not each.startswith(PUBLIC_PREFIX) or len(each) != length for each in found):
        raise ValueError
    return tuple(dict.fromkeys(PublicKey(each.removeprefix(PUBLIC_PREFIX)) for each in found))


def _read_seed(path: Path) -> bytes:
    """Return the 32 secret bytes of a private key. Raises BundleError without a word of the file."""
    with contextlib.suppress(ValueError, binascii.Error):
        bodies = _pem_bodies("PRIVATE", read_file(path, MAX_BYTES, inside=False).decode("ascii"))
        if len(bodies) == 1:
            data = base64.b64decode("".join(bodies[0].split()), validate=True)
            if data.startswith(PRIVATE_PREFIX) and len(data) == len(PRIVATE_PREFIX) + KEY_BYTES:
                return data.removeprefix(PRIVATE_PREFIX)
    raise BundleError(f"{path.name}: expected one Ed25519 private key in PEM, not encrypted; `--new-key` makes one")


def _message(bundle_hash: str) -> bytes:
    return PURPOSE + bundle_hash.encode("ascii")


def _pem(kind: str, data: bytes) -> bytes:
    return f"-----BEGIN {kind} KEY-----\n{base64.b64encode(data).decode('ascii')}\n-----END {kind} KEY-----\n".encode()


def _pem_bodies(kind: str, text: str) -> list[str]:
    return re.findall(
        rf"^-----BEGIN {kind} KEY-----\s+([A-Za-z0-9+/=\s]+?)\s+-----END {kind} KEY-----\s*$", text, re.MULTILINE
    )


def _write_new(path: Path, data: bytes, mode: int) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)


def _replace(path: Path, data: bytes) -> None:
    """Put a whole file in the place of another; a reader sees one or the other, also after a power cut."""
    number, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    new = Path(name)
    try:
        with os.fdopen(number, "wb") as file:
            file.write(data)
            os.fchmod(file.fileno(), 0o644)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except BaseException:
        new.unlink()
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _bindings() -> Any:
    """Return the C functions of PyNaCl. Raises BundleError where it is not installed."""
    try:
        import nacl.bindings
    except ImportError as error:
        raise BundleError(f"{SIGNATURE}: cannot be checked: {INSTALL}") from error
    return nacl.bindings
