"""Run a real Prometheus against a real service and query it."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.patience import PATIENCE
from tests.service.running import ROOT, free_port

DEPLOY = ROOT / "deploy" / "prometheus"
PROMETHEUS = os.environ.get("PROMETHEUS") or shutil.which("prometheus")
PROMTOOL = os.environ.get("PROMTOOL") or shutil.which("promtool")
MISSING = "Prometheus was not found: install Debian's prometheus, or set PROMETHEUS and PROMTOOL to its programs"
METRIC = re.compile(r"\b(?:vllm:|meari_)\w+|\bup\b")


@dataclass(frozen=True)
class Prometheus:
    """Client of a running Prometheus."""

    client: httpx.Client

    def ask(self, path: str, **parameters: str) -> Any:
        """Return the data of an API response."""
        answer = self.client.get(f"/api/v1/{path}", params=parameters).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def query(self, expression: str) -> list[float]:
        """Return the current values of an expression."""
        return [float(series["value"][1]) for series in self.ask("query", query=expression)["result"]]

    def names(self) -> set[str]:
        """Return the names of all scraped metrics."""
        return set(self.ask("label/__name__/values"))

    def alerts(self) -> dict[str, str]:
        """Return the state of each pending or firing alert."""
        return {alert["labels"]["alertname"]: alert["state"] for alert in self.ask("alerts")["alerts"]}


def alert_rules() -> list[dict[str, Any]]:
    """Return the rules of deploy/ in their order."""
    groups = yaml.safe_load((DEPLOY / "alerts.yml").read_text("utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


@contextlib.contextmanager
def running_prometheus(folder: Path, target: str) -> Iterator[Prometheus]:
    """Run Prometheus with the configuration of deploy/, but with this target and an interval of two seconds."""
    assert PROMETHEUS is not None
    port = free_port()
    config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text("utf-8"))
    config["global"] = dict.fromkeys(config["global"], "2s")
    [job] = [job for job in config["scrape_configs"] if job["job_name"] == "meari"]
    job["static_configs"] = [{"targets": [target]}]
    config["scrape_configs"] = [job]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config), "utf-8")
    rules = (DEPLOY / "alerts.yml").read_text("utf-8")
    (folder / "alerts.yml").write_text(re.sub(r"\bfor: \d+m", "for: 1s", rules), "utf-8")
    command = [
        PROMETHEUS,
        f"--config.file={folder}/prometheus.yml",
        f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE, trust_env=False) as client:
                yield Prometheus(client)
        finally:
            process.terminate()
            process.wait(PATIENCE)
