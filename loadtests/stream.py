"""Times of the events of one streamed response.

Input: lines of server-sent events (bytes) and a clock. Output: `StreamTimes`, or `StreamBroken` if the stream
reported an error or ended early. Must not know: Locust.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise


class StreamBroken(Exception):
    """The stream reported an error or ended without its last event."""


@dataclass
class StreamTimes:
    """Arrival times of the events of one stream, in seconds of the clock.

    started      time at which the request was sent
    arrivals     arrival time of each event with text
    num_tokens   number of generated tokens, from the `usage` event
    """

    started: float
    arrivals: list[float] = field(default_factory=list)
    num_tokens: int = 0

    @property
    def first_token_ms(self) -> float | None:
        """Time from the request to the first text; None without text."""
        return (self.arrivals[0] - self.started) * 1000 if self.arrivals else None

    @property
    def gaps_ms(self) -> list[float]:
        """Times between consecutive texts; empty with fewer than two texts."""
        return [(later - earlier) * 1000 for earlier, later in pairwise(self.arrivals)]

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens divided by the time from the request to the last text; None without text."""
        seconds = self.arrivals[-1] - self.started if self.arrivals else 0.0
        return self.num_tokens / seconds if seconds > 0 else None


def read_stream(lines: Iterable[bytes], started: float, clock: Callable[[], float]) -> StreamTimes:
    """Read events until `data: [DONE]` and record their arrival times.

    Raises StreamBroken, also for an event that is not JSON.
    """
    times = StreamTimes(started)
    for line in lines:
        if not line.startswith(b"data:"):  # blank lines and keep-alive comments
            continue
        data = line.removeprefix(b"data:").strip()
        if data == b"[DONE]":
            return times
        _note_event(data, times, clock())
    raise StreamBroken("the stream ended without [DONE]")


def _note_event(data: bytes, times: StreamTimes, now: float) -> None:
    try:
        event = json.loads(data)
    except ValueError as error:
        raise StreamBroken(f"an event is not JSON: {data[:80]!r}") from error
    if "error" in event:
        raise StreamBroken(f"error event: {event['error']}")
    if any(choice.get("text") for choice in event.get("choices", [])):
        times.arrivals.append(now)
    times.num_tokens += event.get("usage", {}).get("generated_tokens", 0)
