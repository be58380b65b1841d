"""Which model of a service is meant, and what the service says of it."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

from meari.client.errors import BadAnswer
from meari.client.service import RemoteService

__all__ = ["all_models", "find_model"]


def all_models(service: RemoteService) -> dict[str, Any]:
    """The answer of GET /models. Raises RemoteError."""
    return _object(service, service.get("/models"), "models")


def find_model(service: RemoteService, name: str | None) -> dict[str, Any]:
    """The answer of GET /models/NAME; without a name of the default model. Raises RemoteError."""
    if name is not None:
        return _object(service, service.get(f"/models/{quote(name, safe='')}"), "hashes")
    served = all_models(service)
    found: dict[str, Any] = next(model for model in served["models"] if model["name"] == served["default"])
    return found


def _object(service: RemoteService, data: bytes, field: str) -> dict[str, Any]:
    """An answer that has that field."""
    try:
        answer = json.loads(data)
    except ValueError:
        answer = None
    if not isinstance(answer, dict) or field not in answer:
        raise BadAnswer(service.url, f"got an answer without {field}, expected a meari service")
    return answer
