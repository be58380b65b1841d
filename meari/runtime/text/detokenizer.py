"""Token ids, one at a time → text, whole characters only.

Whole and streamed answers are both written by `Detokenizer`, so their texts are equal. Knows nothing of models or
requests.

Rules: characters are joined as they are. Words are joined by one space, with a space first where something stands
before that does not end in white space. Byte-level tokens are decoded as UTF-8 as far as characters are complete;
bytes that can become none appear as U+FFFD, and a character still incomplete at the very end is left out. The
boundary token is no text.

A text may be written in parts: a part begins as the `text_end` of the one before it says, and the parts joined are
the whole. A character that was left out at the end of a part is then the beginning of the next.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from meari.bundle_format.names import TokenizerKind
from meari.runtime.text.tokenizer import Vocabulary

__all__ = ["MAX_PARTIAL_BYTES", "NO_TEXT", "Detokenizer", "TextEnd", "detokenize", "partial_bytes"]

MAX_PARTIAL_BYTES: Final = 3  # a character of UTF-8 has four at most


@dataclass(frozen=True)
class TextEnd:
    """How a text ends, as far as what follows depends on it.

    needs_space  a word that follows is set off by a space
    partial      the first bytes of a character that is not complete, at most MAX_PARTIAL_BYTES
    """

    needs_space: bool = False
    partial: bytes = b""

    def then(self, text: str) -> TextEnd:
        """How it ends once `text` has been added. An incomplete character before it stays incomplete for ever."""
        return TextEnd(not text[-1].isspace()) if text else self


NO_TEXT: Final = TextEnd()


class Detokenizer:
    """Writes one text. `before` is how what stands in front of it ends; that is not repeated."""

    def __init__(self, vocabulary: Vocabulary, before: TextEnd = NO_TEXT) -> None:
        self._pieces = vocabulary.pieces
        self._texts = vocabulary.texts
        self._kind = vocabulary.kind
        self._end_id = vocabulary.end_id
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._utf8.setstate((before.partial, 0))
        self._needs_space = before.needs_space

    def feed(self, token: int) -> str:
        """The text that is certain now and was not before."""
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
        """What `feed` gives for these tokens, joined."""
        if self._kind is TokenizerKind.BPE:
            return self._utf8.decode(b"".join([self._pieces[token] for token in tokens if token != self._end_id]))
        return "".join([self.feed(token) for token in tokens])

    @property
    def text_end(self) -> TextEnd:
        """Where another detokenizer may go on."""
        return TextEnd(self._needs_space, self._utf8.getstate()[0])

    def end(self) -> str:
        """What is left of an incomplete character, as U+FFFD; for a text whose every token must show."""
        return self._utf8.decode(b"", final=True)


def partial_bytes(vocabulary: Vocabulary, tokens: Iterable[int]) -> list[int] | None:
    """The bytes of some tokens that together are no whole characters; None where their text says all."""
    if vocabulary.kind is not TokenizerKind.BPE:
        return None
    data = b"".join([vocabulary.pieces[token] for token in tokens if token != vocabulary.end_id])
    return None if data.decode("utf-8", "replace").encode("utf-8") == data else list(data)


def detokenize(vocabulary: Vocabulary, tokens: Iterable[int]) -> str:
    """The whole text of some tokens."""
    writer = Detokenizer(vocabulary)
    return "".join([*map(writer.feed, tokens), writer.end()])
