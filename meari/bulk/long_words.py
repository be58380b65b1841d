"""The rows of words of a text that comes in pieces; a piece may end inside a word, or in the white space between two.

Input: scored pieces, in order. Output: the rows of the words that are complete. Must not know: the output.

The rule is that of `meari/runtime/scores.py`: a token belongs to the word in which it begins, white space to the
word that follows it, and at the end of a text to the last word. Sums are kept in nats, where they are exact.
"""

from __future__ import annotations

from msgspec.structs import replace

from meari.runtime.answers import ScoredWord
from meari.runtime.requests import LogBase
from meari.runtime.scores import ScoredText, in_base
from meari.runtime.text.words import Words, open_run

__all__ = ["LongWords"]


class LongWords:
    """Joins the words of pieces that are added in order."""

    def __init__(self, log_base: LogBase, split: Words) -> None:
        self._log_base = log_base
        self._has_segments = split == "unicode"
        self._held: ScoredText | None = None  # the end of a piece whose segments depend on what follows
        self._num_chars = 0
        self._num_tokens = 0
        self._open: ScoredWord | None = None  # the last word so far, which may continue; its text is in `_texts`
        self._space = ScoredWord("", 0.0, 0, 0)  # the white space behind it; without a word its text is in `_texts`
        self._texts: list[str] = []
        self._ends_in_word = False
        self._end: list[ScoredWord] = []

    def add(self, scored: ScoredText) -> list[ScoredWord]:
        """Add the next piece and return the words that are complete."""
        if self._has_segments:
            scored = scored if self._held is None else scored.with_before(self._held)
            position = open_run(scored.encoded.text)
            is_whole = position == len(scored.encoded.text)
            scored, self._held = (scored, None) if is_whole else scored.parted(position)
        return self._add(scored)

    def _add(self, scored: ScoredText) -> list[ScoredWord]:
        text = scored.encoded.text
        words, rest = scored.word_parts()
        self._end = scored.end_row()
        for word in (*words, rest, *self._end):
            word.start += self._num_chars
            word.end += self._num_chars
        if words:
            continues = self._ends_in_word and not text[0].isspace() and not self._has_segments
            words = self._joined(words, continues=continues)
            self._space = rest
        else:
            self._space = _both(self._space, rest)
            self._texts += [text] if self._open is None else []
        self._ends_in_word = not text[-1].isspace() if text else self._ends_in_word
        self._num_chars += len(text)
        self._num_tokens += len(scored.encoded.ids)
        return [self._finished(word) for word in words]

    def end(self) -> list[ScoredWord]:
        """Return the last word, or white space alone, and the end of the text if it is counted."""
        words = [] if self._held is None else self._add(self._held)
        last: list[ScoredWord] = []
        if self._open is not None:
            last = [replace(_both(self._open, self._space), end=self._open.end, text="".join(self._texts))]
        elif self._num_tokens:
            last = [replace(self._space, text="".join(self._texts))]
        return words + [self._finished(word) for word in (*last, *self._end)]

    def _joined(self, words: list[ScoredWord], *, continues: bool) -> list[ScoredWord]:
        """Join the words to the open one, and leave the last one open."""
        if self._open is not None and continues:
            self._texts.append(words[0].text)
            words[0] = replace(_both(self._open, words[0]), text="".join(self._texts) if len(words) > 1 else "")
        else:
            words[0].logprob += self._space.logprob
            words[0].unknown |= self._space.unknown
            words = [replace(self._open, text="".join(self._texts)), *words] if self._open is not None else words
        if len(words) > 1 or not continues:
            self._texts = [words[-1].text]
        self._open = words.pop()
        return words

    def _finished(self, word: ScoredWord) -> ScoredWord:
        word.logprob = in_base(word.logprob, self._log_base)
        return word


def _both(one: ScoredWord, other: ScoredWord) -> ScoredWord:
    """Return two neighbours as one, with the text of the first."""
    return ScoredWord(one.text, one.logprob + other.logprob, one.start, other.end, one.unknown or other.unknown)
