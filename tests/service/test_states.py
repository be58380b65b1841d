"""Test state tokens over HTTP: a text run in parts equals the text run at once, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unicodedata import normalize

import pytest
from flask.testing import FlaskClient

from meari.service.app import create_app
from meari.service.settings import Settings
from tests.patience import PATIENCE
from tests.service.conftest import SPELLED
from tests.service.running import ROOT
from tests.service.test_contract import post, sse

RELEASED = ["shakespeare-gru", "nsmc-lstm"]
NO_END = {"logit_bias": {"0": -100}}
SAMPLING: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0, **NO_END},
    "sampled": {"seed": 7, "temperature": 1.3, **NO_END},
    "truncated": {"seed": 8, "top_k": 30, "top_p": 0.9, "min_p": 0.01, **NO_END},
    "penalized": {"seed": 9, "repetition_penalty": 1.3, **NO_END},
    "samples": {"seed": 2**63 - 1, "n": 3, **NO_END},
    "penalized by count": {"seed": 4, "frequency_penalty": 0.8, "presence_penalty": -0.3, **NO_END},
    "penalized greedy": {"temperature": 0, "frequency_penalty": 2, "presence_penalty": 0.5, "top_k": 4, **NO_END},
    "penalized by count in samples": {"seed": 6, "n": 3, "frequency_penalty": 1.7, "repetition_penalty": 1.1, **NO_END},
    "penalized samples": {"seed": 1, "n": 3, "repetition_penalty": 1.2, **NO_END},
}


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlaskClient]:
    """Make an application with two released models: characters, and byte-level pieces of Korean."""
    folder = tmp_path_factory.mktemp("released")
    for name in RELEASED:
        (folder / name).symlink_to(ROOT / "bundles" / name)
    app = create_app(Settings(bundles=folder, workers=1, log_level="error"))
    registry = app.extensions["meari"].registry
    assert registry.wait_loaded(PATIENCE)
    yield app.test_client()
    registry.stop()


def joined(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Join the choices of successive responses into one."""
    return {
        "text": "".join(part["text"] for part in parts),
        "tokens": [token for part in parts for token in part["tokens"]],
        "finish_reason": parts[-1]["finish_reason"],
    }


def only(choice: dict[str, Any]) -> dict[str, Any]:
    return {name: choice[name] for name in ("text", "tokens", "finish_reason")}


@pytest.mark.parametrize("again", [False, True], ids=["the state's seed", "the seed again"])
@pytest.mark.parametrize("sampling", SAMPLING.values(), ids=SAMPLING)
@pytest.mark.parametrize(
    ("model", "prompt"), [(RELEASED[0], "ROMEO:\n"), (RELEASED[1], "이 영화는 😀 "), (RELEASED[1], "")]
)
def test_text_generated_in_parts_equals_the_whole(
    released: FlaskClient, model: str, prompt: str, sampling: dict[str, Any], again: bool
) -> None:
    request: dict[str, Any] = {"model": model, "logprobs": 3, **sampling}
    whole = post(released, "/generate", prompt=prompt, max_tokens=40, **request)
    first = post(released, "/generate", prompt=prompt, max_tokens=20, return_state=True, **request)
    request |= {"n": 1}
    if not again:
        request.pop("seed", None)
    for expected, begun in zip(whole["choices"], first["choices"], strict=True):
        if again:
            request["seed"] = begun["seed"]
        rest = post(released, "/generate", state=begun["state"], max_tokens=20, **request)
        assert joined([begun, *rest["choices"]]) == only(expected)
        assert rest["seed"] == begun["seed"]
        assert rest["usage"]["prompt_tokens"] == 0


@pytest.mark.parametrize("path", ["/generate", "/v1/completions"])
@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKD"])
def test_stop_string_matches_in_every_unicode_normalisation(released: FlaskClient, path: str, form: Any) -> None:
    request: dict[str, Any] = {"model": RELEASED[1], "max_tokens": 20, "seed": 4, "prompt": "이 영화는"}
    [whole] = post(released, path, **request)["choices"]
    word = next(word for word in whole["text"].split()[1:] if len(word) > 1)
    for stop in (word, word[1:], [word[0], "q"]):
        given = [normalize(form, one) for one in ([stop] if isinstance(stop, str) else stop)]
        prompt = normalize(form, request["prompt"])
        [cut] = post(released, path, **request | {"stop": given, "prompt": prompt})["choices"]
        [expected] = post(released, path, stop=stop, **request)["choices"]
        assert (cut["text"], cut["finish_reason"]) == (expected["text"], "stop")
        streamed = released.post(path, json=request | {"stop": given, "stream": True}).text
        parts = [json.loads(line[6:]) for line in streamed.split("\n\n") if line.startswith("data: {")]
        assert "".join(choice["text"] for part in parts for choice in part["choices"]) == cut["text"]


