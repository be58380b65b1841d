"""Test over HTTP that a fault of the model or of a library fails the requests that it concerns, and nothing else."""

from __future__ import annotations

import json
import string
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from flask import Flask

from meari.service.app import create_app
from meari.service.settings import Settings
from tests.drills.processes import workers_of
from tests.patience import PATIENCE
from tests.runtime.spelling_bundle import word_tokenizer, write_spelling_bundle
from tests.runtime.tiny_bundle import FAULT_AFTER, KINDS_OF_FAULTS, Z, write_tiny_bundle
from tests.service.running import command, events, running_server

GREEDY = {"temperature": 0, "max_tokens": 4}
SOUND = "a" * FAULT_AFTER
BROKEN = SOUND + "z"  # at its last token the graph fails
WRITES_FAULT = string.ascii_lowercase[:-1]  # goes on with z


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flask]:
    folder = tmp_path_factory.mktemp("faulty")
    for kind in KINDS_OF_FAULTS:
        write_tiny_bundle(folder / kind, peak=4.0, fault=kind, fault_token=Z, work=256)
    app = create_app(Settings(bundles=folder, workers=1, log_level="error"))
    registry = app.extensions["meari"].registry
    assert registry.wait_loaded(PATIENCE)
    assert set(registry.readiness().models) == set(KINDS_OF_FAULTS)
    yield app
    registry.stop()


def in_flight(app: Flask) -> tuple[int, int]:
    admission = app.extensions["meari"].admission
    return admission.num_requests, admission.num_bytes


def assert_internal(answer: Any) -> None:
    assert answer.status_code == 500, answer.text
    error = json.loads(answer.data)["error"]
    assert error["code" if "request_id" in error else "type"] in ("internal", "server_error"), error
    assert "nan" not in answer.text.lower()


@pytest.mark.parametrize("kind", KINDS_OF_FAULTS)
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/generate", {"prompt": BROKEN}),
        ("/generate", {"prompt": BROKEN, "num_beams": 2}),
        ("/generate", {"prompt": BROKEN, "n": 2, "logprobs": 1, "return_state": True}),
        ("/generate", {"prompt": WRITES_FAULT, "temperature": 0}),
        ("/score", {"text": BROKEN + "b"}),
        ("/score", {"texts": ["ab", *[f"{BROKEN}{letter}" for letter in "abcdefgh"]], "tokens": True}),
        ("/complete", {"text": BROKEN}),
        ("/states", {"text": BROKEN + "b"}),
        ("/v1/completions", {"prompt": BROKEN}),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_fault_of_the_model_is_an_error_and_leaves_nothing_behind(
    app: Flask, kind: str, path: str, body: dict[str, Any]
) -> None:
    client = app.test_client()
    assert_internal(client.post(path, json={"model": kind, **body}))
    assert in_flight(app) == (0, 0)
    after = client.post("/generate", json={"model": kind, "prompt": "a", "max_tokens": 3, "temperature": 0})
    assert after.get_json()["choices"][0]["text"] == "bcd"
    assert client.get("/healthz").status_code == 200


@pytest.mark.parametrize("kind", ["hidden", "state"])
def test_a_fault_in_a_stream_is_its_last_event(app: Flask, kind: str) -> None:
    body = {"model": kind, "prompt": WRITES_FAULT[:3], "temperature": 0, "stream": True, "max_tokens": 30}
    with app.test_client().post("/generate", json=body) as answer:
        events = [
            line.removeprefix("data: ")
            for line in answer.get_data(as_text=True).split("\n\n")
            if line.startswith("data: ")
        ]
    assert json.loads(events[-1])["error"]["code"] == "internal"
    choices = [json.loads(event)["choices"][0] for event in events[:-1]]
    assert not any("finish_reason" in choice for choice in choices)
    written = "".join(choice["text"] for choice in choices)
    assert written
    assert string.ascii_lowercase[3:].startswith(written)
    assert in_flight(app) == (0, 0)


def test_a_tokenizer_that_panics_fails_its_request_alone(tmp_path: Path) -> None:
    """A panic of Rust code is no `Exception` in Python: it passes by all that catches those."""
    write_spelling_bundle(tmp_path / "words", word_tokenizer(["good", "day", ",", "world"]), "word", [2, 3, 4, 5])
    app = create_app(Settings(bundles=tmp_path, workers=1, log_level="error"))
    registry = app.extensions["meari"].registry
    assert registry.wait_loaded(PATIENCE)
    client = app.test_client()
    library = registry.get("words").bundle.tokenizer._tokenizer
    library.enable_truncation(max_length=2, stride=2)  # impossible: it panics where a text has more tokens
    text = "good day , world"
    try:
        for path, body in [
            ("/generate", {"prompt": text}),
            ("/generate", {"prompt": text, "stream": True}),
            ("/score", {"text": text}),
            ("/score", {"texts": ["good", text], "tokens": True, "context": text}),
            ("/complete", {"text": text}),
            ("/tokenize", {"text": text}),
            ("/states", {"text": text}),
            ("/v1/completions", {"prompt": [text]}),
        ]:
            assert_internal(client.post(path, json=body))
            assert in_flight(app) == (0, 0)
        assert registry.get("words").engine.stats().waiting == 0, "the place in the queue is free again"
        library.no_truncation()
        assert client.post("/generate", json={"prompt": text, "max_tokens": 2}).status_code == 200
    finally:
        registry.stop()


def test_an_answer_of_a_sound_request_beside_faults_is_right(app: Flask) -> None:
    client = app.test_client()
    expected = client.post("/score", json={"model": "state", "text": "abc"}).get_json()["results"]
    for _ in range(3):
        assert_internal(client.post("/score", json={"model": "state", "text": BROKEN + "b"}))
        assert client.post("/score", json={"model": "state", "text": "abc"}).get_json()["results"] == expected


def test_worker_whose_engine_cannot_go_on_is_replaced(letters: Path, tmp_path: Path) -> None:
    start = [*command(), "tests.service.breaking_app:create_app()"]
    with running_server(tmp_path, bundles=letters, started_by=start) as server:
        before = workers_of(server.process.pid)
        assert server.post("/break").status_code == 200
        until = time.monotonic() + PATIENCE
        statuses: set[int] = set()
        while workers_of(server.process.pid) in (before, []) and time.monotonic() < until:
            statuses.add(_status(server.client))
        assert statuses <= {0, 200, 500, 503}  # 200 for one that waited for the next worker
        assert 500 in statuses
        while (status := _status(server.client)) != 200 and time.monotonic() < until:
            statuses.add(status)
        assert status == 200
        while set(before) & set(workers_of(server.process.pid)) and time.monotonic() < until:
            assert _status(server.client) == 200, "its successor answers while it ends"
        assert not set(before) & set(workers_of(server.process.pid))
        assert events(server.post("/generate", prompt="ab", stream=True, **GREEDY))[-1] == "[DONE]"


def _status(client: httpx.Client) -> int:
    """Return the status of a short generation; 0 where the connection broke."""
    try:
        return client.post("/generate", json={"prompt": "ab", **GREEDY}).status_code
    except httpx.TransportError:
        return 0
