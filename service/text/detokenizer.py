"""Token ids, one at a time → text, whole characters only.

Whole and streamed answers are both written by `Detokenizer`, so their texts are equal. Knows nothing of models or
requests.

Rules: characters are joined as they are. Words are joined by one space, with a space first where something stands
before that does not end in white space. Byte-level tokens are decoded as UTF-8 as far as characters are complete;
bytes that can become none appear as U+FFFD, and a character still incomplete at the very end is left out. The
boundary token is no text.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable

from service.text.tokenizer import END_ID, TokenizerKind, Vocabulary

__all__ = ["Detokenizer", "detokenize"]


class Detokenizer:
    """Writes one text. `before` is what stands in front of it and is not repeated."""

    def __init__(self, vocabulary: Vocabulary, before: str = "") -> None:
        self._pieces = vocabulary.pieces
        self._texts = vocabulary.texts
        self._kind = vocabulary.kind
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._space = " " if before and not before[-1].isspace() else ""

    def feed(self, token: int) -> str:
        """The text that is certain now and was not before."""
        if token == END_ID:
            return ""
        if self._kind is TokenizerKind.BPE:
            return self._utf8.decode(self._pieces[token])
        if self._kind is TokenizerKind.CHAR:
            return self._texts[token]
        text = self._space + self._texts[token]
        self._space = " "
        return text

    def end(self) -> str:
        """What is left of an incomplete character, as U+FFFD; for a text whose every token must show."""
        return self._utf8.decode(b"", final=True)


def detokenize(vocabulary: Vocabulary, tokens: Iterable[int]) -> str:
    """The whole text of some tokens."""
    writer = Detokenizer(vocabulary)
    return "".join([*map(writer.feed, tokens), writer.end()])
