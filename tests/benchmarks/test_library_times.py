"""Test the table of loading and of lists."""

from pathlib import Path

from benchmarks.library_times import library_table, read_texts
from tests.runtime.tiny_bundle import write_tiny_bundle


def test_table_has_a_row_for_each_bundle(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "letters")
    title, row = library_table([tmp_path / "letters"], ["abc", "b"], num_workers=1, rounds=1)
    assert title.split()[0] == "tokens/s"
    name, *figures = row.split()
    assert name == "letters"
    assert len(figures) == 8


def test_texts_are_lines_up_to_so_many_characters(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("one\n\ntwo\nthree\n", "utf-8")
    assert read_texts(tmp_path / "texts.txt", num_chars=4) == ["one", "two"]