@pytest.mark.parametrize("model", ["bytes", "noise", "words", "flat"])
def test_parts_of_every_length_join_to_the_whole(client: FlaskClient, model: str) -> None:
    request: dict[str, Any] = {"model": model, "logprobs": 1, **NO_END}
    whole = post(client, "/generate", max_tokens=10, seed=3, **request)["choices"][0]
    for length in range(1, 10):
        begun = post(client, "/generate", max_tokens=length, seed=3, return_state=True, **request)["choices"][0]
        rest = post(client, "/generate", max_tokens=10 - length, state=begun["state"], **request)["choices"][0]
        assert joined([begun, rest]) == only(whole)


def test_character_generated_byte_by_byte_is_whole(client: FlaskClient) -> None:
    request: dict[str, Any] = {"model": "bytes", "temperature": 0, "max_tokens": 1, "return_state": True}
    choice = post(client, "/generate", **request)["choices"][0]
    pieces = [choice["text"]]
    while choice["finish_reason"] == "length":
        choice = post(client, "/generate", state=choice["state"], **request)["choices"][0]
        pieces.append(choice["text"])
    assert "".join(pieces) == SPELLED
    assert pieces == ["", "é", "", "", "", "😀", "", "", "한", "!", ""]


def test_prompt_after_a_state_is_appended(released: FlaskClient, client: FlaskClient) -> None:
    request: dict[str, Any] = {"model": RELEASED[0], "max_tokens": 20, "logprobs": 0, "seed": 1}
    whole = post(released, "/generate", prompt="ROMEO:\nBut soft", **request)
    state = post(released, "/score", model=RELEASED[0], text="ROMEO:\nBut", return_state=True)["results"][0]["state"]
    rest = post(released, "/generate", state=state, prompt=" soft", **request)
    assert rest["choices"] == whole["choices"]
    assert rest["usage"]["prompt_tokens"] == 5
    words: dict[str, Any] = {"model": "words", "temperature": 0, "max_tokens": 1}
    state = post(client, "/generate", return_state=True, **words)["choices"][0]["state"]
    assert post(client, "/generate", state=state, **words)["choices"][0]["text"] == " day"
    assert post(client, "/generate", state=state, prompt=" ", **words)["choices"][0]["text"] == "day"
    assert post(client, "/generate", state=state, prompt="day", **words)["choices"][0]["text"] == " ,"


@pytest.mark.parametrize(
    ("model", "text"),
    [(RELEASED[0], "To be, or not to be"), (RELEASED[1], "정말 재미있는 영화 😀!"), (RELEASED[1], "é한")],
)
def test_scores_of_parts_add_up_to_the_whole(released: FlaskClient, model: str, text: str) -> None:
    request: dict[str, Any] = {"model": model, "tokens": True, "top": 2}
    whole = post(released, "/score", text=text, return_state=True, **request)
    [expected] = whole["results"]
    places = sorted({token["start"] for token in expected["tokens"]} | {0, len(text)})
    ids = [token["id"] for token in expected["tokens"]]
    for place in places:
        [first] = post(released, "/score", text=text[:place], add_end=False, return_state=True, **request)["results"]
        answer = post(released, "/score", text=text[place:], state=first["state"], return_state=True, **request)
        [rest] = answer["results"]
        if [token["id"] for token in first["tokens"] + rest["tokens"]] != ids:
            continue  # the tokenizer splits the parts differently
        figures = [(token["logprob"], token["rank"], token["top"]) for token in first["tokens"] + rest["tokens"]]
        assert figures == [(token["logprob"], token["rank"], token["top"]) for token in expected["tokens"]]
        assert first["logprob"] + rest["logprob"] == pytest.approx(expected["logprob"], rel=1e-12)
        assert rest["state"] == expected["state"]
        assert answer["usage"]["scored_tokens"] == len(rest["tokens"])


def test_state_scores_like_a_context(released: FlaskClient) -> None:
    request: dict[str, Any] = {"model": RELEASED[0], "texts": ["Romeo", "Rome", "", "Romeo, Romeo"], "tokens": True}
    expected = post(released, "/score", context="O Romeo, ", **request)
    state = post(released, "/score", model=RELEASED[0], text="O Romeo, ", return_state=True)["results"][0]["state"]
    found = post(released, "/score", state=state, **request)
    assert found["results"] == expected["results"]


def test_every_scored_text_has_its_own_state(released: FlaskClient) -> None:
    texts = ["a", "ab", "a", "", "b"]
    together = post(released, "/score", model=RELEASED[0], texts=texts, return_state=True)["results"]
    alone = [post(released, "/score", model=RELEASED[0], text=t, return_state=True)["results"][0] for t in texts]
    assert together == alone
    assert len({result["state"] for result in together}) == 4
    assert "state" not in post(released, "/score", model=RELEASED[0], text="a")["results"][0]


