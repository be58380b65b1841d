"""Test the HTTP contract response by response, without a server."""

from __future__ import annotations

import gc
import json
import math
import time
import tracemalloc
from pathlib import Path
from typing import Any
from unicodedata import normalize

import pytest
from flask import Flask
from flask.testing import FlaskClient

from meari.errors import EngineFailed
from meari.service.app import create_app
from meari.service.requests.origins import CAME_AT
from meari.service.settings import Settings
from tests.patience import PATIENCE
from tests.runtime.spelling_bundle import write_spelling_bundle
from tests.runtime.tiny_bundle import (
    LETTERS,
    expected_logprob,
    rewrite_manifest,
    tiny_tokenizer,
    write_tiny_bundle,
)
from tests.service.conftest import SPELLED


def post(client: FlaskClient, path: str, status: int = 200, **body: Any) -> Any:
    response = client.post(path, json=body)
    assert response.status_code == status, response.text
    return response.get_json()


def test_generate_response_has_the_shape_of_the_contract(client: FlaskClient) -> None:
    answer = post(client, "/generate", prompt="abc", temperature=0, max_tokens=4, logprobs=1, seed=7)
    logprob = answer["choices"][0]["tokens"][0]["logprob"]
    assert logprob == pytest.approx(expected_logprob(5, 4, 4), abs=1e-6)
    tokens = [
        {"id": 5 + i, "text": "defg"[i], "logprob": token["logprob"], "top": token["top"]}
        for i, token in enumerate(answer["choices"][0]["tokens"])
    ]
    assert answer == {
        "model": "letters",
        "seed": 7,
        "choices": [{"index": 0, "text": "defg", "finish_reason": "length", "seed": 7, "tokens": tokens}],
        "usage": {"prompt_tokens": 3, "cached_tokens": answer["usage"]["cached_tokens"], "generated_tokens": 4},
    }
    assert 0 <= answer["usage"]["cached_tokens"] <= 3
    assert tokens[0]["top"] == [{"id": 5, "text": "d", "logprob": logprob}]


def test_empty_object_is_a_valid_request(client: FlaskClient) -> None:
    answer = post(client, "/generate")
    assert set(answer["choices"][0]) == {"index", "text", "finish_reason", "seed"}
    assert 0 <= answer["seed"] < 2**53


