"""Text of the claims: files, or a text made here, as token ids in three parts.

Input: names of files; or a length and a seed. Output: a `Text`. Must not know: models.

Tokens are characters. The parts follow one another, so that none contains another: training, validation (only for the
length of schedules) and held-out (for the figures).

The made text has scenes of speakers, from a small probabilistic grammar. What a network can learn from it lies at
several distances: letters of a word; words of a sentence; the number of the subject, which the verb repeats after a
relative clause; the bracket that closes an aside; and the speaker's own animal, named in the head of each speech and
again at its end.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from meari.bundle_format.names import Document, TokenizerKind
from meari.models.config import TokenizerConfig
from meari.models.errors import CorpusError
from meari.models.text.corpus import read_documents
from meari.models.text.tokenizer import Tokenizer, train_tokenizer

Ids = NDArray[np.int64]

TRAINING_SHARE, VALIDATION_SHARE = 0.9, 0.05
MIN_CHARACTERS = 20_000
MAX_CHARACTERS = 5_000_000  # more than any budget can read
MAX_KINDS = 256  # of characters; rarer ones become the unknown token
MADE_SEED = 7
Entry = TypeVar("Entry")
SPEAKERS = {"Ada": "owl", "Ben": "fox", "Cleo": "heron", "Dov": "mole", "Edda": "hare", "Finn": "stork"}
NOUNS = ("baker", "sailor", "teacher", "miller", "gardener", "painter", "doctor", "farmer", "singer", "weaver")
PLACES = ("by the river", "in the hall", "near the old mill", "under the bridge", "at the market", "on the hill")
ADJECTIVES = ("old", "young", "quiet", "proud", "clever", "tired", "merry", "lonely")
VERBS = (("sees", "see"), ("knows", "know"), ("greets", "greet"), ("follows", "follow"), ("helps", "help"))
ENDS = (("sleeps", "sleep"), ("waits", "wait"), ("sings", "sing"), ("works", "work"), ("is silent", "are silent"))
CLAUSE_SHARE = 0.45
ADJECTIVE_SHARE = 0.4
PLURAL_SHARE = 0.5
ASIDE_SHARE = 0.2
OBJECT_SHARE = 0.5
ZIPF = 0.7  # earlier entries of a list are likelier: weights (rank + 1) ** -ZIPF


class CharacterKind(StrEnum):
    """Kind of a character."""

    LETTER = "letter"
    CAPITAL = "capital"
    PUNCTUATION = "punctuation, digit"
    SPACE = "space"
    LINE_END = "line end"


BOUNDARIES = (CharacterKind.SPACE, CharacterKind.LINE_END)
KINDS = tuple(CharacterKind)


@dataclass(frozen=True)
class Text:
    """Text as token ids in three parts.

    training, validation, held_out      int64 [num_tokens]
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
    """Read files in order, or make a text of `made_characters` if there are none.

    Raises CorpusError: unreadable, not UTF-8, or too short to say anything.
    """
    if files:
        whole = "\n".join(document.text for document in read_documents(files, Document.FILE))[:MAX_CHARACTERS]
        name = ", ".join(path.name if path.parent.name == "" else f"{path.parent.name}/{path.name}" for path in files)
    else:
        whole, name = made_text(made_characters, MADE_SEED), "a text made by a small probabilistic grammar"
    if len(whole) < MIN_CHARACTERS:
        raise CorpusError(f"--text: got {len(whole)} characters, expected at least {MIN_CHARACTERS}")
    return split_text(name, whole)


def split_text(name: str, whole: str) -> Text:
    """Cut into the three parts; the tokenizer is made of the training part alone."""
    first, second = (int(share * len(whole)) for share in (TRAINING_SHARE, TRAINING_SHARE + VALIDATION_SHARE))
    parts = [whole[:first], whole[first:second], whole[second:]]
    tokenizer = train_tokenizer(parts[:1], TokenizerConfig(TokenizerKind.CHAR, vocabulary_size=MAX_KINDS))
    training, validation, held_out = (array.astype(np.int64) for array in tokenizer.encode_arrays(parts))
    return Text(name, tokenizer, training, validation, held_out, _kinds(tokenizer))


def _kinds(tokenizer: Tokenizer) -> Ids:
    tokens = (tokenizer.decode([token]) for token in range(tokenizer.vocabulary_size))
    return np.array([KINDS.index(kind_of(token)) for token in tokens], dtype=np.int64)


def kind_of(token: str) -> CharacterKind:
    """Return the kind of a token's character; special tokens, which no text leads to, count as punctuation."""
    if len(token) != 1:
        return CharacterKind.PUNCTUATION
    if token == "\n":  # noqa: S105 (a piece of text)
        return CharacterKind.LINE_END
    if token.isspace():
        return CharacterKind.SPACE
    if token.isalpha():
        return CharacterKind.CAPITAL if token.isupper() else CharacterKind.LETTER
    return CharacterKind.PUNCTUATION


def made_text(num_characters: int, seed: int) -> str:
    """Make speeches of at least `num_characters` characters; the same seed gives the same text."""
    generator = np.random.default_rng(seed)
    speeches: list[str] = []
    length = 0
    while length < num_characters:
        speech = _speech(generator)
        speeches.append(speech)
        length += len(speech)
    return "".join(speeches)


def _speech(generator: np.random.Generator) -> str:
    speaker = _pick(generator, tuple(SPEAKERS))
    animal = SPEAKERS[speaker]
    lines = [_sentence(generator) for _ in range(generator.integers(1, 5))]
    return f"{speaker}, the {animal}:\n" + "\n".join(lines) + f"\nSo says the {animal}.\n\n"


def _sentence(generator: np.random.Generator) -> str:
    subject, is_plural = _noun_phrase(generator, depth=0)
    if generator.random() < OBJECT_SHARE:
        predicate = f"{_pick(generator, VERBS)[is_plural]} {_noun_phrase(generator, depth=1)[0]}"
    else:
        predicate = f"{_pick(generator, ENDS)[is_plural]} {_pick(generator, PLACES)}"
    aside = f" ({_noun_phrase(generator, depth=1)[0]} too)" if generator.random() < ASIDE_SHARE else ""
    text = f"{subject} {predicate}{aside}."
    return text[0].upper() + text[1:]


def _noun_phrase(generator: np.random.Generator, depth: int) -> tuple[str, int]:
    """Make a noun phrase, and return 1 if it is a plural; at depth 0 it may have a relative clause with its own
    verb.
    """
    is_plural = int(generator.random() < PLURAL_SHARE)
    adjective = _pick(generator, ADJECTIVES) + " " if generator.random() < ADJECTIVE_SHARE else ""
    phrase = "the " + adjective + _pick(generator, NOUNS) + "s" * is_plural
    if depth == 0 and generator.random() < CLAUSE_SHARE:
        inner, inner_is_plural = _noun_phrase(generator, depth=1)
        phrase += f" whom {inner} {_pick(generator, VERBS)[inner_is_plural]}"
    return phrase, is_plural


def _pick(generator: np.random.Generator, entries: Sequence[Entry]) -> Entry:
    weights = (np.arange(len(entries)) + 1.0) ** -ZIPF
    return entries[int(generator.choice(len(entries), p=weights / weights.sum()))]
