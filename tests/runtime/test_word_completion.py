"""Test completions of a typed text against an exhaustive computation.

The models are tables from a prefix to the log-probabilities of the next token. After five tokens every text ends, so
all token sequences can be listed. Completions are read off their texts by a regular expression.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers

import meari
from meari.bundle_format.names import TokenizerKind
from meari.runtime.text.detokenizer import Detokenizer, TextEnd
from meari.runtime.text.tokenizer import TextTokenizer, Vocabulary
from meari.runtime.text.typed import spelling_of, typed_text
from meari.runtime.word_completion import WordSearch
from tests.runtime.spelling_bundle import END, word_tokenizer
from tests.runtime.tiny_bundle import tiny_tokenizer
from tests.service.running import ROOT

Floats = npt.NDArray[np.float32]
Weighted = tuple[tuple[int, ...], float]
MAX_TOKENS = 5
MANY = 10_000
SEEDS = st.integers(0, 10**6)
WORD = re.compile(r"[\w\u0301]+(?:['’-][\w\u0301]+)*")
CHARS = [END, "<|unk|>", *"abe -'.\n", "é", "가", "각", "나", "하", "한", "할", "화", "ㅎ"]
WORDS = ["the", "then", "they", "a", ".", "..", ",", "하늘", "한", "학교"]
PIECES = ["t", "h", "e", " ", "'", ".", "th", "he", "the", " t", " the", "é", "하", "한", "할", " 하"]


def byte_tokenizer() -> tokenizers.Tokenizer:
    """Make a byte-level BPE tokenizer with all bytes and the pieces above."""
    entries = [END, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    merges: list[tuple[str, str]] = []
    for piece in PIECES:
        encoded = level.pre_tokenize_str(piece)[0][0]
        for length in range(2, len(encoded) + 1):
            if encoded[:length] not in entries:
                entries.append(encoded[:length])
                merges.append((encoded[: length - 1], encoded[length - 1]))
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab={e: i for i, e in enumerate(entries)}, merges=merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer, tokenizer.decoder = level, decoders.ByteLevel()
    return tokenizer


def text_tokenizer(tokenizer: tokenizers.Tokenizer, kind: TokenizerKind) -> TextTokenizer:
    """Return the tokenizer as a bundle's."""
    entries = [entry for entry, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]
    if kind is TokenizerKind.BPE:
        bytes_of = {c: bytes([b]) for b in range(256) for c in [_byte_level(b)]}
        pieces = tuple(b"".join(bytes_of.get(c, c.encode()) for c in entry) for entry in entries)
    else:
        pieces = tuple(entry.encode() for entry in entries)
    unknown = tokenizer.token_to_id("<|unk|>")
    texts = tuple(piece.decode("utf-8", "replace") for piece in pieces)
    return TextTokenizer(tokenizer, Vocabulary(kind, texts, pieces, unknown, 0))


def _byte_level(byte: int) -> str:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [value for value in range(256) if value not in printable]
    return chr(byte) if byte in printable else chr(0x100 + rest.index(byte))


TOKENIZERS = {
    TokenizerKind.CHAR: text_tokenizer(tiny_tokenizer(CHARS), TokenizerKind.CHAR),
    TokenizerKind.WORD: text_tokenizer(word_tokenizer(WORDS), TokenizerKind.WORD),
    TokenizerKind.BPE: text_tokenizer(byte_tokenizer(), TokenizerKind.BPE),
}


@dataclass(frozen=True)
class Table:
    """Random model: after each prefix few tokens are possible, after `MAX_TOKENS` the end alone."""

    tokens: tuple[int, ...]
    seed: int
    num_next: int = 3

    def __call__(self, prefix: tuple[int, ...], size: int) -> Floats:
        weights = np.zeros(size)
        if len(prefix) >= MAX_TOKENS:
            weights[0] = 1.0
        else:
            random = np.random.default_rng([self.seed, len(prefix), *prefix])
            chosen = random.choice(self.tokens, min(self.num_next, len(self.tokens)), replace=False)
            weights[chosen] = random.exponential(size=len(chosen))
            weights[0] += random.exponential() / 2
        with np.errstate(divide="ignore"):
            logprobs: Floats = np.log(weights / weights.sum()).astype(np.float32)
        return logprobs


def searched(
    kind: TokenizerKind, table: Table, text: str, n: int = 5, max_words: int = 1, *, composing: bool = False
) -> tuple[dict[str, float], float, WordSearch]:
    """Return completions and error bound of the search."""
    tokenizer = TOKENIZERS[kind]
    typed = typed_text(tokenizer, text, max_words, composing=composing)
    is_spaced = kind is TokenizerKind.WORD
    search = WordSearch(spelling_of(tokenizer), typed, n, is_spaced=is_spaced, max_words=max_words)
    places: list[tuple[int, ...]] = [()]
    asked = [0]
    while asked:
        rows = np.stack([table(places[number], tokenizer.vocabulary.size) for number in asked])
        found = search.advance(rows)
        asked = list(range(len(places), len(places) + len(found)))
        places += [(*places[number], token) for number, token in found]
    best, error = search.best()
    return dict(best), error, search