def test_end_token_is_counted_and_listed_without_text(client: FlaskClient) -> None:
    answer = post(client, "/generate", prompt="xy", temperature=0, logprobs=0)
    choice = answer["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("z", "end")
    assert [(token["text"], token["top"]) for token in choice["tokens"]] == [("z", []), ("<|end|>", [])]
    assert answer["usage"]["generated_tokens"] == 2


@pytest.mark.parametrize(
    ("stop", "text", "num_tokens"),
    [("e", "bcd", 4), (["ef", "zz"], "bcd", 5), (["efg", "f"], "bcde", 5), (["cd", "bcd"], "", 3), ("b", "", 1)],
)
def test_stop_string_cuts_before_the_first_match(client: FlaskClient, stop: Any, text: str, num_tokens: int) -> None:
    answer = post(client, "/generate", prompt="a", temperature=0, stop=stop, logprobs=0)
    assert answer["choices"][0]["text"] == text
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert len(answer["choices"][0]["tokens"]) == answer["usage"]["generated_tokens"] == num_tokens


def test_stop_match_excludes_the_prompt(client: FlaskClient) -> None:
    answer = post(client, "/generate", prompt="a", temperature=0, stop="ab", max_tokens=3, seed=1)
    assert answer["choices"][0] == {"index": 0, "text": "bcd", "finish_reason": "length", "seed": 1}


def test_min_tokens_delays_the_end_token_and_stop_strings(client: FlaskClient) -> None:
    request: dict[str, Any] = {"prompt": "xy", "temperature": 0, "logprobs": 0, "max_tokens": 10}
    for least in range(2, 11):
        for beams in (1, 3):
            answer = post(client, "/generate", min_tokens=least, num_beams=beams, **request)
            tokens = [token["id"] for token in answer["choices"][0]["tokens"]]
            assert 0 not in tokens[:least]
            assert len(tokens) >= least
    for stop in ("d", "cd", ["ghi", "d"]):
        answer = post(client, "/generate", prompt="a", temperature=0, min_tokens=3, stop=stop)
        assert answer["choices"][0]["finish_reason"] == ("stop" if "ghi" in stop else "end")
        assert answer["choices"][0]["text"] == ("bcdef" if "ghi" in stop else "bcdefghijklmnopqrstuvwxyz")


def test_stop_match_across_min_tokens_cuts(client: FlaskClient) -> None:
    for least, text in ((0, "bc"), (4, "bc"), (5, "bcdefghijklm")):
        answer = post(client, "/generate", prompt="a", temperature=0, min_tokens=least, stop="def", max_tokens=12)
        assert answer["choices"][0]["text"] == text
        parts = sse(client, prompt="a", temperature=0, min_tokens=least, stop="def", max_tokens=12)
        assert "".join(choice["text"] for part in parts for choice in part["choices"]) == text


def test_sampling_limits_do_not_change_logprobs(client: FlaskClient) -> None:
    settings: list[dict[str, Any]] = [
        {"min_tokens": 8, "seed": 1},
        {"frequency_penalty": 2, "presence_penalty": 2, "seed": 3},
    ]
    for more in settings:
        request = {"model": "flat", "prompt": "ab", "max_tokens": 8, "logprobs": 20, "logit_bias": {"1": -100}, **more}
        choice = post(client, "/generate", **request)["choices"][0]
        scored = post(client, "/score", model="flat", context="ab", text=choice["text"], tokens=True, add_end=False)
        for token, expected in zip(choice["tokens"], scored["results"][0]["tokens"], strict=False):
            assert token["logprob"] == expected["logprob"]
            assert 0.7 < math.fsum(math.exp(other["logprob"]) for other in token["top"]) < 1


@pytest.mark.parametrize("name", ["frequency_penalty", "presence_penalty"])
def test_penalties_count_generated_tokens_and_not_the_prompt(client: FlaskClient, name: str) -> None:
    request: dict[str, Any] = {"model": "flat", "temperature": 0, "max_tokens": 27, "logit_bias": {"0": -100}}
    plain = post(client, "/generate", prompt="abcabc", **request)["choices"][0]["text"]
    for value in (2, -2):
        text = post(client, "/generate", prompt="abcabc", **{name: value}, **request)["choices"][0]["text"]
        assert text[0] == plain[0] == "d"
        assert len(set(text.replace("<|unk|>", "?"))) == (27 if value > 0 else 1)


def test_seed_determines_the_text_and_samples_differ(client: FlaskClient) -> None:
    request: dict[str, Any] = {"model": "flat", "seed": 11, "n": 3, "max_tokens": 30}
    first, again = post(client, "/generate", **request), post(client, "/generate", **request)
    assert first == again
    assert len({choice["text"] for choice in first["choices"]}) == 3
    random = {post(client, "/generate", model="flat", max_tokens=30)["choices"][0]["text"] for _ in range(3)}
    assert len(random) > 1


@pytest.mark.parametrize("model", ["flat", "noise", "words"])
@pytest.mark.parametrize("more", [{}, {"logprobs": 2, "repetition_penalty": 1.2}, {"top_p": 0.9, "stop": ["e", "f"]}])
def test_seed_of_a_choice_reproduces_it(client: FlaskClient, model: str, more: dict[str, Any]) -> None:
    request: dict[str, Any] = {"model": model, "prompt": "ab", "max_tokens": 25, "return_state": True, **more}
    several = post(client, "/generate", n=4, **request)
    assert several["choices"][0]["seed"] == several["seed"]
    assert len({choice["seed"] for choice in several["choices"]}) == 4
    for choice in several["choices"]:
        [alone] = post(client, "/generate", seed=choice["seed"], **request)["choices"]
        assert alone == choice | {"index": 0}
        if choice["finish_reason"] == "length":  # its state continues with its own seed
            [whole] = post(client, "/generate", **{**request, "seed": choice["seed"], "max_tokens": 50})["choices"]
            [rest] = post(client, "/generate", **request | {"prompt": "", "state": choice["state"]})["choices"]
            assert rest["seed"] == choice["seed"]
            if "stop" not in more:
                assert choice["text"] + rest["text"] == whole["text"]


def test_seeds_reproduce_choices_after_a_state(client: FlaskClient) -> None:
    request: dict[str, Any] = {"model": "flat", "max_tokens": 20}
    state = post(client, "/generate", seed=3, prompt="abc", return_state=True, **request)["choices"][0]["state"]
    for choice in post(client, "/generate", state=state, n=3, **request)["choices"]:
        [alone] = post(client, "/generate", state=state, seed=choice["seed"], **request)["choices"]
        assert alone == choice | {"index": 0}


def test_beams_report_the_seed_of_their_request(client: FlaskClient) -> None:
    request: dict[str, Any] = {"model": "flat", "max_tokens": 8, "num_beams": 4, "n": 3}
    size = client.get("/models/flat").get_json()["limits"]["max_top_k"]
    all_kept = post(client, "/generate", **request, top_k=size, seed=1)
    assert all_kept["choices"] == post(client, "/generate", **request, seed=1)["choices"]
    refused = post(client, "/generate", 400, **request, top_k=size - 1)["error"]["message"]
    assert refused == f"top_k: got {size - 1} with num_beams 4, expected 0: nothing is sampled"
    first = post(client, "/generate", **request)
    assert [choice["seed"] for choice in first["choices"]] == [first["seed"]] * 3
    assert post(client, "/generate", seed=first["seed"], **request) == first


def test_samples_of_consecutive_seeds_differ(client: FlaskClient) -> None:
    request: dict[str, Any] = {"model": "noise", "max_tokens": 30, "n": 4, "logit_bias": {"0": -100}}
    texts = [
        choice["text"] for seed in range(8) for choice in post(client, "/generate", seed=seed, **request)["choices"]
    ]
    assert len(set(texts)) == 32


def test_logit_bias_forces_a_token(client: FlaskClient) -> None:
    answer = post(client, "/generate", temperature=0, max_tokens=3, logit_bias={"9": 100})
    assert answer["choices"][0]["text"] == "hhh"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"logit_bias": {"28": 1}}, "expected a token id, 0 <= id < 28"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"1.0": 1}}, "logit_bias"),
        ({"logit_bias": {"01": 1}}, "logit_bias"),
        ({"logit_bias": {"٣": 1}}, "logit_bias"),
        ({"logit_bias": {"": 1}}, "logit_bias"),
        ({"logit_bias": {"9" * 30: 1}}, "logit_bias"),
        ({"max_tokens": 501}, "max_tokens: got 501, expected 1 <= max_tokens <= 500"),
    ],
)
def test_limits_of_model_and_server_are_reported(client: FlaskClient, body: dict[str, Any], message: str) -> None:
    assert message in post(client, "/generate", 400, **body)["error"]["message"]


