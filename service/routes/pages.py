"""Pages for a browser: the playground (GET / and /web/…), the contract (GET /openapi.json) and its page (GET /docs).

Input: static files, read once when the application is made, and the types of requests and answers. Output: the files
with a tag by which a browser asks whether they have changed, and the OpenAPI document. Must not know: the engine.

Nothing on a page is loaded from elsewhere, and the playground has no inline script: its Content-Security-Policy tells
the browser so. Pages need no key, unless `MEARI_PROTECT` says so: a person
enters one on the page.
"""

from __future__ import annotations

import gzip
import hashlib
import mimetypes
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Final

import msgspec
from flask import Blueprint, Response, request

from meari.errors import NotFound, Problem
from meari.service.openapi.document import openapi_document
from meari.service.routes.exchange import current_exchange, json_response
from meari.service.service import Service

__all__ = ["CLAIMS_FOLDER", "WEB_FOLDER", "docs_blueprint", "web_blueprint"]

FILES: Final = ("swagger-ui.css", "swagger-ui-bundle.js", "favicon-32x32.png")  # of the package that brings Swagger UI
CACHED: Final = {"Cache-Control": "max-age=3600", "X-Content-Type-Options": "nosniff"}
POLICY: Final = "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'"
PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>meari: the HTTP API</title>
<link rel="icon" href="docs/favicon-32x32.png">
<link rel="stylesheet" href="docs/swagger-ui.css">
<link rel="stylesheet" href="docs/start.css">
</head>
<body>
<p class="back"><a href="./">← meari: back to the page · <span lang="ko">페이지로 돌아가기</span></a></p>
<div id="contract"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
START: Final = """// Light or dark as it was chosen on the playground, else as the system has it.
const dark = matchMedia("(prefers-color-scheme: dark)");
function colour() {
  let chosen = null;
  try {
    chosen = localStorage.getItem("meari-theme");
  } catch {
    // forbidden
  }
  const isDark = chosen === "dark" || (chosen !== "light" && dark.matches);
  document.documentElement.classList.toggle("dark-mode", isDark);
}
dark.addEventListener("change", colour);
colour();
SwaggerUIBundle({url: "openapi.json", dom_id: "#contract", deepLinking: true, validatorUrl: null});
"""
STYLE: Final = """body { margin: 0; background: #ffffff; }
.back { max-width: 1460px; margin: 0 auto; padding: 12px 20px 0; font: 16px system-ui, sans-serif; }
.back a { color: #3346a8; }
html.dark-mode { color-scheme: dark; }
html.dark-mode body { background: #1c2022; }
html.dark-mode .back a { color: #a3b4ff; }
@media (max-width: 40rem) { .swagger-ui .opblock-tag small { display: none; } }
"""
OWN_FILES: Final = {"start.js": (START, "text/javascript"), "start.css": (STYLE, "text/css")}
PACKED_SHARE: Final = 0.9
WEB_FOLDER: Final = Path(__file__).resolve().parents[1] / "web"
CLAIMS_FOLDER: Final = Path(__file__).resolve().parents[2] / "docs" / "claims"  # absent where only the package is
MEDIA_TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".png": "image/png",
    ".svg": "image/svg+xml",
}
HEADERS: Final = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": (
        "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def docs_blueprint(service: Service) -> Blueprint:
    """Make the routes over the parts of `service`."""
    blueprint = Blueprint("docs", __name__)

    @blueprint.get("/openapi.json")
    def openapi() -> Response:
        allowed = current_exchange().caller.models
        names = [model.name for model in service.registry.loaded() if allowed is None or model.name in allowed]
        return json_response(openapi_document(service.schemas.types, names, service.registry.default_of(allowed)))

    @blueprint.get("/docs")
    def docs() -> Response:
        return Response(PAGE, mimetype="text/html", headers={**CACHED, "Content-Security-Policy": POLICY})

    @blueprint.get("/docs/<name>")
    def docs_file(name: str) -> Response:
        if name in OWN_FILES:
            text, media_type = OWN_FILES[name]
            return Response(text, mimetype=media_type, headers=CACHED)
        if name not in FILES:
            raise NotFound(Problem("path", f"/docs/{name[:100]}", f"one of {', '.join((*FILES, *OWN_FILES))}"))
        data = (resources.files("flask_swagger_ui") / "dist" / name).read_bytes()
        return Response(data, mimetype=mimetypes.guess_type(name)[0], headers=CACHED)

    return blueprint


@dataclass(frozen=True)
class Page:
    """A file as it is sent."""

    data: bytes
    media_type: str
    etag: str
    packed: bytes  # by gzip; empty where that saves nothing

    @classmethod
    def of(cls, data: bytes, suffix: str) -> Page:
        """Make a page with a tag computed from its bytes."""
        packed = gzip.compress(data, mtime=0)
        media_type, etag = MEDIA_TYPES[suffix], hashlib.sha256(data).hexdigest()[:32]
        return cls(data, media_type, etag, packed if len(packed) < PACKED_SHARE * len(data) else b"")


def web_blueprint(_service: Service) -> Blueprint:
    """Make the routes; they need no part of the service."""
    blueprint = Blueprint("web", __name__)
    pages = read_pages(WEB_FOLDER, CLAIMS_FOLDER)

    @blueprint.get("/", strict_slashes=False)  # a target of `http://host` is no reason for a redirect
    def playground() -> Response:
        return _answer(pages["index.html"])

    @blueprint.get("/web/<path:name>")
    def file(name: str) -> Response:
        if name not in pages:
            raise NotFound(Problem("path", f"/web/{name[:200]}", "a file of the playground"))
        return _answer(pages[name])

    return blueprint


def read_pages(web: Path, claims: Path) -> dict[str, Page]:
    """Return the files of the playground, and under claims/ those of the claims, by their names below /web/."""
    pages = {
        str(path.relative_to(web)): Page.of(path.read_bytes(), path.suffix)
        for path in sorted(web.rglob("*"))
        if path.suffix in MEDIA_TYPES
    }
    listed = _claims(claims)
    for claim in listed:
        name = claim["picture"]
        pages[f"claims/{name}"] = Page.of((claims / name).read_bytes(), ".png")
    pages["claims.json"] = Page.of(msgspec.json.encode({"claims": listed}), ".json")
    return pages


def _claims(folder: Path) -> list[dict[str, str]]:
    """Return the claims that have a picture, in order: number, title, verdict, picture."""
    try:
        results = msgspec.json.decode((folder / "results.json").read_bytes(), type=dict[str, Any])
        claims = sorted(results["claims"].items(), key=lambda claim: int(claim[0]))
        found = [(number, claim, sorted(folder.glob(f"{number}-*.png"))) for number, claim in claims]
        return [
            {
                "number": number,
                "title": str(claim["title"]),
                "verdict": str(claim["verdict"]),
                "picture": pictures[0].name,
            }
            for number, claim, pictures in found
            if pictures
        ]
    except (OSError, msgspec.DecodeError, KeyError, TypeError, ValueError, AttributeError):
        return []  # missing, or of another version: the page says that there is nothing to show


def _answer(page: Page) -> Response:
    is_packed = page.packed and request.accept_encodings["gzip"] > 0
    response = Response(page.packed if is_packed else page.data, content_type=page.media_type, headers=HEADERS)
    response.set_etag(f"{page.etag}-gzip" if is_packed else page.etag)
    if page.packed:
        response.headers["Vary"] = "Accept-Encoding"
    if is_packed:
        response.headers["Content-Encoding"] = "gzip"
    response.make_conditional(request)
    return response
