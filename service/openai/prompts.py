"""A prompt as text or as token ids → what the engine reads, and how it is echoed.

Token ids may begin with the boundary token: it is the one that stands in front of every text anyway.
"""

from __future__ import annotations

from dataclasses import dataclass

from meari.runtime.requests import checked_ids
from meari.runtime.text.detokenizer import NO_TEXT, Detokenizer, TextEnd
from meari.runtime.text.tokenizer import TextTokenizer, Vocabulary

__all__ = ["Places", "ReadPrompt", "read_ids", "read_text"]


@dataclass(frozen=True, eq=False)
class ReadPrompt:
    """A prompt that was read.

    ids           without a boundary token in front
    has_boundary  whether one came
    text          as it is echoed
    offsets       where each of `ids` begins in it; empty where nobody asks
    text_end      how it ends, for the text that follows
    num_unknown   how many of `ids` stand for what the model does not know
    """

    ids: list[int]
    has_boundary: bool
    text: str
    offsets: list[int]
    text_end: TextEnd
    num_unknown: int


class Places:
    """Places of tokens in a text to which they are joined one after another."""

    def __init__(self, vocabulary: Vocabulary, before: TextEnd, length: int) -> None:
        """length: characters before the first token."""
        self._writer = Detokenizer(vocabulary, before)
        self._vocabulary = vocabulary
        self.length = length

    def of(self, token: int) -> int:
        """The place of the next token."""
        first = self.length
        text = self._writer.feed(token)
        self.length += len(text)
        own = self._vocabulary.texts[token]
        if text.endswith(own) and "\ufffd" not in own:
            return self.length - len(own)  # before it may stand a space, or what became of bytes that were no character
        return first


def read_text(text: str, tokenizer: TextTokenizer, with_offsets: bool) -> ReadPrompt:
    """A text by the model's own tokenizer."""
    offsets: list[int] = []
    if with_offsets:
        encoded = tokenizer.encode_with_offsets(text)
        ids, offsets = encoded.ids, encoded.starts.tolist()
    else:
        ids = tokenizer.encode(text)
    return ReadPrompt(ids, False, text, offsets, NO_TEXT.then(text), tokenizer.vocabulary.num_unknown(ids))


def read_ids(ids: list[int], vocabulary: Vocabulary, path: str) -> ReadPrompt:
    """Token ids, called `path` in a message. Raises InvalidRequest."""
    checked_ids(ids, vocabulary.size, path)
    has_boundary = ids[:1] == [vocabulary.end_id]
    own = ids[1:] if has_boundary else ids
    places = Places(vocabulary, NO_TEXT, 0)
    offsets = [places.of(token) for token in own]
    writer = Detokenizer(vocabulary)
    return ReadPrompt(own, has_boundary, writer.feed_all(own), offsets, writer.text_end, vocabulary.num_unknown(own))