def test_state_of_a_scored_text_excludes_the_end_token(released: FlaskClient) -> None:
    request: dict[str, Any] = {"model": RELEASED[0], "text": "ab", "return_state": True}
    with_end, without = (post(released, "/score", add_end=end, **request)["results"][0] for end in (True, False))
    assert with_end["state"] == without["state"]


@pytest.mark.parametrize("more", [{}, {"n": 3}, {"stop": ["e", "o"]}, {"num_beams": 3, "n": 2, "seed": 5}])
def test_stream_gives_the_same_states_at_the_end_of_each_choice(released: FlaskClient, more: dict[str, Any]) -> None:
    request: dict[str, Any] = {"model": RELEASED[0], "seed": 5, "max_tokens": 30, "return_state": True, **more}
    whole = post(released, "/generate", **request)["choices"]
    *events, _ = sse(released, **request)
    choices = [choice for event in events for choice in event["choices"]]
    assert all(("state" in choice) == ("finish_reason" in choice) for choice in choices)
    assert {c["index"]: c["state"] for c in choices if "state" in c} == {c["index"]: c["state"] for c in whole}


def test_state_includes_the_token_that_completes_a_stop_string(client: FlaskClient) -> None:
    request: dict[str, Any] = {"temperature": 0, "max_tokens": 10, "return_state": True}
    first = post(client, "/generate", stop="cd", **request)["choices"][0]
    assert first["text"] == "ab"
    assert post(client, "/generate", state=first["state"], **request)["choices"][0]["text"] == "efghijklmn"


def test_state_after_the_end_begins_a_new_text(client: FlaskClient) -> None:
    request: dict[str, Any] = {"temperature": 0, "max_tokens": 3, "return_state": True}
    ended = post(client, "/generate", prompt="xy", **request)["choices"][0]
    assert (ended["text"], ended["finish_reason"]) == ("z", "end")
    assert post(client, "/generate", state=ended["state"], **request)["choices"][0]["text"] == "abc"


def test_timed_out_generation_can_be_continued(bundles: Path) -> None:
    app = create_app(Settings(bundles=bundles, workers=1, log_level="error", max_tokens=1_000_000))
    client = app.test_client()
    assert app.extensions["meari"].registry.wait_loaded(PATIENCE)
    request: dict[str, Any] = {"model": "letters", "temperature": 0, **NO_END}
    cut = post(client, "/generate", timeout_seconds=0.3, max_tokens=1_000_000, return_state=True, **request)
    choice = cut["choices"][0]
    assert choice["finish_reason"] == "timeout"
    whole = post(client, "/generate", max_tokens=cut["usage"]["generated_tokens"] + 5, **request)["choices"][0]["text"]
    rest = post(client, "/generate", max_tokens=5, state=choice["state"], **request)["choices"][0]
    assert choice["text"] + rest["text"] == whole
    app.extensions["meari"].registry.stop()


def test_state_of_a_generation_carries_its_seed(client: FlaskClient) -> None:
    request: dict[str, Any] = {"model": "flat", "max_tokens": 5, "return_state": True}
    state = post(client, "/generate", seed=12, **request)["choices"][0]["state"]
    assert [post(client, "/generate", state=state, **request)["seed"] for _ in range(2)] == [12, 12]
    assert post(client, "/generate", state=state, seed=13, **request)["seed"] == 13
    scored = post(client, "/score", model="flat", text="ab", state=state, return_state=True)["results"][0]["state"]
    assert post(client, "/generate", state=scored, **request)["seed"] == 12
    never = post(client, "/score", model="flat", text="ab", return_state=True)["results"][0]["state"]
    assert len({post(client, "/generate", state=never, **request)["seed"] for _ in range(2)}) == 2


def test_states_of_samples_have_different_continuations(client: FlaskClient) -> None:
    request: dict[str, Any] = {"model": "flat", "max_tokens": 30, **NO_END}
    first = post(client, "/generate", n=3, seed=1, return_state=True, **request)["choices"]
    forked = [post(client, "/generate", n=2, state=c["state"], **request)["choices"] for c in first]
    assert len({choice["text"] for choices in forked for choice in choices}) == 6


def test_state_can_be_used_any_number_of_times(client: FlaskClient) -> None:
    state = post(client, "/generate", model="flat", seed=1, return_state=True)["choices"][0]["state"]
    answers = [post(client, "/generate", model="flat", state=state, max_tokens=8)["choices"] for _ in range(3)]
    assert answers[0] == answers[1] == answers[2]


def test_states_are_returned_only_on_request(client: FlaskClient) -> None:
    assert "state" not in post(client, "/generate", max_tokens=1)["choices"][0]
    assert isinstance(post(client, "/generate", max_tokens=1, return_state=True)["choices"][0]["state"], str)


