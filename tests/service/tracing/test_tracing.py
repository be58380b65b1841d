"""Test that tracing is off, and OpenTelemetry is not imported, unless the standard variables enable it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from meari.service.tracing import is_wanted, problem_of
from tests.patience import PATIENCE
from tests.service.running import ROOT, clean_environment

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}


@pytest.mark.parametrize(("environment", "wanted"), [
    ({}, False),
    ({"OTEL_SERVICE_NAME": "x"}, False),
    ({"OTEL_EXPORTER_OTLP_ENDPOINT": " "}, False),
    (ENDPOINT, True),
    ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:9/v1/traces"}, True),
    ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
    ({**ENDPOINT, "OTEL_TRACES_EXPORTER": "none"}, False),
    ({**ENDPOINT, "OTEL_SDK_DISABLED": "True"}, False),
])  # fmt: skip
def test_standard_variables_enable_tracing(environment: dict[str, str], wanted: bool) -> None:
    assert is_wanted(environment) is wanted


@pytest.mark.parametrize(("environment", "named"), [
    ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER: got 'zipkin'"),
    ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "OTEL_EXPORTER_OTLP_PROTOCOL: got 'grpc', expected http/protobuf"),
    ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"}, None),
    (ENDPOINT, None),
])  # fmt: skip
def test_unsupported_variables_are_reported(environment: dict[str, str], named: str | None) -> None:
    problem = problem_of(environment)
    assert problem is None if named is None else str(problem).startswith(named)


def run(code: str, **variables: str) -> str:
    environment = {name: value for name, value in clean_environment().items() if not name.startswith("OTEL_")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment | variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_opentelemetry_is_not_imported_without_the_variables() -> None:
    code = "import os, sys, meari.service.app; from meari.service.tracing import start_tracing; "
    code += "print(start_tracing(os.environ)); "
    code += "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    assert run(code) == "None\n[]\n"


def test_service_without_the_packages_runs_and_reports_how_to_install_them() -> None:
    code = "import os, sys; sys.modules['opentelemetry'] = None; from meari.service.log import configure_logging; "
    code += "from meari.service.tracing import start_tracing; configure_logging('info', 'text'); "
    code += "print(start_tracing(os.environ))"
    written = run(code, **ENDPOINT)
    assert "None\n" in written
    assert "no traces are sent" in written
    assert "pip install 'meari[otel]'" in written
