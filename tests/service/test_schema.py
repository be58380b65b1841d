"""Every field of both endpoints at its edges: what is accepted, and what is said of the rest."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import InvalidRequest
from service.requests.schema import GenerateRequest, Schemas, ScoreRequest
from service.settings import Settings

SCHEMAS = Schemas(Settings(max_tokens=500, max_texts=3, max_timeout_seconds=60.0, workers=1))

GENERATE_ACCEPTED: list[tuple[str, Any]] = [
    ("model", "x"), ("prompt", ""), ("prompt", "한글 😀"), ("state", None), ("state", "abc"),
    ("max_tokens", 1), ("max_tokens", 500), ("temperature", 0), ("temperature", 10), ("temperature", 0.5),
    ("top_k", 0), ("top_k", 10**9), ("top_p", 1), ("top_p", 1e-9), ("min_p", 0), ("min_p", 0.999),
    ("repetition_penalty", 0.001), ("repetition_penalty", 10), ("logit_bias", None), ("logit_bias", {}),
    ("logit_bias", {"1": -100, "2": 100.0}), ("seed", 0), ("seed", 2**63 - 1),
    ("stop", None), ("stop", "a"), ("stop", []), ("stop", ["a"] * 8), ("n", 1), ("n", 16),
    ("num_beams", 1), ("num_beams", 16), ("logprobs", None), ("logprobs", 0), ("logprobs", 20),
    ("return_state", False), ("return_state", True),
    ("stream", True), ("timeout_seconds", 0.001), ("timeout_seconds", 60),
]  # fmt: skip

GENERATE_REFUSED: list[tuple[str, Any, str]] = [
    ("model", None, "model: got null, expected a string"),
    ("model", 3, "model: got 3, expected a string"),
    ("prompt", None, "prompt: got null, expected a string"),
    ("prompt", ["a"], 'prompt: got ["a"], expected a string'),
    ("state", 3, "state: got 3, expected a string or null"),
    ("max_tokens", 0, "max_tokens: got 0, expected 1 <= max_tokens <= 500"),
    ("max_tokens", 501, "max_tokens: got 501, expected 1 <= max_tokens <= 500"),
    ("max_tokens", 2.0, "max_tokens: got 2.0, expected an integer, 1 <= max_tokens <= 500"),
    ("max_tokens", True, "max_tokens: got true, expected an integer, 1 <= max_tokens <= 500"),
    ("max_tokens", "5", 'max_tokens: got "5", expected an integer, 1 <= max_tokens <= 500'),
    ("max_tokens", None, "max_tokens: got null, expected an integer, 1 <= max_tokens <= 500"),
    ("temperature", -0.1, "temperature: got -0.1, expected 0 <= temperature <= 10"),
    ("temperature", 10.01, "temperature: got 10.01, expected 0 <= temperature <= 10"),
    ("temperature", False, "temperature: got false, expected a number, 0 <= temperature <= 10"),
    ("top_k", -1, "top_k: got -1, expected top_k >= 0"),
    ("top_p", 0, "top_p: got 0, expected 0 < top_p <= 1"),
    ("top_p", 1.4, "top_p: got 1.4, expected 0 < top_p <= 1"),
    ("min_p", 1, "min_p: got 1, expected 0 <= min_p < 1"),
    ("min_p", -1e-9, "min_p: got -1e-09, expected 0 <= min_p < 1"),
    ("repetition_penalty", 0, "repetition_penalty: got 0, expected 0 < repetition_penalty <= 10"),
    ("logit_bias", {"1": 100.5}, 'logit_bias["1"]: got 100.5, expected -100 <= value <= 100'),
    ("logit_bias", {"1": None}, 'logit_bias["1"]: got null, expected a number, -100 <= value <= 100'),
    ("logit_bias", [], "logit_bias: got [], expected an object"),
    ("seed", -1, "seed: got -1, expected 0 <= seed <= 9223372036854775807"),
    ("seed", 2**63, "seed: got 9223372036854775808, expected 0 <= seed <= 9223372036854775807"),
    ("seed", None, "seed: got null, expected an integer"),
    ("seed", 1.5, "seed: got 1.5, expected an integer"),
    ("stop", "", 'stop: got "", expected a non-empty string'),
    ("stop", [""], 'stop[0]: got "", expected a non-empty string'),
    ("stop", ["a"] * 9, "stop: got 9 items, expected a list of at most 8 non-empty strings"),
    ("stop", [1], "stop[0]: got 1, expected a non-empty string"),
    ("n", 0, "n: got 0, expected 1 <= n <= 16"),
    ("n", 17, "n: got 17, expected 1 <= n <= 16"),
    ("num_beams", 0, "num_beams: got 0, expected 1 <= num_beams <= 16"),
    ("num_beams", 17, "num_beams: got 17, expected 1 <= num_beams <= 16"),
    ("logprobs", -1, "logprobs: got -1, expected 0 <= logprobs <= 20"),
    ("logprobs", 21, "logprobs: got 21, expected 0 <= logprobs <= 20"),
    ("logprobs", True, "logprobs: got true, expected an integer"),
    ("return_state", 0, "return_state: got 0, expected true or false"),
    ("stream", 1, "stream: got 1, expected true or false"),
    ("stream", None, "stream: got null, expected true or false"),
    ("timeout_seconds", 0, "timeout_seconds: got 0, expected 0 < timeout_seconds <= 60"),
    ("timeout_seconds", 61, "timeout_seconds: got 61, expected 0 < timeout_seconds <= 60"),
    ("timeout_seconds", None, "timeout_seconds: got null, expected a number"),
    ("temprature", 1, "temprature: got an unknown field, expected one of model, prompt"),
]

SCORE_ACCEPTED: list[dict[str, Any]] = [
    {"text": ""}, {"text": "a", "context": "b"}, {"texts": ["", "a"]}, {"texts": ["a"] * 3},
    {"text": "a", "state": None}, {"text": "a", "add_end": False},
    {"text": "a", "log_base": "2"}, {"text": "a", "log_base": "10"},
    {"text": "a", "tokens": True, "top": 20}, {"text": "a", "words": True}, {"text": "a", "top": 0},
    {"text": "a", "return_state": True}, {"text": "a", "state": "abc"}, {"text": "a", "state": "abc", "context": ""},
]  # fmt: skip

SCORE_REFUSED: list[tuple[dict[str, Any], str]] = [
    ({}, "text: missing, expected text or texts"),
    ({"text": "a", "texts": ["b"]}, "texts: got both text and texts, expected one of the two"),
    ({"text": None}, "text: got null, expected a string"),
    ({"texts": []}, "texts: got 0 items, expected a list of 1 to 3 strings"),
    ({"texts": ["a"] * 4}, "texts: got 4 items, expected a list of 1 to 3 strings"),
    ({"texts": ["a", 1]}, "texts[1]: got 1, expected a string"),
    ({"texts": "a"}, 'texts: got "a", expected a list of 1 to 3 strings'),
    ({"text": "a", "log_base": 2}, 'log_base: got 2, expected one of "10", "2", "e"'),
    ({"text": "a", "log_base": "3"}, 'log_base: got "3", expected one of'),
    ({"text": "a", "top": 21, "tokens": True}, "top: got 21, expected 0 <= top <= 20"),
    ({"text": "a", "top": 1}, "top: got 1 with tokens false, expected 0, or tokens true"),
    ({"text": "a", "add_end": "yes"}, 'add_end: got "yes", expected true or false'),
    ({"text": "a", "state": 3}, "state: got 3, expected a string or null"),
    ({"text": "a", "state": "x", "context": "b"}, "context: got both context and state, expected one of the two"),
    ({"text": "a", "return_state": 1}, "return_state: got 1, expected true or false"),
    ({"text": "a", "prompt": "a"}, "prompt: got an unknown field"),
]

MALFORMED: list[tuple[bytes, str]] = [
    (b"", "body: got nothing, expected a JSON object"),
    (b" \n", "body: got nothing, expected a JSON object"),
    (b"[]", "body: got [], expected a JSON object"),
    (b"null", "body: got null, expected a JSON object"),
    (b'"text"', 'body: got "text", expected a JSON object'),
    (b'{"n": 1', "it ends too early (byte 7)"),
    (b'{"n": 1}}', "trailing characters (byte"),
    (b'{"n": 01}', "invalid number"),
    (b"{'n': 1}", "(byte 1)"),
    (b'{"top_p": NaN}', "malformed JSON"),
    (b'{"top_p": Infinity}', "malformed JSON"),
    (b'{"top_p": 1e999}', "top_p: got 1e999, expected 0 < top_p <= 1"),
    (b'{"n": ' + b"9" * 5000 + b"}", "expected 1 <= n <= 16"),
    (b'{"prompt": "\xff"}', "bytes that are not UTF-8 at byte 12"),
    (b'{"prompt": "\xed\xa0\x80"}', "bytes that are not UTF-8 at byte 12"),
    (b'{"prompt": "\\ud800 and more"}', "malformed JSON"),
    (b'{"prompt": "\\ud800"}', "malformed JSON"),
    (b'{"n": 1, "n": 2}', "n: got the name twice, expected it once"),
    (b'{"logit_bias": {"5": 1, "5": 2}}', "5: got the name twice"),
    (b'{"prompt": ' + b"[" * 100_000, "nested too deeply"),
    (b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    (b"\xef\xbb\xbf{}", "malformed JSON"),
]


def refusal_of(parse: Any, body: bytes) -> str:
    with pytest.raises(InvalidRequest) as caught:
        parse(body)
    return str(caught.value)


@pytest.mark.parametrize(("field", "value"), GENERATE_ACCEPTED)
def test_generate_accepts_the_edges_of_every_field(field: str, value: Any) -> None:
    request = SCHEMAS.generate(json.dumps({field: value}).encode())
    assert getattr(request, field) == value


@pytest.mark.parametrize(("field", "value", "message"), GENERATE_REFUSED)
def test_generate_says_what_came_and_what_was_expected(field: str, value: Any, message: str) -> None:
    assert refusal_of(SCHEMAS.generate, json.dumps({field: value}).encode()).startswith(message)


@pytest.mark.parametrize("body", SCORE_ACCEPTED)
def test_score_accepts_the_edges_of_every_field(body: dict[str, Any]) -> None:
    request = SCHEMAS.score(json.dumps(body).encode())
    assert request.all_texts == body.get("texts", [body.get("text")])


@pytest.mark.parametrize(("body", "message"), SCORE_REFUSED)
def test_score_says_what_came_and_what_was_expected(body: dict[str, Any], message: str) -> None:
    assert refusal_of(SCHEMAS.score, json.dumps(body).encode()).startswith(message)


@pytest.mark.parametrize(("body", "message"), MALFORMED)
def test_malformed_bodies_are_refused_with_the_place(body: bytes, message: str) -> None:
    assert message in refusal_of(SCHEMAS.generate, body)


def test_all_problems_of_a_body_are_told_at_once() -> None:
    message = refusal_of(SCHEMAS.generate, b'{"n": 0, "top_p": 2, "foo": 1}')
    assert [part.split(":")[0] for part in message.split("; ")] == ["foo", "top_p", "n"]


BEAMS_ACCEPTED: list[dict[str, Any]] = [
    {}, {"n": 4}, {"temperature": 0}, {"temperature": 1}, {"top_k": 0, "top_p": 1, "min_p": 0, "logit_bias": {}},
    {"repetition_penalty": 1, "logit_bias": None, "seed": 3, "stop": "a", "logprobs": 2, "stream": True},
]  # fmt: skip

BEAMS_REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"n": 5}, "n: got 5, expected at most num_beams, which is 4"),
    ({"temperature": 0.7}, "temperature: got 0.7 with num_beams 4, expected 0 or 1: nothing is sampled"),
    ({"top_k": 5}, "top_k: got 5 with num_beams 4, expected 0: nothing is sampled"),
    ({"top_p": 0.9}, "top_p: got 0.9 with num_beams 4, expected 1.0: nothing is sampled"),
    ({"min_p": 0.1}, "min_p: got 0.1 with num_beams 4, expected 0.0: nothing is sampled"),
    ({"repetition_penalty": 2}, "repetition_penalty: got 2.0 with num_beams 4, expected 1.0: nothing is sampled"),
    ({"logit_bias": {"1": 2}}, 'logit_bias: got {"1":2.0} with num_beams 4, expected null: nothing is sampled'),
]


@pytest.mark.parametrize("body", BEAMS_ACCEPTED)
def test_beams_take_what_does_not_sample(body: dict[str, Any]) -> None:
    assert SCHEMAS.generate(json.dumps({"num_beams": 4, **body}).encode()).num_beams == 4


@pytest.mark.parametrize(("body", "message"), BEAMS_REFUSED)
def test_beams_refuse_what_only_sampling_can_do(body: dict[str, Any], message: str) -> None:
    assert refusal_of(SCHEMAS.generate, json.dumps({"num_beams": 4, **body}).encode()) == message
    assert SCHEMAS.generate(json.dumps(body).encode()).num_beams == 1


def test_long_values_are_cut_in_messages() -> None:
    assert len(refusal_of(SCHEMAS.generate, json.dumps({"n": "x" * 10_000}).encode())) < 150


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "tokens: missing, expected a list of integers or objects with id, text"),
        ({"tokens": [1, -1]}, "tokens[1]: got -1, expected"),
        ({"tokens": [{"text": "a"}]}, "tokens[0].id: missing, expected an integer"),
        ({"tokens": [{"id": 1, "x": 1}]}, "tokens[0].x: got an unknown field"),
        ({"tokens": "a"}, 'tokens: got "a", expected a list'),
    ],
)
def test_detokenize_names_the_token_that_is_wrong(body: dict[str, Any], message: str) -> None:
    assert refusal_of(SCHEMAS.detokenize, json.dumps(body).encode()).startswith(message)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from([case[0] for case in GENERATE_REFUSED]) | st.text(max_size=5)


def is_read_or_refused(read: Callable[[bytes], object], body: bytes) -> bool:
    """Whether a body becomes a request, or an InvalidRequest whose message says where and what."""
    try:
        return isinstance(read(body), GenerateRequest | ScoreRequest)
    except InvalidRequest as error:
        return ": " in str(error)


@given(st.dictionaries(NAMES, JSON, max_size=4))
def test_any_object_is_accepted_or_refused_with_a_reason(body: dict[str, Any]) -> None:
    data = json.dumps(body, ensure_ascii=False).encode("utf-8", "surrogatepass")
    assert is_read_or_refused(SCHEMAS.generate, data)


@given(st.binary(max_size=60))
def test_any_bytes_are_accepted_or_refused_with_a_reason(body: bytes) -> None:
    assert is_read_or_refused(SCHEMAS.score, body)
