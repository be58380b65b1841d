"""Test decoding: whole and in pieces give the same text, and stop strings cut it at the same position."""

from __future__ import annotations

from unicodedata import normalize

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.normalizers import NFC, Lowercase, Normalizer, Sequence, Strip

import meari.runtime.text.tokenizer as tokenizer_module
from meari.bundle_format.names import TokenizerKind
from meari.bundle_format.text_borders import nfc
from meari.runtime.bundle import open_bundle
from meari.runtime.text.detokenizer import (
    MAX_PARTIAL_BYTES,
    NO_TEXT,
    Detokenizer,
    StopPatterns,
    StopSearch,
    TextEnd,
    detokenize,
    matcher_factory,
)
from meari.runtime.text.tokenizer import LONG_CHARS, TextTokenizer, Vocabulary
from tests.runtime.spelling_bundle import byte_tokenizer, word_tokenizer, write_spelling_bundle
from tests.runtime.tiny_bundle import LETTERS, write_tiny_bundle


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TextTokenizer]:
    folder = tmp_path_factory.mktemp("bundles")
    bundles = {
        "bpe": write_spelling_bundle(folder / "bytes", byte_tokenizer(), "bpe", [1]),
        "word": write_spelling_bundle(folder / "words", word_tokenizer(["good", "day", ","]), "word", [2]),
        "char": write_tiny_bundle(folder / "letters"),
    }
    return {kind: open_bundle(bundle, max_slots=1).tokenizer for kind, bundle in bundles.items()}


@given(text=st.text(max_size=30))
def test_byte_round_trip_gives_normalised_text(tokenizers: dict[str, TextTokenizer], text: str) -> None:
    bpe = tokenizers["bpe"]
    assert detokenize(bpe.vocabulary, bpe.encode(text)) == nfc(text)


MIXED = st.text(st.sampled_from([*"ab.1 \n\t\u00a0é한하½😀中", "\u0301"]), min_size=60, max_size=200)


@pytest.mark.parametrize("kind", ["bpe", "word", "char"])
@settings(deadline=None, max_examples=40)
@given(text=MIXED, size=st.integers(1, 40))
def test_text_tokenized_in_pieces_has_the_tokens_of_the_whole(
    tokenizers: dict[str, TextTokenizer], kind: str, text: str, size: int
) -> None:
    tokenizer = tokenizers[kind]
    whole = tokenizer.encode_with_offsets(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer_module, "PIECE_CHARS", size)
        patch.setattr(tokenizer_module, "LONG_CHARS", 0)
        pieces = tokenizer.encode_with_offsets(text)
        assert tokenizer.encode(text) == pieces.ids == whole.ids
    assert (pieces.starts.tolist(), pieces.ends.tolist()) == (whole.starts.tolist(), whole.ends.tolist())
    assert len(whole.ids) <= tokenizer.max_tokens(text)


@pytest.mark.parametrize("normalizer", [Lowercase(), Strip(), Sequence([NFC(), Strip()])])
def test_text_is_not_cut_where_the_tokenizer_looks_at_its_ends(normalizer: Normalizer) -> None:
    backend = byte_tokenizer()
    backend.normalizer = normalizer
    entries = sorted(backend.get_vocab().items(), key=lambda item: item[1])
    vocabulary = Vocabulary(TokenizerKind.BPE, tuple(e for e, _ in entries), tuple(b"" for _ in entries), None, 0)
    text = "ab " * 10_000
    assert TextTokenizer(backend, vocabulary).encode(text) == backend.encode(text).ids


@given(ids=st.lists(st.integers(0, 256), max_size=40))
def test_pieces_of_any_bytes_contain_whole_characters(tokenizers: dict[str, TextTokenizer], ids: list[int]) -> None:
    vocabulary = tokenizers["bpe"].vocabulary
    writer = Detokenizer(vocabulary)
    streamed = "".join(map(writer.feed, ids))
    data = b"".join(vocabulary.pieces[i] for i in ids if i)
    assert streamed + writer.end() == data.decode("utf-8", "replace")
    assert data.decode("utf-8", "replace").startswith(streamed)


