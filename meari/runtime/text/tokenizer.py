"""Text ↔ token ids with a bundle's own `tokenizer.json`.

Input: text as a request sends it. Output: ids with their offsets in that text (code points of the text as sent, before
NFC); and the vocabulary as text and as bytes, from which `detokenizer.py` writes text. Must not know: requests.
"""

from __future__ import annotations

import functools
import json
import os
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt
import tokenizers

from meari.bundle_format.manifest import Manifest
from meari.bundle_format.names import TokenizerKind
from meari.bundle_format.text_borders import last_space, nfc
from meari.errors import BundleError, EngineFailed

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # else the library starts threads

__all__ = ["Encoded", "TextTokenizer", "Vocabulary", "parse_tokenizer", "text_tokenizer"]

LONG_CHARS: Final = 1000
PIECE_CHARS: Final = 16384  # of a long text that are tokenized at a time
BYTES_PER_TOKEN: Final = 300  # while a text is tokenized, with offsets
TABLE_BYTES_PER_TOKEN: Final = 48  # the same without the library
Offsets = npt.NDArray[np.int32]
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
_NFC: Final = tokenizers.normalizers.NFC()


@dataclass(frozen=True)
class Vocabulary:
    """Every token by id.

    texts   each token as an answer shows it alone; bytes that are no whole character appear as U+FFFD
    pieces  its UTF-8 bytes, in byte-level BPE perhaps a part of a character
    """

    kind: TokenizerKind
    texts: tuple[str, ...]
    pieces: tuple[bytes, ...]
    unknown_id: int | None
    end_id: int  # the boundary token

    @property
    def size(self) -> int:
        """Number of tokens, the boundary token included."""
        return len(self.texts)

    def num_unknown(self, ids: Sequence[int]) -> int:
        """Count the tokens that stand for unknown text."""
        return 0 if self.unknown_id is None else ids.count(self.unknown_id)

    @functools.cached_property
    def parts(self) -> dict[int, list[int]]:
        """The bytes of the tokens that are no whole characters, whose texts do not show them."""
        pairs = enumerate(zip(self.texts, self.pieces, strict=True))
        return {token: list(piece) for token, (text, piece) in pairs if "\ufffd" in text and text.encode() != piece}


@dataclass(frozen=True, eq=False)
class Encoded:
    """A text as tokens: ids, and the start and end of each in the text as sent, in code points."""

    text: str
    ids: list[int]
    starts: Offsets
    ends: Offsets


