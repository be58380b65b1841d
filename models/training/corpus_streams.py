"""From a prepared corpus to the streams that training runs along, and to a fingerprint that tells corpora apart."""

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meari.models.config import Config, Document
from meari.models.text.tokenizer import END_ID, Tokenizer
from meari.models.text.tokens import PreparedCorpus, TokenFile
from meari.models.training.schedule import chunk_length
from meari.models.training.streams import Bools, Streams

PIECE_TOKENS = 1 << 22


def open_streams(config: Config, corpus: PreparedCorpus, generator: np.random.Generator) -> Streams:
    """Streams over the training part, at its beginning."""
    ids = corpus.train.ids
    return Streams(
        ids,
        config.corpus.document,
        starting_tokens(corpus.tokenizer, config.corpus.document),
        batch_size=config.training.batch_size,
        length=chunk_length(config.training, len(ids) - 1),
        restart_share=config.training.restart_share,
        generator=generator,
        length_spread=config.training.chunk_spread,
    )


def starting_tokens(tokenizer: Tokenizer, unit: Document) -> Bools:
    """Tokens after which a text may start, bool [vocabulary]: the boundary, and in whole files also line ends."""
    starts = np.zeros(tokenizer.vocabulary_size, dtype=np.bool_)
    if unit is Document.FILE:
        for token in range(tokenizer.vocabulary_size):
            starts[token] = tokenizer.decode([token]).endswith("\n")
    starts[END_ID] = True
    return starts


def token_counts(ids: NDArray[Any], vocabulary_size: int) -> NDArray[np.int64]:
    """How often each token of the vocabulary stands in a row of ids, which may lie on disk."""
    counts = np.zeros(vocabulary_size, dtype=np.int64)
    for begin in range(0, len(ids), PIECE_TOKENS):
        counts += np.bincount(ids[begin : begin + PIECE_TOKENS], minlength=vocabulary_size)
    return counts


def fingerprint(corpus: PreparedCorpus) -> str:
    """The same for the same training tokens and vocabulary, and for no others. Reads the corpus once."""
    digest = hashlib.sha256(str(corpus.tokenizer.vocabulary_size).encode())
    for part in (corpus.train, corpus.validation):
        digest.update(_part_digest(part))
    return digest.hexdigest()


def _part_digest(part: TokenFile) -> bytes:
    digest = hashlib.sha256(str(len(part.ids)).encode())
    for begin in range(0, len(part.ids), PIECE_TOKENS):
        digest.update(np.ascontiguousarray(part.ids[begin : begin + PIECE_TOKENS]).tobytes())
    return digest.digest()
