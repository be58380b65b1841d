"""GET /openapi.json: the contract. GET /docs: a page that shows it and tries it out, loading nothing from elsewhere."""

from __future__ import annotations

import mimetypes
from importlib import resources
from typing import Final

from flask import Blueprint, Response

from meari.errors import NotFound
from meari.service.openapi.document import openapi_document
from meari.service.routes.exchange import json_response
from meari.service.service import Service

__all__ = ["docs_blueprint"]

FILES: Final = ("swagger-ui.css", "swagger-ui-bundle.js", "favicon-32x32.png")  # of the package that brings Swagger UI
CACHED: Final = {"Cache-Control": "max-age=3600", "X-Content-Type-Options": "nosniff"}
POLICY: Final = "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'"
PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>meari: the HTTP API</title>
<link rel="icon" href="docs/favicon-32x32.png">
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<div id="contract"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
START: Final = 'SwaggerUIBundle({url: "openapi.json", dom_id: "#contract", deepLinking: true, validatorUrl: null});\n'


def docs_blueprint(service: Service) -> Blueprint:
    """The routes, over the parts of `service`."""
    blueprint = Blueprint("docs", __name__)

    @blueprint.get("/openapi.json")
    def openapi() -> Response:
        names = [model.name for model in service.registry.loaded()]
        return json_response(openapi_document(service.schemas.types, names, service.registry.default))

    @blueprint.get("/docs")
    def docs() -> Response:
        return Response(PAGE, mimetype="text/html", headers={**CACHED, "Content-Security-Policy": POLICY})

    @blueprint.get("/docs/<name>")
    def docs_file(name: str) -> Response:
        if name == "start.js":
            return Response(START, mimetype="text/javascript", headers=CACHED)
        if name not in FILES:
            raise NotFound(f"path: got /docs/{name[:100]}, expected one of {', '.join((*FILES, 'start.js'))}")
        data = (resources.files("flask_swagger_ui") / "dist" / name).read_bytes()
        return Response(data, mimetype=mimetypes.guess_type(name)[0], headers=CACHED)

    return blueprint
