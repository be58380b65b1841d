import pytest

from loadtests.settings import SettingsError, check_target, is_loopback, read_settings


def test_defaults_are_one_minute_and_no_failures() -> None:
    settings = read_settings({})
    assert settings.seconds == 60
    assert settings.thresholds.max_failure_ratio == 0
    assert settings.thresholds.max_p95_ms is None


def test_all_problems_are_reported_together() -> None:
    environment = {
        "MEARI_LOAD_USERS": "2.5",
        "MEARI_LOAD_MAX_P95_MS": "fast",
        "MEARI_LOAD_MAX_FAILURE_RATIO": "1.5",
        "MEARI_LOAD_ALLOW_REMOTE": "yes",
        "MEARI_LOAD_MAX_GAP_P95_MS": "inf",
    }
    with pytest.raises(SettingsError) as raised:
        read_settings(environment)
    assert str(raised.value).count("\n") == 4
    for name, value in environment.items():
        assert f"{name}: got {value!r}, expected" in str(raised.value)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8000", "http://127.8.9.1", "http://[::1]:9000", "http://localhost:8000"]
)
def test_this_machine_is_a_target(url: str) -> None:
    assert is_loopback(url)


@pytest.mark.parametrize(
    "url",
    ["http://10.0.0.1:8000", "http://example.org", "http://localhost.example.org", "http://[fd00::1]", ""],
)
def test_another_machine_is_a_target_only_if_allowed(url: str) -> None:
    with pytest.raises(SettingsError, match="loopback"):
        check_target(url, read_settings({}))
    check_target(url, read_settings({"MEARI_LOAD_ALLOW_REMOTE": "1"}))
