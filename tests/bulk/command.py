"""Run the command line in a subprocess."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests import forked
from tests.service.running import ROOT, clean_environment

RELEASED = ROOT / "bundles"


def arguments(*words: object) -> list[str]:
    return [sys.executable, "-m", "meari.cli.main", *map(str, words)]


def meari(*words: object, stdin: str | bytes = b"", **settings: object) -> subprocess.CompletedProcess[bytes]:
    """Run a verb, with these settings of the service, and return its result."""
    data = stdin.encode() if isinstance(stdin, str) else stdin
    return forked.run(words, stdin=data, env=clean_environment(**settings))


def started(*words: object) -> subprocess.Popen[bytes]:
    """Start a verb."""
    return subprocess.Popen(
        arguments(*words),
        cwd=ROOT,
        env=clean_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def records(data: bytes) -> list[dict[str, Any]]:
    """Parse JSONL."""
    return [json.loads(line) for line in data.splitlines()]


def file_records(path: Path) -> list[dict[str, Any]]:
    """Parse a JSONL file."""
    return records(path.read_bytes())
