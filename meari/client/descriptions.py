"""Descriptions of models, as far as they are read: an answer that fits these types keeps the contract.

Input: decoded JSON. Output: dataclasses. Must not know: any other module of the project.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["ModelDescription", "ModelList"]


@dataclass(frozen=True, slots=True)
class Boundary:
    """Token before every text."""

    token: str


@dataclass(frozen=True, slots=True)
class TokenizerFacts:
    """Tokenizer of a model."""

    kind: str
    normalization: str
    vocabulary_size: int
    boundary: Boundary


@dataclass(frozen=True, slots=True)
class StateTensor:
    """Tensor of the recurrent state."""

    name: str
    shape: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Graph:
    """Graph of a bundle."""

    file: str = ""
    bytes: int = 0
    operators: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CorpusFacts:
    """Training text; an earlier service does not tell whether it had ends."""

    has_ends: bool = True


@dataclass(frozen=True, slots=True)
class PartFigures:
    """Figures of a part of the corpus."""

    perplexity: float | None = None
    bits_per_char: float | None = None


@dataclass(frozen=True, slots=True)
class HeldOutFigures:
    """Figures on held-out text."""

    test: PartFigures | None = None
    validation: PartFigures | None = None
    reported_part: str | None = None

    def __post_init__(self) -> None:
        if self.reported_part not in (None, "test", "validation"):
            raise ValueError("no part of a corpus")


@dataclass(frozen=True, slots=True)
class Hashes:
    """SHA-256 of the bundle, and of its files."""

    bundle: str
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a request."""

    max_texts: int
    max_text_chars: int


@dataclass(frozen=True, slots=True)
class SelfTest:
    """Results of the self-test; an earlier service names neither CPU nor onnxruntime."""

    golden_max_difference: float
    rows_isolated: bool
    batch_sizes: tuple[int, ...]
    golden_tolerance: float = 0.0
    cpu: str | None = None
    onnxruntime: str | None = None


@dataclass(frozen=True, slots=True)
class Signature:
    """Signature of a bundle."""

    key_id: str
    trusted: bool


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """Answer of GET /models/NAME."""

    name: str
    family: str
    precision: str
    sizes: Mapping[str, float]
    state: tuple[StateTensor, ...]
    tokenizer: TokenizerFacts
    graphs: Mapping[str, Graph]
    corpus: CorpusFacts
    figures: HeldOutFigures
    hashes: Hashes
    limits: Limits
    self_test: SelfTest
    signature: Signature | None = None
    files: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if "vocabulary" not in self.sizes or not self.files.keys() <= self.hashes.files.keys():
            raise ValueError("no size of the vocabulary, or no hash of a file")


@dataclass(frozen=True, slots=True)
class ModelList:
    """Answer of GET /models. The default may be none of the models: "" where the key may use none that is served."""

    models: tuple[ModelDescription, ...]
    default: str
    failed: Mapping[str, str] = field(default_factory=dict)
