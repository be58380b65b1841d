"""Problems as data, and the messages that are made of them."""

import pytest

from meari.errors import InvalidRequest, Problem


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
def test_a_problem_tells_field_what_came_and_what_was_expected(problem: Problem, message: str) -> None:
    assert str(problem) == message


@pytest.mark.parametrize(
    ("path", "name"),
    [("n", "n"), ("texts[3]", "texts"), ('logit_bias["a: b"]', "logit_bias"), ("options.usage", "options")],
)
def test_a_problem_is_named_by_its_outermost_field(path: str, name: str) -> None:
    assert Problem(path, "1", "2").name == name


def test_an_error_joins_its_problems_and_keeps_them() -> None:
    problems = (Problem("n", "0", "n >= 1"), Problem("foo", "an unknown field", "one of n"))
    error = InvalidRequest(*problems)
    assert str(error) == "n: got 0, expected n >= 1; foo: got an unknown field, expected one of n"
    assert error.problems == problems


def test_an_error_with_a_plain_message_has_no_problem() -> None:
    assert InvalidRequest("the service is busy: come back").problems == ()
