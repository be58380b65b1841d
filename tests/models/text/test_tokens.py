"""Test the preparation of a corpus: split, token files, reuse, memory."""

import gzip
import os
import subprocess
import sys
import unicodedata
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from meari.bundle_format.names import Document as Unit
from meari.bundle_format.names import TokenizerKind
from meari.models.config import Config, parse_config
from meari.models.errors import BrokenText, CorpusError, EmptyCorpus, TokenFileError, UnreadableFile
from meari.models.text import corpus, token_file
from meari.models.text.corpus import Piece
from meari.models.text.token_file import TokenCounts, TokenFile, open_token_file
from meari.models.text.tokenizer import Tokenizer
from meari.models.text.tokens import Part, count_characters, part_ends, prepare, split_pieces


def config_of(kind: str = "char", document: str = "line", vocabulary_size: int = 0, **settings: Any) -> Config:
    return parse_config(
        {
            "name": "test",
            "corpus": {"document": document, **settings},
            "tokenizer": {"kind": kind, "vocabulary_size": vocabulary_size},
            "model": {"family": "gru"},
            "training": {"steps": 1},
        }
    )


def written(path: Path, text: str) -> str:
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


def test_documents_are_separated_by_boundary_tokens(tmp_path: Path) -> None:
    train, valid = written(tmp_path / "a.gz", "ab\n\nba\n"), written(tmp_path / "v.txt", "b\r\nxa")
    prepared = prepare(config_of(train=[train], validation=[valid]), tmp_path / "run")
    a, b = prepared.tokenizer.encode("ab")
    assert prepared.train.ids.tolist() == [0, a, b, 0, b, a, 0]
    assert prepared.validation.ids.tolist() == [0, b, 0, 1, a, 0]
    assert isinstance(prepared.train.ids, np.memmap)
    assert prepared.train.ids.dtype == np.uint16
    counts = prepared.validation.counts
    assert (counts.num_documents, counts.num_characters, counts.num_bytes, counts.num_unknown) == (2, 3, 3, 1)
    assert (prepared.train.num_tokens, prepared.train.unit, prepared.test) == (7, Unit.LINE, None)
    saved = Tokenizer.load(tmp_path / "run" / "tokenizer.json", TokenizerKind.CHAR)
    assert saved.encode("ab") == [a, b]


def test_parts_of_a_file_add_up_to_its_text(tmp_path: Path) -> None:
    text = "영화 좋다\n" * 20
    config = config_of(document="file", train=[written(tmp_path / "a.txt", text)], validation_share=0.1, test_share=0.2)
    prepared = prepare(config, tmp_path / "run")
    assert prepared.test is not None
    parts = [prepared.train, prepared.validation, prepared.test]
    assert [part.num_characters for part in parts] == [84, 12, 24]
    assert sum(part.num_bytes for part in parts) == len(text.encode())
    assert [part.num_documents for part in parts] == [1, 1, 1]
    assert "".join(prepared.tokenizer.decode(part.ids[1:-1].tolist()) for part in parts) == text


def test_file_that_is_named_twice_is_not_trained_on_and_held_out(tmp_path: Path) -> None:
    text = "".join(f"{number:03}\n" for number in range(100))
    path = written(tmp_path / "a.txt", text)
    (tmp_path / "b.txt").hardlink_to(path)
    prepared = prepare(config_of(train=[path, str(tmp_path)], validation_share=0.1), tmp_path / "run")
    assert (prepared.train.num_documents, prepared.validation.num_documents) == (90, 10)


def test_vocabulary_comes_only_from_the_training_part(tmp_path: Path) -> None:
    config = config_of(train=[written(tmp_path / "a.txt", "aaa\naaa\naaa\nzzz\n")], validation_share=0.25)
    prepared = prepare(config, tmp_path / "run")
    assert prepared.tokenizer.vocabulary_size == 3
    assert prepared.validation.num_unknown == 3


def test_blocklist_applies_only_to_training_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "PIECE_CHARACTERS", 40)
    monkeypatch.setattr(corpus, "_READ_BYTES", 16)
    monkeypatch.setattr(token_file, "_BATCH_CHARACTERS", 16)
    long = "fine words " * 20
    train = written(tmp_path / "a.txt", f"good\n{long}rude {long}\n{long}\nrude\nwell\n")
    valid, blocklist = written(tmp_path / "v.txt", "rude\n"), written(tmp_path / "b.txt", "rude\n")
    prepared = prepare(config_of(train=[train], validation=[valid], blocklist=blocklist), tmp_path / "run")
    ids = prepared.train.ids
    ends = np.flatnonzero(ids == 0)
    texts = [prepared.tokenizer.decode(ids[a + 1 : b].tolist()) for a, b in pairwise(ends)]
    assert texts == ["good", long, "well"]
    assert (prepared.train.num_blocked, prepared.train.num_documents) == (2, 3)
    assert prepared.train.num_characters == len("".join(texts))
    assert prepared.validation.num_documents == 1


