"""How large a graph is and what it is made of.

In: .onnx bytes. Out: `GraphSummary`, and a table of several for the terminal.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx

from meari.export.sessions import Graphs


@dataclass(frozen=True)
class GraphSummary:
    """One .onnx file; `operators` counts its nodes by their type, the most frequent first."""

    file: str
    num_bytes: int
    operators: Mapping[str, int]

    @property
    def num_nodes(self) -> int:
        return sum(self.operators.values())


def summarise(graphs: Graphs) -> dict[str, GraphSummary]:
    """Summaries by the graph's name: cell and output."""
    return {name: _summary(f"{name}.onnx", graph) for name, graph in (("cell", graphs.cell), ("output", graphs.output))}


def _summary(file: str, graph: bytes) -> GraphSummary:
    nodes = onnx.load_model_from_string(graph).graph.node
    counts = Counter(node.op_type for node in nodes)
    return GraphSummary(file, len(graph), dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))))


def summary_table(summaries: Sequence[GraphSummary]) -> str:
    """A line a graph: file, size, number of nodes, operators."""
    lines = [f"{'graph':<12} {'bytes':>12} {'nodes':>6}  operators"]
    for summary in summaries:
        operators = ", ".join(f"{name} {count}" for name, count in summary.operators.items())
        lines.append(f"{summary.file:<12} {summary.num_bytes:>12,} {summary.num_nodes:>6}  {operators}")
    return "\n".join(lines)
