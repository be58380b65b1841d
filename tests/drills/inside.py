"""What no message may show: paths, modules, tracebacks, addresses, the names of our classes.

Input: a message. Output: the first such piece in it. Must not know: where the message is from.
"""

from __future__ import annotations

import ast
import functools
import re

from tests.service.running import ROOT

__all__ = ["shown_inside"]

FOLDERS = ("export", "meari", "models", "service")
LIBRARIES = ("flask", "gunicorn", "msgspec", "numpy", "prometheus", "pyo3", "torch", "werkzeug")
PATHS = r"/(?:usr|home|root|tmp|proc|work|dev)/"


def shown_inside(message: str, *, paths: bool = True) -> str:
    """Return a piece that a message shows of the inside, "" if there is none.

    paths  whether paths of this machine count
    """
    found = _pattern(paths=paths).search(message)
    return found[0] if found else ""


@functools.cache
def _pattern(*, paths: bool) -> re.Pattern[str]:
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    nodes = (node for path in files for node in ast.walk(ast.parse(path.read_text("utf-8"))))
    classes = {node.name for node in nodes if isinstance(node, ast.ClassDef) and re.search("[a-z][A-Z]", node.name)}
    words = rf"\b(?:{'|'.join(sorted({*classes, *LIBRARIES}))})\b"
    parts = [r"Traceback", r"\.py\b", r"0x[0-9a-f]{9,}", r"<class", r"\bmeari\.[a-z]", words]
    return re.compile("|".join([*parts, PATHS] if paths else parts))
