"""A text that somebody is typing: the tokens that may spell its end, and where words end.

Input: a text, a vocabulary. Output: the tokens before the text's tail, the byte strings that may stand in the tail's
place, and the progress of what is written after it. Must not know: models, requests.

The tail may be spelled by any tokens, the text before it is read as its own tokens. Of byte-level BPE the tail begins
at the last border over which no token reaches; of words it is the last run; of characters there is none.

A word is a run of letters, digits, marks and underscores, with single apostrophes and hyphens inside. It ends before
any other character, or where the text ends.

A Korean syllable may still be growing (`composing`). What was typed last then stands for a range of syllables, as the
keyboard with two sets of keys would go on: 하 for 하 … 핳, 호 also for 화, 홰 and 회, 한 for 한, 핝, 핞 and for 하
before 나 … 닣, and ㅎ for itself and 하 … 힣. The syllables of a range are consecutive, in UTF-8 too.
"""

from __future__ import annotations

import functools
import unicodedata
import weakref
from bisect import bisect_left
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from meari.bundle_format.names import TokenizerKind
from meari.bundle_format.text_borders import last_space, word_border
from meari.runtime.text.tokenizer import TextTokenizer, Vocabulary

__all__ = ["Ending", "Progress", "Span", "Spelling", "TypedText", "spelling_of", "typed_text"]

MAX_TAIL_BYTES: Final = 64  # a longer one is read as its own tokens up to there
LINKS: Final = "'’-"
INITIALS: Final = "ㄱㄲㄴㄷㄸㄹㅁㅂㅃㅅㅆㅇㅈㅉㅊㅋㅌㅍㅎ"
FINALS: Final = "-ㄱㄲㄳㄴㄵㄶㄷㄹㄺㄻㄼㄽㄾㄿㅀㅁㅂㅄㅅㅆㅇㅈㅊㅋㅌㅍㅎ"  # the first: none
COMPOUND_FINALS: Final = dict(
    zip("ㄳㄵㄶㄺㄻㄼㄽㄾㄿㅀㅄ", zip("ㄱㄴㄴㄹㄹㄹㄹㄹㄹㄹㅂ", "ㅅㅈㅎㄱㅁㅂㅅㅌㅍㅎㅅ", strict=True), strict=True)
)
NUM_COMPOUND_VOWELS: Final = {8: 3, 13: 3, 18: 1}  # that follow ㅗ, ㅜ, ㅡ in the order of syllables
FIRST_SYLLABLE: Final = 0xAC00
NUM_FINALS, NUM_VOWELS, NUM_SYLLABLES = 28, 21, 11172
Ids = npt.NDArray[np.int64]


class First(IntEnum):
    """The first character of a token."""

    WORD = 0
    SEPARATOR = 1
    LINK = 2
    INCOMPLETE = 3  # its first bytes alone
    REST = 4  # the last bytes of a character that has begun before
    NOTHING = 5  # the boundary token and the unknown one spell nothing


class Span(NamedTuple):
    """All byte strings from `low` to `high`, which have one length; other strings are in it if they begin so."""

    low: bytes
    high: bytes

    def after(self, piece: bytes) -> Span | None:
        """Return what has to follow `piece`, which is shorter than the span's strings, None if nothing can."""
        length = len(piece)
        if not self.low[:length] <= piece <= self.high[:length]:
            return None
        num_left = len(self.low) - length
        low = self.low[length:] if piece == self.low[:length] else b"\x00" * num_left
        high = self.high[length:] if piece == self.high[:length] else b"\xff" * num_left
        return Span(low, high)


