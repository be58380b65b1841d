"""Test the limits of every field of both endpoints: accepted values and error messages."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from meari.errors import InvalidRequest, Overloaded
from meari.runtime.requests import GenerateRequest, ScoreRequest
from meari.service.requests.completions import prompts_of
from meari.service.requests.schema import Schemas
from meari.service.settings import Settings

SCHEMAS = Schemas(Settings(max_tokens=500, max_texts=3, max_timeout_seconds=60.0, workers=1))

GENERATE_ACCEPTED: list[tuple[str, Any]] = [
    ("model", "x"), ("prompt", ""), ("prompt", "한글 😀"), ("state", None), ("state", "abc"),
    ("max_tokens", 1), ("max_tokens", 500), ("temperature", 0), ("temperature", 10), ("temperature", 0.5),
    ("top_k", 0), ("top_k", 10**9), ("top_k", 10**30), ("top_p", 0), ("top_p", 1), ("top_p", 1e-9),
    ("min_p", 0), ("min_p", 0.999),
    ("min_tokens", 0), ("min_tokens", 64), ("frequency_penalty", -2), ("frequency_penalty", 2),
    ("presence_penalty", -2), ("presence_penalty", 2.0), ("presence_penalty", 5e-324),
    ("repetition_penalty", 0.001), ("repetition_penalty", 10), ("logit_bias", None), ("logit_bias", {}),
    ("logit_bias", {"1": -100, "2": 100.0}), ("seed", 0), ("seed", 2**63 - 1),
    ("stop", None), ("stop", "a"), ("stop", ""), ("stop", []), ("stop", [""]), ("stop", ["a"] * 8), ("n", 1), ("n", 16),
    ("num_beams", 1), ("num_beams", 16), ("logprobs", None), ("logprobs", 0), ("logprobs", 20),
    ("return_state", False), ("return_state", True),
    ("stream", True), ("timeout_seconds", 0.001), ("timeout_seconds", 60),
]  # fmt: skip

GENERATE_REFUSED: list[tuple[str, Any, str]] = [
    ("model", 3, "model: got 3, expected a string"),
    ("prompt", ["a"], 'prompt: got ["a"], expected a string'),
    ("state", 3, "state: got 3, expected a string or null"),
    ("max_tokens", 0, "max_tokens: got 0, expected 1 <= max_tokens <= 500"),
    ("max_tokens", 501, "max_tokens: got 501, expected 1 <= max_tokens <= 500"),
    ("max_tokens", True, "max_tokens: got true, expected an integer, 1 <= max_tokens <= 500"),
    ("max_tokens", "5", 'max_tokens: got "5", expected an integer, 1 <= max_tokens <= 500'),
    ("temperature", -0.1, "temperature: got -0.1, expected 0 <= temperature <= 10"),
    ("temperature", 10.01, "temperature: got 10.01, expected 0 <= temperature <= 10"),
    ("temperature", False, "temperature: got false, expected a number, 0 <= temperature <= 10"),
    ("max_tokens", 3.5, "max_tokens: got 3.5, expected an integer, 1 <= max_tokens <= 500"),
    ("max_tokens", 501.0, "max_tokens: got 501.0, expected an integer, 1 <= max_tokens <= 500"),
    ("top_k", -2, "top_k: got -2, expected top_k >= -1"),
    ("top_p", -0.1, "top_p: got -0.1, expected 0 <= top_p <= 1"),
    ("top_p", 1.4, "top_p: got 1.4, expected 0 <= top_p <= 1"),
    ("min_tokens", -1, "min_tokens: got -1, expected min_tokens >= 0"),
    ("min_tokens", 65, "min_tokens: got 65, expected at most max_tokens, which is 64"),
    ("min_tokens", 1.5, "min_tokens: got 1.5, expected an integer, min_tokens >= 0"),
    ("frequency_penalty", 2.1, "frequency_penalty: got 2.1, expected -2 <= frequency_penalty <= 2"),
    ("presence_penalty", -2.1, "presence_penalty: got -2.1, expected -2 <= presence_penalty <= 2"),
    ("ignore_eos", True, "ignore_eos: got an unknown field"),
    ("min_p", 1, "min_p: got 1, expected 0 <= min_p < 1"),
    ("min_p", -1e-9, "min_p: got -1e-09, expected 0 <= min_p < 1"),
    ("repetition_penalty", 0, "repetition_penalty: got 0, expected 0 < repetition_penalty <= 10"),
    ("logit_bias", {"1": 100.5}, 'logit_bias["1"]: got 100.5, expected -100 <= value <= 100'),
    ("logit_bias", {"1": None}, 'logit_bias["1"]: got null, expected a number, -100 <= value <= 100'),
    ("logit_bias", [], "logit_bias: got [], expected an object"),
    ("seed", -2, "seed: got -2, expected -1 <= seed <= 9223372036854775807"),
    ("seed", 2**63, "seed: got 9223372036854775808, expected -1 <= seed <= 9223372036854775807"),
    ("seed", 1.5, "seed: got 1.5, expected an integer"),
    ("stop", ["a"] * 9, "stop: got 9 items, expected a list of at most 8 strings"),
    ("stop", [1], "stop[0]: got 1, expected a string"),
    ("n", 0, "n: got 0, expected 1 <= n <= 16"),
    ("n", 17, "n: got 17, expected 1 <= n <= 16"),
    ("num_beams", 0, "num_beams: got 0, expected 1 <= num_beams <= 16"),
    ("num_beams", 17, "num_beams: got 17, expected 1 <= num_beams <= 16"),
    ("logprobs", -1, "logprobs: got -1, expected 0 <= logprobs <= 20"),
    ("logprobs", 21, "logprobs: got 21, expected 0 <= logprobs <= 20"),
    ("logprobs", True, "logprobs: got true, expected an integer"),
    ("return_state", 0, "return_state: got 0, expected true or false"),
    ("stream", 1, "stream: got 1, expected true or false"),
    ("timeout_seconds", 0, "timeout_seconds: got 0, expected 0 < timeout_seconds <= 60"),
    ("timeout_seconds", 61, "timeout_seconds: got 61, expected 0 < timeout_seconds <= 60"),
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
    ({"text": None}, "text: missing, expected text or texts"),
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
    (b'{"top_p": 1e999}', "top_p: got 1e999, expected 0 <= top_p <= 1"),
    (b'{"n": 1.0, "top_p": NaN}', "malformed JSON"),
    (b'{"n": 1.0, "prompt": "\\ud800"}', r"\ud800 is half of a surrogate pair"),
    (b'{"n": 1e999999999}', "n: got 1e999999999, expected an integer, 1 <= n <= 16"),
    (b'{"n": 1e-999999999}', "n: got 1e-999999999, expected an integer, 1 <= n <= 16"),
    (b'{"n": 1e99999999999999999999}', "n: got 1e99999999999999999999, expected"),
    (b'{"n": 1.0, "n": 1.0}', "n: got the name twice, expected it once"),
    (b'{"n": ' + b"9" * 5000 + b"}", "expected 1 <= n <= 16"),
    (b'{"prompt": "\xff"}', "bytes that are not UTF-8 at byte 12"),
    (b'{"prompt": "\xed\xa0\x80"}', "bytes that are not UTF-8 at byte 12"),
    (b'{"prompt": "\\ud800 and more"}', "malformed JSON"),
    (b'{"prompt": "\\ud800"}', r"\ud800 is half of a surrogate pair"),
    (b'{"prompt": "\\udc00\\u0041"}', r"\udc00 is half of a surrogate pair"),
    (b'{"prompt": "\\ud800', "it ends too early (byte 18)"),
    (b'{"n": 1, "n": 2}', "n: got the name twice, expected it once"),
    (b'{"logit_bias": {"5": 1, "5": 2}}', "5: got the name twice"),
    (b'{"prompt": ' + b"[" * 100_000, "nested too deeply"),
    (b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    (b"\xef\xbb\xbf", "body: got nothing"),
    (b"\xef\xbb\xbf\xef\xbb\xbf{}", "malformed JSON"),
    (b"\xef\xbb\xbf{'n': 1}", "malformed JSON"),
]


def refusal_of(parse: Any, body: bytes) -> str:
    with pytest.raises(InvalidRequest) as caught:
        parse(body)
    return str(caught.value)


@pytest.mark.parametrize(("field", "value"), GENERATE_ACCEPTED)
def test_generate_accepts_the_limits_of_every_field(field: str, value: Any) -> None:
    request = SCHEMAS.generate(json.dumps({field: value}).encode())
    assert getattr(request, field) == value


@pytest.mark.parametrize(("field", "value", "message"), GENERATE_REFUSED)
def test_generate_errors_have_the_value_and_the_expected_values(field: str, value: Any, message: str) -> None:
    assert refusal_of(SCHEMAS.generate, json.dumps({field: value}).encode()).startswith(message)


def integers(schemas: Schemas) -> list[tuple[Any, str, dict[str, Any]]]:
    """Return every integer field of every request, with the other required fields."""
    return [
        *((schemas.generate, name, {}) for name in ("max_tokens", "top_k", "seed", "n", "logprobs")),
        (schemas.generate, "num_beams", {"n": 1}),
        (schemas.score, "top", {"text": "", "tokens": True}),
        (schemas.complete, "n", {"text": ""}),
        (schemas.complete, "max_words", {"text": ""}),
        (schemas.states, "units", {"text": ""}),
        *((schemas.completions, name, {}) for name in ("max_tokens", "top_k", "seed", "n", "best_of", "logprobs")),
        (schemas.completions, "max_completion_tokens", {}),
    ]


@pytest.mark.parametrize(("parse", "field", "more"), integers(SCHEMAS))
def test_integer_may_be_written_with_a_fraction_of_zero(parse: Any, field: str, more: dict[str, Any]) -> None:
    for written in ("3.0", "3e0", "30.00e-1", "3"):
        body = json.dumps({**more, field: 0}).replace(f'"{field}": 0', f'"{field}": {written}')
        value = getattr(parse(body.encode()), field)
        assert (type(value), value) == (int, 3)
    for written in ("3.5", '"3"', "true", "[3]"):
        body = json.dumps({**more, field: 0}).replace(f'"{field}": 0', f'"{field}": {written}')
        assert refusal_of(parse, body.encode()).startswith(f"{field}: got {written}, expected an integer")


def test_integers_in_lists_may_be_written_with_a_fraction_of_zero() -> None:
    assert SCHEMAS.detokenize(b'{"tokens": [1.0, {"id": 2.0, "text": null}]}').ids == [1, 2]
    assert prompts_of(SCHEMAS.completions(b'{"prompt": [[1.0, 2], [3e0]]}')) == [[1, 2], [3]]
    assert prompts_of(SCHEMAS.completions(b'{"prompt": [1.0, 2]}')) == [[1, 2]]
    assert SCHEMAS.generate(b'{"seed": 9223372036854775807.0}').seed == 2**63 - 1


@pytest.mark.parametrize("parse", [SCHEMAS.generate, SCHEMAS.completions])
def test_null_means_the_default(parse: Any) -> None:
    plain = parse(b"{}")
    for field in plain.__struct_fields__:
        assert parse(json.dumps({field: None}).encode()) == plain
    assert parse(json.dumps(dict.fromkeys(plain.__struct_fields__)).encode()) == plain
    assert "unknown field" in refusal_of(parse, b'{"temprature": null}')


def test_null_is_refused_for_required_fields() -> None:
    assert refusal_of(SCHEMAS.tokenize, b'{"text": null}') == "text: got null, expected a string"
    assert SCHEMAS.score(b'{"text": null, "texts": ["a"], "context": null, "top": null}').all_texts == ["a"]


@pytest.mark.parametrize("parse", [SCHEMAS.generate, lambda body: SCHEMAS.completions(body).generate_request])
@pytest.mark.parametrize(("stop", "strings"), [("", ()), ([], ()), (["", "a", "", "a"], ("a",)), ("a", ("a",))])
def test_empty_stop_string_stops_nothing(parse: Any, stop: Any, strings: tuple[str, ...]) -> None:
    assert parse(json.dumps({"stop": stop}).encode()).stops == strings


def test_minus_one_of_vllm_means_the_default() -> None:
    assert SCHEMAS.generate(b'{"seed": -1, "top_k": -1}') == SCHEMAS.generate(b"{}")
    assert SCHEMAS.completions(b'{"seed": -1}').generate_request.seed is UNSET
    assert SCHEMAS.generate(b'{"num_beams": 2, "top_k": -1}').num_beams == 2


@pytest.mark.parametrize(
    ("body", "count"),
    [(b"{}", 16), (b'{"max_completion_tokens": 9}', 9), (b'{"max_completion_tokens": 9, "max_tokens": 9}', 9)],
)
def test_max_tokens_has_two_names(body: bytes, count: int) -> None:
    assert SCHEMAS.completions(body).num_tokens == count
    assert Schemas(Settings(max_tokens=4, workers=1)).completions(b"{}").num_tokens == 4
    two = refusal_of(SCHEMAS.completions, b'{"max_completion_tokens": 9, "max_tokens": 8}')
    assert two == "max_completion_tokens: got 9 with max_tokens 8, expected one of the two, or the same"


@pytest.mark.parametrize("body", SCORE_ACCEPTED)
def test_score_accepts_the_limits_of_every_field(body: dict[str, Any]) -> None:
    request = SCHEMAS.score(json.dumps(body).encode())
    assert request.all_texts == body.get("texts", [body.get("text")])


@pytest.mark.parametrize(("body", "message"), SCORE_REFUSED)
def test_score_errors_have_the_value_and_the_expected_values(body: dict[str, Any], message: str) -> None:
    assert refusal_of(SCHEMAS.score, json.dumps(body).encode()).startswith(message)


@pytest.mark.parametrize(("body", "message"), MALFORMED)
def test_malformed_bodies_are_refused_with_the_position(body: bytes, message: str) -> None:
    assert message in refusal_of(SCHEMAS.generate, body)


def test_all_problems_of_a_body_are_reported_together() -> None:
    message = refusal_of(SCHEMAS.generate, b'{"n": 0, "top_p": 2, "foo": 1}')
    assert [part.split(":")[0] for part in message.split("; ")] == ["foo", "top_p", "n"]


BEAMS_ACCEPTED: list[dict[str, Any]] = [
    {}, {"n": 4}, {"min_tokens": 5}, {"temperature": 0}, {"temperature": 1},
    {"temperature": 9e-6}, {"temperature": 5e-324},
    {"top_k": 0, "top_p": 1, "min_p": 0, "logit_bias": {}},
    {"repetition_penalty": 1, "logit_bias": None, "seed": 3, "stop": "a", "logprobs": 2, "stream": True},
]  # fmt: skip

BEAMS_REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"n": 5}, "n: got 5, expected at most num_beams, which is 4"),
    ({"temperature": 0.7}, "temperature: got 0.7 with num_beams 4, expected 0 or 1: nothing is sampled"),
    ({"top_p": 0.9}, "top_p: got 0.9 with num_beams 4, expected 1.0: nothing is sampled"),
    ({"frequency_penalty": 1}, "frequency_penalty: got 1.0 with num_beams 4, expected 0.0: nothing is sampled"),
    ({"presence_penalty": -1}, "presence_penalty: got -1.0 with num_beams 4, expected 0.0: nothing is sampled"),
    ({"min_p": 0.1}, "min_p: got 0.1 with num_beams 4, expected 0.0: nothing is sampled"),
    ({"repetition_penalty": 2}, "repetition_penalty: got 2.0 with num_beams 4, expected 1.0: nothing is sampled"),
    ({"logit_bias": {"1": 2}}, 'logit_bias: got {"1":2.0} with num_beams 4, expected null: nothing is sampled'),
]


@pytest.mark.parametrize("body", BEAMS_ACCEPTED)
def test_beam_search_accepts_fields_unrelated_to_sampling(body: dict[str, Any]) -> None:
    assert SCHEMAS.generate(json.dumps({"num_beams": 4, **body}).encode()).num_beams == 4


@pytest.mark.parametrize(("body", "message"), BEAMS_REFUSED)
def test_beam_search_refuses_sampling_fields(body: dict[str, Any], message: str) -> None:
    assert refusal_of(SCHEMAS.generate, json.dumps({"num_beams": 4, **body}).encode()) == message
    assert SCHEMAS.generate(json.dumps(body).encode()).num_beams == 1


@pytest.mark.parametrize(
    ("parse", "body", "hint"),
    [
        (SCHEMAS.generate, {"temprature": 1}, "temperature"),
        (SCHEMAS.generate, {"Top_P": 1}, "top_p"),
        (SCHEMAS.generate, {"repeat_penalty": 1}, "repetition_penalty"),
        (SCHEMAS.completions, {"max_token": 1}, "max_tokens"),
        (SCHEMAS.completions, {"stream": True, "stream_options": {"include_usages": True}}, "include_usage"),
        (SCHEMAS.score, {"text": "a", "token": True}, "tokens"),
        (SCHEMAS.score, {"text": "a", "words": "unicod"}, "unicode"),
        (SCHEMAS.score, {"text": "a", "log_base": "E"}, "e"),
        (SCHEMAS.complete, {"text": "a", "max_word": 2}, "max_words"),
        (SCHEMAS.tokenize, {"texts": "a"}, "text"),
        (SCHEMAS.detokenize, {"tokens": [{"id": 1, "txt": "a"}]}, "text"),
        (SCHEMAS.states, {"text": "a", "unit": 3}, "units"),
    ],
)
def test_mistyped_field_or_value_gets_a_suggestion(parse: Any, body: dict[str, Any], hint: str) -> None:
    assert f"(did you mean {hint}?)" in refusal_of(parse, json.dumps(body).encode())


def test_unrelated_name_gets_no_suggestion() -> None:
    assert "did you mean" not in refusal_of(SCHEMAS.generate, b'{"zzz": 1, "": 2}')
    assert "did you mean" not in refusal_of(SCHEMAS.score, b'{"text": "a", "words": "zzz"}')


@pytest.mark.parametrize("parse", [SCHEMAS.generate, lambda body: SCHEMAS.completions(body).generate_request])
def test_empty_stop_strings_are_ignored(parse: Any) -> None:
    eight = list("abcdefgh")
    assert parse(json.dumps({"stop": ["", *eight, "", ""]}).encode()).stops == tuple(eight)
    assert parse(json.dumps({"stop": [""] * 100}).encode()).stops == ()
    message = "stop: got 9 items, expected a list of at most 8 strings that are not empty"
    assert refusal_of(parse, json.dumps({"stop": [*eight, "", "i"]}).encode()) == message


@pytest.mark.parametrize("parse", [SCHEMAS.generate, SCHEMAS.completions])
def test_byte_order_mark_before_the_body_is_ignored(parse: Any) -> None:
    assert parse(b'\xef\xbb\xbf{"prompt": "\xef\xbb\xbfa"}').prompt == "\ufeffa"


def test_long_values_are_cut_in_messages() -> None:
    assert len(refusal_of(SCHEMAS.generate, json.dumps({"n": "x" * 10_000}).encode())) < 150


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "tokens: missing, expected a list of at most 1000000 integers or objects with id, text"),
        ({"tokens": [1, -1]}, "tokens[1]: got -1, expected"),
        ({"tokens": [{"text": "a"}]}, "tokens[0].id: missing, expected an integer"),
        ({"tokens": [{"id": 1, "x": 1}]}, "tokens[0].x: got an unknown field"),
        ({"tokens": "a"}, 'tokens: got "a", expected a list'),
    ],
)
def test_detokenize_reports_the_invalid_token(body: dict[str, Any], message: str) -> None:
    assert refusal_of(SCHEMAS.detokenize, json.dumps(body).encode()).startswith(message)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from([case[0] for case in GENERATE_REFUSED]) | st.text(max_size=5)


def is_read_or_refused(read: Callable[[bytes], object], body: bytes) -> bool:
    """Check that a body becomes a request or raises InvalidRequest with position and reason."""
    try:
        return isinstance(read(body), GenerateRequest | ScoreRequest)
    except InvalidRequest as error:
        return ": " in str(error)


@given(st.dictionaries(NAMES, JSON, max_size=4))
def test_arbitrary_objects_are_accepted_or_refused_with_a_reason(body: dict[str, Any]) -> None:
    data = json.dumps(body, ensure_ascii=False).encode("utf-8", "surrogatepass")
    assert is_read_or_refused(SCHEMAS.generate, data)


@given(st.binary(max_size=60))
def test_arbitrary_bytes_are_accepted_or_refused_with_a_reason(body: bytes) -> None:
    assert is_read_or_refused(SCHEMAS.score, body)


def ones(count: int) -> bytes:
    return b",".join([b"1"] * count)


MANY = 400_000
HUGE: list[tuple[str, bytes, str]] = [
    ("generate", b"{" + b",".join(b'"k%06d":1' % n for n in range(MANY)) + b"}", "k000000: got an unknown field"),
    ("generate", b'{"prompt": "a", "bad": [' + ones(MANY) + b"]}", "bad: got an unknown field, expected one of model"),
    ("generate", b'{"stop": [' + ones(MANY) + b"]}", f"stop: got {MANY} items, expected a string or a list of strings"),
    ("generate", b'{"n": [' + ones(MANY) + b"]}", "n: got [1,1,1,1"),
    ("generate", b'{"prompt": ' + b"[" * MANY + b"]" * MANY + b"}", "body: got JSON that is nested too deeply"),
    ("generate", b'{"prompt": [' + b"1," * MANY, "body: got malformed JSON, expected a JSON object: it ends too early"),
    ("generate", b"[" + ones(MANY) + b"]", "body: got [1,1,1"),
    (
        "generate",
        b'{"logit_bias": {' + b",".join(b'"%d":"x"' % n for n in range(MANY // 2)) + b"}}",
        'logit_bias["0"]: got "x", expected a number, -100 <= value <= 100; logit_bias["1"]',
    ),
    (
        "score",
        b'{"texts": [' + b",".join([b'"a,\\""'] * MANY) + b"]}",
        f"texts: got {MANY} items, expected a list of 1",
    ),
    ("generate", b'{"logit_bias": {"1": [' + ones(MANY) + b"]}}", f"logit_bias: got {MANY + 2} values"),
    (
        "completions",
        b'{"prompt": [' + b",".join([b"[]"] * MANY) + b"]}",
        f"prompt: got a list of {MANY} prompts, expected at most",
    ),
    ("completions", b'{"prompt": [' + b",".join([b"1.0"] * MANY) + b",-1]}", f"prompt[{MANY}]: got -1, expected 0 <="),
    ("completions", b'{"stream_options": {"' + b"a" * MANY + b'": 1}}', "stream_options.aaaaa"),
    ("score", b'{"text": "a", "log_base": "' + b"e" * MANY + b'"}', 'log_base: got "eeeee'),
    ("score", b'{"texts": [' + b",".join([b"[1]"] * MANY) + b"]}", f"texts: got {MANY} items, expected a list of 1"),
    ("detokenize", b'{"tokens": [' + ones(1_000_001) + b"]}", "tokens: got 1000001 items, expected a list of at most"),
    ("detokenize", b'{"tokens": [' + ones(MANY) + b', "x"]}', f'tokens[{MANY}]: got "x", expected'),
    ("completions", b'{"prompt": [' + ones(MANY) + b', "x"]}', f"prompt[{MANY}]: got a text after a token id"),
    ("tokenize", b'{"text": ' + b'{"a":1,' + b'"b":{},' * MANY + b'"c":1}}', 'text: got {"a":1,"b":{}'),
]


@pytest.mark.parametrize(("name", "body", "message"), HUGE, ids=[f"{name} {message[:30]}" for name, _, message in HUGE])
def test_body_of_many_values_is_refused_for_the_right_reason(name: str, body: bytes, message: str) -> None:
    assert refusal_of(getattr(SCHEMAS, name), body).startswith(message)


def test_many_values_are_accounted_for_before_they_are_made() -> None:
    held: list[int] = []
    bias = b'{"logit_bias": {' + b",".join(b'"%d":1' % n for n in range(30_000)) + b"}}"
    assert len(SCHEMAS.generate(bias, held.append).logit_bias or {}) == 30_000
    ids = b'{"prompt": [' + ones(30_000) + b"]}"
    assert len(SCHEMAS.completions(ids, held.append).prompt) == 30_000  # type: ignore[arg-type]
    assert sum(held[:2]) > 30_000 * 200
    assert 30_000 * 100 < sum(held[2:]) < sum(held[:2])

    def refuse(_: int) -> None:
        raise Overloaded("no room")

    with pytest.raises(Overloaded):
        SCHEMAS.generate(bias, refuse)


def test_text_with_many_commas_is_one_value() -> None:
    held: list[int] = []
    text = ',[{:"\\' * 50_000
    body = json.dumps({"text": text}).encode()
    assert SCHEMAS.tokenize(body, held.append).text == text
    assert sum(held) == len(body)


@pytest.mark.parametrize(("text", "width"), [("a", 1), ("é", 3), ("한", 3), ("a😀", 5)])
def test_wide_characters_are_accounted_for_at_their_width(text: str, width: int) -> None:
    for body in (json.dumps({"text": text * 5000}, ensure_ascii=escaped).encode() for escaped in (False, True)):
        held: list[int] = []
        assert SCHEMAS.tokenize(body, held.append).text == text * 5000
        assert sum(held) == width * len(body)


@pytest.mark.parametrize("number", ["{0}.0", "{0}e0", "{0}000E-3", "{0}.00000000000000000000"])
def test_many_integers_with_fractions_and_exponents_are_read(number: str) -> None:
    ids = list(range(1, 20_000))
    body = '{"prompt": [' + ",".join(map(number.format, ids)) + "]}"
    assert SCHEMAS.completions(body.encode()).prompt == ids


@pytest.mark.parametrize("number", ["1e-400", "0.99999999999999999999999", "9007199254740993.5", "1e-999999999"])
def test_numbers_that_a_float_would_round_to_an_integer_are_refused(number: str) -> None:
    assert "an integer" in refusal_of(SCHEMAS.completions, f'{{"prompt": [1, {number}]}}'.encode())
