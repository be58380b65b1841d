"""Test the character table: it gives the ids of the tokenizers library, or is not used."""

from __future__ import annotations

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import normalizers, pre_tokenizers

from meari.bundle_format.names import TokenizerKind
from meari.runtime.text.tokenizer import CharacterTable, TextTokenizer, Vocabulary
from tests.runtime.spelling_bundle import byte_tokenizer, word_tokenizer
from tests.runtime.tiny_bundle import VOCABULARY, tiny_tokenizer

BACKEND = tiny_tokenizer()
TABLE = CharacterTable.of(BACKEND)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("abce\u0301\u0308\u1112\u1161\u11ab \n"))


@given(TEXTS)
def test_table_gives_the_ids_of_the_library(text: str) -> None:
    assert TABLE is not None
    assert TABLE.encode(text) == BACKEND.encode(text, add_special_tokens=False).ids


@given(TEXTS)
def test_offsets_match_the_library(text: str) -> None:
    vocabulary = Vocabulary(TokenizerKind.CHAR, tuple(VOCABULARY), tuple(x.encode() for x in VOCABULARY), 1, 0)
    fast, slow = TextTokenizer(BACKEND, vocabulary), TextTokenizer(BACKEND, vocabulary)
    slow._characters = None
    found, expected = fast.encode_with_offsets(text), slow.encode_with_offsets(text)
    assert found.ids == expected.ids
    np.testing.assert_array_equal(found.starts, expected.starts)
    np.testing.assert_array_equal(found.ends, expected.ends)
    assert fast.encode_all([text, "a"]) == slow.encode_all([text, "a"]) == [expected.ids, [2]]


def lower_case() -> tokenizers.Tokenizer:
    backend = tiny_tokenizer()
    backend.normalizer = normalizers.Lowercase()
    return backend


def whole_words() -> tokenizers.Tokenizer:
    backend = tiny_tokenizer()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return backend


def added_token() -> tokenizers.Tokenizer:
    backend = tiny_tokenizer()
    backend.add_tokens(["abc"])
    return backend


@pytest.mark.parametrize(
    "backend", [lower_case(), whole_words(), added_token(), byte_tokenizer(), word_tokenizer(["a"])]
)
def test_other_tokenizer_has_no_table(backend: tokenizers.Tokenizer) -> None:
    assert CharacterTable.of(backend) is None
