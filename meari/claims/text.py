"""What is read: files, or the text made by `meari.claims.grammar`, as token ids in three parts.

In: names of files. Out: a `Text`. Knows nothing of models.

Tokens are characters. The parts lie one behind the other, so that no part has seen another one: training, validation
(for the length of schedules alone) and held-out (for the figures).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from meari.claims.grammar import made_text
from meari.models.choices import Document, TokenizerKind
from meari.models.config import TokenizerConfig
from meari.models.errors import CorpusError
from meari.models.text.corpus import read_documents
from meari.models.text.tokenizer import Tokenizer, train_tokenizer

Ids = NDArray[np.int64]

TRAINING_SHARE, VALIDATION_SHARE = 0.9, 0.05
LEAST_CHARACTERS = 20_000
MOST_CHARACTERS = 5_000_000  # more than any budget reads
MOST_KINDS = 256  # of characters; rarer ones become the unknown token
MADE_SEED = 7


class CharacterKind(StrEnum):
    """What a character is to a reader."""

    LETTER = "letter"
    CAPITAL = "capital"
    PUNCTUATION = "punctuation, digit"
    SPACE = "space"
    LINE_END = "line end"


BOUNDARIES = (CharacterKind.SPACE, CharacterKind.LINE_END)
KINDS = tuple(CharacterKind)


@dataclass(frozen=True)
class Text:
    """training, validation, held_out   int64 [num_tokens]
    kinds                               int64 [vocabulary], the place in KINDS of each token's character
    """

    name: str
    tokenizer: Tokenizer
    training: Ids
    validation: Ids
    held_out: Ids
    kinds: Ids

    @property
    def vocabulary_size(self) -> int:
        return self.tokenizer.vocabulary_size


def read_text(files: Sequence[Path], made_characters: int) -> Text:
    """Read files in order, or make a text of `made_characters` where there are none.

    Raises CorpusError: unreadable, not UTF-8, or too short to say anything.
    """
    if files:
        whole = "\n".join(document.text for document in read_documents(files, Document.FILE))[:MOST_CHARACTERS]
        name = ", ".join(path.name if path.parent.name == "" else f"{path.parent.name}/{path.name}" for path in files)
    else:
        whole, name = made_text(made_characters, MADE_SEED), "a text made by a small probabilistic grammar"
    if len(whole) < LEAST_CHARACTERS:
        raise CorpusError(f"--text: got {len(whole)} characters, expected at least {LEAST_CHARACTERS}")
    return split_text(name, whole)


def split_text(name: str, whole: str) -> Text:
    """Cut into the three parts; the tokenizer is made of the training part alone."""
    first, second = (int(share * len(whole)) for share in (TRAINING_SHARE, TRAINING_SHARE + VALIDATION_SHARE))
    parts = [whole[:first], whole[first:second], whole[second:]]
    tokenizer = train_tokenizer(parts[:1], TokenizerConfig(TokenizerKind.CHAR, vocabulary_size=MOST_KINDS))
    training, validation, held_out = (array.astype(np.int64) for array in tokenizer.encode_arrays(parts))
    return Text(name, tokenizer, training, validation, held_out, _kinds(tokenizer))


def _kinds(tokenizer: Tokenizer) -> Ids:
    tokens = (tokenizer.decode([token]) for token in range(tokenizer.vocabulary_size))
    return np.array([KINDS.index(kind_of(token)) for token in tokens], dtype=np.int64)


def kind_of(token: str) -> CharacterKind:
    """The kind of a token's character; special tokens, which no text leads to, count as punctuation."""
    if len(token) != 1:
        return CharacterKind.PUNCTUATION
    if token == "\n":
        return CharacterKind.LINE_END
    if token.isspace():
        return CharacterKind.SPACE
    if token.isalpha():
        return CharacterKind.CAPITAL if token.isupper() else CharacterKind.LETTER
    return CharacterKind.PUNCTUATION
