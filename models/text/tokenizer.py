"""Tokenizers of three kinds, all plain Hugging Face files.

Input: text. Output: token ids, and text again. Must not know: files of text, models, training.

Id 0 is the boundary token `<|end|>` in every kind; `char` and `word` have the unknown token `<|unk|>` as id 1. Both
are ordinary vocabulary entries that no text leads to: `char` splits text into single characters, `bpe` and `word`
never join letters with punctuation, so that the literal "<|end|>" in a text is text. All kinds bring text into NFC.

    char   one token a character, line ends included; decoding gives NFC text back, except for unknown characters
    bpe    byte-level, all 256 bytes in the vocabulary: no unknown token, decoding gives NFC text back exactly
    word   runs of word characters or of punctuation; decoded with one space in between, so spacing is lost
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import Regex, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, Model, WordLevel
from tokenizers.trainers import BpeTrainer, WordLevelTrainer

from meari.bundle_format.names import END, END_ID, UNKNOWN, UNKNOWN_ID, TokenizerKind
from meari.models.config import MAX_VOCABULARY, TokenizerConfig
from meari.models.errors import TokenizerError
from meari.models.files import write_file

_NFC = normalizers.NFC()


class Tokenizer:
    """A trained tokenizer of one kind."""

    def __init__(self, backend: tokenizers.Tokenizer, kind: TokenizerKind) -> None:
        self._backend = backend
        self.kind = kind
        self.end_id = END_ID
        self.unknown_id = None if kind is TokenizerKind.BPE else UNKNOWN_ID
        self.vocabulary_size = backend.get_vocab_size()
        self._char_ids = _char_ids(backend) if kind is TokenizerKind.CHAR else None

    @property
    def end_token(self) -> str:
        """Name of the boundary token."""
        return str(self._backend.id_to_token(self.end_id))

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text, without the boundary."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of many texts at once, using all cores."""
        return [encoding.ids for encoding in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode_arrays(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        """Return the same ids as arrays, uint32 [num_tokens] a text; many times faster for kind char."""
        if self._char_ids is None:
            return [np.array(ids, dtype=np.uint32) for ids in self.encode_batch(texts)]
        return [self._char_ids[_code_points(text)] for text in texts]

    def spans(self, text: str) -> NDArray[np.int64]:
        """Return where each token of a text in NFC begins and ends, in characters, int64 [num_tokens, 2].

        Tokens that are parts of one character all have that character's place.
        """
        if self._char_ids is not None:
            places = np.arange(len(text))
            return np.column_stack((places, places + 1))
        offsets = self._backend.encode(text, add_special_tokens=False).offsets
        return np.array(offsets, dtype=np.int64).reshape(-1, 2)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids in [0, vocabulary_size). Special tokens appear by name."""
        return str(self._backend.decode(list(ids), skip_special_tokens=False))

    def save(self, path: Path) -> None:
        """Write tokenizer.json atomically."""
        write_file(path, (self._backend.to_str(pretty=True) + "\n").encode())

    @staticmethod
    def load(path: Path, kind: TokenizerKind) -> Tokenizer:
        """Read a tokenizer.json that `save` wrote.

        Raises TokenizerError: missing, damaged, or without the boundary and unknown tokens in their places.
        """
        try:
            backend = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
        except Exception as error:  # tokenizers raises plain Exception
            raise TokenizerError(f"{path}: got {error}, expected a tokenizer.json") from error
        reserved = _reserved(kind)
        found = [backend.id_to_token(index) for index in range(len(reserved))]
        if found != reserved:
            raise TokenizerError(f"{path}: got {found} as first tokens, expected {reserved} for kind {kind}")
        return Tokenizer(backend, kind)


def train_tokenizer(texts: Iterable[str], config: TokenizerConfig) -> Tokenizer:
    """Train a tokenizer; the same texts in the same order give the same one.

    texts   streamed; a long text may come in pieces cut at `meari.bundle_format.text_borders`
    Raises TokenizerError where the texts hold nothing to tell apart.
    """
    train = {TokenizerKind.CHAR: _train_chars, TokenizerKind.BPE: _train_bpe, TokenizerKind.WORD: _train_words}
    model = train[config.kind](texts, config)
    backend = _pipeline(config.kind, model)
    if config.kind is not TokenizerKind.BPE and backend.get_vocab_size() <= len(_reserved(config.kind)):
        raise TokenizerError(f"got no entry that occurs {config.min_count} times, expected a lower tokenizer.min_count")
    return Tokenizer(backend, config.kind)


def _reserved(kind: TokenizerKind) -> list[str]:
    return [END] if kind is TokenizerKind.BPE else [END, UNKNOWN]


def _pipeline(kind: TokenizerKind, model: Model) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.NFC()
    if kind is TokenizerKind.CHAR:
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        backend.decoder = decoders.Fuse()
    elif kind is TokenizerKind.BPE:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False)
        backend.decoder = decoders.ByteLevel()
    else:
        backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return backend


def _code_points(text: str) -> NDArray[np.uint32]:
    """Return the code points of a text in NFC, uint32 [num_characters]."""
    normal = text if text.isascii() else _NFC.normalize_str(text)
    return np.frombuffer(normal.encode("utf-32-le"), dtype="<u4")


def _char_ids(backend: tokenizers.Tokenizer) -> NDArray[np.uint32]:
    """Return the id of every code point, uint32 [1,114,112]."""
    ids = np.full(sys.maxunicode + 1, UNKNOWN_ID, dtype=np.uint32)
    for token, index in backend.get_vocab(with_added_tokens=False).items():
        if len(token) == 1:
            ids[ord(token)] = index
    return ids


def _train_chars(texts: Iterable[str], config: TokenizerConfig) -> WordLevel:
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text if text.isascii() else _NFC.normalize_str(text))
    most = config.vocabulary_size or MAX_VOCABULARY
    # Most frequent first; equally frequent ones by code point.
    found = sorted((-count, char) for char, count in counts.items() if count >= config.min_count)
    tokens = [END, UNKNOWN, *(char for _, char in found)][:most]
    return WordLevel({token: index for index, token in enumerate(tokens)}, unk_token=UNKNOWN)


def _train_words(texts: Iterable[str], config: TokenizerConfig) -> WordLevel:
    trainer = WordLevelTrainer(
        vocab_size=config.vocabulary_size or MAX_VOCABULARY,
        min_frequency=config.min_count,
        special_tokens=[END, UNKNOWN],
        show_progress=False,
    )
    backend = _pipeline(config.kind, WordLevel(unk_token=UNKNOWN))
    backend.train_from_iterator(_in_batches(texts), trainer)
    return WordLevel(backend.get_vocab(with_added_tokens=False), unk_token=UNKNOWN)


def _train_bpe(texts: Iterable[str], config: TokenizerConfig) -> BPE:
    trainer = BpeTrainer(
        vocab_size=config.vocabulary_size,
        min_frequency=config.min_count,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend = _pipeline(config.kind, BPE())
    backend.train_from_iterator(_in_batches(texts), trainer)
    return cast(BPE, backend.model)


def _in_batches(texts: Iterable[str], characters: int = 1 << 17) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= characters:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
