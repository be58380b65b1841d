"""Test the served files of the playground: headers, entity tags, no key, nothing external."""

from __future__ import annotations

import base64
import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from meari.service.app import create_app
from meari.service.routes.pages import WEB_FOLDER, read_pages
from meari.service.settings import Settings
from tests.patience import PATIENCE
from tests.service.test_keys import added

FILES = sorted(str(path.relative_to(WEB_FOLDER)) for path in WEB_FOLDER.rglob("*") if path.is_file())
MAX_BYTES = 190_000  # before gzip
MAX_BYTES_SENT = 70_000


def test_page_has_an_entity_tag_and_a_strict_content_policy(client: FlaskClient) -> None:
    response = client.get("/")
    assert (response.status_code, response.content_type) == (200, "text/html; charset=utf-8")
    assert response.headers["Content-Security-Policy"].startswith("default-src 'self'; ")
    assert "unsafe" not in response.headers["Content-Security-Policy"]
    assert response.headers["Cache-Control"] == "no-cache"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    again = client.get("/", headers={"If-None-Match": response.headers["ETag"]})
    assert (again.status_code, again.data) == (304, b"")


def test_all_files_are_served_and_small(client: FlaskClient) -> None:
    sizes, sent = [], []
    for name in FILES:
        response = client.get(f"/web/{name}")
        assert (response.status_code, response.headers["X-Content-Type-Options"]) == (200, "nosniff"), name
        assert (
            response.content_type.split(";")[0]
            in (
                {"js": "text/javascript", "css": "text/css", "html": "text/html", "svg": "image/svg+xml"}[
                    name.split(".")[-1]
                ]
            )
        )
        sizes.append(len(response.data))
        packed = client.get(f"/web/{name}", headers={"Accept-Encoding": "gzip"})
        assert packed.headers["Vary"] == "Accept-Encoding"
        assert gzip.decompress(packed.data) == response.data
        assert packed.headers["ETag"] != response.headers["ETag"]
        sent.append(len(packed.data))
    assert sum(sizes) < MAX_BYTES
    assert sum(sent) < MAX_BYTES_SENT


def test_page_loads_nothing_external_and_inserts_no_markup() -> None:
    for name in FILES:
        text = re.sub(r'<a href="https://', "", (WEB_FOLDER / name).read_text("utf-8"))  # loads nothing by itself
        assert not re.findall(r"(?:src|href|url|import)\W{0,3}https?:", text), name
        assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", text), name
    assert not re.findall(r"<script>|\son\w+=|\sstyle=", (WEB_FOLDER / "index.html").read_text("utf-8"))


def test_both_languages_define_exactly_the_texts_of_the_page() -> None:
    def keys(language: str) -> set[str]:
        text = (WEB_FOLDER / f"words-{language}.js").read_text("utf-8")
        return set(re.findall(r'^  "?([\w.]+)"?: "', text, re.MULTILINE))

    page = (WEB_FOLDER / "index.html").read_text("utf-8")
    asked = set(re.findall(r'data-i18n(?:-\w+)?="([^"]+)"', page))
    for name in FILES:
        asked |= set(re.findall(r'\bt\("([^"]+)"', (WEB_FOLDER / name).read_text("utf-8")))
    assert keys("en") == keys("ko")
    assert asked <= keys("en")


@pytest.mark.parametrize(("path", "status"), [("/web/none.js", 404), ("/web/../app.py", 404), ("/web/", 404)])
def test_other_files_are_not_found(client: FlaskClient, path: str, status: int) -> None:
    assert client.get(path).status_code == status


def test_only_get_and_head_are_allowed(client: FlaskClient) -> None:
    assert client.head("/").status_code == 200
    assert client.head("/").data == b""
    assert client.post("/", json={}).get_json()["error"]["code"] == "method_not_allowed"


