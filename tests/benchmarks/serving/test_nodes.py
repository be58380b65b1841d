"""Test the profile of a generation step: every part of the graph has a time, and node names determine the part."""

from pathlib import Path

import pytest

from benchmarks.serving.inside.nodes import PARTS, measure, part_of

BUNDLES = Path(__file__).parents[3] / "bundles"


def test_every_part_of_a_step_takes_time() -> None:
    figures = measure(BUNDLES / "shakespeare-gru", 3)
    assert set(figures) == {*PARTS, "whole"}
    assert all(figures[part] > 0 for part in PARTS)


@pytest.mark.parametrize(
    ("node", "kind", "part"),
    [
        ("cell.node_MatMulInteger_2_kernel_time", "MatMulIntegerToFloat", "products of the cell"),
        ("cell.node_Mul_5_kernel_time", "Mul", "rest of the cell"),
        ("write.node_MatMul_6_kernel_time", "MatMul", "product of the output layer"),
        ("write.node_LogSoftmax_11_kernel_time", "LogSoftmax", "rest of the output layer"),
        ("Exp_0_kernel_time", "Exp", "sampler"),
        ("If_1_kernel_time", "If", "control"),
    ],
)
def test_name_of_a_node_determines_its_part(node: str, kind: str, part: str) -> None:
    assert part_of(node, kind) == part
