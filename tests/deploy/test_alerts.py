"""Test the alert rules: all load, each fires on its condition, and each has a runbook."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.deploy.prometheus import DEPLOY, MISSING, PROMTOOL, alert_rules
from tests.patience import PATIENCE
from tests.service.running import ROOT

SCENARIOS = Path(__file__).with_name("alerts_test.yml")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason=MISSING)


def promtool(*arguments: str) -> str:
    assert PROMTOOL is not None
    done = subprocess.run([PROMTOOL, *arguments], capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_promtool
def test_configuration_and_rules_are_valid() -> None:
    assert f"{len(alert_rules())} rules found" in promtool("check", "rules", str(DEPLOY / "alerts.yml"))
    promtool("check", "config", str(DEPLOY / "prometheus.yml"))


@needs_promtool
def test_every_alert_fires_on_its_condition_only(tmp_path: Path) -> None:
    rules = yaml.safe_load((DEPLOY / "alerts.yml").read_text("utf-8"))
    for group in rules["groups"]:
        for rule in group["rules"]:
            del rule["annotations"]  # promtool compares annotations literally
    (tmp_path / "alerts.yml").write_text(yaml.safe_dump(rules), "utf-8")
    (tmp_path / SCENARIOS.name).write_text(SCENARIOS.read_text("utf-8"), "utf-8")
    assert "SUCCESS" in promtool("test", "rules", str(tmp_path / SCENARIOS.name))


def test_every_alert_has_a_firing_and_a_silent_case() -> None:
    cases = [case for test in yaml.safe_load(SCENARIOS.read_text("utf-8"))["tests"] for case in test["alert_rule_test"]]
    names = {rule["alert"] for rule in alert_rules()}
    assert {case["alertname"] for case in cases if case.get("exp_alerts")} == names
    assert {case["alertname"] for case in cases if not case.get("exp_alerts")} == names


def test_every_alert_has_a_severity_and_annotations() -> None:
    assert len(alert_rules()) > 8
    for rule in alert_rules():
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}
        assert set(rule["annotations"]) == {"summary", "description", "runbook"}


def test_every_runbook_is_a_section_of_the_operating_page() -> None:
    page = (ROOT / "docs" / "operating.md").read_text("utf-8")
    sections = {heading.lower() for heading in re.findall(r"^#+ (\w+)$", page, re.MULTILINE)}
    for rule in alert_rules():
        anchor = f"docs/operating.md#{rule['alert'].lower()}"
        assert rule["annotations"]["runbook"].endswith(anchor)
        assert rule["alert"].lower() in sections