class Spelling:
    """The vocabulary by its spelling.

    pieces    bytes of each token; a word has the space that follows it
    by_piece  bytes → token
    firsts    int8 [V], a `First` each
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        space = b" " if vocabulary.kind is TokenizerKind.WORD else b""
        silent = {vocabulary.end_id, vocabulary.unknown_id}
        self.end_id = vocabulary.end_id
        self.pieces = [piece + space for piece in vocabulary.pieces]
        spelled = [token for token, piece in enumerate(vocabulary.pieces) if piece and token not in silent]
        self.by_piece = {self.pieces[token]: token for token in spelled}
        spelled.sort(key=self.pieces.__getitem__)
        self._order = np.array(spelled, np.int64)
        self._sorted = [self.pieces[token] for token in spelled]
        self._lengths = np.array([len(piece) for piece in self._sorted], np.int64)
        self.firsts = np.full(vocabulary.size, First.NOTHING, np.int8)
        self.firsts[self._order] = [_first(piece) for piece in self._sorted]
        self._inner = np.array([_has_inner_end(piece) for piece in self._sorted], bool)

    def matching(self, span: Span) -> tuple[Ids, list[int]]:
        """Return the tokens that spell a string of the span, or more, and those that spell the beginning of one."""
        length = len(span.low)
        start, end = self._range(span.low, span.high)
        tokens, are_whole = self._order[start:end], self._lengths[start:end] >= length
        shorter = [self.by_piece.get(span.low[:count]) for count in range(1, length)]
        parts = [token for token in shorter if token is not None]
        return tokens[are_whole], parts + tokens[~are_whole].tolist()

    def has_match(self, span: Span) -> bool:
        """Return True if a token spells a string of the span, or its beginning."""
        tokens, parts = self.matching(span)
        return bool(len(tokens) or parts)

    def ending_behind(self, start: bytes) -> set[int]:
        """Return the tokens that begin so and may then, behind their first character, end a word.

        Behind nothing: those that begin with a link or with a part of a character.
        """
        if not start:
            return set(self.beginning[First.LINK, First.INCOMPLETE].tolist())
        first, last = self._range(start, start)
        return set(self._order[first:last][self._inner[first:last]].tolist())

    def _range(self, low: bytes, high: bytes) -> tuple[int, int]:
        """Return the places, in the order of their bytes, of the tokens from `low` to those that begin with `high`."""
        above = _above(high)
        end = len(self._sorted) if above is None else bisect_left(self._sorted, above)
        return bisect_left(self._sorted, low), end

    @functools.cached_property
    def beginning(self) -> dict[tuple[First, ...], Ids]:
        """Tokens that begin so, in the order of their ids, int64 each."""
        wanted = [(First.SEPARATOR,), (First.SEPARATOR, First.LINK), (First.REST,)]
        aside = [(First.INCOMPLETE,), (First.LINK, First.INCOMPLETE)]
        followers = [(First.WORD, First.LINK, First.INCOMPLETE), (First.WORD, First.INCOMPLETE)]
        spelled = (First.WORD, First.SEPARATOR, First.LINK, First.INCOMPLETE)
        return {kinds: np.flatnonzero(np.isin(self.firsts, kinds)) for kinds in (*wanted, *aside, *followers, spelled)}


_SPELLINGS: Final[weakref.WeakKeyDictionary[TextTokenizer, Spelling]] = weakref.WeakKeyDictionary()


def spelling_of(tokenizer: TextTokenizer) -> Spelling:
    """Return the spelling of a tokenizer's vocabulary, which is made once."""
    found = _SPELLINGS.get(tokenizer)
    if found is None:
        found = _SPELLINGS[tokenizer] = Spelling(tokenizer.vocabulary)
    return found


class Ending(NamedTuple):
    """The words wanted are written."""

    text: str


@dataclass(frozen=True, slots=True)
class Progress:
    """What was written after a typed text.

    typed      what was typed, as far as `text` takes its place
    text       whole characters
    pending    bytes of a character that is not complete
    in_word    whether `text` ends inside a word
    link_at    place of an apostrophe or a hyphen with which it ends, or -1
    is_fresh   whether something of the word is new
    num_left   words that are still to be ended
    """

    typed: str
    num_left: int
    in_word: bool = False
    link_at: int = -1
    text: str = ""
    pending: bytes = b""
    is_fresh: bool = False

    def then(self, piece: bytes) -> Progress | Ending | None:
        """Write more. None where it is no text."""
        data = self.pending + piece
        try:
            more, pending = data.decode(), b""
        except UnicodeDecodeError as error:
            if error.reason != "unexpected end of data":
                return None
            more, pending = data[: error.start].decode(), data[error.start :]
        text, in_word, link_at, is_fresh, num_left = self.text, self.in_word, self.link_at, self.is_fresh, self.num_left
        for char in more:
            if is_word_char(char):
                in_word, link_at = True, -1
                is_fresh = is_fresh or not self.typed.startswith(text + char)
            elif in_word and link_at < 0 and char in LINKS:
                link_at = len(text)
            elif in_word:
                num_left -= is_fresh
                if not num_left:
                    return Ending(text if link_at < 0 else text[:link_at])
                in_word, link_at, is_fresh = False, -1, False
            text += char
        return Progress(self.typed, num_left, in_word, link_at, text, pending, is_fresh)

    @property
    def ends_next(self) -> bool:
        """True if the last word that is wanted ends once a character ends it."""
        return self.in_word and self.is_fresh and self.num_left == 1

    def at_end(self, *, is_spaced: bool) -> str | None:
        """Return what is written if the text ends here; None if that is nothing new, or no text.

        is_spaced  whether the last token brought a space that it only has before another token
        """
        text = self.text[: self.link_at] if self.ends_next and self.link_at >= 0 else self.text
        text = text.removesuffix(" ") if is_spaced else text
        return None if self.pending or self.typed.startswith(text) else text


