"""Kind of a file by its name and first bytes: text, gzip, or something that must be converted before it is read.

Input: a name and the first bytes. Output: the kind, and the command that converts the file to UTF-8. Must not know:
files, and anything beyond the standard library; training and the bulk verbs share these rules.

UTF-16 and UTF-32 without a byte-order mark are recognised by patterns that UTF-8 text never has, and only if all of
the decoded characters are characters of text:

    UTF-32                every fourth byte is zero
    UTF-16, valid UTF-8   zeros, and nearly every second byte is a control character (ASCII, Cyrillic, Arabic, Thai …)
    UTF-16, other         a zero in a high byte (a space, a line end), or hardly anything but Hangul, Han and kana

Bytes that are not valid UTF-8 and contain no zero are not claimed if they are valid in a legacy East Asian encoding.
Those are told only where bytes that are not UTF-8 are an error anyway, as a guess: by the characters that are common in
their scripts, which other bytes seldom give.
"""

from __future__ import annotations

import codecs
import re
import shlex
import unicodedata
from dataclasses import dataclass
from typing import Final

__all__ = [
    "GZIP",
    "HEAD_BYTES",
    "PARQUET",
    "TAR",
    "ZIP",
    "OtherKind",
    "kind_of_content",
    "kind_of_name",
    "likely_encoding",
    "may_be_other",
]

HEAD_BYTES: Final = 1024  # bytes examined
GZIP: Final = b"\x1f\x8b"
PARQUET: Final = b"PAR1"


@dataclass(frozen=True, slots=True)
class OtherKind:
    """Kind of a file that is not UTF-8 text.

    name         the kind, as messages name it
    command      command that converts the file; the file's name is appended
    is_encoding  True for text in another encoding
    """

    name: str
    command: str
    is_encoding: bool = False

    def refusal(self, file: str, *, is_gzip: bool = False) -> str:
        """Return the message: what came, what was expected, and the command that converts the file.

        file     its path; "-" is standard input
        is_gzip  True if this kind was found inside gzip
        """
        return f"got {self.name}, expected UTF-8, plain or gzip; {self.conversion(file, is_gzip=is_gzip)}"

    def guess(self, file: str, *, is_gzip: bool = False) -> str:
        """Return the end of a message about bytes that are not UTF-8."""
        return f"; it looks like {self.name}: {self.conversion(file, is_gzip=is_gzip)}"

    def conversion(self, file: str, *, is_gzip: bool = False) -> str:
        """Return the command that converts the file, in words; arguments as of `refusal`."""
        stdin = " -" if self is TAR else ""
        named = stdin if file == "-" else f" {shlex.quote(file)}"
        packed = f"gzip -dc{'' if file == '-' else named} | {self.command}{stdin}"
        return f"`{packed if is_gzip else self.command + named}` converts it"


TAR: Final = OtherKind("a tar archive", "tar -xOf")
ZIP: Final = OtherKind("a ZIP archive", "unzip -p")
_PACKED: Final = (
    (".xz", b"\xfd7zXZ\0", OtherKind("xz", "xz -dc")),
    (".zst", b"\x28\xb5\x2f\xfd", OtherKind("Zstandard", "zstd -dc")),
    (".lz4", b"\x04\x22\x4d\x18", OtherKind("lz4", "lz4 -dc")),
    (".zip", b"PK\3\4", ZIP),
    (".zip", b"PK\5\6", ZIP),
    (".7z", b"7z\xbc\xaf\x27\x1c", OtherKind("a 7z archive", "7z x -so")),
    *((".bz2", b"BZh%d1AY&SY" % level, OtherKind("bzip2", "bzip2 -dc")) for level in range(1, 10)),
)


def _encoding(name: str, of_iconv: str = "") -> OtherKind:
    return OtherKind(name, f"iconv -f {of_iconv or name} -t UTF-8", is_encoding=True)


_MARKS: Final = (
    (codecs.BOM_UTF32_LE, _encoding("UTF-32")),
    (codecs.BOM_UTF32_BE, _encoding("UTF-32")),
    (codecs.BOM_UTF16_LE, _encoding("UTF-16")),
    (codecs.BOM_UTF16_BE, _encoding("UTF-16")),
)
_STARTS: Final = (*((magic, kind) for _, magic, kind in _PACKED), *_MARKS)
_TAR_NAME: Final = re.compile(r"\.(tar(\.(gz|xz|bz2|zst|lz|lz4|lzma|z))?|tgz|taz|tbz2?|txz|tlz|tzst)$", re.IGNORECASE)
_TAR_MAGIC_AT: Final = 257

