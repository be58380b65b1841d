"""Description of a bundle, gathered once for the manifest and the model card, with the size and operators of its
graphs.

Input: a checkpoint and the results of the export's checks; .onnx bytes. Output: a `Description`, and a table of the
graphs for the terminal. Must not know: the files' format.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import onnxruntime as ort

from meari.bundle_format.names import Precision
from meari.export.ngram import NgramWeights
from meari.export.perplexity import HeldOutFigures
from meari.export.sessions import Graphs
from meari.export.verification import Agreement, Golden
from meari.models.checkpoint import Checkpoint
from meari.models.config import RecurrentConfig
from meari.models.training.process import processor


@dataclass(frozen=True)
class GraphSummary:
    """Summary of one .onnx file; `operators` counts its nodes by their type, the most frequent first."""

    file: str
    num_bytes: int
    operators: Mapping[str, int]

    @property
    def num_nodes(self) -> int:
        return sum(self.operators.values())


def summarise(graphs: Graphs) -> dict[str, GraphSummary]:
    """Return the summaries by the graph's name: cell and output."""
    return {name: _summary(f"{name}.onnx", graph) for name, graph in (("cell", graphs.cell), ("output", graphs.output))}


def _summary(file: str, graph: bytes) -> GraphSummary:
    nodes = onnx.load_model_from_string(graph).graph.node
    counts = Counter(node.op_type for node in nodes)
    return GraphSummary(file, len(graph), dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))))


def summary_table(summaries: Sequence[GraphSummary]) -> str:
    """Format a line a graph: file, size, number of nodes, operators."""
    lines = [f"{'graph':<12} {'bytes':>12} {'nodes':>6}  operators"]
    for summary in summaries:
        operators = ", ".join(f"{name} {count}" for name, count in summary.operators.items())
        lines.append(f"{summary.file:<12} {summary.num_bytes:>12,} {summary.num_nodes:>6}  {operators}")
    return "\n".join(lines)


@dataclass(frozen=True)
class Sizes:
    """Sizes of a model; embedding is None if the family has none. Parameters include fixed weights."""

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
    ngram        n-gram model that is mixed in, if any
    held_out     figures of the held-out parts of the corpus, by name; none where the run has none to measure on
    has_report   whether report.png lies beside it
    imported     of a model that was trained elsewhere: where it came from; its config has a model alone
    """

    name: str
    precision: Precision
    checkpoint: Checkpoint
    has_ends: bool
    graphs: Mapping[str, GraphSummary]
    agreement: Agreement
    held_out: Mapping[str, HeldOutFigures]
    golden: Golden
    samples: tuple[str, ...]
    has_report: bool
    ngram: NgramWeights | None = None
    imported: Mapping[str, Any] | None = None

    @property
    def machine(self) -> dict[str, str]:
        """CPU and onnxruntime that the figures, golden ones included, were measured on: elsewhere int8 differs."""
        return {"cpu": processor(), "onnxruntime": ort.__version__}

    @property
    def reported_part(self) -> str | None:
        """Part whose figures are reported for the bundle: the test part, which chose nothing, if there is one."""
        return next((part for part in ("test", "validation") if part in self.held_out), None)

    @property
    def sizes(self) -> Sizes:
        model, config = self.checkpoint.model, self.checkpoint.config.model
        trained = sum(parameter.numel() for parameter in model.parameters())
        fixed = sum(
            buffer.numel()
            for name, buffer in model.named_buffers()
            if buffer.is_floating_point() and not name.startswith("gated.")  # a whitening is folded into the readout
        )
        embedding, layers = (
            (config.embedding_size, len(config.sizes)) if isinstance(config, RecurrentConfig) else (None, 1)
        )
        return Sizes(model.vocabulary_size, embedding, model.hidden_size, layers, trained + fixed, trained)
