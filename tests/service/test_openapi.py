"""Test the OpenAPI document: it is complete, and schemathesis checks the service against it."""

from __future__ import annotations

import json
import re
import timeit
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import hypothesis
import pytest
import schemathesis
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import HealthCheck, Phase
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS

from meari.service.app import create_app
from meari.service.openapi.document import ALL_ERRORS, openapi_document
from meari.service.openapi.fields import ENUMS, OWN_FIELDS
from meari.service.openapi.operations import OPERATIONS, Operation
from meari.service.requests.schema import Schemas
from meari.service.settings import Settings
from tests.patience import PATIENCE

MODELS = ["letters", "flat", "bytes", "words"]
DOCUMENT = openapi_document(Schemas(Settings(max_tokens=77, workers=1)).types, MODELS, "letters")
SCHEMAS: dict[str, Any] = DOCUMENT["components"]["schemas"]
PAIRS = [
    (operation, mode)
    for operation in OPERATIONS
    for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    if operation.request is not None or mode is GenerationMode.POSITIVE  # otherwise no field can be invalid
]
BOUNDED = hypothesis.settings(
    max_examples=30,
    stateful_step_count=4,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
WANTED = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
)


@pytest.fixture(scope="module")
def small_app(bundles: Path) -> Iterator[Flask]:
    """Make a service with little work for each request."""
    settings = Settings(
        bundles=bundles, default_model="letters", max_texts=4, max_tokens=16, workers=1, log_level="error"
    )
    app = create_app(settings)
    registry = app.extensions["meari"].registry
    assert registry.wait_loaded(PATIENCE)
    yield app
    registry.stop()


@pytest.fixture(scope="module")
def contract(small_app: Flask) -> Any:
    return schemathesis.openapi.from_wsgi("/openapi.json", small_app)


def checks() -> list[Any]:
    return CHECKS.get_by_names(list(WANTED))


@pytest.mark.parametrize(("operation", "mode"), [pytest.param(*pair, id=f"{pair[0].name}-{pair[1]}") for pair in PAIRS])
def test_every_response_matches_its_schema(contract: Any, operation: Operation, mode: GenerationMode) -> None:
    found = contract[operation.path][operation.method.upper()]

    @BOUNDED
    @hypothesis.given(case=found.as_strategy(generation_mode=mode))
    def answers(case: Any) -> None:
        case.call_and_validate(checks=checks())

    answers()


def test_every_response_to_dependent_requests_matches_its_schema(contract: Any) -> None:
    class Machine(contract.as_state_machine()):  # type: ignore[misc]
        def validate_response(self, response: Any, case: Any, **kwargs: Any) -> None:
            case.validate_response(response, checks=checks())

    Machine.run(settings=BOUNDED)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_every_example_succeeds(small_app: Flask, operation: Any) -> None:
    client = small_app.test_client()
    for body in operation.examples.values():
        response = client.post(operation.path, json=body | ({"max_tokens": 9} if "max_tokens" in body else {}))
        assert response.status_code == 200, response.text
        response.close()


def test_every_path_is_in_the_document(small_app: Flask) -> None:
    rules = {re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule) for rule in small_app.url_map.iter_rules()}
    pages = {"/", "/openapi.json", "/docs", "/docs/{name}"} | {rule for rule in rules if rule.startswith("/web/")}
    assert set(DOCUMENT["paths"]) == rules - pages


def test_every_field_is_described() -> None:
    missing = [
        f"{name}.{field}"
        for name, schema in SCHEMAS.items()
        for field, own in schema.get("properties", {}).items()
        if "description" not in own
    ]
    assert missing == []
    for name, field in (*OWN_FIELDS, *ENUMS):
        assert field in SCHEMAS[name]["properties"]


def test_every_error_is_in_the_document() -> None:
    assert set(DOCUMENT["components"]["responses"]) == {error.__name__ for error in ALL_ERRORS}
    text = json.dumps(DOCUMENT)
    assert all(f'"code": "{error.code}"' in text for error in ALL_ERRORS)


def test_ranges_match_the_settings_and_models_the_served_ones() -> None:
    tokens = SCHEMAS["GenerateRequest"]["properties"]["max_tokens"]
    assert tokens["anyOf"] == [{"type": "integer", "minimum": 1, "maximum": 77}, {"type": "null"}]
    assert tokens["default"] == 64
    assert SCHEMAS["GenerateRequest"]["properties"]["model"]["anyOf"][0]["enum"] == MODELS
    assert SCHEMAS["CompletionsRequest"]["properties"]["model"]["anyOf"][0]["enum"] == MODELS
    assert SCHEMAS["GenerateRequest"]["additionalProperties"] is False


def test_document_is_available_before_the_bundles_are_loaded() -> None:
    document = openapi_document(Schemas(Settings(workers=1)).types, [], "")
    model = document["components"]["schemas"]["GenerateRequest"]["properties"]["model"]
    assert model["anyOf"] == [{"type": "string"}, {"type": "null"}]


def test_page_loads_nothing_from_other_hosts(client: FlaskClient) -> None:
    page = client.get("/docs")
    assert page.mimetype == "text/html"
    own = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(own) == 6
    for path in own:
        assert client.get(urljoin("/docs", path)).status_code == 200, path
    assert client.get("/docs/other.js").status_code == 404
    assert client.get("/openapi.json").get_json()["openapi"].startswith("3.1")


def test_small_request_is_parsed_in_microseconds() -> None:
    schemas = Schemas(Settings(workers=1))
    body = b'{"model": "letters", "prompt": "To be", "max_tokens": 40, "temperature": 0.7, "seed": 7, "stream": true}'
    for parse in (schemas.generate, schemas.completions):
        seconds = min(timeit.repeat(lambda parse=parse: parse(body), number=100, repeat=30)) / 100  # type: ignore[misc]
        assert seconds < 100e-6
