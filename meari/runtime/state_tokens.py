"""A state as text that a client keeps: `TextState` ↔ a signed token.

Input: a state, or a token. Output: the other of the two, or InvalidRequest with the reason. Must not know: HTTP, the
engine's threads.

Any worker of any host that has the same bundle and one of the same keys accepts a token. One that was not signed with
such a key is rejected before its contents are read.

Layout, numbers in little endian, the whole as base64url without padding:

    version    uint8
    bundle     8 bytes of the bundle's hash    ┐ only to say why a token is refused;
    key        4 bytes that tell keys apart    ┘ the signature covers them like all the rest
    flags      uint8: SEEDED, NEEDS_SPACE, BITMAP
    token      uint32
    position   uint64
    seed       uint64
    expires    uint64, milliseconds since 1970; only in a token that expires, which has a version of its own
    partial    uint8, how many; bytes of an incomplete character
    rows       float32, tensor after tensor in the manifest's order
    generated  uint32, how many distinct tokens were generated; of each, ascending, the step from the one before and how
               often it was generated, both as LEB128
    seen       token ids, ascending: a bit a token, or the steps from one to the next as LEB128, whichever is shorter
    signature  HMAC-SHA256 over everything above

The key of the signature is made from the service's key and the bundle's whole hash, so a token is bound to both.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import math
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import numpy as np
import numpy.typing as npt

from meari.errors import InvalidRequest, Problem
from meari.runtime.bundle import Bundle
from meari.runtime.engine import StateValue
from meari.runtime.text.detokenizer import MAX_PARTIAL_BYTES, NO_TEXT, TextEnd

__all__ = ["StateTokens", "TextState"]

VERSION: Final = 2
EXPIRING_VERSION: Final = 4  # as VERSION, with `expires`
OLDER_VERSION: Final = 1  # with the byte `sample` before `partial`, and without `generated`
SEEDED, NEEDS_SPACE, BITMAP = 1, 2, 4
COUNT_BYTES: Final = 5
STEP_BYTES: Final = 2  # a token on average, or less: together the steps are no more than the vocabulary
_COUNT: Final = struct.Struct("<I")
_HEAD: Final = struct.Struct("<B8s4sBIQQ")
_EXPIRY: Final = struct.Struct("<Q")
MAX_MILLISECONDS: Final = 253_402_300_799_000  # the end of the year 9999
_SIGNATURE_BYTES: Final = 32
_SOME_TOKEN: Final = "one as an earlier answer gave it"  # noqa: S105 (words of a message)
_AGAIN: Final = "run its text again"
Rows = dict[str, npt.NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class TextState:
    """State of a text after its last token.

    value      the engine's part
    text_end   end of its text
    is_seeded  a client knows value.seed; a text that was only scored has no seed
    """

    value: StateValue
    text_end: TextEnd = NO_TEXT
    is_seeded: bool = True


class StateTokens:
    """Writes and reads the state tokens of one bundle."""

    def __init__(
        self,
        keys: tuple[str, ...],
        bundle_hash: str,
        tensors: dict[str, tuple[int, ...]],
        vocabulary_size: int,
        valid_seconds: float = 0.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`keys` is not empty: the first signs, every one verifies. `tensors` are the shapes of one row's state.

        valid_seconds  how long a token is valid; 0 for ever, else tokens that never expire are refused
        clock          seconds since 1970, as other hosts have them too
        """
        assert keys, "a service without a key of its own makes one"
        self._valid_seconds = valid_seconds
        self._clock = clock
        self._bundle = bytes.fromhex(bundle_hash)
        self._keys = {_key_id(key): _signing_key(key, bundle_hash) for key in reversed(keys)}
        self._key_id = _key_id(keys[0])
        self._tensors = tensors
        self._vocabulary_size = vocabulary_size
        self._num_floats = sum(map(math.prod, tensors.values()))
        self._bitmap_bytes = -(-vocabulary_size // 8)

    @classmethod
    def of(cls, bundle: Bundle, keys: tuple[str, ...], valid_seconds: float = 0.0) -> StateTokens:
        """Return the reader and writer for an opened bundle."""
        manifest = bundle.manifest
        tensors = {entry.name: entry.shape for entry in manifest.state}
        return cls(keys, bundle.hash, tensors, manifest.sizes["vocabulary"], valid_seconds)

    @property
    def max_chars(self) -> int:
        """Length of the longest token of this bundle."""
        return self._max_chars(self._vocabulary_size)

    def memory_bytes(self, num_seen: int) -> int:
        """Return about the bytes of a state and its token while an answer is made, after at most `num_seen` tokens."""
        num_distinct = min(num_seen, self._vocabulary_size)
        return 2 * self._max_chars(num_distinct) + 4 * self._num_floats + 128 * num_distinct

    def _max_chars(self, num_distinct: int) -> int:
        """Return the length of the longest token of a state whose text has so many distinct tokens."""
        size = _HEAD.size + _EXPIRY.size + 1 + MAX_PARTIAL_BYTES + 4 * self._num_floats + self._bitmap_bytes
        size += _COUNT.size + (STEP_BYTES + COUNT_BYTES) * num_distinct
        return -(-4 * (size + _SIGNATURE_BYTES) // 3)

    def encode(self, state: TextState) -> str:
        """Return the token of a state of this bundle."""
        signed = self._payload(state)
        return base64.urlsafe_b64encode(signed + self._signature(self._key_id, signed)).rstrip(b"=").decode("ascii")

    def decode(self, text: str) -> TextState:
        """Return the state of a token. Raises InvalidRequest, naming the field `state` and the reason."""
        data = self._bytes(text)
        signed, signature = data[:-_SIGNATURE_BYTES], data[-_SIGNATURE_BYTES:]
        version, bundle, key_id, *_ = _HEAD.unpack_from(signed)
        if version not in (VERSION, EXPIRING_VERSION, OLDER_VERSION):
            raise _refused(f"a token of format version {version}", f"{VERSION}: {_AGAIN}")
        if bundle != self._bundle[:8]:
            raise _refused("a token of another model or another export of it", "one of this model")
        if key_id not in self._keys:
            raise _refused(
                "a token signed with a key that this service does not hold",
                "one of its own: run its text again; without MEARI_STATE_KEY a service makes a new key at every start",
            )
        if not hmac.compare_digest(signature, self._signature(key_id, signed)):
            raise _refused("a token that was changed or cut since it was signed", _SOME_TOKEN)
        try:
            self._check_expiry(signed)
            return self._state(signed)
        except ValueError as problem:
            raise _refused(f"a token that holds {problem}", _SOME_TOKEN) from None

    def _check_expiry(self, signed: bytes) -> None:
        """Refuse a token whose time is up, or that has none where one is needed."""
        if signed[0] != EXPIRING_VERSION:
            if self._valid_seconds:
                raise _refused("a token that never expires", "one that does, as this service gives it: " + _AGAIN)
            return
        expires = _EXPIRY.unpack(_Rest(signed, _HEAD.size).take(_EXPIRY.size))[0] / 1000
        if expires <= self._clock():
            at = datetime.fromtimestamp(expires, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
            raise _refused(f"a token that expired at {at}", "one that is still valid: " + _AGAIN)

    def _bytes(self, text: str) -> bytes:
        """Return the bytes of a token; only one text stands for them."""
        if len(text) > self.max_chars:
            raise _refused(f"{len(text)} characters", f"at most {self.max_chars} for this model")
        try:
            data = base64.urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
        except (binascii.Error, UnicodeEncodeError):
            data = b""
        is_canonical = base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii") == text
        if not is_canonical or len(data) < _HEAD.size + 2 + _SIGNATURE_BYTES:
            raise _refused("text that is no state token", _SOME_TOKEN)
        return data

    def _signature(self, key_id: bytes, signed: bytes) -> bytes:
        return hmac.digest(self._keys[key_id], signed, "sha256")

    def _payload(self, state: TextState) -> bytes:
        value, end = state.value, state.text_end
        seen, flags = self._packed(value.seen)
        flags |= (SEEDED if state.is_seeded else 0) | (NEEDS_SPACE if end.needs_space else 0)
        version, expiry = (EXPIRING_VERSION, self._expiry()) if self._valid_seconds else (VERSION, b"")
        return b"".join(
            (
                _HEAD.pack(version, self._bundle[:8], self._key_id, flags, value.token, value.position, value.seed),
                expiry,
                bytes([len(end.partial)]) + end.partial,
                *(value.rows[name].astype("<f4").tobytes() for name in self._tensors),
                _packed_counts(value.generated),
                seen,
            )
        )

    def _expiry(self) -> bytes:
        milliseconds = math.ceil((self._clock() + self._valid_seconds) * 1000)
        return _EXPIRY.pack(min(milliseconds, MAX_MILLISECONDS))

    def _packed(self, seen: frozenset[int]) -> tuple[bytes, int]:
        """Return token ids as bytes, and the flag of their form."""
        if len(seen) < self._bitmap_bytes:
            steps = np.diff(np.array(sorted(seen), np.int64), prepend=0)
            data = b"".join(map(_leb128, steps.tolist()))
            if len(data) < self._bitmap_bytes:
                return data, 0
        bits = np.zeros(self._vocabulary_size, np.uint8)
        bits[list(seen)] = 1
        return np.packbits(bits, bitorder="little").tobytes(), BITMAP

    def _state(self, signed: bytes) -> TextState:
        """Return the state in a payload whose signature is right. Raises ValueError if the payload is not."""
        version, _, _, flags, token, position, seed = _HEAD.unpack_from(signed)
        rest = _Rest(signed, _HEAD.size + (_EXPIRY.size if version == EXPIRING_VERSION else 0))
        if version == OLDER_VERSION and rest.count():
            raise ValueError("the number of a sample, as an older version gave it: run its text again")
        partial = rest.take(rest.count())
        rows = self._rows(rest.take(4 * self._num_floats))
        generated = {} if version == OLDER_VERSION else self._unpacked_counts(rest)
        seen = self._unpacked(rest.take(len(signed) - rest.at), flags)
        if token >= self._vocabulary_size or position >= 2**63 or seed >= 2**63:
            raise ValueError("a number out of range")
        if len(partial) > MAX_PARTIAL_BYTES:
            raise ValueError("more than it should")
        value = StateValue(rows, token, position, seed, seen, generated)
        return TextState(value, TextEnd(bool(flags & NEEDS_SPACE), partial), bool(flags & SEEDED))

    def _rows(self, data: bytes) -> Rows:
        floats = np.frombuffer(data, "<f4").astype(np.float32)
        if not np.isfinite(floats).all():
            raise ValueError("a number that is not finite")
        places = np.cumsum([0, *map(math.prod, self._tensors.values())]).tolist()
        return {
            name: floats[first:last].reshape(shape)
            for (name, shape), first, last in zip(self._tensors.items(), places, places[1:], strict=False)
        }

    def _unpacked_counts(self, rest: _Rest) -> dict[int, int]:
        counts, token = {}, 0
        for _ in range(_COUNT.unpack(rest.take(_COUNT.size))[0]):
            token += rest.leb128()
            counts[token] = rest.leb128()
        if token >= self._vocabulary_size:
            raise ValueError("a token id out of range")
        return counts

    def _unpacked(self, data: bytes, flags: int) -> frozenset[int]:
        if len(data) > self._bitmap_bytes or (flags & BITMAP and len(data) != self._bitmap_bytes):
            raise ValueError("a list of token ids of another length")
        if flags & BITMAP:
            seen = np.flatnonzero(np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little"))
        else:
            seen = np.cumsum(np.fromiter(_steps(data), np.int64))
        if seen.size and (seen[-1] >= self._vocabulary_size or seen.min() < 0):
            raise ValueError("a token id out of range")
        return frozenset(seen.tolist())


class _Rest:
    """Reads bytes from a position on, never past the end."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data = data
        self.at = at

    def count(self) -> int:
        """Read a count of one byte."""
        return self.take(1)[0]

    def leb128(self) -> int:
        """Read a number of at most COUNT_BYTES bytes. Raises ValueError if there is none."""
        number = 0
        for place in range(COUNT_BYTES):
            byte = self.count()
            number |= (byte & 0x7F) << 7 * place
            if byte < 0x80:
                return number
        raise ValueError("a number out of range")

    def take(self, size: int) -> bytes:
        """Read `size` bytes. Raises ValueError if there are fewer."""
        if self.at + size > len(self._data):
            raise ValueError("less than it should")
        self.at += size
        return self._data[self.at - size : self.at]


def _key_id(key: str) -> bytes:
    return hmac.digest(key.encode(), b"meari state key", "sha256")[:4]


def _signing_key(key: str, bundle_hash: str) -> bytes:
    return hmac.digest(key.encode(), b"meari state token of bundle " + bundle_hash.encode(), "sha256")


def _packed_counts(counts: Mapping[int, int]) -> bytes:
    tokens = sorted(counts)
    steps = np.diff(np.array(tokens, np.int64), prepend=0).tolist()
    pairs = (_leb128(step) + _leb128(counts[token]) for step, token in zip(steps, tokens, strict=True))
    return _COUNT.pack(len(tokens)) + b"".join(pairs)


def _leb128(number: int) -> bytes:
    """Return a number >= 0 in seven bits a byte, the lowest first; the eighth bit says that more follow."""
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*parts, number])


def _steps(data: bytes) -> Iterator[int]:
    number = shift = 0
    for byte in data:
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            yield number
            number = shift = 0
        elif shift > 28:
            raise ValueError("a token id out of range")
    if shift:
        raise ValueError("less than it should")


def _refused(got: str, expected: str) -> InvalidRequest:
    return InvalidRequest(Problem("state", got, expected))
