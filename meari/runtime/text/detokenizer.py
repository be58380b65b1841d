"""Token ids, one at a time → text, whole characters only, up to a stop string.

Input: token ids. Output: text that is certain, and where it has to stop. Must not know: models, requests. Whole and
streamed answers are both written by `Detokenizer`, so their texts are equal.

Characters are joined as they are. Words are joined by one space, with a space first where the text before does not end
in white space. Byte-level tokens are decoded as UTF-8 as far as characters are complete; bytes that cannot become a
character appear as U+FFFD, and a character still incomplete at the very end is left out. The boundary token is no text.

A text may be written in parts: a part begins as the `text_end` of the one before it says, and the parts joined are the
whole. A character that was left out at the end of a part is then the beginning of the next.

Stop strings: the first match is the one that is complete first; of several complete at the same character, the longest.
It does not depend on how the text is cut into tokens. Stop strings are put into the normal form that the model writes;
a match consists of whole characters of that form, so an accent matches no part of an accented letter. A match within
the first `min_tokens` tokens does not count. The search keeps one number a stop string, how many of its first
characters the text ends with (Knuth, Morris and Pratt 1977).
"""

from __future__ import annotations

import codecs
import copy
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from meari.bundle_format.names import TokenizerKind
from meari.runtime.text.tokenizer import Vocabulary

__all__ = [
    "MAX_PARTIAL_BYTES",
    "NO_TEXT",
    "Detokenizer",
    "StopMatcher",
    "StopPatterns",
    "StopSearch",
    "TextEnd",
    "detokenize",
    "matcher_factory",
    "partial_bytes",
]

MAX_PARTIAL_BYTES: Final = 3  # a UTF-8 character has at most four


@dataclass(frozen=True)
class TextEnd:
    """The end of a text, as far as the text that follows depends on it.

    needs_space  a space comes before a word that follows
    partial      the first bytes of an incomplete character, at most MAX_PARTIAL_BYTES
    """

    needs_space: bool = False
    partial: bytes = b""

    def then(self, text: str) -> TextEnd:
        """Return the end once `text` has been added. An incomplete character before it stays incomplete."""
        return TextEnd(not text[-1].isspace()) if text else self


NO_TEXT: Final = TextEnd()


class Detokenizer:
    """Writes one text, which follows a text that ends in `before`."""

    def __init__(self, vocabulary: Vocabulary, before: TextEnd = NO_TEXT) -> None:
        self._pieces = vocabulary.pieces
        self._texts = vocabulary.texts
        self._kind = vocabulary.kind
        self._end_id = vocabulary.end_id
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._utf8.setstate((before.partial, 0))
        self._needs_space = before.needs_space

    def feed(self, token: int) -> str:
        """Return the text that has become certain with this token."""
        if token == self._end_id:
            return ""
        if self._kind is TokenizerKind.BPE:
            return self._utf8.decode(self._pieces[token])
        if self._kind is TokenizerKind.CHAR:
            return self._texts[token]
        text = f" {self._texts[token]}" if self._needs_space else self._texts[token]
        self._needs_space = True
        return text

    def feed_all(self, tokens: Iterable[int]) -> str:
        """Return the joined results of `feed` for these tokens."""
        if self._kind is TokenizerKind.BPE:
            return self._utf8.decode(b"".join([self._pieces[token] for token in tokens if token != self._end_id]))
        if self._kind is TokenizerKind.CHAR:
            return "".join([self._texts[token] for token in tokens if token != self._end_id])
        return "".join([self.feed(token) for token in tokens])

    @property
    def text_end(self) -> TextEnd:
        """The state in which another detokenizer may continue."""
        return TextEnd(self._needs_space, self._utf8.getstate()[0])

    def end(self) -> str:
        """Return an incomplete character at the end as U+FFFD, for a text in which every token must show."""
        return self._utf8.decode(b"", final=True)


def partial_bytes(vocabulary: Vocabulary, tokens: Iterable[int]) -> list[int] | None:
    """Return the bytes of some tokens that are no whole characters together; None where their text shows them all."""
    if vocabulary.kind is not TokenizerKind.BPE:
        return None
    data = b"".join([vocabulary.pieces[token] for token in tokens if token != vocabulary.end_id])
    return None if data.decode("utf-8", "replace").encode("utf-8") == data else list(data)


