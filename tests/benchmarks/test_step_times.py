"""Test the table of step times."""

from pathlib import Path

from benchmarks.step_times import BATCH_SIZES, step_table
from meari.bundle_format.names import Family, Precision
from meari.export.bundle import build_graphs
from meari.export.weights_from_torch import read_weights
from meari.models.config import RecurrentConfig
from tests.export.tiny_models import make_model


def test_table_has_a_time_for_each_graph_and_batch_size(tmp_path: Path) -> None:
    graphs = build_graphs(read_weights(make_model(RecurrentConfig(Family.RNN, 4, 8), 10)), Precision.FP32)
    (tmp_path / "cell.onnx").write_bytes(graphs.cell)
    (tmp_path / "output.onnx").write_bytes(graphs.output)
    title, *rows = step_table(tmp_path, seconds=0.002).splitlines()
    assert title.count("batch") == len(BATCH_SIZES)
    assert [row.split()[0] for row in rows] == ["cell", "output"]
    for row in rows:
        assert all(int(microseconds) > 0 for microseconds in row.split()[1:])