def test_state_is_at_most_as_long_as_the_model_states(released: FlaskClient) -> None:
    for model in RELEASED:
        limit = released.get(f"/models/{model}").get_json()["limits"]["max_state_chars"]
        request: dict[str, Any] = {"model": model, "text": "".join(map(chr, range(32, 2000))), "return_state": True}
        scored = post(released, "/score", **request)["results"][0]["state"]
        more: dict[str, Any] = {"max_tokens": 300, "presence_penalty": 2, "temperature": 10, **NO_END}
        written = post(released, "/generate", model=model, state=scored, return_state=True, **more)["choices"][0]
        assert len(scored) < len(written["state"]) <= limit
        assert limit < 1.4 * len(scored) + 10 * released.get(f"/models/{model}").get_json()["sizes"]["vocabulary"]


@pytest.mark.parametrize("path", ["/generate", "/score"])
def test_foreign_or_forged_state_is_refused(client: FlaskClient, bundles: Path, path: str) -> None:
    body: dict[str, Any] = {"text": "a"} if path == "/score" else {}
    state = post(client, "/generate", model="flat", return_state=True)["choices"][0]["state"]
    other = create_app(Settings(bundles=bundles, default_model="flat", workers=1, log_level="error"))
    assert other.extensions["meari"].registry.wait_loaded(PATIENCE)
    changed = state[:60] + ("A" if state[60] != "A" else "B") + state[61:]
    for asked, model, sent, reason in [
        (client, "letters", state, "of another model"),
        (other.test_client(), "flat", state, "signed with a key"),
        (client, "flat", changed, "changed or cut"),
        (client, "flat", state[:-4], "token"),
        (client, "flat", "x", "no state token"),
        (client, "flat", "", "no state token"),
        (client, "flat", "A" * 100_000, "got 100000 characters"),
    ]:
        error = post(asked, path, 400, model=model, state=sent, **body)["error"]
        assert error["code"] == "invalid_request"
        assert error["message"].startswith("state: got ")
        assert reason in error["message"]
    other.extensions["meari"].registry.stop()


def test_beams_are_ordered_best_first_with_states(released: FlaskClient) -> None:
    request: dict[str, Any] = {
        "model": RELEASED[0],
        "prompt": "ROMEO:\n",
        "num_beams": 4,
        "max_tokens": 10,
        "logprobs": 0,
    }
    choices = post(released, "/generate", n=4, return_state=True, **request)["choices"]
    sums = [sum(token["logprob"] for token in choice["tokens"]) for choice in choices]
    assert sums == sorted(sums, reverse=True) == [choice["logprob"] for choice in choices]
    assert len({choice["text"] for choice in choices}) == 4
    best = post(released, "/generate", **request)["choices"]
    assert [only(choice) for choice in best] == [only(choices[0])]
    for choice in choices:
        scored = post(released, "/score", model=RELEASED[0], context="ROMEO:\n", text=choice["text"], add_end=False,
                      return_state=True, tokens=True)["results"][0]  # fmt: skip
        assert [token["logprob"] for token in scored["tokens"]] == [token["logprob"] for token in choice["tokens"]]
        greedy = [
            post(released, "/generate", model=RELEASED[0], state=state, temperature=0, max_tokens=5, seed=1)["choices"]
            for state in (scored["state"], choice["state"])
        ]
        assert greedy[0] == greedy[1]


def test_stream_has_whole_beams(released: FlaskClient) -> None:
    request: dict[str, Any] = {"model": RELEASED[0], "num_beams": 3, "n": 2, "max_tokens": 12, "logprobs": 1, "seed": 1}
    *events, _ = sse(released, **request)
    assert [choice for event in events for choice in event["choices"]] == post(released, "/generate", **request)[
        "choices"
    ]


def test_repeated_prompt_comes_from_the_cache(released: FlaskClient) -> None:
    prompt = "The old mill by the river was quiet"
    request: dict[str, Any] = {"model": RELEASED[0], "prompt": prompt, "seed": 1, "logprobs": 1}
    cold, warm = (post(released, "/generate", **request) for _ in range(2))
    assert warm["choices"] == cold["choices"]
    assert warm["usage"]["cached_tokens"] == warm["usage"]["prompt_tokens"] == len(prompt)
    scored = post(released, "/score", model=RELEASED[0], context=prompt, text=" that day")
    assert scored["usage"]["cached_tokens"] > 0
    metrics = released.get("/metrics").text
    for name in ("cache_queries_total", "cache_hits_total", "cached_tokens_total", "cache_bytes"):
        [line] = [line for line in metrics.splitlines() if line.startswith(f'meari_{name}{{model="{RELEASED[0]}"')]
        assert float(line.split()[-1]) > 0
