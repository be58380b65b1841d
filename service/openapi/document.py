"""The types of requests and answers, and the table of operations → one OpenAPI 3.1 document.

Input: types, operations, and this service's limits and models. Output: the document as JSON values. Must not know:
Flask. Every range stands in the types.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any, Final

import msgspec

from meari.errors import MeariError
from meari.service.error_body import error_body, openai_error_body
from meari.service.openapi import shapes
from meari.service.openapi.fields import ENUMS, FIELDS, OWN_FIELDS
from meari.service.openapi.operations import OPERATIONS, Operation
from meari.service.requests.completions import CHOICES

__all__ = ["ALL_ERRORS", "openapi_document"]

Json = dict[str, Any]
REFERENCE: Final = "#/components/schemas/{name}"
ABOUT: Final = ("default", "description", "examples")  # members of a schema for any type
REQUEST_ID: Final = "3f6f6a1c2b7d4e90"
DESCRIPTION: Final = (
    "Continuations, and true probabilities of texts, by small recurrent language models. Log-probabilities are natural "
    "logarithms unless `log_base` says otherwise. A field that is not named here is refused, never ignored. Paths that "
    "are not named here answer 404, other methods 405, with the same bodies as all errors. Every answer carries "
    "`X-Request-Id`: the caller's, if it sent a sane one."
)

GROUPS: Final = {  # what is shown together, with the first parts of its paths
    "Texts": ("Continue, complete and score texts", ("generate", "complete", "score")),
    "Tokens and states": ("A look inside a model", ("tokenize", "detokenize", "states")),
    "Models": ("What is served, and its change by an admin", ("models",)),
    "OpenAI's clients": ("The same in OpenAI's shape", ("v1",)),
    "Service": ("Health and metrics", ("healthz", "readyz", "metrics")),
}
GROUP_OF: Final = {part: name for name, (_, parts) in GROUPS.items() for part in parts}


def _errors(root: type[MeariError]) -> Iterator[type[MeariError]]:
    for error in root.__subclasses__():
        yield error
        yield from _errors(error)


ALL_ERRORS: Final = tuple(error for error in _errors(MeariError) if error.__name__ != "BundleError")


def openapi_document(requests: Mapping[str, type[msgspec.Struct]], models: Sequence[str], default: str) -> Json:
    """Return the whole document.

    requests  the request types by name, with the limits of the service's settings
    models    names of the served models; none while the bundles are being loaded
    """
    answers = [operation.answer for operation in OPERATIONS if operation.answer is not None]
    others = [shapes.ErrorBody, shapes.OpenAIErrorBody, shapes.NotReadyBody, shapes.StreamEvent]
    _, components = msgspec.json.schema_components([*requests.values(), *answers, *others], ref_template=REFERENCE)
    names = {kind.__name__ for kind in requests.values()}
    for name, schema in components.items():
        _describe(name, schema)
        if "properties" in schema:
            schema["additionalProperties"] = False
            if name in names and models:
                _name_models(schema, models, default)
            if name in names | {"TokenReference"}:
                _allow_null(schema)
    paths: Json = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _operation(operation, requests, models)
    return {
        "openapi": "3.1.0",
        "info": {"title": "meari", "version": _version(), "description": DESCRIPTION},
        "tags": [{"name": name, "description": about} for name, (about, _) in GROUPS.items()],
        "paths": paths,
        "components": {
            "schemas": components,
            "responses": {error.__name__: _error_response([error], is_openai=False) for error in ALL_ERRORS},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _version() -> str:
    """Return the version of the installed distribution; a checkout that was never installed has none."""
    try:
        return metadata.version("meari")
    except metadata.PackageNotFoundError:
        return "0"


def _describe(name: str, schema: Json) -> None:
    """Add the meaning of each field."""
    for field, own in schema.get("properties", {}).items():
        if CHOICES in own:
            own["anyOf"] = own.pop(CHOICES)
        found = OWN_FIELDS.get((name, field)) or FIELDS.get(field)
        if found is not None:
            own["description"] = found[0]
            if len(found) > 1 and "$ref" not in own:
                own["examples"] = [found[1]]
        if (name, field) in ENUMS:
            own["enum"] = list(ENUMS[name, field])


def _name_models(schema: Json, models: Sequence[str], default: str) -> None:
    own = schema["properties"].get("model")
    if own is not None:
        named: Json = {"type": "string", "enum": list(models)}
        is_nullable = "anyOf" in own
        kept = {key: value for key, value in own.items() if key not in ("type", "anyOf")}
        own.clear()
        own.update(kept | ({"anyOf": [named, {"type": "null"}]} if is_nullable else named))
        own["examples"] = [default]


def _allow_null(schema: Json) -> None:
    """Allow null for optional fields: it means that the field was not sent."""
    for name in schema["properties"].keys() - set(schema["required"]):
        own = schema["properties"][name]
        choices = own.get("anyOf", [{key: value for key, value in own.items() if key not in ABOUT}])
        if {"type": "null"} not in choices:
            about = {key: value for key, value in own.items() if key in ABOUT}
            schema["properties"][name] = {"anyOf": [*choices, {"type": "null"}], **about}


def _operation(operation: Operation, requests: Mapping[str, type[msgspec.Struct]], models: Sequence[str]) -> Json:
    body: Json = {
        "operationId": operation.name,
        "summary": operation.summary,
        "tags": [GROUP_OF[operation.path.split("/")[1]]],
        "responses": _responses(operation),
    }
    if operation.description:
        body["description"] = operation.description
    if "{name}" in operation.path:
        schema = {"type": "string", **({"enum": list(models)} if models else {"minLength": 1})}
        body["parameters"] = [{"name": "name", "in": "path", "required": True, "schema": schema}]
    if operation.request is not None:
        examples = {name: {"value": value} for name, value in operation.examples.items()}
        content = {"schema": _reference(requests[operation.request]), "examples": examples}
        body["requestBody"] = {"required": True, "content": {"application/json": content}}
    return body


def _responses(operation: Operation) -> Json:
    if operation.answer is None:
        content: Json = {operation.media_type: {"schema": {"type": "string"}}}
    else:
        content = {operation.media_type: {"schema": _reference(operation.answer)}}
    if operation.streams:
        content["text/event-stream"] = {"schema": _event(operation.streams), "example": "data: {…}\n\ndata: [DONE]\n\n"}
    good: Json = {"description": "Done.", "headers": _headers(), "content": content}
    if operation.links:
        good["links"] = operation.links
    responses: Json = {"200": good}
    if operation.may_take_longer:
        responses["202"] = {**good, "description": "Done by some workers of the host."}
    for status in sorted({error.status for error in operation.errors}):
        errors = [error for error in operation.errors if error.status == status]
        responses[str(status)] = _error_response(errors, is_openai=operation.is_openai)
    if operation.name == "readyz":
        responses["503"]["content"]["application/json"]["schema"] = _reference(shapes.NotReadyBody)
    return responses


def _error_response(errors: list[type[MeariError]], *, is_openai: bool) -> Json:
    schema = _reference(shapes.OpenAIErrorBody if is_openai else shapes.ErrorBody)
    examples = {}
    for error in errors:
        example = error.__new__(error)
        MeariError.__init__(example, (error.__doc__ or "").partition("\n")[0])  # some need more to be made
        value = openai_error_body(example) if is_openai else error_body(example, REQUEST_ID)
        examples[error.code] = {"value": value}
    return {
        "description": " ".join(f"`{error.code}`: {(error.__doc__ or '').strip()}" for error in errors),
        "headers": _headers(retry=any(error.retry_after_seconds is not None for error in errors)),
        "content": {"application/json": {"schema": schema, "examples": examples}},
    }


def _event(bodies: tuple[type, ...]) -> Json:
    """Return the schema of one server-sent event; the last one's data is `[DONE]`."""
    body = {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": {"anyOf": [_reference(body) for body in bodies]},
    }
    data = {"anyOf": [{"const": "[DONE]"}, body], "description": "JSON, or `[DONE]` at the end."}
    return {"type": "object", "required": ["data"], "properties": {"data": data}}


def _headers(*, retry: bool = False) -> Json:
    headers: Json = {"X-Request-Id": {"required": True, "schema": {"type": "string", "minLength": 1}}}
    if retry:
        seconds = {"type": "integer", "minimum": 1}
        headers["Retry-After"] = {"required": True, "description": "Seconds to wait.", "schema": seconds}
    return headers


def _reference(kind: type) -> Json:
    return {"$ref": REFERENCE.format(name=kind.__name__)}
