"""Names and ids that the writer and the reader of a bundle share: constants and enums alone.

Input: nothing. Output: the vocabulary of `manifest.json`. Must not know: any other file of meari, nor any library.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

__all__ = [
    "END",
    "END_ID",
    "NAME_PATTERN",
    "NGRAM_STATE",
    "NORMALIZATION",
    "RECENT_STATE",
    "RESERVOIR_STATE",
    "STATE_DTYPE",
    "STATE_NAMES",
    "UNKNOWN",
    "UNKNOWN_ID",
    "Document",
    "Family",
    "Precision",
    "TokenizerKind",
]

# Of a run and of the bundle that is exported from it; the file DEFAULT stands beside bundles.
NAME_PATTERN: Final = r"(?!DEFAULT$)[A-Za-z0-9][A-Za-z0-9._-]{0,99}"

END: Final = "<|end|>"  # the boundary token: context before every text, outcome after it
END_ID: Final = 0  # as training writes it; a reader takes the id from the manifest
UNKNOWN: Final = "<|unk|>"
UNKNOWN_ID: Final = 1
NORMALIZATION: Final = "NFC"


class Document(StrEnum):
    """Unit of the corpus that counts as one document."""

    LINE = "line"
    PARAGRAPH = "paragraph"
    FILE = "file"


class TokenizerKind(StrEnum):
    """Unit of text that becomes one token."""

    CHAR = "char"  # a character; texts are joined as they are
    BPE = "bpe"  # a run of UTF-8 bytes
    WORD = "word"  # a word or a run of punctuation; joined by one space


class Family(StrEnum):
    """Recurrence of a model."""

    RNN = "rnn"
    GRU = "gru"
    LSTM = "lstm"
    ESN = "esn"


class Precision(StrEnum):
    """Arithmetic of a bundle's matrix products."""

    FP32 = "fp32"
    INT8 = "int8"


STATE_DTYPE: Final = "float32"
# Names of a layer's state tensors, the layer's output first; a bundle appends the layer's number: "h0", "c0", "h1", …
STATE_NAMES: Final = {Family.RNN: ("h",), Family.GRU: ("h",), Family.LSTM: ("h", "c")}
RESERVOIR_STATE: Final = "s"  # a reservoir's state, one tensor a layer
NGRAM_STATE: Final = "last_tokens"  # ids + 1, the newest first, where an n-gram model is mixed in; 0: none yet
RECENT_STATE: Final = "recent"  # embeddings of the last tokens, where a reservoir sees more than one
