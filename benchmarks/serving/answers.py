"""Exchanges → what was measured on them, after the load is over.

All servers answer in one shape, meari's: whole, `{"choices": [{"text"}], "usage": {"generated_tokens"}}`; streamed,
one event a piece of text, then one with `usage`. BentoML puts a list around it.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from benchmarks.serving.connection import HEAD_END, Exchange

OK = 200
REFUSALS = frozenset({429, 503})


@dataclass(frozen=True)
class Answer:
    """One answer that came whole; times in seconds.

    tokens     as the server counts them: generated, or scored
    first      from when the request was due to the first text; of a whole answer, to its end
    gaps       from one event with text to the next
    """

    begin: float
    end: float
    tokens: int
    first: float
    gaps: tuple[float, ...]

    @property
    def seconds(self) -> float:
        return self.end - self.begin


@dataclass(frozen=True)
class Answers:
    """What became of the requests of one load.

    late       waiting times of answers that were not complete when the load was over: to the first text if there was
               one, and to the end; both are too short where the load ended first
    problems   the first few reasons of failures
    """

    whole: list[Answer]
    refusal_seconds: list[float]
    late: list[tuple[float, float]]
    num_failed: int
    problems: tuple[str, ...]


def read_answers(exchanges: list[Exchange]) -> Answers:
    """Sort exchanges into answers, refusals and failures."""
    whole: list[Answer] = []
    refusals: list[float] = []
    late: list[tuple[float, float]] = []
    problems: list[str] = []
    for exchange in exchanges:
        if exchange.cut_off is not None:
            late.append(_waited(exchange, exchange.cut_off))
        elif exchange.ended is not None and exchange.status in REFUSALS:
            refusals.append(exchange.ended - exchange.scheduled)
        elif exchange.ended is None or exchange.status != OK:
            problems.append(_reason(exchange))
        else:
            answer = _read(exchange)
            whole.append(answer) if isinstance(answer, Answer) else problems.append(answer)
    return Answers(whole, refusals, late, len(problems), tuple(sorted(set(problems))[:3]))


def _waited(exchange: Exchange, cut_off: float) -> tuple[float, float]:
    first = next((time for time, piece in exchange.pieces if b'"text"' in piece), cut_off)
    return first - exchange.scheduled, cut_off - exchange.scheduled


def _reason(exchange: Exchange) -> str:
    if exchange.failure or not exchange.pieces:
        return exchange.failure or "no answer in time"
    text = b"".join(piece for _, piece in exchange.pieces)
    return f"status {exchange.status}: {text.partition(HEAD_END)[2][:200].decode('utf-8', 'replace')}"


def _read(exchange: Exchange) -> Answer | str:
    """The answer, or what is wrong with it."""
    head, _, body = b"".join(piece for _, piece in exchange.pieces).partition(HEAD_END)
    assert exchange.ended is not None
    try:
        if b"\ndata:" in body or body.startswith(b"data:"):  # not every server says text/event-stream
            return _read_stream(exchange)
        return _read_whole(exchange, _plain(head, body))
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        return f"an answer of another shape ({type(error).__name__}: {error}): {body[:120]!r}"


def _read_whole(exchange: Exchange, body: bytes) -> Answer:
    answer = json.loads(body)
    answer = answer[0] if isinstance(answer, list) else answer
    assert exchange.ended is not None
    tokens = _tokens(answer["usage"])
    return Answer(exchange.scheduled, exchange.ended, tokens, exchange.ended - exchange.scheduled, ())


def _tokens(usage: dict[str, Any]) -> int:
    return int(usage["generated_tokens"] if "generated_tokens" in usage else usage["scored_tokens"])


def _read_stream(exchange: Exchange) -> Answer | str:
    times: list[float] = []
    tokens = 0
    for time, event in _events(exchange):
        if "error" in event:
            return f"error event: {event['error']}"
        if any(choice.get("text") for choice in event.get("choices", [])):
            times.append(time)
        tokens = _tokens(event["usage"]) if event.get("usage") else tokens
    if not times or not tokens:
        return "a stream without text or without usage"
    assert exchange.ended is not None
    gaps = tuple(later - earlier for earlier, later in pairwise(times))
    return Answer(exchange.scheduled, exchange.ended, tokens, times[0] - exchange.scheduled, gaps)


def _events(exchange: Exchange) -> Iterator[tuple[float, dict[str, Any]]]:
    """Events, each with the time at which its last byte came. Chunk sizes are lines that no event begins like."""
    left = b""
    for time, piece in exchange.pieces:
        *lines, left = (left + piece).split(b"\n")
        for line in lines:
            data = line.strip()
            if data.startswith(b"data:") and not data.endswith(b"[DONE]"):
                yield time, json.loads(data[5:])


def _plain(head: bytes, body: bytes) -> bytes:
    """The body without the frames of chunked transfer."""
    if b"transfer-encoding: chunked" not in head.lower():
        return body
    plain = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        length = int(size.split(b";")[0], 16)
        if length == 0:
            break
        plain, body = plain + body[:length], body[length + 2 :]
    return plain
