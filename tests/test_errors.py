"""Test problems as data and the messages made from them."""

import pickle

import pytest

from meari.client.errors import BadAnswer, Refused, Unreachable
from meari.errors import Bound, InvalidRequest, MeariError, NotReady, Overloaded, Problem, RateLimited, TooLarge
from meari.models.errors import BrokenText, CheckpointError, ConfigError
from meari.service.error_body import openai_error_body, wrong_field
from meari.service.settings import SettingsError


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (Problem("top_p", "1.4", "0 <= top_p <= 1"), "top_p: got 1.4, expected 0 <= top_p <= 1"),
        (Problem("texts[3]", None, "a string"), "texts[3]: missing, expected a string"),
        (
            Problem("top_k", "5 with num_beams 2", "0", "nothing is sampled"),
            "top_k: got 5 with num_beams 2, expected 0: nothing is sampled",
        ),
        (Problem("body", reason="it broke off"), "body: it broke off"),
    ],
)
def test_message_of_a_problem_has_the_field_the_value_and_the_expected_values(problem: Problem, message: str) -> None:
    assert str(problem) == message


@pytest.mark.parametrize(
    ("path", "name"),
    [("n", "n"), ("texts[3]", "texts"), ('logit_bias["a: b"]', "logit_bias"), ("options.usage", "options")],
)
def test_name_of_a_problem_is_its_outermost_field(path: str, name: str) -> None:
    assert Problem(path, "1", "2").name == name


def test_message_of_an_error_joins_its_problems() -> None:
    problems = (Problem("n", "0", "n >= 1"), Problem("foo", "an unknown field", "one of n"))
    error = InvalidRequest(*problems)
    assert str(error) == "n: got 0, expected n >= 1; foo: got an unknown field, expected one of n"
    assert error.problems == problems


def test_error_with_a_plain_message_has_no_problems() -> None:
    assert InvalidRequest("the service is busy: come back").problems == ()


@pytest.mark.parametrize(
    ("error", "param"),
    [
        (InvalidRequest(Problem("texts[3]", "1", "a string"), Problem("n", "0", "n >= 1")), "texts"),
        (InvalidRequest(Problem("a name: with words", "an unknown field", "one of n")), "a name: with words"),
        (TooLarge(Problem("prompt", "9 characters", "at most 8")), "prompt"),
        (InvalidRequest(Problem("body", "nothing", "a JSON object")), None),
        (InvalidRequest("n: a plain message names no field"), None),
        (NotReady("the bundles are being loaded"), None),
    ],
)
def test_openai_error_body_names_the_first_invalid_field(error: MeariError, param: str | None) -> None:
    body = openai_error_body(error)["error"]
    assert isinstance(body, dict)
    assert body["param"] == param


def test_log_names_only_fields_of_the_contract() -> None:
    error = InvalidRequest(Problem("secret", "an unknown field", "one of n"))
    assert wrong_field(error, {"n"}) is None
    assert wrong_field(error, {"n", "secret"}) == "secret"


@pytest.mark.parametrize(
    "error",
    [
        InvalidRequest(Problem("n", "0", "n >= 1")),
        Overloaded("come back", Bound.QUEUE),
        RateLimited("come back", "requests", 7),
        Unreachable("http://127.0.0.1:9", "connection refused"),
        BadAnswer("http://127.0.0.1:9", "got HTML"),
        Refused("http://127.0.0.1:9", 404, "unknown_model", "no such model"),
        SettingsError([Problem("MEARI_PORT", "x", "a number")]),
        ConfigError("my.toml", ["seed: got x, expected a number"]),
        BrokenText("got byte 0xff, expected UTF-8", source="a.txt", line=3),
        CheckpointError("runs/x: no run"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_error_reaches_another_process_as_it_is(error: Exception) -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        came = pickle.loads(pickle.dumps(error, protocol))  # noqa: S301 (made here)
        assert (type(came), str(came), came.args, vars(came)) == (type(error), str(error), error.args, vars(error))