_MIN_BYTES: Final = 4  # by which zeros tell something
_MIN_OTHER_BYTES: Final = 8  # of what is not valid UTF-8
_MIN_CONTROL_BYTES: Final = 16  # of other scripts than ASCII in what is valid UTF-8
_MIN_EAST_ASIAN_BYTES: Final = 24
_MIN_CONTROL_SHARE: Final = 0.7
_MIN_EAST_ASIAN_SHARE: Final = 0.95
_MIN_HIGH_BIT_SHARE: Final = 0.3
_MAX_ASCII_SHARE: Final = 0.6  # of pairs of letters and the like: text in UTF-8 with a few other bytes
_KANA: Final = 0x30  # the high byte of Japanese letters
_EAST_ASIAN: Final = re.compile(r"[\u3000-\u30ff\u4e00-\u9fff\uac00-\ud7a3\uff00-\uffef]")
_EAST_ASIAN_ENCODINGS: Final = ("cp949", "gb18030", "big5", "shift_jis", "euc_jp")
_HANGUL: Final = re.compile(r"[\uac00-\ud7a3]")
_KANA_LETTERS: Final = re.compile(r"[\u3041-\u30fe]")
_HAN: Final = re.compile(r"[\u4e00-\u9fff]")


@dataclass(frozen=True, slots=True)
class _Legacy:
    """Encoding of two bytes a character, told by the characters that are common in its script.

    codec   of Python
    common  codec that has the common characters, and `firsts` their first bytes there
    share   the least one of them among all letters that are not ASCII
    """

    kind: OtherKind
    codec: str
    common: str
    firsts: range
    script: re.Pattern[str]
    share: float


# The order matters: Korean in CP949 is also valid GB18030, all of it common, but not the other way round.
_LEGACY: Final = (
    _Legacy(_encoding("CP949 (EUC-KR)", "CP949"), "cp949", "euc_kr", range(0xB0, 0xC9), _HANGUL, 0.8),
    _Legacy(_encoding("EUC-JP"), "euc_jp", "euc_jp", range(0xA4, 0xA6), _KANA_LETTERS, 0.25),
    _Legacy(_encoding("Shift JIS (CP932)", "CP932"), "cp932", "shift_jis", range(0x81, 0x84), _KANA_LETTERS, 0.25),
    _Legacy(_encoding("GB18030 (GBK)", "GB18030"), "gb18030", "gb2312", range(0xB0, 0xD8), _HAN, 0.7),
    _Legacy(_encoding("Big5", "BIG5"), "big5", "big5", range(0xA4, 0xC7), _HAN, 0.9),
)
_LATIN: Final = _encoding("Windows-1252 (Latin-1)", "CP1252")
# Capitals among small letters and signs inside a word: so look other alphabets of a byte a letter.
_NOT_LATIN: Final = re.compile(r"ÿ|[a-zß-ÿ][^\W\d_a-zß-ÿ][a-zß-ÿ]|[^\W\d_][‚„…‰¡£§©®°±·º¿²³½ª][^\W\d_]")
_LATIN_SIGNS: Final = frozenset("€‚„…‰‹‘’“”•–—™›¡£§©«®°±·º»¿ª²³½\u00a0")
_MAX_LATIN_SHARE: Final = 0.4  # of the letters: what has more is another alphabet's
_MIN_LEGACY_CHARACTERS: Final = 3
_MIN_LATIN_CHARACTERS: Final = 2
_MAX_UTF8_SHARE: Final = 0.6  # of the bytes beyond ASCII: a text in UTF-8 with a few damaged places has far more
_GUESS_BYTES: Final = 8192
_IN_TEXT: Final = frozenset("\t\n\r\f\u00ad\u200b\u200c\u200d\u200e\u200f\ufeff")


def may_be_other(head: bytes) -> bool:
    """Return True if more bytes are needed to tell which signature the file begins with."""
    return any(magic != head and magic.startswith(head) for magic in (GZIP, *(magic for magic, _ in _STARTS)))


def kind_of_name(name: str) -> OtherKind | None:
    """Return the kind of a packed file (gzip excepted) by its name; None for all other names."""
    if _TAR_NAME.search(name):
        return TAR
    return next((kind for suffix, _, kind in _PACKED if name.lower().endswith(suffix)), None)


def kind_of_content(name: str, head: bytes) -> OtherKind | None:
    """Return the kind by content; None for gzip and for text. Old tar archives have no signature: the name decides."""
    head = head[:HEAD_BYTES]
    if _TAR_NAME.search(name) or (head[_TAR_MAGIC_AT:].startswith(b"ustar") and 0 in head[:_TAR_MAGIC_AT]):
        return TAR
    found = next((kind for magic, kind in _STARTS if head.startswith(magic)), None)
    if found is not None or head.startswith(GZIP):
        return found
    encoding = _utf32(head) or _utf16(head)
    return _encoding(encoding) if encoding else None


