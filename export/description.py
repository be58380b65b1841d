"""Everything that a bundle says about itself, gathered once for the manifest and the model card."""

from collections.abc import Mapping
from dataclasses import dataclass

import onnxruntime as ort

from meari.export.golden import Golden
from meari.export.graph_summary import GraphSummary
from meari.export.perplexity import HeldOut
from meari.export.precision import Precision
from meari.export.verification import Agreement
from meari.models.checkpoint import Checkpoint
from meari.models.config import RecurrentConfig
from meari.models.training.process import processor


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
    held_out     figures of the held-out parts of the corpus, by name; none where the run has none to measure on
    has_report   whether report.png lies beside it
    """

    name: str
    precision: Precision
    checkpoint: Checkpoint
    has_ends: bool
    graphs: Mapping[str, GraphSummary]
    agreement: Agreement
    held_out: Mapping[str, HeldOut]
    golden: Golden
    samples: tuple[str, ...]
    has_report: bool

    @property
    def machine(self) -> dict[str, str]:
        """CPU and onnxruntime that the figures were measured on, golden ones too: elsewhere int8 differs."""
        return {"cpu": processor(), "onnxruntime": ort.__version__}

    @property
    def reported_part(self) -> str | None:
        """The part whose figures speak for the bundle: text that chose nothing, where there is some."""
        return next((part for part in ("test", "validation") if part in self.held_out), None)

    @property
    def sizes(self) -> Sizes:
        model, config = self.checkpoint.model, self.checkpoint.config.model
        trained = sum(parameter.numel() for parameter in model.parameters())
        fixed = sum(buffer.numel() for buffer in model.buffers() if buffer.is_floating_point())
        embedding, layers = (
            (config.embedding_size, len(config.sizes)) if isinstance(config, RecurrentConfig) else (None, 1)
        )
        return Sizes(model.vocabulary_size, embedding, model.hidden_size, layers, trained + fixed, trained)
