"""Test the table of typing times."""

from pathlib import Path

from benchmarks.typing_times import typing_table
from tests.runtime.tiny_bundle import write_tiny_bundle


def test_table_has_a_row_for_each_bundle(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "letters")
    title, row = typing_table([tmp_path / "letters"], keys_per_second=1000.0, max_chars=5).splitlines()
    assert title.startswith("ms a keystroke")
    name, *figures = row.split()
    assert name == "letters"
    assert all(float(figure) > 0 for figure in figures)