def masked_text(part: TokenFile, tokenizer: Tokenizer) -> list[str]:
    """Return the text of each run of masked tokens."""
    runs = np.split(part.masked, np.flatnonzero(np.diff(part.masked) > 1) + 1)
    return [tokenizer.decode(part.ids[run].tolist()) for run in runs]


@pytest.mark.parametrize("kind", ["char", "bpe", "word"])
@pytest.mark.parametrize("document", ["line", "paragraph", "file"])
def test_tokens_in_a_match_of_the_loss_mask_are_masked(
    tmp_path: Path, kind: str, document: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "PIECE_CHARACTERS", 40)
    monkeypatch.setattr(corpus, "_READ_BYTES", 16)
    monkeypatch.setattr(token_file, "_BATCH_CHARACTERS", 16)
    plain = "나는 좋은 영화 fine 그리고 "
    lines = [f"{plain}나쁜 말{number} {plain}rude {plain}" for number in range(40)]
    lines[5] = plain + "말 나 쁜 r u d e 0123456789"  # no match
    lines[7] += "blocked"
    train = written(tmp_path / "a.txt", "\n".join(lines) + "\n")
    valid, mask = written(tmp_path / "v.txt", "rude fine\n"), written(tmp_path / "m.txt", "나쁜 말\\d*\nRUDE\n")
    files = {"train": [train], "validation": [valid], "loss_mask": mask}
    if document == "line":
        files["blocklist"] = written(tmp_path / "b.txt", "blocked\n")
    config = config_of(kind, document, 300 if kind == "bpe" else 0, **files)
    prepared = prepare(config, tmp_path / "run")
    part = prepared.train
    left_out = {5, 7} if document == "line" else {5}
    expected = [text for number in range(40) if number not in left_out for text in (f"나쁜 말{number}", "rude")]
    found = masked_text(part, prepared.tokenizer)
    if kind == "bpe":  # a space belongs to the token behind it
        found = [text.strip() for text in found]
    if kind == "word":  # such words have no tokens of their own
        assert not {"나쁜", "rude"} & set(prepared.tokenizer.decode(range(prepared.tokenizer.vocabulary_size)).split())
        expected = ["<|unk|> <|unk|>", "<|unk|>"] * (len(expected) // 2)
    assert found == expected
    assert part.num_masked == len(part.masked) == open_token_file(part.path).num_masked
    assert part.masked.tolist() == sorted(set(part.masked.tolist()))
    assert not prepared.validation.num_masked
    without = prepare(
        config_of(kind, document, config.tokenizer.vocabulary_size, **{**files, "loss_mask": ""}), tmp_path / "b"
    )
    assert without.train.num_documents == part.num_documents
    assert not without.train.num_masked
    part.path.with_suffix(".masked").write_bytes(b"")
    with pytest.raises(TokenFileError, match=r"train\.masked: got 0 bytes"):
        open_token_file(part.path)


def test_tokens_are_prepared_anew_where_the_loss_mask_changes(tmp_path: Path) -> None:
    mask = written(tmp_path / "m.txt", "a\n")
    config = config_of(train=[written(tmp_path / "a.txt", "ab\nb\n")], validation_share=0.4, loss_mask=mask)
    assert prepare(config, tmp_path / "run").train.masked.tolist() == [1]
    written(tmp_path / "m.txt", "b\n")
    assert prepare(config, tmp_path / "run").train.masked.tolist() == [2]


@pytest.mark.parametrize("kind", ["char", "bpe", "word"])
def test_pieces_of_a_large_file_have_the_ids_of_the_whole_file(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "PIECE_CHARACTERS", 300)
    monkeypatch.setattr(corpus, "_READ_BYTES", 101)
    words = ["재미있는", "영화", "don't", "  ", "\n", "café", "끝.", "🎬", "\r\n", "1,000", "漢字。"]
    drawn = np.random.default_rng(0).integers(len(words), size=3000)
    text = unicodedata.normalize("NFD", " ".join(words[index] for index in drawn))
    path = written(tmp_path / "a.txt", text)
    config = config_of(kind, "file", 320 if kind == "bpe" else 0, train=[path], validation=[path])
    prepared = prepare(config, tmp_path / "run")
    assert prepared.train.ids.tolist() == [0, *prepared.tokenizer.encode(text.replace("\r\n", "\n")), 0]


def test_unchanged_corpus_is_reused_and_a_changed_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    written(path, "aab\n" * 9)
    config = config_of(train=[str(path)], validation_share=0.2)
    first = prepare(config, tmp_path / "run")
    inode = first.train.path.stat().st_ino
    assert prepare(config, tmp_path / "run").train.path.stat().st_ino == inode
    written(path, "abc\n" * 9)
    assert prepare(config, tmp_path / "run").tokenizer.vocabulary_size == 5
    words = prepare(config_of("word", train=[str(path)], validation_share=0.2), tmp_path / "run")
    assert Tokenizer.load(tmp_path / "run" / "tokenizer.json", TokenizerKind.WORD).vocabulary_size == 3
    os.truncate(words.train.path, 2)
    with pytest.raises(TokenFileError, match=r"train\.tokens: got 2 bytes"):
        open_token_file(words.train.path)
    again = prepare(config_of("word", train=[str(path)], validation_share=0.2), tmp_path / "run")
    assert again.train.num_documents == 7


def test_failed_preparation_keeps_the_earlier_one(tmp_path: Path) -> None:
    good, bad = written(tmp_path / "a.txt", "ab\n" * 9), tmp_path / "bad.txt"
    bad.write_bytes(b"fine\n\xff\n")
    config = config_of(train=[good], validation_share=0.2)
    before = prepare(config, tmp_path / "run").train.path.stat().st_ino
    with pytest.raises(BrokenText, match=r"bad\.txt, line 2"):
        prepare(config_of(train=[good], validation=[str(bad)]), tmp_path / "run")
    assert prepare(config, tmp_path / "run").train.path.stat().st_ino == before


@pytest.mark.parametrize("kind", ["char", "bpe", "word"])
@pytest.mark.parametrize(
    ("train", "valid", "blocklist", "part", "name"),
    [
        ("", "b", "", "train", "a.txt"),
        (" \n\n", "b", "", "train", "a.txt"),
        ("rude\nrude\n", "b", "rude", "that the blocklist leaves for train", "a.txt"),
        ("good", "\n", "", "validation", "v.txt"),
    ],
)
@pytest.mark.parametrize("document", ["line", "paragraph", "file"])
def test_part_without_text_is_reported(
    tmp_path: Path, kind: str, train: str, valid: str, blocklist: str, part: str, name: str, document: str
) -> None:
    files = {"train": [written(tmp_path / "a.txt", train)], "validation": [written(tmp_path / "v.txt", valid)]}
    block = written(tmp_path / "b.txt", blocklist) if blocklist else ""
    config = config_of(kind, document, 300 if kind == "bpe" else 0, **files, blocklist=block)
    with pytest.raises(EmptyCorpus, match=name) as caught:
        prepare(config, tmp_path / "run")
    assert part in str(caught.value)


def test_share_too_small_for_a_document_is_reported(tmp_path: Path) -> None:
    config = config_of(train=[written(tmp_path / "a.txt", "one line only\n")], validation_share=0.1)
    with pytest.raises(EmptyCorpus, match=r"a\.txt: got no line for validation"):
        prepare(config, tmp_path / "run")


@pytest.mark.parametrize("unit", ["line", "paragraph"])
def test_share_of_the_training_documents_is_an_even_sample_of_whole_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unit: str
) -> None:
    monkeypatch.setattr(corpus, "PIECE_CHARACTERS", 8)  # so that many documents come in several pieces
    end = "\n\n" if unit == "paragraph" else "\n"
    documents = [f"{number:04} {'word ' * (number % 5)}." for number in range(2000)]
    train, valid = (written(tmp_path / name, end.join(documents)) for name in ("a.txt", "v.txt"))
    whole, some, again = (
        prepare(config_of(document=unit, train=[train], validation=[valid], training_share=share), tmp_path / folder)
        for share, folder in ((1.0, "whole"), (0.25, "some"), (0.25, "again"))
    )
    assert whole.train.num_documents == some.validation.num_documents == 2000
    text = some.tokenizer.decode(some.train.ids[1:-1].tolist())
    kept = text.split("<|end|>")
    assert set(kept) <= set(documents)
    assert len(kept) == some.train.num_documents == pytest.approx(500, rel=0.15)
    assert sum(document < "1" for document in kept) == pytest.approx(len(kept) / 2, rel=0.15)
    assert (again.train.ids == some.train.ids).all()