def test_top_k_over_the_vocabulary_keeps_every_token(client: FlaskClient) -> None:
    request: dict[str, Any] = {"model": "flat", "seed": 11, "max_tokens": 30}
    texts = {post(client, "/generate", top_k=k, **request)["choices"][0]["text"] for k in (-1, 0, 28, 29, 10**30)}
    assert len(texts) == 1


@pytest.mark.parametrize("model", ["flat", "noise"])
def test_top_p_of_zero_keeps_the_likeliest_token(client: FlaskClient, model: str) -> None:
    request: dict[str, Any] = {"model": model, "max_tokens": 30, "seed": 4, "logit_bias": {"0": -100}}
    greedy = post(client, "/generate", temperature=0, **request)["choices"]
    assert post(client, "/generate", top_p=0, **request)["choices"] == greedy
    assert post(client, "/v1/completions", top_p=0, **request)["choices"][0]["text"] == greedy[0]["text"]


def sse(client: FlaskClient, **body: Any) -> list[Any]:
    response = client.post("/generate", json={"stream": True, **body})
    assert response.headers["Content-Type"].startswith("text/event-stream")
    assert response.headers["Cache-Control"] == "no-store"
    lines = response.text.split("\n\n")
    response.close()  # otherwise the request would stay in the generator
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2] if line.startswith("data: ")]


@pytest.mark.parametrize("model", ["letters", "flat", "bytes", "noise", "words"])
@pytest.mark.parametrize("more", [{}, {"stop": ["fg", "a", "😀", "day ,"]}, {"logprobs": 2, "n": 3}])
def test_streamed_and_whole_responses_are_equal(client: FlaskClient, model: str, more: dict[str, Any]) -> None:
    request = {"model": model, "seed": 5, "max_tokens": 60, **more}
    whole = post(client, "/generate", **request)
    *parts, last = sse(client, **request)
    assert {"model": whole["model"], "seed": whole["seed"], "usage": whole["usage"], "choices": []} == last
    for expected in whole["choices"]:
        own = [choice for part in parts for choice in part["choices"] if choice["index"] == expected["index"]]
        assert "".join(choice["text"] for choice in own) == expected["text"]
        assert [choice.get("finish_reason") for choice in own] == [None] * (len(own) - 1) + [expected["finish_reason"]]
        assert [t for choice in own for t in choice.get("tokens", [])] == expected.get("tokens", [])


def spelled(tokens: list[dict[str, Any]]) -> bytes:
    """Return the bytes of tokens by the rules of the contract."""
    return b"".join(bytes(token["bytes"]) if "bytes" in token else token["text"].encode() for token in tokens)


