"""Test that docs/errors.md lists exactly the error codes of the service, each once."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from flask.testing import FlaskClient

from meari.errors import BundleError, MeariError
from meari.service.routes.exchange import CLIENT_GONE
from tests.service.running import ROOT

PAGE = (ROOT / "docs" / "errors.md").read_text("utf-8")


def every_error(root: type[MeariError] = MeariError) -> Iterator[type[MeariError]]:
    yield root
    for error in root.__subclasses__():
        yield from every_error(error)


def test_page_lists_exactly_the_error_codes() -> None:
    documented = re.findall(r"^\| (\d{3}) \| `(\w+)` \| [^|]+ \| [^|]+ \|$", PAGE, re.MULTILINE)
    assert len(documented) == len(set(documented))
    known = {(str(error.status), error.code) for error in every_error() if error is not BundleError}
    assert set(documented) == known
    assert f"| {CLIENT_GONE} |" in PAGE


def test_example_matches_the_response_of_the_service(client: FlaskClient) -> None:
    [example] = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    shown = json.loads(example)["error"]
    came = client.post("/generate", json={"top_p": 1.4}).get_json()["error"]
    assert came["code"] == shown["code"]
    assert came["message"] == shown["message"]
    assert set(came) == set(shown)
