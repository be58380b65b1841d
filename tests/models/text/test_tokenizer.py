"""Test tokenizers: fixed ids, exact round trips, and text that contains special tokens."""

import json
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from meari.bundle_format.names import END, UNKNOWN, TokenizerKind
from meari.bundle_format.text_borders import last_border
from meari.models.config import TokenizerConfig
from meari.models.errors import TokenizerError
from meari.models.text.tokenizer import Tokenizer, train_tokenizer

TEXTS = [
    "The quick brown fox jumps over the lazy dog, don't you think?\n",
    "<|end|> <|unk|> spelled out, <|end|> and <|end|> again and again\n",
    "오늘 본 영화는 정말 재미있었어요. 다시 보고 싶은 영화예요!\n",
    unicodedata.normalize("NFD", "한국어 자모가 풀린 글과 café"),
    "  spaces\t and 🎬 emoji 👩‍👩‍👧 \r\n",
] * 5


def train(kind: str, vocabulary_size: int = 0, min_count: int = 1, texts: list[str] = TEXTS) -> Tokenizer:
    size = vocabulary_size or (400 if kind == "bpe" else 0)
    return train_tokenizer(iter(texts), TokenizerConfig(TokenizerKind(kind), size, min_count))


CHAR, BPE, WORD = (train(kind) for kind in ("char", "bpe", "word"))
ALL = pytest.mark.parametrize("tokenizer", [CHAR, BPE, WORD], ids=["char", "bpe", "word"])
NASTY = st.text() | st.text(
    alphabet=" \t\r\n\u00a0\u3000\x00\x1c\u0301각ㄱᄀ\u1161\u11a8é🎬👩\u200d'a1.<|end>unk", max_size=60
)


def backend_of(tokenizer: Tokenizer, folder: Path) -> tokenizers.Tokenizer:
    tokenizer.save(folder / "tokenizer.json")
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


@ALL
def test_boundary_token_has_id_0_and_no_token_is_an_added_token(tokenizer: Tokenizer, tmp_path: Path) -> None:
    backend = backend_of(tokenizer, tmp_path)
    assert backend.token_to_id(END) == tokenizer.end_id == 0
    assert backend.token_to_id(UNKNOWN) == tokenizer.unknown_id
    assert tokenizer.unknown_id == (None if tokenizer is BPE else 1)
    assert json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"] == []
    assert sorted(backend.get_vocab().values()) == list(range(tokenizer.vocabulary_size))