def test_incomplete_character_is_held_back_until_its_last_byte(tokenizers: dict[str, TextTokenizer]) -> None:
    bpe = tokenizers["bpe"]
    writer = Detokenizer(bpe.vocabulary)
    assert [writer.feed(token) for token in bpe.encode("한é")] == ["", "", "한", "", "é"]
    assert bpe.vocabulary.texts[bpe.encode("한")[0]] == "\ufffd"


def test_words_are_joined_by_one_space(tokenizers: dict[str, TextTokenizer]) -> None:
    vocabulary = tokenizers["word"].vocabulary
    for before, text in [("", "good , day"), ("x", " good , day"), ("x ", "good , day"), ("x\n", "good , day")]:
        writer = Detokenizer(vocabulary, NO_TEXT.then(before))
        assert "".join(map(writer.feed, [2, 4, 3, 0])) == text


PARTS = ["한글 문장이에요.", "😀 é🏳️‍🌈!", "good day , good", "a b\nc", "", " "]


@pytest.mark.parametrize("kind", ["char", "bpe", "word"])
@pytest.mark.parametrize("text", PARTS)
def test_text_decoded_in_parts_equals_the_whole_at_every_split(
    tokenizers: dict[str, TextTokenizer], kind: str, text: str
) -> None:
    vocabulary = tokenizers[kind].vocabulary
    tokens = [*tokenizers[kind].encode(text), 0, *tokenizers[kind].encode(text)]
    writer = Detokenizer(vocabulary)
    whole = "".join(map(writer.feed, tokens))
    for split in range(len(tokens) + 1):
        first = Detokenizer(vocabulary)
        start = "".join(map(first.feed, tokens[:split]))
        assert len(first.text_end.partial) <= MAX_PARTIAL_BYTES
        rest = Detokenizer(vocabulary, first.text_end)
        assert start + "".join(map(rest.feed, tokens[split:])) == whole
        assert rest.text_end == writer.text_end


@given(ids=st.lists(st.integers(0, 256), max_size=30), split=st.integers(0, 30))
def test_any_bytes_decoded_in_parts_equal_the_whole(
    tokenizers: dict[str, TextTokenizer], ids: list[int], split: int
) -> None:
    vocabulary = tokenizers["bpe"].vocabulary
    first = Detokenizer(vocabulary)
    start = "".join(map(first.feed, ids[:split]))
    rest = Detokenizer(vocabulary, first.text_end)
    assert start + "".join(map(rest.feed, ids[split:])) + rest.end() == detokenize(vocabulary, ids)


def test_incomplete_character_is_dropped_before_other_text(tokenizers: dict[str, TextTokenizer]) -> None:
    assert TextEnd(partial=b"\xed\x95").then("") == TextEnd(partial=b"\xed\x95")
    assert TextEnd(partial=b"\xed\x95").then("a") == TextEnd(needs_space=True)
    assert TextEnd(needs_space=True).then("a ") == NO_TEXT


@pytest.mark.parametrize("kind", ["char", "bpe", "word"])
def test_text_never_encodes_to_the_boundary_token(tokenizers: dict[str, TextTokenizer], kind: str) -> None:
    assert 0 not in tokenizers[kind].encode("a<|end|>b <|end|> <|unk|>")


def test_offsets_refer_to_the_original_text(tokenizers: dict[str, TextTokenizer]) -> None:
    def offsets(kind: str, text: str) -> list[tuple[int, int]]:
        encoded = tokenizers[kind].encode_with_offsets(text)
        return list(zip(encoded.starts.tolist(), encoded.ends.tolist(), strict=True))

    assert offsets("char", "e\u0301a😀b") == [(0, 2), (2, 3), (3, 4), (4, 5)]
    assert offsets("char", "\u1112\u1161\u11ab") == [(0, 3)]  # one syllable
    assert offsets("bpe", "e\u0301a") == [(0, 2), (0, 2), (2, 3)]
    assert offsets("word", "cafe\u0301 good,") == [(0, 5), (6, 10), (10, 11)]


