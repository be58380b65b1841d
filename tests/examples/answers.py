"""Rewrite the responses in docs/http-api.md after bundles have changed: `python -m tests.examples.answers`.

Input: the page, and a server of the released bundles started here. Output: the page with each response below its
request. A response keeps the fields that the page shows; figures are rounded, long texts are cut.
"""

from __future__ import annotations

import json
import re
import shlex
import tempfile
from contextlib import AbstractContextManager
from itertools import zip_longest
from pathlib import Path
from typing import Any

import httpx

from tests.examples.pages import DOCS, ROOT, page
from tests.service.running import Server, events, running_server

EXCHANGE = re.compile(r"^\$ (curl .*?)\n(.*?)(?=^\$ |^```)", re.DOTALL | re.MULTILINE)
WIDTH = 132
ADMIN_KEY = "admin-key-of-the-examples-0123456789"
LONGEST_TEXT = 300  # characters; longer texts are cut
SHOWN_OF_LONG = 24


def served(folder: Path) -> AbstractContextManager[Server]:
    """Serve the released bundles as the page assumes."""
    return running_server(folder, bundles=ROOT / "bundles", admin_keys=ADMIN_KEY)


def exchanges(text: str) -> list[tuple[str, str]]:
    """Return the curl commands of a page, each with the response shown below it."""
    return [(command, answer) for command, answer in EXCHANGE.findall(text) if "localhost:8000" in command]


def ask(server: Server, command: str) -> httpx.Response:
    """Send the request of a curl command to the server."""
    words = shlex.split(command)
    [path] = [word.removeprefix("localhost:8000") for word in words if word.startswith("localhost:8000")]
    if "POST" in words:
        return server.client.post(path, headers={"Authorization": f"Bearer {ADMIN_KEY}"})
    if "--json" not in words:
        return server.client.get(path)
    headers = {"Content-Type": "application/json"}
    return server.client.post(path, content=words[words.index("--json") + 1].encode(), headers=headers)


def answer_text(response: httpx.Response, shown: str) -> str:
    """Format a response as the page shows it."""
    if shown.startswith("data:"):
        return "\n\n".join(f"data: {_event(event)}" for event in events(response)) + "\n"
    return layout(_kept(response.json(), json.loads(shown))) + "\n"


def layout(value: Any, indent: int = 0) -> str:
    """Format JSON in as few lines as the width of the page allows."""
    flat = json.dumps(value, ensure_ascii=False)
    if indent + len(flat) <= WIDTH or not isinstance(value, dict | list):
        return flat
    pad = "\n" + " " * (indent + 1)
    if isinstance(value, list):
        return "[" + ("," + pad).join(layout(entry, indent + 1) for entry in value) + "]"
    lines = [""]
    for name, entry in value.items():
        label = f"{json.dumps(name)}: "
        piece = label + layout(entry, indent + 1 + len(label))
        if lines[-1] and ("\n" in piece or indent + len(lines[-1]) + len(piece) + 3 > WIDTH):
            lines.append(piece)
        else:
            lines[-1] += f", {piece}" if lines[-1] else piece
        if "\n" in piece:
            lines.append("")
    return "{" + ("," + pad).join(line for line in lines if line) + "}"


def _event(event: str) -> str:
    return event if event == "[DONE]" else json.dumps(_kept(json.loads(event), None), ensure_ascii=False)


def _kept(value: Any, shown: Any) -> Any:
    """Keep the fields that are shown (all if none are), with rounded figures and cut texts."""
    if isinstance(value, dict):
        before = shown if isinstance(shown, dict) and shown.keys() <= value.keys() else dict.fromkeys(value)
        return {name: _kept(value[name], before[name]) for name in value if name in before}
    if isinstance(value, list):
        entries = shown[: len(value)] if isinstance(shown, list) else []
        return [_kept(entry, one) for entry, one in zip_longest(value, entries)]
    if isinstance(value, float):
        return float(f"{value:.5g}")
    is_cut = isinstance(value, str) and (len(value) > LONGEST_TEXT or str(shown).endswith("…"))
    return f"{value[:SHOWN_OF_LONG]}…" if is_cut else value


def main() -> None:
    """Request every response again and rewrite the page."""
    text = page("http-api")
    with tempfile.TemporaryDirectory() as folder, served(Path(folder)) as server:
        for command, shown in exchanges(text):
            block = f"$ {command}\n"
            text = text.replace(block + shown, block + answer_text(ask(server, command), shown))
    (DOCS / "http-api.md").write_text(text, "utf-8")


if __name__ == "__main__":
    main()