def _utf32(head: bytes) -> str:
    if len(head) < 2 * _MIN_BYTES:
        return ""
    return next((name for name in ("UTF-32LE", "UTF-32BE") if _text_of(head, name) is not None), "")


def _utf16(head: bytes) -> str:
    """Return the possible byte order with fewer distinct high bytes: a text uses few scripts."""
    if len(head) < _MIN_BYTES:
        return ""
    found = [(len(set(high)), name) for name, high in _halves(head) if _is_utf16(head, name, high)]
    return min(found, key=lambda one: one[0])[1] if found else ""


def _halves(head: bytes) -> tuple[tuple[str, bytes], tuple[str, bytes]]:
    """Return both byte orders, each with its high bytes."""
    return ("UTF-16LE", head[1::2]), ("UTF-16BE", head[: len(head) // 2 * 2 : 2])


def _is_utf16(head: bytes, name: str, high: bytes) -> bool:
    text = _text_of(head, name)
    if text is None:
        return False
    if _decoded(head, "utf-8") is not None:
        share = _MIN_CONTROL_SHARE if len(head) >= _MIN_CONTROL_BYTES else 1.0
        others = 0 if share < 1.0 else sum(byte in b"\t\n\r\f" for byte in high)
        return 0 in high and sum(byte < ord(" ") for byte in high) - others >= share * len(high)
    pairs = zip(head[::2], head[1::2], high, strict=False)
    num_ascii = sum(_is_ascii(first) and _is_ascii(second) and top != _KANA for first, second, top in pairs)
    if len(head) < _MIN_OTHER_BYTES or num_ascii > _MAX_ASCII_SHARE * len(high):
        return False
    return 0 in high or _is_east_asian(head, text)


def _is_ascii(byte: int) -> bool:
    return ord(" ") <= byte <= ord("~")


def _is_east_asian(head: bytes, text: str) -> bool:
    if len(head) < _MIN_EAST_ASIAN_BYTES or sum(byte >> 7 for byte in head) < _MIN_HIGH_BIT_SHARE * len(head):
        return False
    if len(_EAST_ASIAN.findall(text)) < _MIN_EAST_ASIAN_SHARE * len(text):
        return False
    return all(_decoded(head, encoding) is None for encoding in _EAST_ASIAN_ENCODINGS)


def _text_of(head: bytes, encoding: str) -> str | None:
    """Return the decoded text; None if it has control characters or cannot be decoded."""
    text = _decoded(head, encoding)
    return text if text and all(char in _IN_TEXT or unicodedata.category(char)[0] != "C" for char in text) else None


def _decoded(head: bytes, encoding: str) -> str | None:
    """Decode; return None if the bytes are not valid. The last character may be incomplete."""
    try:
        return codecs.getincrementaldecoder(encoding)().decode(head)
    except UnicodeDecodeError:
        return None


def likely_encoding(data: bytes) -> OtherKind | None:
    """Return the legacy encoding that bytes are probably in which are not UTF-8; None where too little tells it.

    data  from the beginning of a line, or from anywhere in it
    """
    data = data[:_GUESS_BYTES]
    num_high = sum(byte >> 7 for byte in data)
    in_utf8 = data.decode("utf-8", "ignore")
    if len(in_utf8.encode()) - sum(char.isascii() for char in in_utf8) > _MAX_UTF8_SHARE * num_high or 0 in data:
        return None
    starts = (data, data[1:])  # the second byte of a character may come first
    found = (legacy.kind for start in starts for legacy in _LEGACY if _is_in(start, legacy))
    return next(found, None) or (_LATIN if _is_latin(data) else None)


def _is_in(data: bytes, legacy: _Legacy) -> bool:
    text = _text_of(data, legacy.codec)
    letters = [char for char in text or "" if char.isalpha() and not char.isascii()]
    if len(letters) < _MIN_LEGACY_CHARACTERS:
        return False
    firsts = [char.encode(legacy.common, "ignore")[:1] for char in letters if legacy.script.match(char)]
    return sum(first != b"" and first[0] in legacy.firsts for first in firsts) >= legacy.share * len(letters)


def _is_latin(data: bytes) -> bool:
    """Return whether all that is not ASCII are letters among those of ASCII, or signs of print."""
    text = _text_of(data, "cp1252")
    if text is None or _NOT_LATIN.search(text):
        return False
    others = [char for char in text if not char.isascii()]
    letters = sum(char.isalpha() and char not in _LATIN_SIGNS for char in others)
    return (
        len(others) >= _MIN_LATIN_CHARACTERS
        and letters + sum(char in _LATIN_SIGNS for char in others) == len(others)
        and letters <= _MAX_LATIN_SHARE * sum(char.isalpha() for char in text)
    )
