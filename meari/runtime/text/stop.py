"""Stop strings in a text that grows: where the text is cut, and what must be held back until that is certain.

The first match is the one that is complete first; of several that are complete at the same character, the longest. It
does not depend on how the text is cut into tokens. Stop strings are put into the form in which the model writes; a
match is one of whole characters of that form, so that an accent matches no part of an accented letter. A match that is
complete within the first `min_tokens` tokens does not count. The search keeps one number a stop string (Knuth, Morris
and Pratt 1977): how many of its first characters the text ends with.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from meari.runtime.text.detokenizer import Detokenizer, TextEnd
from meari.runtime.text.tokenizer import Vocabulary

__all__ = ["StopMatcher", "StopPatterns", "StopSearch", "matcher_factory"]


@dataclass(frozen=True)
class Pattern:
    """A stop string; `borders[i]` is the length of the longest proper prefix of `text[:i + 1]` that also ends it."""

    text: str
    borders: tuple[int, ...]


@dataclass(frozen=True)
class StopPatterns:
    """The stop strings of a request, prepared once for all of its samples; none counts within `min_tokens` tokens."""

    patterns: tuple[Pattern, ...]
    min_tokens: int = 0

    @classmethod
    def of(cls, stops: Iterable[str], normalized: Callable[[str], str], min_tokens: int = 0) -> StopPatterns:
        """Prepare non-empty strings, `normalized` unless that leaves nothing of them."""
        strings = dict.fromkeys(normalized(stop) or stop for stop in stops)
        return cls(tuple(Pattern(string, _borders(string)) for string in strings), min_tokens)


class StopSearch:
    """Looks for the first match in a text that is fed piece by piece."""

    def __init__(self, patterns: StopPatterns) -> None:
        self.min_tokens = patterns.min_tokens
        self._patterns = patterns.patterns
        self._matched = [0] * len(self._patterns)
        self._length = 0
        self.cut: int | None = None  # characters before the first match, once there is one

    @property
    def held_back(self) -> int:
        """How many characters at the end of the text may be the beginning of a match."""
        return max(self._matched, default=0)

    def feed(self, text: str, *, counts: bool = True) -> bool:
        """Add text; True once a match is complete. What follows a match is not looked at.

        counts  whether a match that is complete in this text is one
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
        """Another for the same text so far."""
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
        """Another for the same text so far."""
        return StopMatcher(self._search.fork(), self._vocabulary, self._writer.text_end, self._num_tokens)


def matcher_factory(
    patterns: StopPatterns, vocabulary: Vocabulary, before: TextEnd
) -> Callable[[], StopMatcher] | None:
    """What the engine asks of a stop: a matcher a sample, fed each token id, True where the sample is over."""
    if not patterns.patterns:
        return None
    return lambda: StopMatcher(StopSearch(patterns), vocabulary, before)


def _borders(text: str) -> tuple[int, ...]:
    borders = [0] * len(text)
    length = 0
    for position in range(1, len(text)):
        while length and text[position] != text[length]:
            length = borders[length - 1]
        if text[position] == text[length]:
            length += 1
        borders[position] = length
    return tuple(borders)
