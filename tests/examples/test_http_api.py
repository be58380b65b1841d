"""Test docs/http-api.md: every response has the shape that the page shows, and the tour requests every path."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from examples.nbest import Reading
from examples.server import post
from meari.runtime.requests import CompleteRequest, GenerateRequest, ScoreRequest
from meari.service.settings import Settings
from tests.examples.answers import ask, exchanges, served
from tests.examples.pages import page, run_example
from tests.service.running import Server, events

PAGE = page("http-api")
EXCHANGES = exchanges(PAGE)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Serve the released bundles like `make serve`."""
    with served(tmp_path_factory.mktemp("log")) as running:
        yield running


@pytest.mark.parametrize(("command", "answer"), EXCHANGES)
def test_answer_has_the_shape_that_the_page_shows(server: Server, command: str, answer: str) -> None:
    response = ask(server, command)
    if "-sN" not in command:
        _assert_shape(json.loads(answer), response.json(), "answer")
        return
    shown = re.findall(r"^data: (.*)$", answer, re.MULTILINE)
    came = events(response)
    assert shown[-1] == came[-1] == "[DONE]"
    mine, theirs = ([json.loads(event) for event in some[:-1]] for some in (shown, came))
    _assert_shape(mine[-1], theirs[-1], "the last event")
    for stream in (mine, theirs):  # the number of tokens in an event depends on timing
        written = [event["choices"][0] for event in stream[:-1]]
        assert all(choice["text"] for choice in written)
        assert ["finish_reason" in choice for choice in written] == [False] * (len(written) - 1) + [True]


def test_page_shows_the_served_limits_and_state_token_format(server: Server) -> None:
    shown = {command: json.loads(answer) for command, answer in EXCHANGES if "-sN" not in command}
    [model] = [command for command in shown if command.endswith("/models/shakespeare-gru")]
    assert shown[model]["limits"] == ask(server, model).json()["limits"]
    [resumable] = [command for command in shown if "return_state" in command]
    beginnings = [answer["choices"][0]["state"][:8] for answer in (shown[resumable], ask(server, resumable).json())]
    assert beginnings[0] == beginnings[1]  # version of the format and id of the bundle


def test_tour_requests_every_path_of_the_contract(server: Server, tmp_path: Path) -> None:
    address = f"http://127.0.0.1:{server.port}"
    printed = run_example("http_tour.py", address, folder=tmp_path)
    contract = server.client.get("/openapi.json").json()["paths"]
    asked = set(re.findall(r"^(?:GET|POST) (\S+)", printed, re.MULTILINE))
    of_admins = {path for path in contract if path.endswith("load")}
    assert len(of_admins) == 2
    assert asked == {*contract, "/openapi.json"} - of_admins
    assert printed.count("the same text: True") == 2
    assert "the same sum: True" in printed
    assert "the sum that /score gives: True" in printed
    assert "refused with 400" in printed


def test_python_code_of_the_pages_runs(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    names = {"post": post, "address": f"http://127.0.0.1:{server.port}"}
    [watch] = re.findall(r"```python\n(.*?)```", page("anomalies"), re.DOTALL)
    exec(watch, names | {"stream": ["To be", "or not to be", "0x7f qqq"], "threshold": 14.0})
    assert re.fullmatch(r"\d+\.\d bits: 0x7f qqq\n", capsys.readouterr().out)
    [rescore] = re.findall(r"```python\n(.*?)```", page("nbest"), re.DOTALL)
    found: dict[str, Any] = names | {"readings": [Reading("To be", 0.0), Reading("Tq bx", 0.0)]}
    exec(rescore.replace("my-model", "shakespeare-gru"), found)
    first, second = found["language"]
    assert first > second


def test_page_names_every_path_of_the_contract(server: Server) -> None:
    for path in server.client.get("/openapi.json").json()["paths"]:
        assert f"{path}`" in PAGE, path


@pytest.mark.parametrize(
    ("request_type", "heading"),
    [(GenerateRequest, "Generate"), (ScoreRequest, "Score"), (CompleteRequest, "Complete")],
)
def test_page_lists_exactly_the_fields_of_a_request(request_type: type, heading: str) -> None:
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    first_cells = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    named = {name for cell in first_cells for name in re.findall(r"`(\w+)`", cell)}
    assert named | {"model"} == set(request_type.__struct_fields__)  # type: ignore[attr-defined]


def test_limits_of_the_page_are_the_defaults() -> None:
    settings = Settings(workers=1)
    section = PAGE.split("\n## Limits\n")[1]
    for name in ("max_text_chars", "max_texts", "max_tokens", "max_requests", "max_waiting"):
        assert f"| {getattr(settings, name):,} |" in section, name
    assert f"| {settings.max_timeout_seconds:g} s |" in section
    assert f"| {settings.max_body_bytes >> 20} MiB |" in section


def _assert_shape(shown: Any, came: Any, where: str) -> None:
    """Assert that every field shown on the page is present with the same type.

    The page omits fields, cuts texts and rounds figures. Retrained bundles give other figures;
    `python -m tests.examples.answers` writes them into the page.
    """
    if isinstance(shown, dict):
        for name, value in shown.items():
            assert name in came, f"{where}: no {name}"
            _assert_shape(value, came[name], f"{where}.{name}")
    elif isinstance(shown, list):
        assert bool(shown) == bool(came), where
        for number, (one, other) in enumerate(zip(shown, came, strict=False)):
            _assert_shape(one, other, f"{where}[{number}]")
    else:
        assert type(shown) is type(came), where
