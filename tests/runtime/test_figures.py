"""Test the figures of /score against values worked by hand."""

from __future__ import annotations

import json
import math
import sys

import numpy as np
import pytest

from meari.bundle_format.names import TokenizerKind
from meari.errors import InvalidRequest
from meari.runtime.answers import ScoredWord
from meari.runtime.engine import TextScore
from meari.runtime.requests import LogBase
from meari.runtime.scores import SLICE, ScoreAnswer, ScoredText
from meari.runtime.text.tokenizer import Encoded, Vocabulary
from meari.runtime.text.words import open_run, require_segmenter, word_spans

LETTERS = ("<|end|>", "<|unk|>", "a", "b", " ")
VOCABULARY = Vocabulary(TokenizerKind.CHAR, LETTERS, tuple(x.encode() for x in LETTERS), unknown_id=1, end_id=0)


def scored(text: str, logprobs: list[float], log_base: LogBase = "e") -> ScoredText:
    ids = [LETTERS.index(x) if x in LETTERS else 1 for x in text]
    starts = np.arange(len(text), dtype=np.int32)
    rows = len(logprobs)
    scores = TextScore(np.array(logprobs), np.ones(rows, np.int64), np.zeros((rows, 1), np.int64), np.zeros((rows, 1)))
    return ScoredText(Encoded(text, ids, starts, starts + 1), scores, VOCABULARY, log_base)


def test_sums_perplexity_and_bits_match_values_worked_by_hand() -> None:
    figures = scored("ab", [-0.5, -1.0, -1.5]).figures()
    assert figures.logprob == -3.0
    assert figures.probability == math.exp(-3.0)
    assert figures.perplexity == math.exp(1.0)
    assert figures.bits_per_char == pytest.approx(3.0 / math.log(2) / 2)
    assert (figures.num_tokens, figures.num_chars, figures.num_bytes) == (3, 2, 2)


def test_characters_and_bytes_are_counted_in_the_normal_form() -> None:
    figures = scored("한", [-2.0]).figures()
    assert (figures.num_chars, figures.num_bytes) == (1, 3)
    assert figures.bits_per_char == pytest.approx(2.0 / math.log(2))
    assert figures.bits_per_byte == pytest.approx(2.0 / math.log(2) / 3)
    assert scored("e\u0301", [-1.0, -1.0]).figures().num_chars == 1


@pytest.mark.parametrize(("log_base", "divisor"), [("e", 1.0), ("2", math.log(2)), ("10", math.log(10))])
def test_log_base_affects_only_logarithms(log_base: LogBase, divisor: float) -> None:
    text = scored("ab", [-0.5, -1.0], log_base)
    figures = text.figures()
    assert figures.logprob == -1.5 / divisor
    assert figures.probability == math.exp(-1.5)
    assert figures.perplexity == math.exp(0.75)
    assert figures.bits_per_char == pytest.approx(0.75 / math.log(2))
    assert text.tokens(0, 1)[0].logprob == -0.5 / divisor
    assert text.words()[0].logprob == -1.5 / divisor


def test_empty_score_has_no_perplexity() -> None:
    figures = scored("", []).figures()
    assert (figures.logprob, figures.probability, figures.num_tokens) == (0.0, 1.0, 0)
    assert figures.perplexity is figures.bits_per_char is figures.bits_per_byte is None
    assert not math.copysign(1, figures.logprob) < 0


def test_empty_text_is_scored_with_its_end() -> None:
    text = scored("", [-2.0])
    assert text.figures().perplexity == math.exp(2.0)
    assert text.figures().bits_per_char is None
    assert [(t.text, t.start, t.end) for t in text.tokens(0, 1)] == [("<|end|>", 0, 0)]
    assert text.words() == [ScoredWord("<|end|>", -2.0, 0, 0)]


def test_unknown_tokens_are_counted_and_excluded_from_the_second_sum() -> None:
    figures = scored("aéb", [-1.0, -8.0, -1.0, -0.5]).figures()
    assert (figures.num_unknown, figures.logprob, figures.logprob_without_unknown) == (1, -10.5, -2.5)


def test_improbable_texts_underflow_to_zero_in_valid_json() -> None:
    figures = scored("ab", [-5000.0, -1e6]).figures()
    assert figures.probability == 0.0
    assert figures.perplexity is not None
    assert math.isfinite(figures.perplexity)


def test_every_token_belongs_to_one_word_and_the_end_to_its_own_row() -> None:
    text = scored("  ab b  ", [-1.0, -2.0, -4.0, -8.0, -16.0, -32.0, -64.0, -128.0, -256.0])
    words = [(word.text, word.logprob, word.start, word.end) for word in text.words()]
    assert words == [("ab", -15.0, 2, 4), ("b", -240.0, 5, 6), ("<|end|>", -256.0, 8, 8)]
    assert sum(word.logprob for word in text.words()) == text.figures().logprob


def test_text_of_white_space_is_one_row() -> None:
    assert scored("  ", [-1.0, -1.0]).words() == [ScoredWord("  ", -2.0, 0, 2)]
    assert scored("", []).words() == []


def test_unknown_words_and_tokens_are_marked() -> None:
    text = scored("aé b é", [-1.0] * 7)
    assert [token.unknown for token in text.tokens(0, 7)] == [False, True, False, False, False, True, False]
    assert [(word.text, word.unknown) for word in text.words()] == [
        ("aé", True), ("b", False), ("é", True), ("<|end|>", False)
    ]  # fmt: skip


@pytest.mark.parametrize("length", [0, 1, SLICE - 1, SLICE, SLICE + 1, 3 * SLICE])
def test_pieces_join_to_one_json_value(length: int) -> None:
    text = scored(("a b " * length)[:length], [-1.0] * (length + 1))
    answer = json.loads(b"".join(ScoreAnswer("m", "e", [text, text], True, True, 7, 2, 0, None).pieces()))
    assert [len(result["tokens"]) for result in answer["results"]] == [length + 1] * 2
    assert answer["results"][0]["num_tokens"] == length + 1
    assert answer["usage"] == {"scored_tokens": 2 * (length + 1), "computed_tokens": 7, "cached_tokens": 2}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("今日は良い天気ですね。", ["今日", "は", "良い", "天気", "です", "ね", "。"]),
        ("我爱北京天安门，中文。", ["我", "爱", "北京", "天安门", "，", "中文", "。"]),
        ("วันนี้อากาศดี", ["วัน", "นี้", "อากาศ", "ดี"]),
        ("It's 3.14, o'clock!", ["It's", "3.14", ",", "o'clock", "!"]),
        ("😀한글은  é\u0301x ", ["😀", "한글은", "é\u0301x"]),
        (" \n", []),
        ("", []),
        ("a" * 5000, ["a" * 4096, "a" * 904]),
    ],
)
def test_unicode_words_are_found_without_spaces(text: str, words: list[str]) -> None:
    spans = word_spans(text, "unicode")
    assert [text[start:end] for start, end in spans] == words
    assert [word_spans(text[: open_run(text)], "unicode"), open_run(text) <= len(text)] == [
        [span for span in spans if span[1] <= open_run(text)],
        True,
    ]


def test_missing_segmenter_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "icu4py.breakers", None)
    with pytest.raises(InvalidRequest, match=r"words: got \"unicode\", which needs ICU, .* meari\[segment\]"):
        require_segmenter()
