"""Panels and expressions of the dashboard in deploy/."""

from __future__ import annotations

import json
from typing import Any, Final

from tests.service.running import ROOT

PATH: Final = ROOT / "deploy" / "grafana" / "dashboards" / "meari.json"


def dashboard() -> dict[str, Any]:
    """Return the dashboard as JSON."""
    found: dict[str, Any] = json.loads(PATH.read_text("utf-8"))
    return found


def panels() -> list[dict[str, Any]]:
    """Return the panels that show figures; rows are left out."""
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def expressions() -> list[str]:
    """Return the queries of all panels, with a value for every variable."""
    found = [target["expr"] for panel in panels() for target in panel["targets"]]
    return [expr.replace("$__rate_interval", "1m").replace("$model", ".*") for expr in found]