def sequences(table: Table, size: int, prefix: tuple[int, ...] = (), mass: float = 1.0) -> Iterator[Weighted]:
    """Yield all texts, each with the end token and its probability."""
    logprobs = table(prefix, size)
    for token in np.flatnonzero(logprobs > -np.inf).tolist():
        share = mass * math.exp(logprobs[token])
        if token == 0:
            yield (*prefix, 0), share
        else:
            yield from sequences(table, size, (*prefix, token), share)


def exhaustive(
    kind: TokenizerKind, table: Table, head: str, stem: str, tails: list[str], typed: str = "", max_words: int = 1
) -> dict[str, float]:
    """List all texts that go on from `head` with `stem` and one of `tails`; returns each completion's probability.

    typed  the end of the typed text that a completion replaces
    """
    vocabulary = TOKENIZERS[kind].vocabulary
    masses: defaultdict[str, float] = defaultdict(float)
    total = 0.0
    for tokens, mass in sequences(table, vocabulary.size):
        unknown = vocabulary.unknown_id
        known = tokens[: tokens.index(unknown)] if unknown in tokens else tokens
        spelled, is_whole = _spelled(kind, vocabulary, known, head, is_first=bool(stem + tails[0]))
        if known is not tokens and kind is TokenizerKind.WORD:
            spelled += " "  # an unknown word follows
        if not any(spelled.startswith(stem + tail) for tail in tails):
            continue
        total += mass
        completion = _completion(head + stem, spelled[len(stem) :], typed, max_words, ends=is_whole and known is tokens)
        if completion is not None:
            masses[completion] += mass
    return {text: mass / total for text, mass in masses.items()}


def _spelled(
    kind: TokenizerKind, vocabulary: Vocabulary, tokens: tuple[int, ...], head: str, *, is_first: bool
) -> tuple[str, bool]:
    """Write tokens behind `head`; returns the text, and whether it is all of their bytes.

    is_first  the first token stands where a word has begun already
    """
    if kind is TokenizerKind.BPE:
        data = b"".join(vocabulary.pieces[token] for token in tokens if token != vocabulary.end_id)
        try:
            return data.decode(), True
        except UnicodeDecodeError as error:
            return data[: error.start].decode(), False
    needs_space = bool(head) and not head[-1].isspace() and not is_first
    return Detokenizer(vocabulary, TextEnd(needs_space)).feed_all(tokens), True


def _completion(before: str, written: str, typed: str, max_words: int, *, ends: bool) -> str | None:
    whole, at, num_words = before + written, len(before), 0
    for match in WORD.finditer(whole):
        places = range(max(match.start(), at), match.end())
        if not any(not typed.startswith(whole[at : place + 1]) for place in places):
            continue
        num_words += 1
        if num_words == max_words:
            rest = whole[match.end() :]
            is_open = rest == "" or rest in ("'", "’", "-")
            return whole[at : match.end()] if ends or not is_open else None
    return written if ends and not typed.startswith(written) else None


def check(found: dict[str, float], error: float, exact: dict[str, float], search: WordSearch, n: int) -> None:
    """Check each probability, and that nothing better was overlooked."""
    assert len(found) <= n
    assert list(found.values()) == sorted(found.values(), reverse=True)
    for text, probability in found.items():
        assert probability <= exact.get(text, 0.0) + 1e-6, text
        assert exact[text] <= probability + error + 1e-6, text
    if search.is_proven and len(found) < n:
        assert {text for text, probability in exact.items() if probability > 1e-4} <= found.keys()


@cache
def ids(kind: TokenizerKind, texts: tuple[str, ...]) -> tuple[int, ...]:
    """Return the tokens that are these texts."""
    vocabulary = TOKENIZERS[kind].vocabulary
    return tuple(vocabulary.pieces.index(text.encode()) for text in texts)


CHAR_TEXTS = ["", " ", "a", "ab ", "ab  ", "a'", "a-b", "b.", "ab\n", "ae\u0301", "zz", "zz a", "가"]


@settings(max_examples=10, deadline=None)
@given(
    text=st.sampled_from(CHAR_TEXTS),
    seed=st.integers(0, 10**6),
    max_words=st.sampled_from([1, 2, 3, 8]),
    n=st.sampled_from([1, 3, 20, MANY]),
)
def test_characters_complete_as_an_exhaustive_list_says(text: str, seed: int, max_words: int, n: int) -> None:
    table = Table(ids(TokenizerKind.CHAR, (*"abe -'.\n가", "<|unk|>")), seed)
    found, error, search = searched(TokenizerKind.CHAR, table, text, n, max_words)
    check(found, error, exhaustive(TokenizerKind.CHAR, table, text, "", [""], "", max_words), search, n)


