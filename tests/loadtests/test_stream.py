from collections.abc import Iterator

import pytest

from loadtests.stream import StreamBroken, read_stream

TEXT = b'data: {"choices": [{"index": 0, "text": "e"}]}\n'
USAGE = b'data: {"usage": {"generated_tokens": 6}}\n'
DONE = b"data: [DONE]\n"


def ticks(*seconds: float) -> Iterator[float]:
    return iter(seconds)


def test_times_come_from_the_events_with_text() -> None:
    last = b'data: {"choices": [{"index": 0, "text": "", "finish_reason": "length"}]}\n'
    clock = ticks(10.5, 10.75, 11.5, 11.75, 12.0)
    lines = [TEXT, b"\n", b": ping\n", TEXT, TEXT, last, USAGE, DONE]
    times = read_stream(lines, 10.0, lambda: next(clock))
    assert times.first_token_ms == 500
    assert times.gaps_ms == [250, 750]
    assert times.tokens_per_second == 6 / 1.5


def test_stream_without_text_has_no_figures() -> None:
    times = read_stream([USAGE, DONE], 0.0, lambda: 1.0)
    assert (times.first_token_ms, times.gaps_ms, times.tokens_per_second) == (None, [], None)


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param([TEXT, USAGE], id="no [DONE]"),
        pytest.param([TEXT, b'data: {"error": {"code": "internal"}}\n', DONE], id="an error"),
        pytest.param([b"data: {\n", DONE], id="not JSON"),
        pytest.param([], id="nothing"),
    ],
)
def test_broken_stream_raises_an_error(lines: list[bytes]) -> None:
    with pytest.raises(StreamBroken):
        read_stream(lines, 0.0, lambda: 1.0)
