"""Everything that a bundle says about itself, gathered once for the manifest and the model card."""

from collections.abc import Mapping
from dataclasses import dataclass

from export.golden import Golden
from export.graph_summary import GraphSummary
from export.perplexity import HeldOutPerplexity
from export.precision import Precision
from export.verification import Agreement
from models.checkpoint import Checkpoint
from models.config import RecurrentConfig


@dataclass(frozen=True)
class Sizes:
    """Of a model; embedding is None where the family has none. Parameters count fixed weights too."""

    vocabulary: int
    embedding: int | None
    hidden: int
    layers: int
    parameters: int
    trained_parameters: int


@dataclass(frozen=True)
class Description:
    """A checked bundle that is about to be written.

    has_ends     whether the training text taught where a text ends
    perplexity   None where the run has no held-out text to measure on
    has_report   whether report.png lies beside it
    """

    name: str
    precision: Precision
    checkpoint: Checkpoint
    has_ends: bool
    graphs: Mapping[str, GraphSummary]
    agreement: Agreement
    perplexity: HeldOutPerplexity | None
    golden: Golden
    samples: tuple[str, ...]
    has_report: bool

    @property
    def sizes(self) -> Sizes:
        model, config = self.checkpoint.model, self.checkpoint.config.model
        trained = sum(parameter.numel() for parameter in model.parameters())
        fixed = sum(buffer.numel() for buffer in model.buffers() if buffer.is_floating_point())
        embedding, layers = (
            (config.embedding_size, len(config.sizes)) if isinstance(config, RecurrentConfig) else (None, 1)
        )
        return Sizes(model.vocabulary_size, embedding, model.hidden_size, layers, trained + fixed, trained)