@pytest.mark.parametrize("model", ["letters", "bytes", "words"])
@pytest.mark.parametrize("text", ["good day", "e\u0301a 😀", "\u1112\u1161\u11ab글\ufffd!", "abc"])
def test_bytes_of_tokens_join_to_the_text(client: FlaskClient, model: str, text: str) -> None:
    tokens = post(client, "/tokenize", model=model, text=text)["tokens"]
    [scored] = post(client, "/score", model=model, text=text, tokens=True, top=20, add_end=False)["results"]
    assert [(t["id"], t["text"], t.get("bytes")) for t in scored["tokens"]] == [
        (t["id"], t["text"], t.get("bytes")) for t in tokens
    ]
    states = client.post("/states", json={"model": model, "text": text}).get_json()
    assert states["tokens"] == tokens
    known = [token for token in tokens if token["text"] != "<|unk|>"]
    if len(known) == len(tokens):
        assert spelled(tokens) == normalize("NFC", text).replace(" " if model == "words" else "\0", "").encode()
    answer = post(client, "/detokenize", model=model, tokens=tokens)["text"]
    assert answer == post(client, "/detokenize", model=model, tokens=[token["id"] for token in tokens])["text"]
    every = [*tokens, *(other for token in scored["tokens"] for other in token["top"])]
    for token in every:
        assert ("bytes" in token) == ("\ufffd" in token["text"] and model == "bytes")


def test_bytes_of_generated_tokens_join_to_the_text(client: FlaskClient) -> None:
    request: dict[str, Any] = {"model": "noise", "seed": 3, "logprobs": 3, "max_tokens": 100, "logit_bias": {"0": -100}}
    [choice] = post(client, "/generate", **request)["choices"]
    assert spelled(choice["tokens"]).decode("utf-8", "replace").startswith(choice["text"])
    names = post(client, "/v1/completions", **request)["choices"][0]["logprobs"]["tokens"]
    for token, name in zip(choice["tokens"], names, strict=True):
        part = "".join(f"\\x{byte:02x}" for byte in token.get("bytes", []))
        assert name == (f"bytes:{part}" if part else token["text"])
    [choice] = post(client, "/generate", model="bytes", temperature=0, logprobs=1)["choices"]
    assert spelled(choice["tokens"][:-1]) == SPELLED.encode()
    assert [token["top"][0].get("bytes") for token in choice["tokens"][:2]] == [[0xC3], [0xA9]]
    parts = sse(client, model="bytes", temperature=0, logprobs=1)[:-1]
    assert [token for part in parts for own in part["choices"] for token in own["tokens"]] == choice["tokens"]


def test_byte_tokens_are_decoded_to_whole_characters(client: FlaskClient) -> None:
    *parts, _ = sse(client, model="bytes", temperature=0)
    pieces = [choice["text"] for part in parts for choice in part["choices"]]
    assert "".join(pieces) == SPELLED
    assert all("\ufffd" not in piece for piece in pieces)
    cut = post(client, "/generate", model="bytes", temperature=0, max_tokens=4, logprobs=0)
    assert cut["choices"][0]["text"] == "é"
    assert [token["text"] for token in cut["choices"][0]["tokens"]] == ["\ufffd"] * 4


def test_words_follow_a_prompt_after_a_space(client: FlaskClient) -> None:
    assert post(client, "/generate", model="words", temperature=0)["choices"][0]["text"] == "good day , world"
    assert post(client, "/generate", model="words", prompt="good", temperature=0)["choices"][0]["text"].startswith(
        " day"
    )


def test_score_response_has_the_shape_of_the_contract(client: FlaskClient) -> None:
    answer = post(client, "/score", text="ab", tokens=True, words=True, top=2)
    result = answer["results"][0]
    logprobs = [expected_logprob(2, 0, 1), expected_logprob(3, 2, 2), expected_logprob(0, 3, 3)]
    assert [token["logprob"] for token in result["tokens"]] == pytest.approx(logprobs, abs=1e-6)
    assert result["logprob"] == math.fsum(token["logprob"] for token in result["tokens"])
    assert result["perplexity"] == pytest.approx(math.exp(-sum(logprobs) / 3), rel=1e-6)
    assert [(t["id"], t["text"], t["rank"], t["start"], t["end"]) for t in result["tokens"]] == [
        (2, "a", 1, 0, 1),
        (3, "b", 1, 1, 2),
        (0, "<|end|>", 2, 2, 2),
    ]
    assert [len(token["top"]) for token in result["tokens"]] == [2, 2, 2]
    assert result["words"] == [
        {"text": text, "logprob": logprob, "start": start, "end": 2, "unknown": False}
        for text, logprob, start in (
            ("ab", sum(t["logprob"] for t in result["tokens"][:2]), 0),
            ("<|end|>", result["tokens"][2]["logprob"], 2),
        )
    ]
    assert answer["usage"]["scored_tokens"] == 3
    assert answer["usage"]["computed_tokens"] + answer["usage"]["cached_tokens"] == 3
    plain = post(client, "/score", text="ab")["results"][0]
    assert plain == {name: value for name, value in result.items() if name not in ("tokens", "words")}


