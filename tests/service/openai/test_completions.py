"""Test /v1/completions: the figures match /generate and /score, the shape is OpenAI's."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from meari.service.app import create_app
from meari.service.settings import Settings
from tests.patience import PATIENCE
from tests.runtime.tiny_bundle import expected_logprob
from tests.service.conftest import SPELLED


def post(client: FlaskClient, path: str = "/v1/completions", status: int = 200, **body: Any) -> Any:
    response = client.post(path, json=body)
    assert response.status_code == status, response.text
    return response.get_json()


def chunks(client: FlaskClient, **body: Any) -> list[Any]:
    response = client.post("/v1/completions", json={"stream": True, **body})
    assert response.headers["Content-Type"].startswith("text/event-stream"), response.text
    lines = response.text.split("\n\n")
    response.close()
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2] if line.startswith("data: ")]


def test_response_has_the_shape_of_openai(client: FlaskClient) -> None:
    answer = post(client, prompt="klm", temperature=0, max_tokens=2, logprobs=1, seed=7)
    created, fingerprint = answer.pop("created"), answer.pop("system_fingerprint")
    assert isinstance(created, int)
    assert fingerprint.startswith("fp_")
    assert answer.pop("id").startswith("cmpl-")
    logprobs = [expected_logprob(15, 14, 4), expected_logprob(16, 15, 5)]
    assert answer == {
        "object": "text_completion",
        "model": "letters",
        "choices": [
            {
                "index": 0,
                "text": "no",
                "finish_reason": "length",
                "seed": 7,
                "logprobs": {
                    "tokens": ["n", "o"],
                    "token_logprobs": [pytest.approx(value, abs=1e-6) for value in logprobs],
                    "top_logprobs": [
                        {token: pytest.approx(value, abs=1e-6)} for token, value in zip("no", logprobs, strict=True)
                    ],
                    "text_offset": [3, 4],
                },
            }
        ],
        "usage": {
            "prompt_tokens": 3,
            "completion_tokens": 2,
            "total_tokens": 5,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
    }


def test_empty_object_is_a_request_of_sixteen_tokens(client: FlaskClient) -> None:
    answer = post(client, logit_bias={"9": 100})
    assert answer["choices"][0]["text"] == "h" * 16
    assert answer["choices"][0]["logprobs"] is None


def test_null_means_the_default(client: FlaskClient) -> None:
    fields: list[str] = [
        "model", "prompt", "best_of", "echo", "frequency_penalty", "logit_bias", "logprobs", "max_completion_tokens",
        "max_tokens", "min_p", "min_tokens", "ignore_eos", "n",
        "presence_penalty", "repetition_penalty", "seed", "stop", "stream", "stream_options", "suffix", "temperature",
        "top_k", "top_p", "user",
    ]  # fmt: skip
    nothing: dict[str, Any] = dict.fromkeys(fields)
    assert post(client, **nothing)["usage"]["prompt_tokens"] == 0


@pytest.mark.parametrize("model", ["letters", "flat", "bytes", "noise", "words"])
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"stop": ["fg", "a", "😀", "day ,"]},
        {"logprobs": 2, "n": 3},
        {"frequency_penalty": 1.5, "presence_penalty": -0.5, "n": 2},
        {"min_tokens": 25, "stop": ["fg", "a", "😀", "day ,"], "logprobs": 0},
    ],
)
def test_texts_and_figures_match_generate(client: FlaskClient, model: str, more: dict[str, Any]) -> None:
    prompts = ["", "abc", "good day"]
    request = {"model": model, "seed": 5, "max_tokens": 40, "top_p": 0.9, "repetition_penalty": 1.2, **more}
    ours = [choice for text in prompts for choice in post(client, "/generate", prompt=text, **request)["choices"]]
    theirs = post(client, prompt=prompts, **request)["choices"]
    assert [choice["text"] for choice in theirs] == [choice["text"] for choice in ours]
    assert [choice["index"] for choice in theirs] == list(range(len(ours)))
    assert [choice["finish_reason"] for choice in theirs] == [
        "length" if choice["finish_reason"] == "length" else "stop" for choice in ours
    ]
    if "logprobs" in more:
        for own, other in zip(ours, theirs, strict=True):
            assert other["logprobs"]["token_logprobs"] == [token["logprob"] for token in own["tokens"]]


@pytest.mark.parametrize("model", ["letters", "flat", "bytes", "noise", "words"])
def test_streamed_and_whole_responses_are_equal(client: FlaskClient, model: str) -> None:
    request: dict[str, Any] = {
        "model": model, "prompt": ["good", "day", ""], "seed": 5, "max_tokens": 30, "n": 2, "echo": True, "logprobs": 2,
        "stop": ["fg", "😀"],
    }  # fmt: skip
    whole = post(client, **request)
    *parts, last = chunks(client, stream_options={"include_usage": True}, **request)
    assert last["choices"] == []
    assert [last["usage"][name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")] == [
        whole["usage"][name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")
    ]
    assert all(part["usage"] is None for part in parts)
    assert len({part["id"] for part in (*parts, last)}) == 1
    for expected in whole["choices"]:
        own = [choice for part in parts for choice in part["choices"] if choice["index"] == expected["index"]]
        assert "".join(choice["text"] for choice in own) == expected["text"]
        assert [choice["finish_reason"] for choice in own] == [None] * (len(own) - 1) + [expected["finish_reason"]]
        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            assert [figure for choice in own for figure in choice["logprobs"][name]] == expected["logprobs"][name]


def test_stream_without_the_option_has_no_usage(client: FlaskClient) -> None:
    assert all("usage" not in part for part in chunks(client, prompt="a", max_tokens=3))


def test_option_adds_the_usage_of_its_choice_to_every_event(client: FlaskClient) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    request: dict[str, Any] = {"model": "flat", "prompt": ["abc", "de"], "max_tokens": 9, "n": 2, "seed": 1}
    *parts, last = chunks(client, stream_options=options, **request)
    ends: dict[int, int] = {}
    for part in parts:
        [choice], usage = part["choices"], part["usage"]
        assert usage["prompt_tokens"] == (3 if choice["index"] < 2 else 2)
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        assert usage["completion_tokens"] >= ends.get(choice["index"], 0)
        ends[choice["index"]] = usage["completion_tokens"]
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == sum(ends.values())
    *parts, last = chunks(client, stream_options={"continuous_usage_stats": True}, **request)
    assert all(part["usage"]["completion_tokens"] for part in [*parts, last])
    options["include_usage"] = False
    assert all("usage" not in part for part in chunks(client, stream_options=options, **request))


def test_requests_of_load_generators_are_accepted(client: FlaskClient) -> None:
    vllm: dict[str, Any] = {"repetition_penalty": 1.0, "max_tokens": 3, "logprobs": None, "temperature": 0.0}
    guidellm: dict[str, Any] = {
        "max_tokens": 3, "max_completion_tokens": 3, "min_tokens": 3, "ignore_eos": True, "stop": None,
        "temperature": 0,
    }  # fmt: skip
    langchain: dict[str, Any] = {
        "temperature": 0, "top_p": 1, "frequency_penalty": 0, "presence_penalty": 0, "n": 1, "seed": None,
        "logprobs": None, "max_tokens": 3, "logit_bias": {}, "best_of": 1,
    }  # fmt: skip
    for body in (vllm, guidellm, langchain):
        options = {"include_usage": True, "continuous_usage_stats": True}
        parts = chunks(client, prompt="abc", stream_options=options, **body)
        assert "".join(choice["text"] for part in parts for choice in part["choices"]) == "def"


@pytest.mark.parametrize("model", ["letters", "flat", "bytes", "words"])
@pytest.mark.parametrize("text", ["abc zq", "good day", "é한!", ""])
def test_echo_scores_the_prompt_like_score(client: FlaskClient, model: str, text: str) -> None:
    request: dict[str, Any] = {"model": model, "text": text, "tokens": True, "top": 3, "add_end": False}
    [expected] = post(client, "/score", **request)["results"]
    answer = post(client, model=model, prompt=text, max_tokens=0, echo=True, logprobs=3)
    [choice] = answer["choices"]
    assert (choice["text"], choice["finish_reason"]) == (text, "length")
    assert choice["logprobs"]["token_logprobs"] == [token["logprob"] for token in expected["tokens"]]
    assert choice["logprobs"]["text_offset"] == [token["start"] for token in expected["tokens"]]
    for top, token in zip(choice["logprobs"]["top_logprobs"], expected["tokens"], strict=True):
        assert sorted(top.values()) == sorted(
            {other["id"]: other["logprob"] for other in [*token["top"], token]}.values()
        )
    assert answer["usage"]["completion_tokens"] == 0


def test_token_ids_give_the_same_result_as_their_text(client: FlaskClient) -> None:
    ids = [token["id"] for token in post(client, "/tokenize", text="abc")["tokens"]]
    request: dict[str, Any] = {"echo": True, "logprobs": 1, "max_tokens": 3, "seed": 1}
    text, own = post(client, prompt="abc", **request), post(client, prompt=ids, **request)
    assert own["choices"] == text["choices"]
    both = post(client, prompt=[ids, ids], **request)["choices"]
    assert [choice["text"] for choice in both] == ["abcdef"] * 2


def test_leading_boundary_token_is_not_added_twice(client: FlaskClient) -> None:
    request: dict[str, Any] = {"echo": True, "logprobs": 1, "max_tokens": 0}
    plain = post(client, prompt=[2, 3], **request)["choices"][0]["logprobs"]
    marked = post(client, prompt=[0, 2, 3], **request)
    logprobs = marked["choices"][0]["logprobs"]
    assert marked["choices"][0]["text"] == "ab"
    assert logprobs["token_logprobs"] == [None, *plain["token_logprobs"]]
    assert logprobs["top_logprobs"][0] is None
    assert logprobs["tokens"] == ["<|end|>", "a", "b"]
    assert logprobs["text_offset"] == [0, 0, 1]
    assert marked["usage"]["prompt_tokens"] == 2


def test_trailing_boundary_token_is_the_end_of_the_text(client: FlaskClient) -> None:
    [expected] = post(client, "/score", text="xyz", tokens=True)["results"]
    choice = post(client, prompt=[25, 26, 27, 0], echo=True, logprobs=0, max_tokens=0)["choices"][0]
    assert choice["text"] == "xyz"
    assert choice["logprobs"]["token_logprobs"] == [token["logprob"] for token in expected["tokens"]]


def test_end_token_has_figures_and_no_text(client: FlaskClient) -> None:
    choice = post(client, prompt="xy", temperature=0, logprobs=1)["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("z", "stop")
    assert choice["logprobs"]["tokens"] == ["z", "<|end|>"]
    assert choice["logprobs"]["text_offset"] == [2, 3]


@pytest.mark.parametrize("model", ["letters", "flat", "bytes", "noise", "words"])
@pytest.mark.parametrize("text", ["good day", "e\u0301x 😀", "\u1112\u1161\u11ab!", ""])
def test_offsets_count_from_the_beginning_of_the_prompt_with_and_without_echo(
    client: FlaskClient, model: str, text: str
) -> None:
    request: dict[str, Any] = {"model": model, "max_tokens": 12, "logprobs": 0, "seed": 3, "n": 2}
    ids = [token["id"] for token in post(client, "/tokenize", model=model, text=text)["tokens"]]
    written = post(client, "/detokenize", model=model, tokens=ids)["text"]
    for prompt, length in ((text, len(text)), (ids, len(written)), ([0, *ids], len(written))):
        if not prompt:
            continue
        plain = post(client, prompt=prompt, **request)["choices"]
        echoed = post(client, prompt=prompt, echo=True, **request)["choices"]
        for own, other in zip(plain, echoed, strict=True):
            offsets = own["logprobs"]["text_offset"]
            assert offsets == other["logprobs"]["text_offset"][-len(offsets) :]
            assert offsets[0] >= length
            for name, offset in zip(own["logprobs"]["tokens"], offsets, strict=True):
                shown = (other["text"] if isinstance(prompt, str) else written + own["text"])[offset:]
                assert name.startswith(("bytes:", "<|end|>")) or shown.startswith(name)
        parts = chunks(client, prompt=prompt, **request)
        for own in plain:
            streamed = [choice for part in parts for choice in part["choices"] if choice["index"] == own["index"]]
            assert [at for choice in streamed for at in choice["logprobs"]["text_offset"]] == own["logprobs"][
                "text_offset"
            ]


def test_parts_of_characters_have_distinct_names(client: FlaskClient) -> None:
    choice = post(client, model="bytes", temperature=0, logprobs=20)["choices"][0]
    assert choice["text"] == SPELLED
    assert choice["logprobs"]["tokens"][:2] == ["bytes:\\xc3", "bytes:\\xa9"]
    assert [len(top) for top in choice["logprobs"]["top_logprobs"]] == [20] * len(choice["logprobs"]["tokens"])


def test_incomplete_character_of_the_prompt_is_completed_by_the_continuation(client: FlaskClient) -> None:
    ids = [token["id"] for token in post(client, "/tokenize", model="bytes", text="é😀")["tokens"]]
    choice = post(client, model="bytes", prompt=ids[:4], temperature=0, echo=True, max_tokens=2)["choices"][0]
    assert choice["text"] == "é😀"


def test_best_of_returns_the_choices_likeliest_per_token(client: FlaskClient) -> None:
    request: dict[str, Any] = {"model": "flat", "seed": 3, "max_tokens": 12, "logprobs": 0}
    every = post(client, n=6, **request)["choices"]
    mean = {choice["text"]: sum(lp := choice["logprobs"]["token_logprobs"]) / len(lp) for choice in every}
    answer = post(client, n=2, best_of=6, **request)
    assert [choice["text"] for choice in answer["choices"]] == sorted(mean, key=lambda text: -mean[text])[:2]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert answer["usage"]["completion_tokens"] == sum(len(choice["logprobs"]["tokens"]) for choice in every)


@pytest.mark.parametrize("more", [{}, {"n": 3}, {"n": 2, "best_of": 5}, {"n": 2, "echo": True, "logprobs": 1}])
@pytest.mark.parametrize("seed", [None, 7])
def test_seed_of_a_choice_reproduces_it(client: FlaskClient, more: dict[str, Any], seed: int | None) -> None:
    prompts = ["a", "bcd", ""]
    request: dict[str, Any] = {"model": "flat", "max_tokens": 20, "top_p": 0.95}
    choices = post(client, prompt=prompts, seed=seed, **request, **more)["choices"]
    each = more.get("n", 1)
    for choice in choices:
        prompt = prompts[choice["index"] // each]
        echoed = prompt if "echo" in more else ""
        own = post(client, "/generate", prompt=prompt, seed=choice["seed"], **request)["choices"][0]
        assert (echoed + own["text"], own["seed"]) == (choice["text"], choice["seed"])
        [alone] = post(client, prompt=prompt, seed=choice["seed"], **request)["choices"]
        assert (echoed + alone["text"], alone["seed"]) == (choice["text"], choice["seed"])
    if "best_of" not in more:
        streamed: dict[int, str] = {}
        seeds = {choice["index"]: choice["seed"] for choice in choices}
        for part in chunks(client, prompt=prompts, seed=choices[0]["seed"], **request, **more):
            for choice in part["choices"]:
                streamed[choice["index"]] = streamed.get(choice["index"], "") + choice["text"]
                if seed is not None:
                    assert choice["seed"] == seeds[choice["index"]]
        assert [streamed[index] for index in range(each)] == [choice["text"] for choice in choices[:each]]


def test_prompts_without_a_seed_differ_and_report_their_seeds(client: FlaskClient) -> None:
    lengths: dict[str, Any] = {"min_tokens": 20, "max_tokens": 30}  # no text is empty
    choices = post(client, model="flat", prompt=["a", "a"], **lengths)["choices"]
    assert choices[0]["text"] != choices[1]["text"]
    again = post(client, "/generate", model="flat", prompt="a", seed=choices[1]["seed"], **lengths)
    assert again["choices"][0]["text"] == choices[1]["text"]


def test_sampling_fields_of_vllm_are_accepted(client: FlaskClient) -> None:
    assert post(client, model="flat", prompt="ab", top_k=1, max_tokens=3)["choices"][0]["text"] == "cde"
    assert post(client, prompt="ab", top_k=-1, min_p=0.9, repetition_penalty=1, max_tokens=1)["choices"]


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"frequency_penalty": 2.5}, "frequency_penalty", "got 2.5, expected -2 <= frequency_penalty <= 2"),
        ({"presence_penalty": -3}, "presence_penalty", "got -3, expected -2 <= presence_penalty <= 2"),
        ({"min_tokens": 17}, "min_tokens", "got 17, expected at most max_tokens, which is 16"),
        ({"min_tokens": 4, "max_tokens": 3}, "min_tokens", "got 4, expected at most max_tokens, which is 3"),
        ({"min_tokens": -1}, "min_tokens", "got -1, expected min_tokens >= 0"),
        ({"ignore_eos": 1}, "ignore_eos", "got 1, expected true or false"),
        ({"suffix": "x"}, "suffix", "not supported"),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options", "not supported"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "stream true"),
        ({"max_tokens": 0}, "max_tokens", "got 0 with echo false"),
        ({"max_tokens": 501}, "max_tokens", "got 501, expected 0 <= max_tokens <= 500"),
        ({"best_of": 1, "n": 2}, "best_of", "at least n, which is 2"),
        ({"best_of": 2, "stream": True}, "best_of", "expected n"),
        ({"logprobs": 21}, "logprobs", "got 21, expected 0 <= logprobs <= 20"),
        ({"logprobs": True}, "logprobs", "got true, expected an integer"),
        ({"temperature": 11}, "temperature", "expected 0 <= temperature <= 10"),
        ({"top_k": -2}, "top_k", "expected top_k >= -1"),
        ({"prompt": []}, "prompt", "expected a non-empty list of strings or integers or lists of integers"),
        (
            {"prompt": 5},
            "prompt",
            "got 5, expected a string or a non-empty list of strings or integers or lists of integers or null",
        ),
        ({"prompt": ["a", 1]}, "prompt", "prompt[1]: got a token id after a text"),
        ({"prompt": [1, "a"]}, "prompt", "prompt[1]: got a text after a token id"),
        ({"prompt": [[1], "a"]}, "prompt", "prompt[1]: got a text after a list of token ids"),
        ({"prompt": [28]}, "prompt", "prompt[0]: got 28, expected a token id, 0 <= id < 28"),
        ({"prompt": [[1], [1, 99]]}, "prompt", "prompt[1][1]: got 99"),
        ({"prompt": [-1]}, "prompt", "prompt[0]: got -1"),
        ({"prompt": ["a"] * 9}, "prompt", "expected at most 8"),
        ({"chat": 1}, "chat", "unknown field"),
    ],
)
def test_unsupported_fields_are_refused_by_name(
    client: FlaskClient, body: dict[str, Any], param: str, message: str
) -> None:
    error = post(client, status=400, **body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, "invalid_request")
    assert message in error["message"]


def test_fields_without_effect_are_accepted(client: FlaskClient) -> None:
    more: dict[str, Any] = {"user": "somebody", "frequency_penalty": 0, "presence_penalty": 0.0, "suffix": ""}
    assert post(client, prompt="a", temperature=0, max_tokens=2, **more)["choices"][0]["text"] == "bc"


def test_models_are_listed_and_found(client: FlaskClient) -> None:
    listed = client.get("/v1/models").get_json()
    assert listed["object"] == "list"
    card = next(card for card in listed["data"] if card["id"] == "letters")
    assert set(card) == {"id", "object", "created", "owned_by"}
    assert client.get("/v1/models/letters").get_json() == card


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/models/none", 404, "unknown_model"),
        ("GET", "/v1/nowhere", 404, "not_found"),
        ("GET", "/v1", 404, "not_found"),
        ("POST", "/v1/chat/completions", 404, "not_found"),
        ("GET", "/v1/completions", 405, "method_not_allowed"),
        ("POST", "/v1/completions", 415, "unsupported_media_type"),
    ],
)
def test_other_errors_have_the_shape_of_openai(
    client: FlaskClient, method: str, path: str, status: int, code: str
) -> None:
    response = client.open(path, method=method, headers={"X-Request-Id": "my-id"})
    error = response.get_json()["error"]
    assert (response.status_code, error["code"], error["type"]) == (status, code, "invalid_request_error")
    assert response.headers["X-Request-Id"] == "my-id"


def test_refusals_and_key_errors_have_the_shape_of_openai(settings: Settings) -> None:
    app = create_app(
        Settings(bundles=settings.bundles, api_keys=("secret",), workers=1, log_level="error", max_requests=1)
    )
    service = app.extensions["meari"]
    assert service.registry.wait_loaded(PATIENCE)
    own = app.test_client()
    refused = own.post("/v1/completions", json={})
    assert (refused.status_code, refused.get_json()["error"]["type"]) == (401, "authentication_error")
    ticket = service.admission.enter()
    busy = own.post("/v1/completions", json={}, headers={"Authorization": "Bearer secret"})
    assert (busy.status_code, busy.get_json()["error"]["type"]) == (429, "rate_limit_error")
    assert busy.get_json()["error"]["code"] == "overloaded"
    assert int(busy.headers["Retry-After"]) >= 1
    ticket.release()
    service.registry.stop()


def test_bytes_are_accounted_for_before_a_prompt_is_tokenized(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    service = app.extensions["meari"]
    model = service.registry.get("letters")
    held = service.admission.num_bytes
    monkeypatch.setattr(service.admission, "_max_bytes", held + 50_000)
    monkeypatch.setattr(model.tokenizer, "encode", lambda text: pytest.fail("the prompt was tokenized"))
    error = post(app.test_client(), status=413, prompt="a" * 10_000)["error"]
    assert error["code"] == "too_large"
    assert service.admission.num_bytes == held


def test_full_queue_refuses_a_list_and_releases_its_places(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = app.extensions["meari"].registry.get("letters").engine
    monkeypatch.setattr(engine._queue, "_max_waiting", 2)
    scored: dict[str, Any] = {"echo": True, "logprobs": 0}
    own = "127.0.0.1"  # of the client below: other callers would be let in beside it
    with engine.reserve(own), engine.reserve(own):
        assert post(app.test_client(), status=429, prompt=["a", "b", "c"])["error"]["code"] == "overloaded"
        assert post(app.test_client(), status=429, prompt=["a", "b"], **scored)["error"]["code"] == "overloaded"
        assert engine.stats().waiting == 2
    with engine.reserve(own):
        assert len(post(app.test_client(), prompt=["a", "b", "c"])["choices"]) == 3
        assert len(post(app.test_client(), prompt=["a", "b"], **scored)["choices"]) == 2
    assert engine.stats().waiting == 0
    assert len(post(app.test_client(), prompt=["a"] * 8, **scored)["choices"]) == 8


NUMBERED: dict[str, Any] = {"model": "flat", "max_tokens": 12, "seed": 3, "top_p": 0.9}


@pytest.fixture(scope="module")
def short_queue(settings: Settings) -> Iterator[FlaskClient]:
    """Make a service with the documented number of prompts and a short queue."""
    app = create_app(dataclasses.replace(settings, max_texts=1024, max_waiting=8, max_slots=16))
    registry = app.extensions["meari"].registry
    assert registry.wait_loaded(PATIENCE)
    yield app.test_client()
    registry.stop()


def numbered(count: int) -> list[str]:
    """Return this many distinct prompts."""
    return ["".join("abcdefghij"[int(digit)] for digit in str(number)) for number in range(count)]


@pytest.mark.parametrize("more", [{}, {"n": 2}, {"n": 2, "best_of": 3}, {"echo": True, "logprobs": 1}])
def test_list_longer_than_the_queue_is_generated(
    client: FlaskClient, short_queue: FlaskClient, more: dict[str, Any]
) -> None:
    prompts = numbered(100)
    answer = post(short_queue, prompt=prompts, **NUMBERED, **more)
    each = more.get("n", 1)
    assert [choice["index"] for choice in answer["choices"]] == list(range(100 * each))
    assert answer["usage"]["prompt_tokens"] == sum(map(len, prompts))
    for number in range(0, 100, 9):
        alone = post(client, prompt=prompts[number], **NUMBERED, **more)["choices"]
        own = answer["choices"][number * each : (number + 1) * each]
        assert [choice | {"index": 0} for choice in own] == [choice | {"index": 0} for choice in alone]
    if "best_of" not in more:
        texts = [""] * len(answer["choices"])
        for part in chunks(short_queue, prompt=prompts, **NUMBERED, **more):
            for choice in part["choices"]:
                texts[choice["index"]] += choice["text"]
        assert texts == [choice["text"] for choice in answer["choices"]]


def test_prompts_up_to_the_limit_of_texts_are_scored_in_one_call(short_queue: FlaskClient) -> None:
    texts = numbered(1024)
    ids = [[2 + "abcdefghijklmnopqrstuvwxyz".index(letter) for letter in text] for text in texts]
    request: dict[str, Any] = {"model": "flat", "max_tokens": 0, "echo": True, "logprobs": 0}
    engine = short_queue.application.extensions["meari"].registry.get("flat").engine
    before = engine.stats().rows
    answer = post(short_queue, prompt=texts, **request)
    assert engine.stats().rows - before <= 1 + 10 + 100 + 1024  # shared prefixes are computed once
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] == sum(map(len, texts))
    assert post(short_queue, prompt=ids, **request)["choices"][5]["logprobs"] == answer["choices"][5]["logprobs"]
    results = post(short_queue, "/score", model="flat", texts=texts, tokens=True, add_end=False)["results"]
    for choice, result in zip(answer["choices"], results, strict=True):
        assert choice["logprobs"]["token_logprobs"] == [token["logprob"] for token in result["tokens"]]
    for prompt in (["a"] * 1025, [[2]] * 1025):
        message = post(short_queue, status=400, prompt=prompt, **request)["error"]["message"]
        assert message == "prompt: got a list of 1025 prompts, expected at most 1024"
    assert post(short_queue, prompt=[2] * 1025, **request)["usage"]["prompt_tokens"] == 1025  # one prompt of token ids


def test_prompts_up_to_the_limit_of_texts_are_generated(short_queue: FlaskClient) -> None:
    answer = post(short_queue, prompt=numbered(1024), model="flat", max_tokens=2, seed=1, logit_bias={"0": -100})
    assert len(answer["choices"]) == 1024
    assert answer["usage"]["completion_tokens"] == 2048


def test_model_reports_the_maximum_number_of_prompts(short_queue: FlaskClient) -> None:
    assert short_queue.get("/models/flat").get_json()["limits"]["max_prompts"] == 1024
    schema = short_queue.get("/openapi.json").get_json()["components"]["schemas"]["CompletionsRequest"]
    lists = [choice for choice in schema["properties"]["prompt"]["anyOf"] if choice.get("maxItems")]
    assert [choice["maxItems"] for choice in lists] == [1024, 1024]


def test_list_past_its_deadline_returns_the_texts_so_far(settings: Settings) -> None:
    app = create_app(dataclasses.replace(settings, max_texts=1024, max_waiting=8, max_slots=2, max_timeout_seconds=3.0))
    service = app.extensions["meari"]
    assert service.registry.wait_loaded(PATIENCE)
    endless: dict[str, Any] = {"model": "flat", "max_tokens": 500, "logit_bias": {"0": -100}}
    answer = post(app.test_client(), prompt=numbered(1024), **endless)
    assert {choice["finish_reason"] for choice in answer["choices"]} == {"length"}
    assert 0 < answer["usage"]["completion_tokens"] < 1024 * 500
    assert answer["choices"][-1]["text"] == ""
    stats = service.registry.get("flat").engine.stats()
    assert (stats.waiting, stats.requests_running) == (0, 0)
    service.registry.stop()


def test_ignored_end_token_begins_a_new_text(client: FlaskClient) -> None:
    request: dict[str, Any] = {"prompt": "xy", "temperature": 0, "max_tokens": 6, "logprobs": 0}
    ended = post(client, **request)["choices"][0]
    assert (ended["text"], ended["finish_reason"], ended["logprobs"]["tokens"]) == ("z", "stop", ["z", "<|end|>"])
    answer = post(client, ignore_eos=True, **request)
    [choice] = answer["choices"]
    assert choice["logprobs"]["tokens"] == ["z", "<|end|>", "a", "b", "c", "d"]
    assert (choice["text"], choice["finish_reason"]) == ("zabcd", "length")
    assert answer["usage"]["completion_tokens"] == 6
    stopped = post(client, ignore_eos=True, stop="ab", **request)["choices"][0]
    assert (stopped["text"], stopped["finish_reason"]) == ("z", "stop")
    streamed = [part["choices"][0] for part in chunks(client, ignore_eos=True, **request)]
    assert "".join(choice["text"] for choice in streamed) == "zabcd"


@pytest.mark.parametrize("model", ["flat", "noise", "words"])
def test_text_with_ignored_ends_has_the_requested_length(client: FlaskClient, model: str) -> None:
    request: dict[str, Any] = {
        "model": model,
        "prompt": ["", "a"],
        "n": 3,
        "seed": 3,
        "max_tokens": 200,
        "min_tokens": 200,
    }
    for more in ({"ignore_eos": True}, {"min_tokens": 0, "ignore_eos": True, "temperature": 0}, {"ignore_eos": False}):
        answer = post(client, **{**request, **more})
        assert {choice["finish_reason"] for choice in answer["choices"]} == {"length"}
        assert answer["usage"]["completion_tokens"] == 6 * 200