@dataclass(frozen=True)
class TypedText:
    """A text that goes on.

    ids       all tokens of the text, as it stands
    head      those of them that stand before its tail
    spans     the strings that may stand in the tail's place, none of them the beginning of another
    lead      bytes behind the text that no token spells
    stem      number of bytes of the tail that belong to the text; what follows is the completion
    replaces  characters at the end of the text, as it was sent, in whose place a completion stands
    progress  where the text stands before the completion
    """

    ids: list[int]
    head: list[int]
    spans: tuple[Span, ...]
    lead: bytes
    stem: int
    replaces: int
    progress: Progress


class Alternative(NamedTuple):
    """What may stand in the place of a syllable that grows: some text, then a character from `low` to `high`."""

    before: str
    low: str
    high: str


def typed_text(tokenizer: TextTokenizer, text: str, max_words: int, *, composing: bool) -> TypedText:
    """Return how a text may go on. composing: its last syllable may still grow."""
    normal = tokenizer.normalized(text)
    num_typed, growing = _growing(normal) if composing else (0, [])
    kept, typed = normal[: len(normal) - num_typed], normal[len(normal) - num_typed :]
    cut = _tail_start(tokenizer, normal, len(kept))
    head = tokenizer.encode(normal[:cut])
    ids = [*head, *tokenizer.encode(normal[cut:])]
    head, stem = _shortened(tokenizer, head, kept[cut:])
    spans = _spans(stem, growing)
    progress = _progress(kept, typed, max_words)
    if _can_spell(tokenizer, spans, normal[cut:]):
        spans = tuple(span for span in spans if span.low)
        return TypedText(ids, head, spans, b"", len(stem), _num_replaced(tokenizer, text, typed), progress)
    if growing:
        return typed_text(tokenizer, text, max_words, composing=False)
    if tokenizer.vocabulary.kind is not TokenizerKind.WORD:
        return TypedText(ids, ids, (), b"", 0, 0, progress)
    spaced = progress.then(b" ")  # a word that the model does not know is a whole one
    assert isinstance(spaced, Progress), "nothing new has ended"
    return TypedText(ids, ids, (), b" ", 0, 0, spaced)


def _tail_start(tokenizer: TextTokenizer, text: str, num_kept: int) -> int:
    """Return the place at which the tail begins, at most `num_kept`."""
    kind = tokenizer.vocabulary.kind
    if kind is TokenizerKind.BPE:
        return min(word_border(text), num_kept)
    if kind is TokenizerKind.CHAR:
        return num_kept
    begin = last_space(text)  # a vocabulary may have words with marks inside
    last = tokenizer.encode_with_offsets(text[begin:])
    if not last.ids or begin + last.ends[-1] < len(text):
        return num_kept
    return min(begin + int(last.starts[-1]), num_kept)


def _shortened(tokenizer: TextTokenizer, head: list[int], tail: str) -> tuple[list[int], bytes]:
    """Return the head with the first tokens of a tail that is too long, and the rest of the tail."""
    rest = tail.encode()
    for token in tokenizer.encode(tail) if len(rest) > MAX_TAIL_BYTES else ():
        if len(rest) <= MAX_TAIL_BYTES:
            break
        head, rest = [*head, token], rest[len(tokenizer.vocabulary.pieces[token]) :]
    return head, rest


def _spans(stem: bytes, growing: list[Alternative]) -> tuple[Span, ...]:
    if not growing:
        return (Span(stem, stem),)
    return tuple(Span(stem + (before + low).encode(), stem + (before + high).encode()) for before, low, high in growing)