def test_score_equals_the_logprobs_of_generate_bit_for_bit(client: FlaskClient) -> None:
    generated = post(client, "/generate", model="flat", prompt="ab", seed=3, logprobs=0, max_tokens=200)
    choice = generated["choices"][0]
    assert choice["finish_reason"] == "end"
    scored = post(client, "/score", model="flat", context="ab", text=choice["text"], tokens=True)["results"][0]
    if "<|unk|>" not in choice["text"]:
        assert [t["logprob"] for t in scored["tokens"]] == [t["logprob"] for t in choice["tokens"]]
    assert scored["logprob"] == math.fsum(t["logprob"] for t in scored["tokens"])


def test_texts_are_scored_in_order_with_shared_prefixes(client: FlaskClient) -> None:
    texts = ["abcd", "", "abce", "abcd", "한", "x" * 50]
    together = post(client, "/score", texts=texts)
    alone = [post(client, "/score", text=text)["results"][0] for text in texts]
    assert together["results"] == alone
    assert together["usage"]["computed_tokens"] < together["usage"]["scored_tokens"]


def test_words_without_spaces_are_found_by_unicode_rules(client: FlaskClient) -> None:
    [found] = post(client, "/score", text="我爱北京天安门。ab c", words="unicode")["results"]
    assert [word["text"] for word in found["words"]] == ["我", "爱", "北京", "天安门", "。", "ab", "c", "<|end|>"]
    assert sum(word["logprob"] for word in found["words"]) == found["logprob"]
    assert [word["start"] for word in found["words"]] == [0, 1, 2, 4, 7, 8, 11, 12]
    message = post(client, "/score", 400, text="a", words="icu")["error"]["message"]
    assert 'words: got "icu", expected true or false or one of "unicode"' in message


def test_boundary_token_can_have_any_id(tmp_path: Path) -> None:
    """Compare one model with the boundary token first and last in the vocabulary: texts and figures agree."""
    letters = ["<|unk|>", *"abcd"]
    answers: list[Any] = []
    for end, entries in [(0, ["<|end|>", *letters]), (5, [*letters, "<|end|>"])]:
        tokenizer = tiny_tokenizer(entries)
        bundles = tmp_path / str(end)
        write_spelling_bundle(bundles / "model", tokenizer, "char", tokenizer.encode("abc").ids, 3.0, end)
        app = create_app(Settings(bundles=bundles, workers=1, log_level="error"))
        registry = app.extensions["meari"].registry
        assert registry.wait_loaded(PATIENCE)
        client = app.test_client()
        try:
            answers.append(rounded(everything_of(client, end)))
        finally:
            registry.stop()
    assert answers[0] == answers[1]
    assert [text for text, _ in answers[1][0]] == ["b", "c"]


def rounded(value: Any) -> Any:
    """Round logprobs, because sums over the vocabulary depend on the order of ids."""
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(each) for each in value]
    return round(value, 4) if isinstance(value, float) else value


def everything_of(client: FlaskClient, end: int) -> list[object]:
    """Return the responses of the endpoints without ids."""
    described = client.get("/models/model").get_json()["tokenizer"]["boundary"]
    assert described == {"id": end, "token": "<|end|>"}
    written = post(client, "/generate", prompt="a", temperature=0, logprobs=1, return_state=True, max_tokens=2)
    went_on = post(client, "/generate", state=written["choices"][0]["state"], temperature=0)
    scored = post(client, "/score", text="abcx", tokens=True, words=True, add_end=True)["results"][0]
    beams = post(client, "/generate", prompt="a", num_beams=2)
    ids = [token["id"] for token in post(client, "/tokenize", text="ab")["tokens"]]
    completed = [
        post(client, "/v1/completions", prompt=prompt, max_tokens=5, temperature=0, echo=True, logprobs=1)["choices"]
        for prompt in ([end, *ids], ids, "ab")
    ]
    states = post(client, "/states", text="ab")
    return [
        [(token["text"], token["logprob"]) for token in written["choices"][0]["tokens"]],
        [(choice["text"], choice["finish_reason"]) for choice in (*written["choices"], *went_on["choices"])],
        [(choice["text"], choice["finish_reason"]) for choice in beams["choices"]],
        [(token["text"], token["logprob"]) for token in scored["tokens"]],
        scored["words"],
        [(choice["text"], choice["finish_reason"], choice["logprobs"]) for [choice] in completed],
        [tensor["values"] for tensor in states["tensors"]],
        post(client, "/detokenize", tokens=[*ids, end])["text"],
    ]


def test_end_is_scored_by_default(client: FlaskClient) -> None:
    with_end = post(client, "/score", text="abc")["results"][0]
    without = post(client, "/score", text="abc", add_end=False)["results"][0]
    assert (with_end["num_tokens"], without["num_tokens"]) == (4, 3)
    assert with_end["logprob"] < without["logprob"]
    nothing = post(client, "/score", text="", add_end=False)
    assert nothing["results"][0]["perplexity"] is None
    assert nothing["usage"] == {"scored_tokens": 0, "computed_tokens": 0, "cached_tokens": 0}


