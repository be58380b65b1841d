"""Test settings: all problems are reported together, with suggestions for mistyped names."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from meari.service.settings import GIB, MIB, SettingsError, load_settings
from tests.patience import PATIENCE
from tests.runtime.tiny_bundle import write_tiny_bundle
from tests.service.running import ROOT, clean_environment, command


def problems_of(**environment: str) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load_settings(environment)
    return [str(problem) for problem in caught.value.problems]


def test_what_needs_a_key_is_named_in_words() -> None:
    assert load_settings({"MEARI_PROTECT": "page, Metrics", "MEARI_API_KEYS": "k"}).protect == ("web", "metrics")
    [problem] = problems_of(MEARI_PROTECT="metrics,pages", MEARI_API_KEYS="k")
    assert "expected some of metrics, docs, page" in problem
    [problem] = problems_of(MEARI_PROTECT="metrics")
    assert "there are no keys" in problem
    [problem] = problems_of(MEARI_REDIS_URL="http://s3cret@host", MEARI_KEYS_FILE="keys.json")
    assert "redis://" in problem
    assert "s3cret" not in problem
    [problem] = problems_of(MEARI_REDIS_URL="redis://host")
    assert "MEARI_KEYS_FILE" in problem


def test_unset_variables_have_their_defaults() -> None:
    settings = load_settings({"PATH": "/bin", "HOST": "", "MEARI_MAX_SLOTS": " "})
    assert (settings.host, settings.port, settings.max_slots) == ("127.0.0.1", 8000, 64)
    assert settings.workers >= 1


def test_meari_variables_override_common_ones() -> None:
    settings = load_settings({"PORT": "1", "HOST": "0.0.0.0", "MEARI_PORT": "2", "MEARI_LOAD_USERS": "3"})
    assert (settings.host, settings.port) == ("0.0.0.0", 2)


def test_all_problems_are_reported_together() -> None:
    problems = problems_of(
        PORT="x", MEARI_WORKERS="0", MEARI_MAX_SLOT="3", MEARI_MAX_TIMEOUT_SECONDS="nan", MEARI_LOG_LEVEL="wrning"
    )
    assert problems == [
        "PORT: got 'x', expected an integer, 0 <= value <= 65535",
        "MEARI_WORKERS: got '0', expected an integer, 1 <= value <= 1024",
        "MEARI_MAX_TIMEOUT_SECONDS: got 'nan', expected a number of seconds, 0.001 <= value <= 86400",
        "MEARI_LOG_LEVEL: got 'wrning', expected one of debug, info, warning, error (did you mean warning?)",
        "MEARI_MAX_SLOT: no such setting; did you mean MEARI_MAX_SLOTS?",
    ]


def test_keys_are_never_shown() -> None:
    assert "s3cret" not in problems_of(MEARI_API_KEYS="s3cret key,")[0]
    assert "s3cret" not in repr(load_settings({"MEARI_API_KEYS": "s3cret"}))


def test_state_keys_must_be_long_and_are_never_shown() -> None:
    key = "k3y" * 11
    for wrong in (key[:31], f"{key},short", f"{key},", f"{key} x"):
        [problem] = problems_of(MEARI_STATE_KEY=wrong)
        assert problem.startswith("MEARI_STATE_KEY: got a value that is not shown, expected keys of")
        assert "k3y" not in problem
    settings = load_settings({"MEARI_STATE_KEY": f"{key}, {key}2"})
    assert settings.state_key == (key, f"{key}2")
    assert "k3y" not in repr(settings)


def test_contradictory_settings_are_reported(tmp_path: Path) -> None:
    problems = problems_of(
        MEARI_MAX_BODY_BYTES="4096",
        MEARI_MAX_INFLIGHT_BYTES="2048",
        MEARI_BUNDLES=str(tmp_path),
        MEARI_DEFAULT_MODEL="x",
    )
    assert [problem.split(":")[0] for problem in problems] == ["MEARI_MAX_INFLIGHT_BYTES", "MEARI_DEFAULT_MODEL"]


def test_tls_needs_memory_for_its_connections(tmp_path: Path) -> None:
    (tmp_path / "pem").touch()
    files = {"MEARI_TLS_CERTIFICATE": str(tmp_path / "pem"), "MEARI_TLS_KEY": str(tmp_path / "pem")}
    bounds = {"MEARI_MAX_BODY_BYTES": "4096", "MEARI_MAX_INFLIGHT_BYTES": "4096"}
    load_settings(bounds)
    assert problems_of(**files, **bounds) == ["MEARI_MAX_INFLIGHT_BYTES: got 4096, expected at least 1048576 with TLS"]


@pytest.mark.parametrize("name", ["shakespear", "bundle.new", "folder", "Letters"])
def test_unknown_default_model_is_refused_with_a_suggestion(tmp_path: Path, name: str) -> None:
    for bundle in ("shakespeare", "letters", "bundle.new"):
        write_tiny_bundle(tmp_path / bundle)
    (tmp_path / "folder").mkdir()
    hint = {"shakespear": " (did you mean shakespeare?)", "Letters": " (did you mean letters?)"}.get(name, "")
    [problem] = problems_of(MEARI_BUNDLES=str(tmp_path), MEARI_DEFAULT_MODEL=name)
    expected = f"expected the name of a bundle in {tmp_path}"
    assert problem == f"MEARI_DEFAULT_MODEL: got {name!r}, {expected}{hint}"


def test_single_served_bundle_may_be_the_default(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "letters")
    settings = load_settings({"MEARI_BUNDLES": str(tmp_path / "letters"), "MEARI_DEFAULT_MODEL": "letters"})
    assert settings.default_model == "letters"


def test_invalid_settings_end_the_start_without_a_traceback() -> None:
    environment = clean_environment(max_slots="many", max_slotz="3")
    done = subprocess.run(
        command(), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode != 0
    assert "MEARI_MAX_SLOTS: got 'many'" in done.stderr
    assert "did you mean MEARI_MAX_SLOTS?" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("memory", "given", "workers", "inflight"),
    [
        (24 * GIB, {"MEARI_WORKERS": "2"}, 2, 256 * MIB),
        (512 * MIB, {"MEARI_WORKERS": "2"}, 2, 96 * MIB),
        (512 * MIB, {"MEARI_WORKERS": "4"}, 4, 32 * MIB),
        (512 * MIB, {"MEARI_WORKERS": "4", "MEARI_MAX_BODY_BYTES": str(64 * MIB)}, 4, 64 * MIB),
        (512 * MIB, {"MEARI_WORKERS": "2", "MEARI_MAX_INFLIGHT_BYTES": str(200 * MIB)}, 2, 200 * MIB),
        (256 * MIB, {}, 1, 96 * MIB),
        (64 * MIB, {}, 1, 32 * MIB),
    ],
)
def test_workers_and_their_requests_fit_into_the_memory_granted(
    monkeypatch: pytest.MonkeyPatch, memory: int, given: dict[str, str], workers: int, inflight: int
) -> None:
    monkeypatch.setattr("meari.service.settings.granted_memory", lambda: memory)
    settings = load_settings(given)
    assert (settings.workers, settings.max_inflight_bytes) == (workers, inflight)


@pytest.mark.parametrize(
    ("text", "origins"),
    [
        ("*", ("*",)),
        ("https://app.example", ("https://app.example",)),
        ("HTTPS://App.Example:443, http://localhost:5173", ("https://app.example", "http://localhost:5173")),
        ("http://[::1]:8080,http://10.0.0.1:80", ("http://[::1]:8080", "http://10.0.0.1")),
        ("vscode-webview://abc", ("vscode-webview://abc",)),
    ],
)
def test_origins_are_normalised_like_in_browsers(text: str, origins: tuple[str, ...]) -> None:
    assert load_settings({"MEARI_CORS_ORIGINS": text}).cors_origins == origins


@pytest.mark.parametrize(
    "text",
    [
        "app.example",
        "https://app.example/",
        "https://app.example/path",
        "https://*.example",
        "https://app.example:0",
        "https://app.example:99999",
        "https://user@app.example",
        "*,https://app.example",
        "https://a.example,",
        "null",
        "https://",
        "https://app.example?x",
    ],
)
def test_invalid_origin_is_refused(text: str) -> None:
    [problem] = problems_of(MEARI_CORS_ORIGINS=text)
    assert "MEARI_CORS_ORIGINS: got" in problem
    assert "scheme://host" in problem
