"""Fixtures of the bulk tests: a folder of bundles."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.runtime.spelling_bundle import byte_tokenizer, word_tokenizer, write_spelling_bundle
from tests.runtime.tiny_bundle import write_tiny_bundle

SPELLED = "é😀한!"
WORDS = ["good", "day", ",", "world"]


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder of bundles: letters (the default), bytes, words."""
    folder = tmp_path_factory.mktemp("bundles")
    write_tiny_bundle(folder / "letters", peak=3.0, decay=0.01)
    write_spelling_bundle(folder / "bytes", byte_tokenizer(), "bpe", byte_tokenizer().encode(SPELLED).ids, peak=2.0)
    write_spelling_bundle(folder / "words", word_tokenizer(WORDS), "word", [2, 3, 4, 5], peak=2.0)
    (folder / "DEFAULT").write_text("letters\n")
    return folder