def detokenize(vocabulary: Vocabulary, tokens: Iterable[int]) -> str:
    """Return the whole text of some tokens."""
    writer = Detokenizer(vocabulary)
    return "".join([*map(writer.feed, tokens), writer.end()])


@dataclass(frozen=True)
class Pattern:
    """A stop string; `borders[i]` is the length of the longest proper prefix of `text[:i + 1]` that also ends it."""

    text: str
    borders: array[int]


@dataclass(frozen=True)
class StopPatterns:
    """The stop strings of a request, prepared once for all its samples; no match counts within `min_tokens` tokens."""

    patterns: tuple[Pattern, ...]
    min_tokens: int = 0

    @classmethod
    def of(cls, stops: Iterable[str], normalized: Callable[[str], str], min_tokens: int = 0) -> StopPatterns:
        """Prepare non-empty strings, `normalized` unless that leaves them empty."""
        strings = dict.fromkeys(normalized(stop) or stop for stop in stops)
        return cls(tuple(Pattern(string, _borders(string)) for string in strings), min_tokens)


class StopSearch:
    """Searches for the first match in a text that is fed piece by piece."""

    def __init__(self, patterns: StopPatterns) -> None:
        self.min_tokens = patterns.min_tokens
        self._patterns = patterns.patterns
        self._matched = [0] * len(self._patterns)
        self._length = 0
        self.cut: int | None = None  # characters before the first match, once there is one

    @property
    def held_back(self) -> int:
        """Number of characters at the end of the text that may begin a match."""
        return max(self._matched, default=0)

    def feed(self, text: str, *, counts: bool = True) -> bool:
        """Add text; returns True once a match is complete. Text after a match is ignored.

        counts  whether a match that is completed in this text counts
        """
        if not self._patterns:
            return False
        for character in text:
            if self.cut is not None:
                break
            self._length += 1
            longest = 0
            for index, pattern in enumerate(self._patterns):
                matched = self._advance(index, pattern, character)
                if matched == len(pattern.text):
                    longest = max(longest, matched)
            if longest and counts:
                self.cut = self._length - longest
        return self.cut is not None

    def fork(self) -> StopSearch:
        """Return an independent copy, for the same text so far."""
        other = copy.copy(self)
        self._matched = self._matched.copy()  # the old list is the other's
        return other

    def _advance(self, index: int, pattern: Pattern, character: str) -> int:
        matched = self._matched[index]
        while matched and pattern.text[matched] != character:
            matched = pattern.borders[matched - 1]
        if pattern.text[matched] == character:
            matched += 1
        self._matched[index] = matched if matched < len(pattern.text) else pattern.borders[-1]
        return matched


class StopMatcher:
    """Stop strings in a text that is fed token by token: True once a match is complete."""

    def __init__(self, search: StopSearch, vocabulary: Vocabulary, before: TextEnd, num_tokens: int = 0) -> None:
        self._search = search
        self._num_tokens = num_tokens
        self._vocabulary = vocabulary
        self._writer = Detokenizer(vocabulary, before)

    def __call__(self, token: int, /) -> bool:
        self._num_tokens += 1
        return self._search.feed(self._writer.feed(token), counts=self._num_tokens > self._search.min_tokens)

    def fork(self) -> StopMatcher:
        """Return an independent copy, for the same text so far."""
        return StopMatcher(self._search.fork(), self._vocabulary, self._writer.text_end, self._num_tokens)


def matcher_factory(
    patterns: StopPatterns, vocabulary: Vocabulary, before: TextEnd
) -> Callable[[], StopMatcher] | None:
    """Return what makes a matcher for each sample, as the engine takes it; None without stop strings."""
    if not patterns.patterns:
        return None
    return lambda: StopMatcher(StopSearch(patterns), vocabulary, before)


def _borders(text: str) -> array[int]:
    borders = array("i", bytes(4 * len(text)))
    length = 0
    for position in range(1, len(text)):
        while length and text[position] != text[length]:
            length = borders[length - 1]
        if text[position] == text[length]:
            length += 1
        borders[position] = length
    return borders
