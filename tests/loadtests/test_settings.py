import pytest

from loadtests.settings import SettingsError, check_target, is_loopback, read_settings
from loadtests.shapes import Shape, users_at


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
        "MEARI_LOAD_SHAPE": "wave",
        "MEARI_LOAD_ROLE": "slave",
        "MEARI_LOAD_KINDS": "generates",
    }
    with pytest.raises(SettingsError) as raised:
        read_settings(environment)
    assert str(raised.value).count("\n") == 7
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


@pytest.mark.parametrize(
    ("shape", "levels"),
    [
        (Shape.SOAK, [20] * 10),
        (Shape.RAMP, [1, 2, 4, 6, 8, 10, 12, 14, 16, 18]),
        (Shape.SPIKE, [5, 5, 5, 5, 20, 20, 5, 5, 5, 5]),
        (Shape.STAIRCASE, [4, 4, 8, 8, 12, 12, 16, 16, 20, 20]),
    ],
)
def test_shapes_have_their_levels_and_end(shape: Shape, levels: list[int]) -> None:
    assert [users_at([shape], second, 10, 20) for second in range(10)] == levels
    assert users_at([shape], 10, 10, 20) is None
    assert users_at([shape], 0, 10, 1) == 1


def test_shapes_follow_one_another_in_equal_parts() -> None:
    shapes = read_settings({"MEARI_LOAD_SHAPE": "staircase, spike"}).shapes
    assert shapes == (Shape.STAIRCASE, Shape.SPIKE)
    assert [users_at(shapes, second, 20, 20) for second in range(1, 20, 2)] == [4, 8, 12, 16, 20, 5, 5, 20, 5, 5]
    assert users_at(shapes, 20, 20, 20) is None
    assert read_settings({}).shapes == ()
