"""Test POST /states, which returns the state after each token."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from flask import Flask
from flask.testing import FlaskClient

from meari.bundle_format.names import NGRAM_STATE
from meari.service.app import create_app
from meari.service.settings import Settings
from tests.patience import PATIENCE
from tests.service.running import ROOT


def post(client: FlaskClient, status: int = 200, **body: Any) -> Any:
    response = client.post("/states", json=body)
    assert response.status_code == status, response.text
    return response.get_json()


def test_states_of_all_tokens_are_returned_with_one_run_each(client: FlaskClient) -> None:
    answer = post(client, text="abcd")
    assert answer["tokens"] == [{"id": 2 + i, "text": letter} for i, letter in enumerate("abcd")]
    # This bundle's state counts its steps, beginning with the boundary token.
    assert answer["tensors"] == [{"name": "count", "size": 1, "units": [0], "values": [[2], [3], [4], [5]]}]
    assert answer["usage"] == {"computed_tokens": 5}


def test_empty_text_has_no_states(client: FlaskClient) -> None:
    assert post(client, text="") == {
        "model": "letters",
        "tokens": [],
        "tensors": [],
        "usage": {"computed_tokens": 0},
    }


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({}, 400, "text"),
        ({"text": "a", "units": 129}, 400, "units: got 129, expected 1 <= units <= 128"),
        ({"text": "a", "units": 0}, 400, "units"),
        ({"text": "a", "layers": 1}, 400, "layers"),
        ({"text": "a", "gates": "yes"}, 400, "gates"),
        ({"text": "a" * 257}, 400, "text: got 257 tokens, expected at most 256"),
        ({"text": "a" * 4097}, 413, "text: got 4097 characters, expected at most 4096"),
        ({"text": "a", "model": "nothing"}, 404, "nothing"),
    ],
)
def test_invalid_units_and_tensors_are_reported(
    client: FlaskClient, body: dict[str, Any], status: int, message: str
) -> None:
    assert message in post(client, status, **body)["error"]["message"]


def test_gates_are_told_only_if_asked_for_and_a_cell_without_any_has_none(client: FlaskClient) -> None:
    assert "gates" not in post(client, text="ab")
    assert post(client, text="ab", gates=True) == {**post(client, text="ab"), "gates": []}
    assert post(client, text="", gates=True)["gates"] == []


@pytest.fixture(scope="module")
def released() -> Iterator[Flask]:
    app = create_app(Settings(bundles=ROOT / "bundles", workers=1, log_level="error"))
    registry = app.extensions["meari"].registry
    assert registry.wait_loaded(PATIENCE)
    yield app
    registry.stop()


@pytest.mark.parametrize("model", ["shakespeare-rnn", "shakespeare-lstm", "shakespeare-esn", "nsmc-lstm"])
def test_states_of_released_models_match_their_state_tokens(released: Flask, model: str) -> None:
    client = released.test_client()
    text = "정말 좋은 영화" if model == "nsmc-lstm" else "To be, or"
    answer = post(client, model=model, text=text, units=128)
    described = client.get(f"/models/{model}").get_json()["state"]
    assert [(each["name"], each["size"]) for each in answer["tensors"]] == [
        (each["name"], int(np.prod(each["shape"]))) for each in described if each["name"] != NGRAM_STATE
    ]
    # A state token holds the state before its last token, which /states returns for the last token but one.
    token = client.post("/score", json={"model": model, "text": text, "return_state": True}).get_json()["results"][0]
    data = base64.urlsafe_b64decode(token["state"] + "=" * (-len(token["state"]) % 4))
    for tensor in answer["tensors"]:
        told = np.array(tensor["values"][-2], np.float32)
        assert any(
            np.allclose(np.frombuffer(data, "<f4", tensor["size"], at)[tensor["units"]], told, atol=1e-4)
            for at in range(len(data) - 4 * tensor["size"])
        )


def test_gates_of_released_models_lead_from_each_state_to_the_next(released: Flask) -> None:
    client = released.test_client()
    for model, names in (("shakespeare-gru", "rzn"), ("shakespeare-lstm", "ifgo"), ("shakespeare-rnn", "")):
        answer = post(client, model=model, text="To be, or", units=64, gates=True)
        values = {each["name"]: np.array(each["values"]) for each in (*answer["tensors"], *answer["gates"])}
        assert {each["name"][0] for each in answer["gates"]} == set(names)
        assert all(len(each["units"]) == 64 for each in answer["gates"])
        if names == "rzn":
            before, z = values["h0"][:-1], values["z0"][1:]
            assert np.allclose((1 - z) * values["n0"][1:] + z * before, values["h0"][1:], atol=5e-4)
        elif names:
            c = values["f0"][1:] * values["c0"][:-1] + values["i0"][1:] * values["g0"][1:]
            assert np.allclose(c, values["c0"][1:], atol=1e-3)
            assert np.allclose(values["o1"] * np.tanh(values["c1"]), values["h1"], atol=5e-4)
