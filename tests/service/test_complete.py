"""Test POST /complete. That its figures are right is tested in tests/runtime/test_word_completion.py."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from meari.errors import ScoreTimeout
from meari.runtime.requests import CompleteRequest
from meari.runtime.word_completion import begin_word_completion
from tests.patience import PATIENCE
from tests.runtime.tiny_bundle import expected_logprob
from tests.service.conftest import SPELLED


def complete(client: FlaskClient, status: int = 200, **body: Any) -> Any:
    response = client.post("/complete", json=body)
    assert response.status_code == status, response.text
    return response.get_json()


class Purse:
    """A budget that notes what is taken."""

    share = ""
    num_bytes = num_tokens = 0

    def take_bytes(self, count: int) -> None:
        self.num_bytes += count

    def take_tokens(self, count: int) -> None:
        self.num_tokens += count


def test_answer_has_the_shape_of_the_contract(client: FlaskClient) -> None:
    answer = complete(client, text="wx", n=1)
    [best] = answer["completions"]
    exact = sum(expected_logprob(token, token - 1 if token else 27, step) for step, token in ((3, 26), (4, 27), (5, 0)))
    assert best["text"] == "yz"
    assert best["logprob"] == pytest.approx(exact, abs=1e-5)
    assert answer["model"] == "letters"
    assert answer["proven"] is True
    assert 0 <= answer["error"] < 1e-3
    assert answer["usage"]["prompt_tokens"] == 2
    assert answer["usage"]["searched_tokens"] >= 2
    assert set(best) == {"text", "logprob", "probability"}


def test_next_keystroke_runs_its_own_token_alone(client: FlaskClient) -> None:
    complete(client, text="klmno")
    assert complete(client, text="klmnop")["usage"]["cached_tokens"] >= 5
    assert complete(client, text="klmnop")["usage"]["cached_tokens"] == 6


def test_word_in_the_middle_is_completed_by_the_words_that_it_begins(client: FlaskClient) -> None:
    assert complete(client, model="words", text="good da", n=1)["completions"][0]["text"] == "y"
    assert complete(client, model="words", text="good", n=1)["completions"][0]["text"] == " day"
    assert complete(client, model="words", text="good ", n=1)["completions"][0]["text"] == "day"
    assert complete(client, model="words", text="good day", n=1, max_words=1)["completions"][0]["text"] == " , world"


def test_unknown_word_is_a_whole_one(client: FlaskClient) -> None:
    answer = complete(client, model="words", text="zebra", n=20)
    assert answer["usage"]["unknown_tokens"] == 1
    assert {item["text"].split()[-1] for item in answer["completions"]} >= {"good", "day", "world"}
    assert all(item["text"].startswith(" ") for item in answer["completions"])


def test_bytes_are_completed_to_whole_characters(client: FlaskClient) -> None:
    answer = complete(client, model="bytes", text=SPELLED[:2], n=1)
    assert answer["completions"][0]["text"] == "한"
    assert answer["completions"][0]["probability"] > 0.9


def test_growing_syllable_is_replaced(client: FlaskClient) -> None:
    for text, replaces in (("é😀하", 1), ("é😀하ㄴ", 2), ("é😀ㅎ", 1), ("é😀\u1112\u1161", 2)):
        [best] = complete(client, model="bytes", text=text, n=1, composing=True)["completions"]
        assert (best["text"], best["replaces"]) == ("한", replaces)
    assert "replaces" not in complete(client, model="bytes", text="é😀", n=1)["completions"][0]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "text"),
        ({"text": 3}, "text"),
        ({"text": "a", "n": 0}, "n"),
        ({"text": "a", "n": 21}, "n"),
        ({"text": "a", "max_words": 0}, "max_words"),
        ({"text": "a", "max_words": 9}, "max_words"),
        ({"text": "a", "composing": "yes"}, "composing"),
        ({"text": "a", "prompt": "b"}, "prompt"),
    ],
)
def test_wrong_field_is_named(client: FlaskClient, body: dict[str, Any], field: str) -> None:
    error = complete(client, 400, **body)["error"]
    assert error["code"] == "invalid_request"
    assert field in error["message"]


def test_answer_has_the_same_bits_beside_other_requests(app: Flask) -> None:
    def ask(number: int) -> Any:
        client = app.test_client()
        if number % 3 == 2:
            return client.post("/generate", json={"model": "flat", "prompt": "ab", "max_tokens": 40}).status_code
        answer = complete(client, model="flat", text=("ab", "xyz")[number % 3], n=5)
        return (answer["completions"], answer["error"])

    alone = [ask(0), ask(1), 200]
    with ThreadPoolExecutor(12) as pool:
        for number, answer in enumerate(pool.map(ask, range(36))):
            assert answer == alone[number % 3]


def test_search_past_its_deadline_fails_and_holds_no_row(app: Flask) -> None:
    model = app.extensions["meari"].registry.borrow("flat", None)
    purse = Purse()
    begun = begin_word_completion(CompleteRequest(text="ab"), model, purse, model.engine.clock() - 1.0)
    assert begun.handle.wait_end(PATIENCE)
    with pytest.raises(ScoreTimeout, match="time limit"):
        begun.handle.raise_for_failure()
    assert model.engine.stats().running == 0
    assert purse.num_bytes > 0
    assert purse.num_tokens > 2
