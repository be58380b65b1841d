"""Test that docs/metrics.md lists exactly the names, types and labels in /metrics of a real service."""

from __future__ import annotations

import re

from tests.service.metrics.exposition import Exposition
from tests.service.running import ROOT, Server
from tests.service.test_tls import TLS_METRIC

ROW = re.compile(r"^\| `([\w:]+)` \| (\w+) \|(.*?)\| (.*?) \| (.*?) \|$", re.MULTILINE)
Listed = dict[str, tuple[str, frozenset[str]]]


def documented() -> Listed:
    rows = ROW.findall((ROOT / "docs" / "metrics.md").read_text("utf-8"))
    assert all(unit and meaning for _, _, _, unit, meaning in rows)
    return {name: (kind, frozenset(re.findall(r"`(\w+)`", labels))) for name, kind, labels, _, _ in rows}


def told(server: Server) -> Listed:
    assert server.post("/score", text="abc").status_code == 200
    found: Listed = {}
    for family in Exposition(server.client.get("/metrics").text).families.values():
        labels = frozenset(label for sample in family.samples for label in sample.labels) - {"le"}
        name = f"{family.name}_total" if family.type == "counter" else family.name
        found[name] = (family.type, labels)
    return found


def test_list_of_metrics_is_complete_and_correct(server: Server) -> None:
    expiry = {TLS_METRIC: ("gauge", frozenset[str]())}  # of a service with TLS, see test_tls.py
    assert documented() == told(server) | expiry


def test_every_metric_has_a_help_text(server: Server) -> None:
    families = Exposition(server.client.get("/metrics").text).families
    assert all(family.documentation and "Multiprocess" not in family.documentation for family in families.values())
