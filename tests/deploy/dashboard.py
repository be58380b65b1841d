"""The dashboard of deploy/ as panels and expressions."""

from __future__ import annotations

import json
from typing import Any, Final

from tests.service.running import ROOT

PATH: Final = ROOT / "deploy" / "grafana" / "dashboards" / "meari.json"


def dashboard() -> dict[str, Any]:
    """The whole document."""
    found: dict[str, Any] = json.loads(PATH.read_text("utf-8"))
    return found


def panels() -> list[dict[str, Any]]:
    """Those that show something: rows are left out."""
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def expressions() -> list[str]:
    """What the panels ask, with every variable given a value."""
    found = [target["expr"] for panel in panels() for target in panel["targets"]]
    return [expr.replace("$__rate_interval", "1m").replace("$model", ".*") for expr in found]