class CharacterTable:
    """Code point -> id: a tokenizer of characters, ten times as fast as the library.

    The last entry stands for all code points behind it.
    """

    def __init__(self, ids: npt.NDArray[np.int32]) -> None:
        self._ids = ids

    @classmethod
    def of(cls, tokenizer: tokenizers.Tokenizer) -> CharacterTable | None:
        """Return None where the tokenizer does more than NFC, one token a character, and one for all unknown ones."""
        parts = json.loads(tokenizer.to_str())
        split = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False}
        model, entries = parts["model"], parts["model"].get("vocab", {})
        unknown = entries.get(model.get("unk_token")) if model["type"] == "WordLevel" else None
        found = (parts["normalizer"], parts["pre_tokenizer"], parts["post_processor"], parts["added_tokens"])
        if unknown is None or found != ({"type": "NFC"}, split, None, []):
            return None
        known = {ord(entry): token for entry, token in entries.items() if len(entry) == 1}
        ids = np.full(max(known, default=0) + 2, unknown, np.int32)
        ids[list(known)] = list(known.values())
        return cls(ids)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text."""
        normal = text if text.isascii() else _NFC.normalize_str(text)
        ids: list[int] = self._ids[_places_in(self._ids, normal)].tolist()
        return ids


def _places_in(table: npt.NDArray[Any], text: str) -> npt.NDArray[np.uint32]:
    """Return the place of each character in a table of code points."""
    return np.minimum(np.frombuffer(text.encode("utf-32-le"), np.uint32), np.uint32(len(table) - 1))


def _without_panics(method: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Make EngineFailed of a panic of the library, which is no `Exception`."""

    @functools.wraps(method)
    def run(*arguments: Arguments.args, **more: Arguments.kwargs) -> Result:
        try:
            return method(*arguments, **more)
        except (Exception, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as panic:
            raise EngineFailed(f"the tokenizer failed: {type(panic).__name__}") from panic

    return run


class TextTokenizer:
    """The tokenizer of one bundle; safe to use from several threads. All methods raise EngineFailed if it panics."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, vocabulary: Vocabulary) -> None:
        self._tokenizer = tokenizer
        self._characters = CharacterTable.of(tokenizer) if vocabulary.kind is TokenizerKind.CHAR else None
        self._is_cut = self._characters is not None or _may_be_cut(tokenizer)
        self.vocabulary = vocabulary

    @_without_panics
    def normalized(self, text: str) -> str:
        """Return the text in the normal form of the model's training text, which is also the form that it writes."""
        normalizer = self._tokenizer.normalizer
        return text if normalizer is None else str(normalizer.normalize_str(text))

    def max_tokens(self, text: str | list[int]) -> int:
        """Return a bound on the tokens of a text, or the number of ids.

        Each character in NFC is a token at most; in byte-level BPE each byte of one that is no token alone.
        """
        if isinstance(text, list) or text.isascii():
            return len(text)
        normal = nfc(text)
        if self.vocabulary.kind is not TokenizerKind.BPE:
            return len(normal)
        return int(self._tokens_of[_places_in(self._tokens_of, normal)].sum())

    @functools.cached_property
    def _tokens_of(self) -> npt.NDArray[np.uint8]:
        """Code point -> tokens of this character alone; the last entry stands for all code points behind it."""
        known = [ord(text) for text in self.vocabulary.texts if len(text) == 1 and text != "\ufffd"]
        counts = np.full(max([0x10000, *known]) + 2, 4, np.uint8)
        counts[:0x10000], counts[:0x800] = 3, 2
        counts[known] = 1
        counts[:0x80] = 1
        return counts

    @_without_panics
    def encode(self, text: str) -> list[int]:
        """Return ids without offsets and boundary tokens."""
        if self._characters is not None:
            return self._characters.encode(text)
        if len(text) > LONG_CHARS:  # without offsets, which take a third of the time
            return [token for piece in self._pieces(text) for token in self.encode_all([piece])[0]]
        ids: list[int] = self._encode(text).ids
        return ids

    @_without_panics
    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of many texts."""
        if self._characters is not None:
            return [self._characters.encode(text) for text in texts]
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    @_without_panics
    def encode_with_offsets(self, text: str) -> Encoded:
        """Return ids and offsets, without boundary tokens."""
        if self._characters is not None and unicodedata.is_normalized("NFC", text):
            ids = self._characters.encode(text)
            if len(ids) == len(text):  # the library's NFC may know a later Unicode
                places = np.arange(len(text) + 1, dtype=np.int32)
                return Encoded(text, ids, places[:-1], places[1:])
        if len(text) > PIECE_CHARS:
            return _joined(text, [self._encode_piece(piece) for piece in self._pieces(text)])
        return self._encode_piece(text)

    def tokenizing_bytes(self, text: str | list[int]) -> int:
        """Return the memory that the library takes for a while to tokenize a text; 0 if it is short, or ids."""
        if isinstance(text, list) or len(text) <= LONG_CHARS:
            return 0
        by_table = 0 if self._characters is None else TABLE_BYTES_PER_TOKEN * self.max_tokens(text)
        if by_table and text.isascii():
            return by_table
        # The library holds what came and its normal form, which may have fewer characters.
        return by_table + BYTES_PER_TOKEN * max(max(self.max_tokens(piece), len(piece)) for piece in self._pieces(text))

    def _pieces(self, text: str) -> Iterator[str]:
        """Cut a long text before spaces, where no token is changed; one without spaces stays whole."""
        start, size = 0, PIECE_CHARS if self._is_cut else len(text)
        while len(text) - start > size:
            cut = last_space(text[start : start + size])
            if cut:
                yield text[start : start + cut]
            start, size = start + cut, PIECE_CHARS if cut else 2 * size
        yield text[start:]

    def _encode_piece(self, text: str) -> Encoded:
        encoding = self._encode(text)
        offsets = np.array(encoding.offsets, dtype=np.int32).reshape(-1, 2)
        starts, ends = offsets[:, 0].copy(), offsets[:, 1].copy()
        if not unicodedata.is_normalized("NFC", text):
            ends = _ends_over_composed(text, starts, ends)
        return Encoded(text, encoding.ids, starts, ends)

    def _encode(self, text: str) -> tokenizers.Encoding:
        """Tokenize a text, a long one as a batch of one: then the library lets other threads run meanwhile."""
        if len(text) <= LONG_CHARS:
            return self._tokenizer.encode(text, add_special_tokens=False)
        return self._tokenizer.encode_batch([text], add_special_tokens=False)[0]


def _may_be_cut(tokenizer: tokenizers.Tokenizer) -> bool:
    """Tell whether a text may be cut before its spaces: nothing is added at a beginning or joined over a space."""
    normalizer, before = tokenizer.normalizer, tokenizer.pre_tokenizer
    at_spaces = (tokenizers.pre_tokenizers.Whitespace, tokenizers.pre_tokenizers.WhitespaceSplit)
    splits = isinstance(before, at_spaces) or (
        isinstance(before, tokenizers.pre_tokenizers.ByteLevel) and before.use_regex and not before.add_prefix_space
    )
    is_plain = normalizer is None or isinstance(normalizer, tokenizers.normalizers.NFC)
    return splits and is_plain and tokenizer.post_processor is None and not tokenizer.get_added_tokens_decoder()


def _joined(text: str, pieces: list[Encoded]) -> Encoded:
    shifts = np.cumsum([0, *(len(piece.text) for piece in pieces[:-1])], dtype=np.int32)
    starts, ends = (
        np.concatenate([each + shift for each, shift in zip(places, shifts, strict=True)])
        for places in ([piece.starts for piece in pieces], [piece.ends for piece in pieces])
    )
    return Encoded(text, [token for piece in pieces for token in piece.ids], starts, ends)


def parse_tokenizer(data: bytes) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    """Parse tokenizer.json, as a tokenizer and as its parts. Raises BundleError where it is none."""
    try:
        tokenizer = tokenizers.Tokenizer.from_str(data.decode("utf-8"))
        parts: dict[str, Any] = json.loads(data)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the library is no Exception
        raise BundleError("tokenizer.json: not a tokenizer as Hugging Face's tokenizers write it") from error
    for name in ("truncation", "padding"):
        if parts.get(name) is not None:
            raise BundleError(f"tokenizer.json: {name}: got settings, expected null: texts are scored as they are")
    return tokenizer, parts


def text_tokenizer(tokenizer: tokenizers.Tokenizer, manifest: Manifest) -> TextTokenizer:
    """Return a bundle's tokenizer; it has to be the one that the manifest describes."""
    entries = sorted(tokenizer.get_vocab(with_added_tokens=False).items(), key=lambda item: item[1])
    kind = TokenizerKind(manifest.tokenizer.kind)
    pieces = tuple(_piece(entry, kind) for entry, _ in entries)
    texts = tuple(piece.decode("utf-8", "replace") for piece in pieces)
    vocabulary = Vocabulary(kind, texts, pieces, manifest.tokenizer.unknown_id, manifest.boundary.id)
    return TextTokenizer(tokenizer, vocabulary)


def _ends_over_composed(text: str, starts: Offsets, ends: Offsets) -> Offsets:
    """Extend each token over all code points that NFC composed into one character; the library counts the first alone.

    Only such code points lie between two tokens, and white space between words.
    """
    following = np.append(starts, np.int32(len(text)))[np.searchsorted(starts, starts, side="right")]
    reach = ends.copy()
    for place in np.flatnonzero(ends < following):
        while reach[place] < following[place] and not text[reach[place]].isspace():
            reach[place] += 1
    return reach


def _piece(entry: str, kind: TokenizerKind) -> bytes:
    if kind is not TokenizerKind.BPE:
        return entry.encode("utf-8")
    return bytes(_BYTE_OF[character] for character in entry)


def _byte_of_character() -> dict[str, int]:
    """Return the byte-level alphabet: printable bytes are themselves, the other 68 the characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(0x100 + number): byte for number, byte in enumerate(rest)}


_BYTE_OF: Final = _byte_of_character()
