"""Test docs/operating.md: its settings match the code, and its commands run against a real service."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest

from meari.service.settings import SETTINGS, Setting, Settings
from tests.patience import PATIENCE, until
from tests.service.running import ROOT, Server, running_server

PAGE = (ROOT / "docs" / "operating.md").read_text("utf-8")
COMMANDS = re.findall(r"^(curl .*?)(?: +#.*)?$", PAGE, re.MULTILINE)
SOURCES = ("benchmarks", "examples", "export", "loadtests", "meari", "models", "service")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Serve the released bundles like `make serve`."""
    with running_server(tmp_path_factory.mktemp("log"), bundles=ROOT / "bundles") as running:
        yield running


def row(setting: Setting) -> str:
    return f"| `{setting.variable}` | {setting.default} | {setting.kind.expected} | {setting.meaning} |"


def test_table_of_settings_matches_the_code() -> None:
    table = [line for line in PAGE.splitlines() if line.startswith("| `MEARI_") and line.count(" | ") == 3]
    assert table == [row(setting) for setting in SETTINGS.values()]


def test_every_field_is_a_setting_with_its_documented_default() -> None:
    assert list(SETTINGS) == [field.name for field in dataclasses.fields(Settings)]
    defaults = Settings(workers=1)
    for name, setting in SETTINGS.items():
        value = getattr(defaults, name)
        assert setting.variable == f"MEARI_{name.upper()}"
        if value not in (None, ()) and name not in ("bundles", "workers", "max_inflight_bytes"):
            assert setting.default == str(value)


def test_every_mentioned_variable_is_a_setting() -> None:
    """Exclude the variables of the load tests (in `loadtests/`) and of the client (in docs/cli.md)."""
    known = {setting.variable for setting in SETTINGS.values()}
    code = [path.read_text("utf-8") for folder in SOURCES for path in (ROOT / folder).rglob("*.py")]
    named = {name for text in [PAGE, *code] for name in re.findall(r"\bMEARI_[A-Z_]*[A-Z]\b", text)}
    elsewhere = ("MEARI_LOAD", "MEARI_CLIENT")  # load tests; command line as a client
    assert {name for name in named if not name.startswith(elsewhere)} - known == set()


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_the_page_succeed(server: Server, command: str) -> None:
    [path] = [word.removeprefix("localhost:8000") for word in shlex.split(command) if word.startswith("localhost")]
    assert server.client.get(path).status_code == 200


def test_example_of_a_log_line_has_the_fields_of_a_real_line(server: Server) -> None:
    [example] = [json.loads(text) for text in re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)]
    body = {"model": "shakespeare-lstm", "prompt": "ROMEO:", "max_tokens": 5}
    answer = server.client.post("/generate", json=body, headers={"X-Request-Id": "example"})
    assert answer.status_code == 200
    until(lambda: '"example"' in server.log)  # frequent lines are written together
    line = next(line for line in map(json.loads, server.log.splitlines()) if line.get("request_id") == "example")
    assert list(line) == list(example)
    documented = set(re.findall(r"`(\w+)`", PAGE.split("| member | meaning |")[1].split("\n\n")[0]))
    assert set(line) <= documented


def test_log_summary_shows_routes_times_and_errors(server: Server) -> None:
    server.client.post("/generate", json={"top_p": 7}, headers={"X-Request-Id": "wrong"})
    server.post("/score", model="shakespeare-lstm", text="To be")
    until(lambda: '"route":"/score"' in server.log and '"wrong"' in server.log)
    [command] = re.findall(r"^python (examples/log_summary.py) < service.log$", PAGE, re.MULTILINE)
    log = server.log + "no JSON\n"
    done = subprocess.run(
        [sys.executable, str(ROOT / command)],
        input=log,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        timeout=PATIENCE,
    )
    rows = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines()}
    assert rows["route"][:5] == ["ok", "invalid", "refused", "failed", "aborted"]
    assert int(rows["/score"][0]) >= 1
    assert int(rows["/score"][-1]) >= 5
    assert "invalid_request, the last with request id wrong" in done.stdout
    assert "1 lines were not JSON" in done.stdout


def test_figures_match_the_benchmarks() -> None:
    benchmarks = (ROOT / "docs" / "benchmarks" / "README.md").read_text("utf-8")
    for model in ("lstm-int8", "lstm-fp32"):
        [figures] = re.findall(rf"^\| `{model}` \|(.*)\|$", PAGE, re.MULTILINE)
        written, streamed = (int(number.replace(",", "")) for number in re.findall(r"([\d,]+) tokens", figures)[:2])
        assert f"({written:,} of " in benchmarks
        assert f"({streamed:,} of " in benchmarks


def test_figures_of_precision_match_the_benchmarks() -> None:
    benchmarks = (ROOT / "docs" / "benchmarks" / "README.md").read_text("utf-8")
    choosing = (ROOT / "docs" / "choosing.md").read_text("utf-8")
    rows = re.findall(
        r"^\| (?:one client|64 clients|lists to score), .*\| ([\d,]+) \| ([\d,]+) \|$", choosing, re.MULTILINE
    )
    assert len(rows) == 3
    for column, model in enumerate(("lstm-fp32", "lstm-int8")):
        [measured] = re.findall(rf"^## {model}$.*?^\| meari \|(.*?)$", benchmarks, re.MULTILINE | re.DOTALL)
        assert all(f" {row[column]} (" in measured for row in rows)


def test_model_response_has_the_hashes_of_the_bundle(server: Server) -> None:
    answer: httpx.Response = server.client.get("/models/shakespeare-lstm")
    assert len(answer.json()["hashes"]["bundle"]) == 64