def test_long_and_short_texts_are_tokenized_alike(tokenizers: dict[str, TextTokenizer]) -> None:
    char = tokenizers["char"]
    text = "abc é" * LONG_CHARS
    assert char.encode(text) == char.encode("abc é") * LONG_CHARS
    assert char.encode_with_offsets(text).ends[-1] == len(text)


def first_match(text: str, stops: list[str]) -> int | None:
    """Find the match by brute force: first to complete, then longest."""
    for end in range(1, len(text) + 1):
        lengths = [len(stop) for stop in stops if text[:end].endswith(stop)]
        if lengths:
            return end - max(lengths)
    return None


AB = st.text(alphabet="ab", max_size=20)
STOPS = st.lists(st.text(alphabet="ab", min_size=1, max_size=5), min_size=1, max_size=4)


@given(AB, STOPS, st.data())
def test_first_match_does_not_depend_on_the_pieces(text: str, stops: list[str], data: st.DataObject) -> None:
    search = StopSearch(StopPatterns.of(stops, str))
    rest = text
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        search.feed(rest[:size])
        rest = rest[size:]
    assert search.cut == first_match(text, stops)


@given(AB, STOPS)
def test_returned_text_is_never_withdrawn(text: str, stops: list[str]) -> None:
    search = StopSearch(StopPatterns.of(stops, str))
    given_out = 0
    for position, character in enumerate(text, start=1):
        if search.feed(character):
            assert search.cut is not None
            assert search.cut >= given_out
            return
        given_out = max(given_out, position - search.held_back)


def test_each_sample_has_its_own_matcher(tokenizers: dict[str, TextTokenizer]) -> None:
    vocabulary = tokenizers["char"].vocabulary
    make = matcher_factory(StopPatterns.of(("bc",), str), vocabulary, NO_TEXT)
    assert make is not None
    first, second = make(), make()
    b, c = 2 + LETTERS.index("b"), 2 + LETTERS.index("c")
    assert [first(b), second(c), first(c), second(b), second(0), second(c)] == [False, False, True, False, False, True]
    assert matcher_factory(StopPatterns.of((), str), vocabulary, NO_TEXT) is None


@pytest.mark.parametrize(
    ("stops", "strings"),
    [
        (["\u1112\u1161\u11ab", "한"], ["한"]),  # conjoining jamo
        (["cafe\u0301"], ["café"]),
        (["\u0301"], ["\u0301"]),  # alone it is unchanged and not part of a letter
        (["\u11ab"], ["\u11ab"]),
        (["\u212b"], ["\u00c5"]),
        (["\u0958"], ["\u0915\u093c"]),  # longer after normalisation
    ],
)
@pytest.mark.parametrize("kind", ["char", "bpe", "word"])
def test_stop_strings_are_normalised_like_the_model(
    tokenizers: dict[str, TextTokenizer], kind: str, stops: list[str], strings: list[str]
) -> None:
    patterns = StopPatterns.of(stops, tokenizers[kind].normalized).patterns
    assert [pattern.text for pattern in patterns] == strings


def test_stop_strings_support_every_normalizer(tokenizers: dict[str, TextTokenizer]) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.normalizer = Sequence([NFC(), Lowercase(), Strip()])
    normalized = TextTokenizer(tokenizer, tokenizers["bpe"].vocabulary).normalized
    patterns = StopPatterns.of(["END", "End", "\n"], normalized).patterns
    assert [pattern.text for pattern in patterns] == ["end", "\n"]  # stripping would remove a line end entirely


@settings(deadline=None, max_examples=50)
@given(
    text=st.text(st.sampled_from([*"ae\u0301\u0316\u0344\u0327\u0345\u0f73\u05b0", "한", "é"]), min_size=90),
    marks=st.text(st.sampled_from("\u0301\u0316\u0344\u0327"), min_size=100, max_size=300),
)
def test_long_runs_of_marks_are_normalised_as_the_library_does(text: str, marks: str) -> None:
    assert nfc(text + marks + text) == normalize("NFC", text + marks + text)


def test_a_million_marks_are_normalised_soon() -> None:
    """The library alone takes a quarter of an hour, which ends this test."""
    assert nfc("\u0301\u0316" * 500_000) == "\u0316" * 500_000 + "\u0301" * 500_000