def _can_spell(tokenizer: TextTokenizer, spans: tuple[Span, ...], tail: str) -> bool:
    """Return True if tokens spell one of the spans."""
    vocabulary = tokenizer.vocabulary
    if vocabulary.kind is TokenizerKind.BPE:
        return b"".join(vocabulary.pieces[token] for token in tokenizer.encode(tail)) == tail.encode()
    spelling = spelling_of(tokenizer)
    return any(not span.low or spelling.has_match(span) for span in spans)


def _num_replaced(tokenizer: TextTokenizer, text: str, typed: str) -> int:
    """Return the number of characters at the end of a text that have `typed` as their normal form."""
    if not typed:
        return 0
    return next(count for count in range(1, len(text) + 1) if tokenizer.normalized(text[-count:]) == typed)


def _growing(text: str) -> tuple[int, list[Alternative]]:
    """Return the number of characters that may still change, and what they may become."""
    last, second = text[-1:], text[-2:-1]
    if _is_syllable(last):
        initial, vowel, final = _parts(last)
        if not final:
            highest = _syllable(initial, vowel + NUM_COMPOUND_VOWELS.get(vowel, 0), NUM_FINALS - 1)
            return 1, [Alternative("", last, highest)]
        stays, moves = COMPOUND_FINALS.get(FINALS[final], ("-", FINALS[final]))
        open_part = _syllable(initial, vowel, FINALS.index(stays))
        return 1, [*_with_final(initial, vowel, final), _begun(open_part, moves)]
    if not last or last not in INITIALS:
        return 0, []
    if not _is_syllable(second) or _parts(second)[2]:
        return 1, [Alternative("", last, last), _begun("", last)]
    found = [Alternative(second, last, last), _begun(second, last)]
    if last in FINALS:
        found += _with_final(*_parts(second)[:2], FINALS.index(last))
    return 2, found


def _with_final(initial: int, vowel: int, final: int) -> list[Alternative]:
    """Return a syllable, and those whose final begins with the same consonant."""
    finals = [final, *(FINALS.index(both) for both, (one, _) in COMPOUND_FINALS.items() if one == FINALS[final])]
    syllables = [_syllable(initial, vowel, each) for each in finals]
    return [Alternative("", syllable, syllable) for syllable in syllables]


def _begun(before: str, consonant: str) -> Alternative:
    """Return the syllables that begin with a consonant."""
    initial = INITIALS.index(consonant)
    return Alternative(before, _syllable(initial, 0, 0), _syllable(initial, NUM_VOWELS - 1, NUM_FINALS - 1))


def _is_syllable(char: str) -> bool:
    return bool(char) and FIRST_SYLLABLE <= ord(char) < FIRST_SYLLABLE + NUM_SYLLABLES


def _parts(syllable: str) -> tuple[int, int, int]:
    """Return the numbers of a syllable's initial, vowel and final."""
    number = ord(syllable) - FIRST_SYLLABLE
    return number // (NUM_VOWELS * NUM_FINALS), number // NUM_FINALS % NUM_VOWELS, number % NUM_FINALS


def _syllable(initial: int, vowel: int, final: int) -> str:
    return chr(FIRST_SYLLABLE + (initial * NUM_VOWELS + vowel) * NUM_FINALS + final)


def is_word_char(char: str) -> bool:
    """Return True for letters, digits, marks and underscores."""
    return char.isalnum() or char == "_" or unicodedata.category(char)[0] == "M"


def _first(piece: bytes) -> First:
    if 0x80 <= piece[0] < 0xC0:
        return First.REST
    text = piece[:4].decode("utf-8", "ignore")
    if not text:
        return First.INCOMPLETE
    if is_word_char(text[0]):
        return First.WORD
    return First.LINK if text[0] in LINKS else First.SEPARATOR


def _has_inner_end(piece: bytes) -> bool:
    """Return True if a word may end behind the first character of a token."""
    text = piece.decode("utf-8", "replace")
    return not all(map(is_word_char, text[1:]))


def _above(string: bytes) -> bytes | None:
    """Return the least byte string after all that begin with `string`."""
    string = string.rstrip(b"\xff")
    return string[:-1] + bytes([string[-1] + 1]) if string else None


def _progress(before: str, typed: str, max_words: int) -> Progress:
    """Return where a text stands before its completion."""
    last, second = before[-1:], before[-2:-1]
    if last and last in LINKS and second and is_word_char(second):
        return Progress(typed, max_words, in_word=True, link_at=0)
    return Progress(typed, max_words, in_word=bool(last) and is_word_char(last))
