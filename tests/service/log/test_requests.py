"""Test the log of a real service: JSON, one line for each request, and texts only if a setting enables them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.drills.processes import workers_of
from tests.patience import PATIENCE, until
from tests.service.running import Server, events, running_server, unread_stream
from tests.service.test_server import ENDLESS, metric, raw_post

PROMPT = "abcdefgh"
WRITTEN = "ijklmnopqrstuvwxyz"  # the continuation by the model of letters
KEY, STATE_KEY = "key-of-a-caller", "k3y" * 11


@pytest.fixture(scope="module")
def server(letters: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    settings: dict[str, Any] = {
        "max_tokens": 1_000_000,
        "max_requests": 2,
        "max_inflight_bytes": 2**32,
        "log_level": "debug",
    }
    folder = tmp_path_factory.mktemp("log")
    with running_server(folder, bundles=letters, default_model="letters", state_key=STATE_KEY, **settings) as running:
        yield running


def lines(server: Server) -> list[dict[str, Any]]:
    """Return all complete lines."""
    return [json.loads(line) for line in server.log.split("\n")[:-1]]


def line_of(server: Server, request_id: str) -> dict[str, Any]:
    """Wait for the line of a request and return it."""
    until(lambda: request_id in server.log.rpartition("\n")[0])
    [found] = [line for line in lines(server) if line.get("request_id") == request_id]
    return found


def ask(server: Server, path: str, request_id: str, **body: Any) -> Any:
    response = server.client.post(path, json=body, headers={"X-Request-Id": request_id})
    assert response.headers["X-Request-Id"] == request_id
    return response


def test_line_of_a_generation_matches_its_response(server: Server) -> None:
    usage = ask(server, "/generate", "whole-1", prompt=PROMPT, temperature=0, n=2).json()["usage"]
    line = line_of(server, "whole-1")
    assert (line["level"], line["logger"], line["message"]) == ("info", "service.access", "POST /generate 200")
    assert (line["method"], line["path"], line["route"]) == ("POST", "/generate", "/generate")
    assert (line["status"], line["outcome"], line["model"], line["stream"]) == (200, "ok", "letters", False)
    assert {name: line[name] for name in usage} == usage
    assert (line["scored_tokens"], line["finish_reasons"]) == (0, ["end", "end"])
    assert 0 <= line["queue_ms"] <= line["first_token_ms"] <= line["total_ms"] < 60_000
    assert not {"error", "prompts", "answers"} & set(line)


def test_line_of_a_score_counts_scored_tokens(server: Server) -> None:
    usage = ask(server, "/score", "score-1", context="ab", texts=["cd", "cde"]).json()["usage"]
    line = line_of(server, "score-1")
    assert (line["prompt_tokens"], line["scored_tokens"], line["generated_tokens"]) == (7, usage["scored_tokens"], 0)
    assert line["cached_tokens"] == usage["cached_tokens"]
    assert "first_token_ms" not in line


def test_line_of_a_completion_counts_generated_and_scored_tokens(server: Server) -> None:
    body = {"prompt": [[1, 2], [2, 3]], "max_tokens": 2, "echo": True, "logprobs": 1, "temperature": 0}
    answer = ask(server, "/v1/completions", "openai-1", **body)
    assert answer.status_code == 200, answer.text
    usage = answer.json()["usage"]
    line = line_of(server, "openai-1")
    assert line["prompt_tokens"] == line["scored_tokens"] == usage["prompt_tokens"] == 4
    assert line["generated_tokens"] == usage["completion_tokens"] == 4
    assert line["finish_reasons"] == ["length", "length"]


@pytest.mark.parametrize("path", ["/generate", "/v1/completions"])
def test_stream_is_logged_at_its_end(server: Server, path: str) -> None:
    request_id = f"stream{path.replace('/', '-')}"
    body = {**ENDLESS, "max_tokens": 3000, "logprobs": 20 if path == "/generate" else 5}
    with unread_stream(server, path, body, {"X-Request-Id": request_id}) as response:
        pieces = response.iter_lines()
        assert next(pieces).startswith("data: ")
        assert request_id not in server.log
        assert [piece for piece in pieces if piece][-1] == "data: [DONE]"
    line = line_of(server, request_id)
    assert (line["status"], line["outcome"], line["stream"], line["finish_reasons"]) == (200, "ok", True, ["length"])
    assert line["generated_tokens"] == 3000
    assert line["first_token_ms"] < line["total_ms"]


@pytest.mark.parametrize("stream", [False, True])
def test_request_of_a_disconnected_client_is_logged_as_aborted(server: Server, stream: bool) -> None:
    request_id = f"gone-{stream}"
    body = json.dumps({**ENDLESS, "prompt": PROMPT, "max_tokens": 1_000_000, "stream": stream}).encode()
    with server.connect() as connection:
        connection.sendall(raw_post(body, b"X-Request-Id: %b" % request_id.encode()))
        until(lambda: metric(server, "meari_running_sequences") == 1)
        if stream:
            assert connection.recv(20)
    line = line_of(server, request_id)
    assert (line["outcome"], line["status"]) == ("aborted", 200 if stream else 499)
    assert line["finish_reasons"] == ["cancelled"]
    assert line["prompt_tokens"] == len(PROMPT)
    assert 0 < line["generated_tokens"] < 1_000_000


def test_long_unread_response_is_aborted(server: Server) -> None:
    body = json.dumps({"texts": [PROMPT * 700], "tokens": True, "top": 20}).encode()
    with server.connect() as connection:
        connection.settimeout(90)
        connection.sendall(raw_post(body, b"X-Request-Id: unread", path=b"/score"))
        assert connection.recv(20)
    line = line_of(server, "unread")
    assert (line["outcome"], line["scored_tokens"]) == ("aborted", 8 * 700 + 1)


def test_refusal_is_logged_with_the_bound(server: Server) -> None:
    body = {**ENDLESS, "max_tokens": 1_000_000, "stream": True}
    with contextlib.ExitStack() as streams:
        responses = [streams.enter_context(server.client.stream("POST", "/generate", json=body)) for _ in range(2)]
        pieces = [response.iter_lines() for response in responses]
        assert [bool(next(each)) for each in pieces] == [True, True]
        assert ask(server, "/generate", "refused-1", prompt=PROMPT).status_code == 429
    line = line_of(server, "refused-1")
    assert (line["status"], line["outcome"], line["error"]) == (429, "refused", "overloaded")
    assert "at most 2 may" in line["error_message"]
    until(lambda: metric(server, "meari_running_sequences") == 0)


def test_invalid_request_is_logged_with_the_field_but_not_the_value(server: Server) -> None:
    ask(server, "/generate", "bad-1", top_p=PROMPT)
    line = line_of(server, "bad-1")
    assert (line["status"], line["outcome"], line["error"]) == (400, "invalid", "invalid_request")
    assert line["error_field"] == "top_p"
    assert "error_message" not in line


def test_log_has_no_text_of_requests_or_responses(server: Server) -> None:
    before = len(lines(server))
    mark = "quickzephyr"
    json_type = {"Content-Type": "application/json"}
    for path in ("/generate", "/score", "/complete", "/tokenize", "/states", "/v1/completions"):
        for body in (
            {"prompt": mark, "stop": mark, "temperature": 0},
            {"text": mark, "context": mark, "tokens": True, "words": True},
            {"texts": [mark, 1]},
            {"text": mark, "prompt": mark},
            {"prompt": [mark, 1]},
            {"prompt": PROMPT, "stream": True, "temperature": 0, "max_tokens": 30},
            {"model": mark, "prompt": "a", "text": "a"},
            {mark: 1},
            {"prompt": 1, "text": [mark]},
            {"prompt": "a", "text": "a", "state": mark},
            {"prompt": "a", "logit_bias": {mark: 1}},
            {"prompt": "a", "suffix": mark, "user": mark},
        ):
            server.client.post(path, json=body)
        server.client.post(path, content=f'{{"prompt": "{mark}'.encode(), headers=json_type)
        server.client.post(path, content=f'{{"prompt": "{mark}\\ud800"}}'.encode(), headers=json_type)
        server.client.post(path, content=mark.encode(), headers={"Content-Type": mark})
        server.client.post(path, params={"prompt": mark}, content=b"\xff", headers=json_type)
        server.client.get(path, params={"prompt": mark}, headers={"X-Request-Id": f"{mark}!"})
    for length in (b"Content-Length: 3", b"Content-Length: x", b"Transfer-Encoding: " + mark.encode()):
        with server.connect() as connection:  # bytes after the body are not a request
            connection.sendall(raw_post(b'{}\n{"prompt": "%b"}\r\n\r\n' % mark.encode(), length, path=b"/tokenize"))
            connection.shutdown(1)
            while connection.recv(10_000):
                pass
    state = server.post("/generate", prompt=PROMPT, return_state=True, max_tokens=1).json()["choices"][0]["state"]
    server.post("/generate", state=state)
    server.post("/generate", state=state[:-1])
    until(lambda: len(lines(server)) - before >= 6 * 17 + 4 + 3)
    for text in (mark, PROMPT, WRITTEN[:6], PROMPT[-3:] + WRITTEN[:3], state[10:40], STATE_KEY):
        assert text not in server.log
    kinds = [line for line in lines(server) if line.get("error_message", "").startswith("Invalid")]
    assert kinds, "malformed HTTP is told by its kind"


def test_every_line_is_json_from_start_to_shutdown(letters: Path, tmp_path: Path) -> None:
    with running_server(tmp_path, bundles=letters, default_model="letters", api_keys=KEY) as server:
        [worker] = workers_of(server.process.pid)
        num_booted = server.log.count("Booting worker")
        for key in (KEY, KEY + "x"):
            server.client.post("/generate", json={"prompt": PROMPT}, headers={"Authorization": f"Bearer {key}"})
        with server.connect() as connection:
            connection.sendall(b"GARBAGE\r\n\r\n")
            assert connection.recv(20)
        until(lambda: server.log.count("; default letters") == 1)
        until(lambda: '"unauthorized"' in server.log)  # an idle worker writes its lines soon
        os.kill(worker, signal.SIGKILL)
        until(lambda: server.log.count("Booting worker") == num_booted + 1, PATIENCE)
        until(lambda: server.log.count("; default letters") == 2, PATIENCE)
        server.terminate()
        assert server.wait() == 0
        found = lines(server)
        assert server.log.endswith("}\n")
    assert {"gunicorn.error", "service.access", "service.registry"} <= {line["logger"] for line in found}
    assert all({"time", "level", "logger", "process", "message"} <= set(line) for line in found)
    assert any("SIGKILL" in line["message"] for line in found)
    assert [line["error"] for line in found if line.get("status") == 401] == ["unauthorized"]
    assert KEY not in server.log


def test_setting_logs_texts_and_cuts_them(letters: Path, tmp_path: Path) -> None:
    with running_server(tmp_path, bundles=letters, default_model="letters", log_text_chars=10) as server:
        ask(server, "/generate", "on-1", prompt=PROMPT, temperature=0)
        ask(server, "/generate", "on-2", prompt=PROMPT + WRITTEN, temperature=0, n=2)
        streamed = ask(server, "/generate", "on-3", prompt="w", temperature=0, stream=True)
        assert events(streamed)[-1] == "[DONE]"
        ask(server, "/v1/completions", "on-4", prompt=[[22], [24]], temperature=0, echo=True)
        ask(server, "/score", "on-5", context="ab", texts=["cd", "efghijklmn", "op"])
        ask(server, "/generate", "on-6", top_p=PROMPT)
        texts = {name: line_of(server, f"on-{name}") for name in range(1, 7)}
        assert any("texts are logged, 10 characters" in line["message"] for line in lines(server))
    assert (texts[1]["prompts"], texts[1]["answers"]) == ([PROMPT], [WRITTEN[:10]])
    assert (texts[2]["prompts"], texts[2]["answers"]) == ([(PROMPT + WRITTEN)[:10]], ["", ""])
    assert (texts[3]["prompts"], texts[3]["answers"]) == (["w"], ["xyz"])
    assert (texts[4]["prompts"], texts[4]["answers"]) == (["u", "w"], ["vwxyz", "xyz"])
    assert texts[5]["prompts"] == ["ab", "cd", "efghij"]
    assert PROMPT in texts[6]["error_message"]


def test_setting_selects_the_text_format(letters: Path, tmp_path: Path) -> None:
    with running_server(tmp_path, bundles=letters, default_model="letters", log_format="text") as server:
        ask(server, "/generate", "text-1", prompt=PROMPT)
        until(lambda: "text-1" in server.log)
        written = server.log
    assert "{" not in written.replace('["', "")
    [line] = [line for line in written.splitlines() if "text-1" in line]
    assert "POST /generate 200 request_id=text-1" in line
    assert PROMPT not in written