def test_detokenize_inverts_tokenize(client: FlaskClient) -> None:
    text = "한글 😀 and <|end|>\n"
    tokens = post(client, "/tokenize", model="bytes", text=text)
    assert set(tokens) == {"model", "tokens"}
    assert tokens["tokens"][0] == {"id": tokens["tokens"][0]["id"], "text": "\ufffd", "bytes": [0xED]}
    assert set(tokens["tokens"][-1]) == {"id", "text"}
    answer = {"model": "bytes", "text": text}
    assert post(client, "/detokenize", model="bytes", tokens=tokens["tokens"]) == answer
    assert post(client, "/detokenize", model="bytes", tokens=[t["id"] for t in tokens["tokens"]]) == answer
    assert post(client, "/tokenize", text="")["tokens"] == []
    assert post(client, "/detokenize", tokens=[])["text"] == ""
    cut = post(client, "/detokenize", model="bytes", tokens=tokens["tokens"][:5])
    assert cut == {"model": "bytes", "text": "한\ufffd", "bytes": [*"한글".encode()[:5]]}
    whole = post(client, "/detokenize", model="bytes", tokens=tokens["tokens"][:3])
    assert whole == {"model": "bytes", "text": "한"}
    assert "tokens[1]: got 28" in post(client, "/detokenize", 400, tokens=[1, 28])["error"]["message"]


def test_models_are_described(client: FlaskClient) -> None:
    answer = client.get("/models").get_json()
    assert [model["name"] for model in answer["models"]] == ["bytes", "flat", "letters", "noise", "words"]
    assert answer["default"] == "letters"
    model = client.get("/models/letters").get_json()
    assert model == answer["models"][2]
    assert {"family", "sizes", "tokenizer", "corpus", "figures", "precision", "hashes", "limits", "self_test"} <= set(
        model
    )
    assert model["limits"]["max_tokens"] == 500
    assert model["self_test"]["rows_isolated"] is True


def test_broken_bundle_is_reported_and_the_others_are_served(client: FlaskClient) -> None:
    ready = client.get("/readyz")
    assert ready.status_code == 200
    assert "cell.onnx" in ready.get_json()["failed"]["broken"]
    error = post(client, "/generate", 404, model="broken")["error"]
    assert error["code"] == "unknown_model"
    assert "could not be loaded" in error["message"]