def test_page_needs_no_key_but_its_requests_do(tmp_path: Path) -> None:
    app = create_app(Settings(bundles=tmp_path, api_keys=("secret",), workers=1, log_level="error"))
    client = app.test_client()
    assert [client.get(path).status_code for path in ("/", "/web/app.js", "/models")] == [200, 200, 401]
    app.extensions["meari"].registry.stop()


OPEN_PATHS = {
    "metrics": ["/metrics"],
    "docs": ["/docs", "/openapi.json", "/docs/swagger-ui.css"],
    "web": ["/", "/web/app.js", "/web/claims.json", "/web/none.js"],
}


@pytest.mark.parametrize("protect", [("metrics",), ("docs",), ("web",), ("metrics", "docs", "web")])
@pytest.mark.parametrize("keys", [{"api_keys": ("secret",)}, {"admin_keys": ("secret",)}])
def test_what_is_protected_needs_a_key(letters: Path, protect: tuple[str, ...], keys: dict[str, Any]) -> None:
    app = create_app(Settings(bundles=letters, workers=1, log_level="error", protect=protect, **keys))
    client = app.test_client()
    assert app.extensions["meari"].registry.wait_loaded(PATIENCE)
    for kind, paths in OPEN_PATHS.items():
        for path in paths:
            refused = client.get(path)
            if kind not in protect:
                assert refused.status_code != 401
                continue
            assert (refused.status_code, refused.get_json()["error"]["code"]) == (401, "unauthorized")
            assert [scheme.split()[0] for scheme in refused.headers.getlist("WWW-Authenticate")] == ["Bearer", "Basic"]
            for header in ("Bearer wrong", "Basic " + base64.b64encode(b"me:wrong").decode(), "Basic ?"):
                assert client.get(path, headers={"Authorization": header}).status_code == 401
            for header in ("Bearer secret", "Basic " + base64.b64encode(b"me:secret").decode()):
                expected = 404 if "none" in path else 200
                assert client.get(path, headers={"Authorization": header}).status_code == expected
                assert client.head(path, headers={"Authorization": header}).status_code == expected
            assert client.head(path).status_code == 401
    assert [client.get(path).status_code for path in ("/healthz", "/readyz")] == [200, 200]
    app.extensions["meari"].registry.stop()


def test_contract_behind_a_key_names_the_models_of_the_key_alone(bundles: Path, tmp_path: Path) -> None:
    key = added(tmp_path / "keys.json", "bob", models=["words"])
    settings = Settings(
        bundles=bundles, workers=1, log_level="error", protect=("docs",), keys_file=tmp_path / "keys.json"
    )
    app = create_app(settings)
    assert app.extensions["meari"].registry.wait_loaded(PATIENCE)
    document = app.test_client().get("/openapi.json", headers={"Authorization": f"Bearer {key}"}).text
    assert "words" in document
    assert '"letters"' not in document
    app.extensions["meari"].registry.stop()


def test_existing_pictures_of_the_claims_are_listed(tmp_path: Path) -> None:
    assert json.loads(read_pages(WEB_FOLDER, tmp_path)["claims.json"].data) == {"claims": []}
    claims = {number: {"title": f"Claim {number}", "verdict": "HOLDS"} for number in ("2", "10", "3")}
    (tmp_path / "results.json").write_text(json.dumps({"claims": claims}), "utf-8")
    (tmp_path / "2-two.png").write_bytes(b"two")
    (tmp_path / "10-ten.png").write_bytes(b"ten")
    pages = read_pages(WEB_FOLDER, tmp_path)
    listed = json.loads(pages["claims.json"].data)["claims"]
    assert [(claim["number"], claim["picture"]) for claim in listed] == [("2", "2-two.png"), ("10", "10-ten.png")]
    assert pages["claims/10-ten.png"].data == b"ten"


def test_claims_of_another_version_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text('{"claims": [1]}', "utf-8")
    assert json.loads(read_pages(WEB_FOLDER, tmp_path)["claims.json"].data) == {"claims": []}
