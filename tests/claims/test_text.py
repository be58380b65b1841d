from pathlib import Path

import numpy as np
import pytest

from meari.claims.text import KINDS, SPEAKERS, CharacterKind, kind_of, made_text, read_text, split_text
from meari.models.errors import CorpusError


def test_made_text_depends_on_its_seed() -> None:
    assert made_text(5_000, seed=1) == made_text(5_000, seed=1)
    assert made_text(5_000, seed=1) != made_text(5_000, seed=2)
    assert len(made_text(5_000, seed=1)) >= 5_000


def test_every_speech_ends_with_the_animal_of_its_first_line() -> None:
    for speech in made_text(20_000, seed=3).strip().split("\n\n"):
        head, *_, last = speech.split("\n")
        speaker, _, animal = head.rstrip(":").partition(", the ")
        assert SPEAKERS[speaker] == animal
        assert last == f"So says the {animal}."


def test_parts_of_a_split_join_to_the_whole_text() -> None:
    whole = made_text(30_000, seed=1)
    text = split_text("made", whole)
    ids = np.concatenate((text.training, text.validation, text.held_out))
    assert text.tokenizer.decode(ids.tolist()) == whole
    assert len(text.training) == int(0.9 * len(whole))


@pytest.mark.parametrize(
    ("token", "kind"),
    [
        ("a", CharacterKind.LETTER),
        ("영", CharacterKind.LETTER),
        ("A", CharacterKind.CAPITAL),
        (";", CharacterKind.PUNCTUATION),
        ("7", CharacterKind.PUNCTUATION),
        (" ", CharacterKind.SPACE),
        ("\n", CharacterKind.LINE_END),
        ("<|end|>", CharacterKind.PUNCTUATION),
    ],
)
def test_every_character_has_its_kind(token: str, kind: CharacterKind) -> None:
    assert kind_of(token) is kind


def test_kinds_are_indexed_by_token_id() -> None:
    text = split_text("made", made_text(30_000, seed=1))
    (space,) = text.tokenizer.encode(" ")
    assert KINDS[text.kinds[space]] is CharacterKind.SPACE


def test_files_are_read_in_order_and_named_without_their_path(tmp_path: Path) -> None:
    for name in ("first.txt", "second.txt"):
        (tmp_path / name).write_text(made_text(15_000, seed=len(name)))
    text = read_text([tmp_path / "first.txt", tmp_path / "second.txt"], 0)
    assert str(tmp_path.parent) not in text.name
    assert "first.txt" in text.name


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"none\.txt"):
        read_text([tmp_path / "none.txt"], 0)