@pytest.mark.parametrize("path", ["/models/nothing", "/models/..%2f"])
def test_unknown_model_is_not_found(client: FlaskClient, path: str) -> None:
    assert client.get(path).status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("POST", "/", 405, "method_not_allowed"),
        ("GET", "/generate", 405, "method_not_allowed"),
        ("DELETE", "/models", 405, "method_not_allowed"),
        ("PUT", "/healthz", 405, "method_not_allowed"),
    ],
)
def test_errors_of_flask_have_the_error_body(
    client: FlaskClient, method: str, path: str, status: int, code: str
) -> None:
    response = client.open(path, method=method, headers={"X-Request-Id": "abc-1.2_3"})
    error = response.get_json()["error"]
    assert (response.status_code, error["code"], error["request_id"]) == (status, code, "abc-1.2_3")
    assert set(error) == {"code", "message", "request_id"}
    assert ("Allow" in response.headers) == (status == 405)


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "",
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/json; charset=latin-1",
        "application/jsonx",
    ],
)
def test_other_media_types_are_refused(client: FlaskClient, content_type: str | None) -> None:
    response = client.post("/generate", data=b"{}", content_type=content_type)
    assert (response.status_code, response.get_json()["error"]["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize("content_type", ["application/json", "application/json; charset=UTF-8", "Application/JSON"])
def test_json_with_a_charset_of_utf8_is_accepted(client: FlaskClient, content_type: str) -> None:
    body = '{"text": "한"}'.encode()
    assert client.post("/tokenize", data=body, content_type=content_type).status_code == 200


@pytest.mark.parametrize(
    ("sent", "is_kept"),
    [("a", True), ("A-1_b.c", True), ("x" * 128, True), ("x" * 129, False), ("a b", False), ("é", False), ("", False)],
)
def test_every_response_has_a_request_id(client: FlaskClient, sent: str, is_kept: bool) -> None:
    response = client.get("/healthz", headers={"X-Request-Id": sent})
    assert (response.headers["X-Request-Id"] == sent) == is_kept
    assert response.headers["X-Request-Id"]


def test_malformed_json_is_an_invalid_request(client: FlaskClient) -> None:
    response = client.post("/generate", data=b'{"n": ', content_type="application/json")
    assert (response.status_code, response.get_json()["error"]["code"]) == (400, "invalid_request")


def test_internal_errors_reveal_no_details(app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    service = app.extensions["meari"]
    for error in (RuntimeError("secret"), EngineFailed("secret"), KeyError("secret")):
        monkeypatch.setattr(service.registry, "borrow", lambda *_, error=error: (_ for _ in ()).throw(error))
        response = client.post("/generate", json={})
        assert (response.status_code, response.get_json()["error"]["code"]) == (500, "internal")
        assert "secret" not in response.text


def test_keys_are_required_if_they_are_set(bundles: Any) -> None:
    app = create_app(Settings(bundles=bundles / "nothing", api_keys=("k1", "k2"), workers=1, log_level="error"))
    client = app.test_client()
    assert app.extensions["meari"].registry.wait_loaded(PATIENCE)
    for header in (None, "Bearer", "Bearer k3", "Basic k1", "k1", "Bearer k1x", "Bearer é"):
        headers = {} if header is None else {"Authorization": header}
        response = client.get("/models", headers=headers)
        assert (response.status_code, response.get_json()["error"]["code"]) == (401, "unauthorized")
        assert response.headers["WWW-Authenticate"] == "Bearer"
    assert client.get("/models", headers={"Authorization": "Bearer k2"}).status_code == 503
    assert client.post("/generate", json={}, headers={"Authorization": "Bearer k2"}).status_code == 503
    for path, status in [("/healthz", 200), ("/readyz", 503), ("/metrics", 200)]:
        assert client.get(path).status_code == status


def test_service_without_bundles_is_not_ready_with_the_reason(tmp_path: Any) -> None:
    for folder, reason in [(tmp_path, "there is no bundle"), (tmp_path / "x", "there is no folder")]:
        app = create_app(Settings(bundles=folder, workers=1, log_level="error"))
        client = app.test_client()
        assert app.extensions["meari"].registry.wait_loaded(PATIENCE)
        response = client.get("/readyz")
        assert response.status_code == 503
        assert response.headers["Retry-After"]
        assert reason in response.get_json()["error"]["message"]
        refused = client.post("/score", json={"text": "a"})
        assert (refused.status_code, refused.get_json()["error"]["code"]) == (503, "not_ready")
        assert refused.headers["Retry-After"]


def test_oversized_requests_are_refused_before_tokenization(bundles: Any) -> None:
    limits: dict[str, Any] = {
        "max_body_bytes": 2048,
        "max_inflight_bytes": 22_000,
        "max_text_chars": 150,
        "max_requests": 3,
    }
    app = create_app(Settings(bundles=bundles, default_model="letters", workers=1, log_level="error", **limits))
    service, client = app.extensions["meari"], app.test_client()
    assert service.registry.wait_loaded(PATIENCE)
    for path, body, status in [
        ("/generate", {"prompt": "a" * 3000}, 413),
        ("/generate", {"prompt": "a" * 200}, 413),
        ("/score", {"texts": ["a" * 100, "b" * 51]}, 413),
        ("/score", {"text": "a" * 149, "tokens": True, "top": 20}, 413),
        ("/score", {"text": "a" * 149}, 200),
        ("/score", {"texts": ["a"] * 8}, 413),  # each text takes some, however short
        ("/generate", {"max_tokens": 4096}, 413),
        ("/tokenize", {"text": "a" * 151}, 413),
    ]:
        response = client.post(path, json=body)
        assert response.status_code == status, response.text
        assert status == 200 or response.get_json()["error"]["code"] == "too_large"
    assert (service.admission.num_requests, service.admission.num_bytes) == (0, 0)
    tickets = [service.admission.enter("127.0.0.1") for _ in range(3)]  # the client's own
    response = client.post("/generate", json={})
    assert (response.status_code, response.get_json()["error"]["code"]) == (429, "overloaded")
    assert int(response.headers["Retry-After"]) >= 1
    assert client.get("/healthz").status_code == 200
    tickets.pop().release()
    assert client.post("/generate", json={"max_tokens": 1}).status_code == 200
    for ticket in tickets:
        ticket.release()
        ticket.release()
    assert service.admission.num_requests == 0
    service.registry.stop()


def test_timeout_returns_the_text_of_a_generation_and_an_error_for_a_score(bundles: Any) -> None:
    settings = Settings(bundles=bundles, workers=1, log_level="error", max_timeout_seconds=2.0, max_tokens=1_000_000)
    app = create_app(settings)
    client = app.test_client()
    assert app.extensions["meari"].registry.wait_loaded(PATIENCE)
    bias = {"0": -100}
    answer = post(client, "/generate", model="letters", max_tokens=1_000_000, logit_bias=bias, timeout_seconds=1.9)
    assert answer["choices"][0]["finish_reason"] == "timeout"
    assert 0 < answer["usage"]["generated_tokens"] == len(answer["choices"][0]["text"].replace("<|unk|>", "u"))
    came = {CAME_AT: time.monotonic() - 3.0}  # to the worker's loop; a thread was given to it only now
    late = client.post("/generate", json={"model": "letters", "max_tokens": 1_000_000}, environ_overrides=came)
    assert late.get_json()["choices"][0]["finish_reason"] == "timeout"
    assert late.get_json()["usage"]["generated_tokens"] == 0
    came = {CAME_AT: time.monotonic() - 1.9}  # a tenth of a second is left for a million tokens
    score = client.post("/score", json={"model": "letters", "text": LETTERS * 38_000}, environ_overrides=came)
    assert (score.status_code, score.get_json()["error"]["code"]) == (504, "timeout")
    app.extensions["meari"].registry.stop()


def test_metrics_have_the_format_of_prometheus(client: FlaskClient) -> None:
    post(client, "/generate", max_tokens=5, temperature=0)
    post(client, "/score", text="abc")
    response = client.get("/metrics")
    assert response.headers["Content-Type"].startswith("text/plain")
    for name in (
        "meari_requests_total",
        "meari_steps_total",
        "meari_generated_tokens_total",
        "meari_scored_tokens_total",
    ):
        assert f"\n{name}{{" in response.text
    assert 'meari_requests_total{route="/score",status="200"}' in response.text


def test_end_is_scored_by_default_if_the_training_text_had_ends(tmp_path: Path) -> None:
    for name, has_ends in (("lines", True), ("stream", False)):
        write_tiny_bundle(tmp_path / name)
        rewrite_manifest(tmp_path / name, corpus={"document": "line", "has_ends": has_ends})
    app = create_app(Settings(bundles=tmp_path, workers=1, log_level="error"))
    registry = app.extensions["meari"].registry
    try:
        assert registry.wait_loaded(PATIENCE)
        client = app.test_client()
        for name, has_ends in (("lines", True), ("stream", False)):
            assert client.get(f"/models/{name}").get_json()["corpus"]["has_ends"] is has_ends
            found = {}
            for said in (None, True, False):
                more = {} if said is None else {"add_end": said}
                [found[said]] = post(client, "/score", model=name, text="ab", words=True, **more)["results"]
            assert [found[said]["num_tokens"] for said in (True, False)] == [3, 2]
            assert found[None] == found[has_ends]
            echoed = post(client, "/v1/completions", model=name, prompt="ab", max_tokens=0, echo=True, logprobs=0)
            assert sum(echoed["choices"][0]["logprobs"]["token_logprobs"]) == found[False]["logprob"]
    finally:
        registry.stop()


@pytest.mark.parametrize("stream", [False, True])
def test_unknown_tokens_of_a_prompt_are_counted(client: FlaskClient, stream: bool) -> None:
    for prompt, unknown in [("a한글b1", 3), ("abc", None), ("", None)]:
        response = client.post("/generate", json={"prompt": prompt, "max_tokens": 1, "stream": stream})
        events = [line[6:] for line in response.text.splitlines() if line.startswith("data: {")] if stream else []
        answer = json.loads(events[-1]) if stream else response.get_json()
        assert answer["usage"].get("unknown_tokens") == unknown


def test_unknown_tokens_of_texts_and_contexts_are_counted(client: FlaskClient) -> None:
    asked: list[tuple[dict[str, Any], int | None]] = [
        ({"text": "a한글"}, 2),
        ({"texts": ["a한글", "b1"], "context": "?c"}, 4),
        ({"text": "b", "context": "??"}, 2),
        ({"text": "abc"}, None),
    ]
    for request, unknown in asked:
        assert post(client, "/score", **request)["usage"].get("unknown_tokens") == unknown


def test_unknown_tokens_are_marked(client: FlaskClient) -> None:
    for path in ("/tokenize", "/states"):
        tokens = post(client, path, text="a1")["tokens"]
        assert tokens[0] == {"id": tokens[0]["id"], "text": "a"}
        assert tokens[1] == {"id": 1, "text": "<|unk|>", "unknown": True}
        assert post(client, "/detokenize", tokens=tokens)["text"] == "a<|unk|>"


def test_refused_bodies_are_let_go_at_once(client: FlaskClient) -> None:
    """Without the collector of cycles, which seldom runs where few objects are made."""
    bodies = [b'{"stop":[' + b"1," * 500_000 + b"1]}", b'{"seed":' + b"1" * 1_000_000 + b"}", b'{"max_tokens":0}' * 9]
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        statuses = [client.post("/generate", data=body, content_type="application/json").status_code for body in bodies]
        assert tracemalloc.get_traced_memory()[0] < 500_000
    finally:
        tracemalloc.stop()
        gc.enable()
    assert statuses == [400, 400, 400]