def test_share_of_the_training_documents_leaves_the_held_out_text_alone(tmp_path: Path) -> None:
    path = written(tmp_path / "a.txt", "".join(f"{number}\n" for number in range(1000)))
    config: dict[str, Any] = {"train": [path], "validation_share": 0.2}
    whole = prepare(config_of(**config), tmp_path / "run")
    some = prepare(config_of(**config, training_share=0.5), tmp_path / "run")
    assert some.train.num_documents < 0.6 * whole.train.num_documents
    assert some.validation.counts == whole.validation.counts


def test_share_of_one_long_file_is_evenly_spaced_pieces_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "PIECE_CHARACTERS", 100)
    monkeypatch.setattr(corpus, "_READ_BYTES", 64)
    text = "".join(f"{number:05}\n" for number in range(10_000))
    config: dict[str, Any] = {"document": "file", "train": [written(tmp_path / "a.txt", text)], "validation_share": 0.1}
    whole = prepare(config_of(**config), tmp_path / "run")
    some = prepare(config_of(**config, training_share=0.2), tmp_path / "run")
    held_out = [each.tokenizer.decode(each.validation.ids[1:-1].tolist()) for each in (some, whole)]
    assert held_out == [text[54_000:]] * 2
    assert some.train.num_documents == whole.train.num_documents == 1
    assert some.train.num_characters == pytest.approx(0.2 * whole.train.num_characters, rel=0.05)
    kept = some.tokenizer.decode(some.train.ids[1:-1].tolist())
    assert kept.startswith(text[:60])
    numbers = [int(line) for line in kept.split("\n") if len(line) == 5]
    assert numbers == sorted(set(numbers))
    assert max(numbers) < 9000  # nothing of the held-out text
    for tenth in range(9):
        assert sum(number // 1000 == tenth for number in numbers) == pytest.approx(200, rel=0.25)


def test_share_of_many_files_takes_short_ones_whole_and_ends_each(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    texts = [f"file {number:03}" for number in range(400)]
    for number, each in enumerate(texts):
        written(folder / f"{number:03}.txt", each)
    valid = written(tmp_path / "v.txt", "file 1")
    config = config_of(document="file", train=[str(folder)], validation=[valid], training_share=0.25)
    some = prepare(config, tmp_path / "run")
    kept = some.tokenizer.decode(some.train.ids[1:-1].tolist()).split("<|end|>")
    assert kept == texts[::4]
    assert some.train.counts.has_ends


def test_share_too_small_for_a_piece_takes_the_first(tmp_path: Path) -> None:
    path = written(tmp_path / "a.txt", "one short text\n" * 100)
    some = prepare(
        config_of(document="file", train=[path], validation_share=0.1, training_share=1e-6), tmp_path / "run"
    )
    assert some.train.num_characters == 1350


def test_missing_file_is_a_corpus_error(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile, match=r"none\.txt") as caught:
        prepare(config_of(train=[str(tmp_path / "none.txt")], validation_share=0.1), tmp_path / "run")
    assert isinstance(caught.value, CorpusError)


@pytest.mark.parametrize(("limit", "size", "dtype"), [(0, 66_002, np.uint32), (65_536, 65_536, np.uint16)])
def test_large_vocabulary_uses_32_bit_ids(tmp_path: Path, limit: int, size: int, dtype: type[np.generic]) -> None:
    path = written(tmp_path / "a.txt", " ".join(f"w{number}" for number in range(66_000)))
    prepared = prepare(config_of("word", "file", limit, train=[path], validation=[path]), tmp_path / "run")
    assert prepared.tokenizer.vocabulary_size == size
    assert prepared.train.ids.dtype == dtype
    assert int(prepared.train.ids.max()) == size - 1


# Prepares the file in argument 1 with the unit in argument 2; prints the growth of peak memory in bytes.
MEASURE = """
import resource, sys
from pathlib import Path
from meari.models.config import parse_config
from meari.models.text.tokens import prepare
def run(path, folder):
    tokenizer = {"kind": sys.argv[3], "vocabulary_size": 300 if sys.argv[3] == "bpe" else 0}
    corpus = {"document": sys.argv[2], "train": [path], "validation_share": 0.1}
    return prepare(parse_config({"name": "x", "corpus": corpus, "tokenizer": tokenizer,
                                 "model": {"family": "rnn"}, "training": {"steps": 1}}), Path(folder))
run(sys.argv[4], sys.argv[5] + "/small")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
counts = run(sys.argv[1], sys.argv[5] + "/large").train.counts
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024, counts.num_bytes)
"""


@pytest.mark.parametrize(("unit", "kind"), [("file", "char"), ("line", "word"), ("file", "bpe"), ("line", "char")])
def test_corpus_larger_than_memory_is_streamed(tmp_path: Path, unit: str, kind: str) -> None:
    line = "the quick brown fox jumps over 영화 " * 40
    separator = "" if unit == "line" and kind == "char" else "\n"  # includes a file of one long line
    small, large = tmp_path / "small.txt", tmp_path / "large.gz"
    small.write_text((line + "\n") * 700, encoding="utf-8")
    repeats = 10_000 if kind == "char" else 4_000
    with gzip.open(large, "wb", compresslevel=1) as file:
        for number in range(repeats):
            file.write(f"{number} {line}{separator}".encode())
        file.write(b"\n" + f"last {line}\n".encode() * (repeats // 4))
    command = [sys.executable, "-c", MEASURE, str(large), unit, kind, str(small), str(tmp_path)]
    environment = {**os.environ, "RAYON_NUM_THREADS": "2", "PYTHONPATH": ":".join(sys.path)}
    printed = subprocess.run(command, check=True, env=environment, capture_output=True, text=True).stdout
    grown, num_bytes = map(int, printed.split())
    assert num_bytes > repeats * 1_300
    assert grown < 12_000_000, f"memory grew by {grown:,} bytes over {num_bytes:,} bytes of text"


@pytest.mark.parametrize(
    ("unit", "num_documents", "num_tokens", "has_ends"),
    [
        ("line", 2, 40, True),
        ("line", 1, 40, False),  # a single line does not show where lines end
        ("line", 5, 50_001, False),
        ("paragraph", 5, 50_000, True),
        ("file", 1, 1_000_000, False),
        ("file", 99, 9_900, False),
        ("file", 100, 1_000_000, True),
        ("file", 100, 1_000_001, False),
    ],
)
def test_ends_are_learned_if_documents_are_several_and_short(
    unit: str, num_documents: int, num_tokens: int, has_ends: bool
) -> None:
    counts = TokenCounts(Unit(unit), "uint16", num_tokens=num_tokens, num_documents=num_documents)
    assert counts.has_ends is has_ends


def parts_of(pieces: Iterable[Piece], unit: Unit, ends: tuple[int, int]) -> dict[Part, list[tuple[str, bool]]]:
    found: dict[Part, list[tuple[str, bool]]] = {part: [] for part in Part}
    for part, piece in split_pieces(pieces, unit, ends):
        found[part].append((piece.text, piece.ends))
    return found


@pytest.mark.parametrize(
    ("total", "shares", "ends"),
    [(1_115_394, (0.1, 0.0), (1_003_854, 1_115_394)), (10, (0.1, 0.2), (7, 8)), (10, (0.0, 0.3), (7, 7))],
)
def test_held_out_shares_are_at_the_end_of_the_text(
    total: int, shares: tuple[float, float], ends: tuple[int, int]
) -> None:
    assert part_ends(total, *shares) == ends


def test_line_belongs_to_the_part_in_which_it_begins() -> None:
    pieces = [
        Piece("aaa", "f", 1, True),
        Piece("bb", "f", 2, False),
        Piece("bb", "f", 2, True),
        Piece("c", "f", 3, True),
    ]
    assert count_characters(pieces, Unit.LINE) == 4 + 5 + 2
    found = parts_of(pieces, Unit.LINE, (5, 10))
    assert [len(found[part]) for part in Part] == [3, 1, 0]
    assert parts_of(pieces, Unit.LINE, (4, 9))[Part.TEST] == [("c", True)]


@pytest.mark.parametrize("ends", [(4, 5), (6, 6), (3, 7), (1, 6), (9, 9), (6, 9), (3, 3)])
def test_file_is_split_at_a_character_and_both_parts_end(ends: tuple[int, int]) -> None:
    pieces = [Piece("012", "f", 1, False), Piece("345", "f", 1, True), Piece("678", "g", 1, True)]
    found = parts_of(pieces, Unit.FILE, ends)
    joined = ["".join(text for text, _ in found[part]) for part in Part]
    assert joined == ["012345678"[: ends[0]], "012345678"[ends[0] : ends[1]], "012345678"[ends[1] :]]
    assert all(parts[-1][1] for parts in found.values() if parts)
