"""Test `meari export` from the command line."""

from pathlib import Path

from click.testing import CliRunner

from meari.bundle_format.names import Family
from meari.cli.export import command
from meari.export.errors import BundleExists
from meari.models.config import RecurrentConfig
from tests.export.tiny_models import make_run


def test_export_prints_sizes_operators_and_both_perplexities(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", RecurrentConfig(Family.GRU, embedding_size=8, hidden_size=16))
    folder = tmp_path / "bundles" / "echo"
    result = CliRunner().invoke(command, [str(run), str(folder), "--precision", "int8"])
    assert result.exit_code == 0, result.output
    for piece in (
        "cell.onnx",
        "output.onnx",
        "MatMulInteger",
        "1e-4 allowed",
        "validation text: the int8 bundle has perplexity",
        ", the checkpoint ",
    ):
        assert piece in result.output
    total = sum(path.stat().st_size for path in folder.iterdir())
    assert f"{total:,} bytes" in result.output
    again = CliRunner().invoke(command, [str(run), str(folder)])
    assert isinstance(again.exception, BundleExists)
    assert CliRunner().invoke(command, [str(run), str(folder), "--overwrite"]).exit_code == 0


def test_unknown_precision_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(command, [str(tmp_path), str(tmp_path / "echo"), "--precision", "int4"])
    assert result.exit_code == 2
    assert "int4" in result.output