def test_several_words_are_written_to_their_end() -> None:
    """By mass alone the search tried all beginnings, and listed texts that end in the midst of a word."""
    with meari.load(ROOT / "bundles" / "shakespeare-rnn") as lm:
        for max_words in (2, 3):
            found = lm.complete("To be", n=5, max_words=max_words)
            for each in found:
                word_is_new = not each.text[0].isalpha()
                assert len(re.findall(r"[\w'-]+", "To be" + each.text)) == 1 + max_words + word_is_new, each
                most = math.exp(lm.score(each.text, context="To be", end=False))
                assert each.probability <= most <= each.probability * 10


def test_tokens_that_are_too_light_leave_a_search_without_proof() -> None:
    """Only one letter goes on, each time with a fifth of the mass: what it may spell is never run to its end."""
    vocabulary = TOKENIZERS[TokenizerKind.CHAR].vocabulary
    letter, unknown = vocabulary.pieces.index(b"a"), vocabulary.unknown_id
    assert unknown is not None
    row = np.full(vocabulary.size, -np.inf, np.float32)
    row[letter], row[unknown] = math.log(0.2), math.log(0.8)
    typed = typed_text(TOKENIZERS[TokenizerKind.CHAR], "a", 1, composing=False)
    search = WordSearch(spelling_of(TOKENIZERS[TokenizerKind.CHAR]), typed, 1, is_spaced=False)
    while search.advance(row[None]):
        pass
    assert search.best() == ([], 0.0)
    assert not search.is_proven


BYTE_TEXTS = [
    ("", ""),
    ("", "t"),
    ("", "th"),
    ("", "the"),
    ("the", " "),
    ("the", "  "),
    ("the", " t"),
    ("the", " th"),
    ("the", "'"),
    ("", "é"),
    ("the", " 하"),
]


@settings(max_examples=10, deadline=None)
@given(
    text=st.sampled_from(BYTE_TEXTS),
    seed=st.integers(0, 10**6),
    max_words=st.sampled_from([1, 2, 3, 8]),
    n=st.sampled_from([1, 3, 20, MANY]),
)
def test_bytes_complete_as_an_exhaustive_list_says(text: tuple[str, str], seed: int, max_words: int, n: int) -> None:
    head, tail = text
    table = Table(ids(TokenizerKind.BPE, tuple(PIECES[:12])), seed, num_next=5)
    found, error, search = searched(TokenizerKind.BPE, table, head + tail, n, max_words)
    check(found, error, exhaustive(TokenizerKind.BPE, table, head, tail, [""], "", max_words), search, n)


WORD_TEXTS = [
    ("", ""),
    ("", "t"),
    ("", "the"),
    ("the ", "th"),
    ("the ", ""),
    ("the", "."),
    ("the.", "th"),
    ("a zzz", ""),
    ("a zzz ", ""),
    ("zzz  ", ""),
    ("the  ", "th"),
    ("the\n", ""),
    ("the ", "하"),
]


@settings(max_examples=10, deadline=None)
@given(
    text=st.sampled_from(WORD_TEXTS),
    seed=st.integers(0, 10**6),
    max_words=st.sampled_from([1, 2, 3, 8]),
    n=st.sampled_from([1, 3, 20, MANY]),
)
def test_words_complete_as_an_exhaustive_list_says(text: tuple[str, str], seed: int, max_words: int, n: int) -> None:
    head, tail = text
    table = Table(ids(TokenizerKind.WORD, (*WORDS, "<|unk|>")), seed, num_next=4)
    found, error, search = searched(TokenizerKind.WORD, table, head + tail, n, max_words)
    check(found, error, exhaustive(TokenizerKind.WORD, table, head, tail, [""], "", max_words), search, n)


GROWING = {
    "하": ["하", "한", "할"],
    "호": ["화"],
    "한": ["한", "하나"],
    "ㅎ": ["ㅎ", "하", "한", "할", "화"],
    "하ㄴ": ["한", "하나"],
}


@pytest.mark.parametrize("typed", GROWING)
@settings(max_examples=10, deadline=None)
@given(seed=SEEDS)
def test_syllable_in_the_making_stands_for_all_that_it_may_become(typed: str, seed: int) -> None:
    table = Table(ids(TokenizerKind.CHAR, tuple("하한할화나ㅎ 가")), seed, num_next=4)
    found, error, search = searched(TokenizerKind.CHAR, table, "가 " + typed, MANY, composing=True)
    check(found, error, exhaustive(TokenizerKind.CHAR, table, "가 ", "", GROWING[typed], typed), search, MANY)


@settings(max_examples=10, deadline=None)
@given(seed=SEEDS)
def test_bytes_of_a_syllable_in_the_making_may_be_any_tokens(seed: int) -> None:
    texts = ("하", "한", " 하", " ", "the", ".")
    parts = [TOKENIZERS[TokenizerKind.BPE].vocabulary.pieces.index(bytes([byte])) for byte in " 한할".encode()]
    table = Table((*ids(TokenizerKind.BPE, texts), *dict.fromkeys(parts)), seed, num_next=5)
    found, error, search = searched(TokenizerKind.BPE, table, "the 하", MANY, composing=True)
    tails = [chr(code) for code in range(ord("하"), ord("하") + 28)]
    check(found, error, exhaustive(TokenizerKind.BPE, table, "the", " ", tails, "하"), search, MANY)
