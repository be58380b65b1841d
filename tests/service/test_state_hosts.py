"""Test state tokens under real gunicorn: acceptance by workers and hosts, and secrecy of the key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.service.running import Server, events, running_server

NO_END = {"logit_bias": {"0": -100}}


def test_state_is_valid_on_every_worker_and_host_with_the_key(bundles: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"bundles": bundles, "default_model": "flat", "state_key": "k" * 40}
    request: dict[str, Any] = {"max_tokens": 10, "return_state": True, **NO_END}
    with running_server(tmp_path, workers=2, **settings) as server, running_server(tmp_path, **settings) as other:
        whole = server.post("/generate", seed=5, max_tokens=20, **NO_END).json()["choices"][0]["text"]
        first = server.post("/generate", seed=5, **request).json()["choices"][0]
        for host in (server, other):
            for _ in range(8):
                rest = _on_a_new_connection(host, {"state": first["state"], **request})
                assert first["text"] + rest["choices"][0]["text"] == whole


def test_workers_without_a_configured_key_share_one_until_a_restart(bundles: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"bundles": bundles, "default_model": "flat", "workers": 2}
    with running_server(tmp_path, **settings) as server:
        state = server.post("/generate", return_state=True).json()["choices"][0]["state"]
        for _ in range(8):
            assert _on_a_new_connection(server, {"state": state})["choices"]
    with running_server(tmp_path, **settings) as server:
        message = _on_a_new_connection(server, {"state": state})["error"]["message"]
        assert "MEARI_STATE_KEY" in message


def _on_a_new_connection(server: Server, body: dict[str, Any]) -> Any:
    """Send a request on a new connection, for which the kernel picks a worker."""
    return server.client.post("/generate", json=body, headers={"Connection": "close"}).json()


def test_expired_state_is_a_400_that_says_so(bundles: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"bundles": bundles, "default_model": "flat", "state_key": "k" * 40}
    with (
        running_server(tmp_path, **settings, state_seconds=0.001) as brief,
        running_server(tmp_path, **settings) as other,
    ):
        whole = brief.post("/generate", return_state=True, max_tokens=3, **NO_END).json()["choices"][0]["state"]
        streamed = events(brief.post("/generate", return_state=True, max_tokens=3, stream=True, **NO_END))
        choice = next(each for event in streamed[:-1] for each in json.loads(event)["choices"] if "state" in each)
        scored = brief.post("/score", text="ab", return_state=True).json()["results"][0]["state"]
        for state in (whole, choice["state"], scored):
            for host in (brief, other):
                for path, body in (("/generate", {}), ("/generate", {"stream": True}), ("/score", {"text": "c"})):
                    response = host.post(path, state=state, **body)
                    assert response.status_code == 400
                    assert "state: got a token that expired at" in response.json()["error"]["message"]
        endless = other.post("/generate", return_state=True).json()["choices"][0]["state"]
        assert "never expires" in brief.post("/generate", state=endless).json()["error"]["message"]
        assert other.post("/generate", state=endless).status_code == 200


def test_key_is_in_no_response_and_no_log(bundles: Path, tmp_path: Path) -> None:
    key = "q7" * 20
    with running_server(tmp_path, bundles=bundles, default_model="flat", state_key=key, log_level="debug") as server:
        answers = [
            server.post("/generate", return_state=True).text,
            server.post("/generate", state="abc").text,
            json.dumps(server.client.get("/models").json()),
            server.client.get("/metrics").text,
        ]
        assert not any(key in answer for answer in [*answers, server.log])
