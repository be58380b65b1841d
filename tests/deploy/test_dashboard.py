"""Test that the dashboard is complete and that Grafana is configured to show it."""

from __future__ import annotations

import itertools
import re
from typing import Final

import yaml

from tests.deploy.dashboard import PATH, dashboard, expressions, panels
from tests.service.running import ROOT

PROVISIONING = ROOT / "deploy" / "grafana" / "provisioning"

OTHERWISE_SHOWN: Final = {  # by other metrics, of which these are the same, a part or the quotient
    "vllm:request_inference_time_seconds",
    "meari_waiting_requests",
    "meari_step_rows",
    "meari_generated_tokens_total",
    "meari_cache_queries_total",
    "meari_cache_hits_total",
    "meari_cached_tokens_total",
}


def test_every_panel_has_a_description_and_a_unit() -> None:
    assert len(panels()) > 20
    for panel in panels():
        assert panel["title"]
        assert len(panel["description"]) > 40, panel["title"]
        options = {**panel["fieldConfig"]["defaults"], **panel["options"].get("yAxis", {})}
        assert options["unit"], panel["title"]
        assert all(target["legendFormat"] for target in panel["targets"]), panel["title"]


def test_every_metric_of_the_page_is_on_the_dashboard() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text("utf-8")
    shown = " ".join(expressions())
    missing = {name for name in re.findall(r"^\| `([\w:]+)`", page, re.MULTILINE) if name not in shown}
    assert missing == OTHERWISE_SHOWN


def test_panels_do_not_overlap_and_have_unique_ids() -> None:
    everything = dashboard()["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    for left, right in itertools.combinations((panel["gridPos"] for panel in everything), 2):
        apart_x = left["x"] + left["w"] <= right["x"] or right["x"] + right["w"] <= left["x"]
        apart_y = left["y"] + left["h"] <= right["y"] or right["y"] + right["h"] <= left["y"]
        assert apart_x or apart_y, (left, right)
        assert left["x"] + left["w"] <= 24


def test_every_panel_queries_the_selected_prometheus() -> None:
    variables = {variable["name"]: variable for variable in dashboard()["templating"]["list"]}
    assert variables["datasource"]["query"] == "prometheus"
    for panel in panels():
        for source in (panel, *panel["targets"]):
            assert source["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_grafana_is_configured_with_the_datasource_and_the_dashboard() -> None:
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))["services"]
    mounts = dict(volume.split(":")[:2] for volume in compose["grafana"]["volumes"])
    [source] = yaml.safe_load((PROVISIONING / "datasources" / "prometheus.yml").read_text("utf-8"))["datasources"]
    assert source["type"] == "prometheus"
    assert source["url"] == "http://prometheus:9090"
    assert "prometheus" in compose
    [provider] = yaml.safe_load((PROVISIONING / "dashboards" / "meari.yml").read_text("utf-8"))["providers"]
    inside = provider["options"]["path"]
    assert mounts["./deploy/grafana/provisioning"] == "/etc/grafana/provisioning"
    assert mounts["./deploy/grafana/dashboards"] == inside
    home = compose["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{inside}/{PATH.name}"