@ALL
@given(NASTY)
@example("<|end|>")
@example("a<|unk|>b <|end|><|end|>")
def test_no_text_encodes_to_the_boundary_token(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert 0 not in ids
    assert tokenizer.encode_arrays([text])[0].tolist() == ids


@ALL
def test_text_of_special_tokens_is_encoded_like_other_text(tokenizer: Tokenizer) -> None:
    assert not {0, 1 if tokenizer.unknown_id else 0} & set(tokenizer.encode("<|end|> <|unk|>"))


@given(NASTY)
@settings(max_examples=300)
@example("  leading, trailing  and   many spaces   ")
@example("a\r\nb\r\n\r\n\tc \n")
@example("👩‍👩‍👧 🇰🇷 \x00\x01\x7f\ufeff\ufffd 한국어と漢字 mixed العربية")
def test_bpe_round_trip_is_exact(text: str) -> None:
    assert BPE.decode(BPE.encode(text)) == unicodedata.normalize("NFC", text)


def test_char_round_trip_is_exact_for_known_characters() -> None:
    for text in TEXTS:
        assert CHAR.decode(CHAR.encode(text)) == unicodedata.normalize("NFC", text)


def test_char_gives_one_token_for_each_character_including_line_ends() -> None:
    text = "영화\r\n good\n"
    assert len(CHAR.encode(text)) == len(text)
    assert CHAR.encode("é") == CHAR.encode("e\u0301")
    assert CHAR.encode("漢a")[0] == CHAR.unknown_id


def test_decomposed_korean_gives_the_ids_of_composed_korean() -> None:
    text = "재미있었어요 한국어"
    for tokenizer in (CHAR, BPE, WORD):
        assert tokenizer.encode(unicodedata.normalize("NFD", text)) == tokenizer.encode(text)


def test_start_offsets_refer_to_the_original_text(tmp_path: Path) -> None:
    # The library ends a composed character at its first code point, which leaves only the starts reliable.
    encoding = backend_of(CHAR, tmp_path).encode(unicodedata.normalize("NFD", "각 영화"))
    assert [start for start, _ in encoding.offsets] == [0, 3, 4, 7]


def test_word_vocabulary_respects_min_count_and_size() -> None:
    texts = ["a a a b b c, c; d."]
    assert train("word", min_count=2, texts=texts).vocabulary_size == 2 + 3
    assert train("word", vocabulary_size=4, texts=texts).encode("a b c") == [2, 3, 1]
    assert WORD.decode(WORD.encode("The  fox,\njumps ?")) == "The fox , jumps ?"


def test_char_vocabulary_respects_min_count_and_size() -> None:
    assert train("char", min_count=2, texts=["aab"]).encode("ab") == [2, 1]
    assert train("char", vocabulary_size=3, texts=["abb"]).encode("ab") == [1, 2]


def test_bpe_reaches_its_vocabulary_size_and_merges_korean() -> None:
    assert BPE.vocabulary_size == 400
    assert len(BPE.encode("영화")) < len("영화".encode())
    assert train("bpe", 5000, texts=["little"]).vocabulary_size < 5000
    assert train("bpe", 257, texts=[]).decode(train("bpe", 257, texts=[]).encode("é 가")) == "é 가"


@pytest.mark.parametrize("kind", ["char", "word"])
def test_empty_vocabulary_is_refused(kind: str) -> None:
    with pytest.raises(TokenizerError, match="min_count"):
        train(kind, min_count=9, texts=["once"])


@ALL
def test_loaded_tokenizer_equals_the_saved_one(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json", tokenizer.kind)
    assert [loaded.encode(text) for text in TEXTS] == tokenizer.encode_batch(TEXTS)


def test_missing_invalid_or_different_tokenizer_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        Tokenizer.load(path, TokenizerKind.CHAR)
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        Tokenizer.load(path, TokenizerKind.CHAR)
    BPE.save(path)
    with pytest.raises(TokenizerError, match="first tokens"):
        Tokenizer.load(path, TokenizerKind.WORD)


@pytest.mark.parametrize("kind", ["char", "bpe", "word"])
def test_same_texts_give_the_same_tokenizer_in_any_process(kind: str, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path;"
        "from meari.models.text.tokenizer import *; from meari.models.config import *;"
        "texts = [f'word{i % 97} 영화{i % 31} x{i * i % 53}' for i in range(3000)];"
        "train_tokenizer(texts, TokenizerConfig(TokenizerKind(sys.argv[1]), int(sys.argv[2]))).save(Path(sys.argv[3]))"
    )
    for name, threads in (("a", "1"), ("b", "4")):
        arguments = [kind, "500" if kind == "bpe" else "90", str(tmp_path / name)]
        environment = {"RAYON_NUM_THREADS": threads, "PYTHONPATH": ":".join(sys.path)}
        subprocess.run([sys.executable, "-c", program, *arguments], check=True, env=environment)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("tokenizer", [CHAR, BPE, WORD], ids=["char", "bpe", "word"])
@given(
    st.lists(
        st.sampled_from([*"  \n\t.,'\u00a0\u3000\x1c½1aé가", "한", "don't", "\u1112\u1161", "\u11ab", "\u0301"]),
        max_size=30,
    )
)
@settings(max_examples=300)
def test_pieces_cut_at_borders_have_the_ids_of_the_whole_text(tokenizer: Tokenizer, parts: list[str]) -> None:
    text = "".join(parts)
    place = last_border(text) if text else 0
    if place < len(text) and (tokenizer is CHAR or has_sure_border(text, place)):
        assert tokenizer.encode(text[:place]) + tokenizer.encode(text[place:]) == tokenizer.encode(text)


def has_sure_border(text: str, place: int) -> bool:
    """Return whether the cut is before a space or punctuation, not a forced cut inside a word."""
    before, after = text[place - 1], text[place]
    return (after in " \n\t" and not before.isspace()) or (after in ".,'" and before.isalpha())


def test_long_decomposed_korean_is_cut_between_words() -> None:
    text = unicodedata.normalize("NFD", "정말 재미있는 영화였습니다. " * 400)
    place = last_border(text)
    assert len(text) - 20 < place < len(text)
    for tokenizer in (CHAR, BPE, WORD):
        assert tokenizer.encode(text[:place]) + tokenizer.encode(text[place:]) == tokenizer.encode(text)


def test_text_without_borders_is_cut_between_nfc_characters() -> None:
    text = unicodedata.normalize("NFD", "각" * 5000)
    place = last_border(text)
    assert 0 < place < len(text)
    assert CHAR.encode(text[:place]) + CHAR.encode(text[place:]) == CHAR.encode(text)
    assert last_border("\u0301" * 9) == 9


def test_words_that_end_in_digits_are_cut_between_words() -> None:
    text = " ".join(f"w{number}" for number in range(2000))
    assert text[last_border(text) :] == " w1999"
