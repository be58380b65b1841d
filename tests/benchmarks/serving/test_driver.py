"""Test the load driver and the reading of responses against a small real server."""

import itertools
from collections.abc import Iterator

import pytest

from benchmarks.serving.answers import Answers, read_answers
from benchmarks.serving.driver import Address, LoadRequest, LoadResult, drive_closed, drive_open
from benchmarks.serving.measured_servers import http_post
from tests.benchmarks.serving.small_server import NUM_PIECES, SmallServer, running


@pytest.fixture
def server() -> Iterator[SmallServer]:
    with running() as started:
        yield started


def ask(path: str, max_tokens: int = 7, *, stream: bool = False) -> LoadRequest:
    return LoadRequest(http_post(path, {"prompt": "a", "max_tokens": max_tokens, "stream": stream}), max_tokens)


def drive(
    server: SmallServer, *asks: LoadRequest, num_clients: int = 3, seconds: float = 0.3, drain: float = 5.0
) -> tuple[LoadResult[int], Answers]:
    counter = itertools.count()
    driven = drive_closed(
        Address(server.port),
        itertools.cycle(asks),
        num_clients=num_clients,
        seconds=seconds,
        warmup_seconds=0.05,
        drain_seconds=drain,
        edge=lambda with_memory: next(counter),
    )
    return driven, read_answers(driven.exchanges)


@pytest.mark.parametrize("path", ["/whole", "/chunked", "/close"])
def test_closed_loop_reads_every_whole_response(server: SmallServer, path: str) -> None:
    driven, answers = drive(server, ask(path, 7), ask(path, 9))
    assert len(answers.whole) == len(driven.exchanges) == server.num_requests
    assert {answer.tokens for answer in answers.whole} == {7, 9}
    assert (answers.num_failed, answers.late, answers.refusal_seconds) == (0, [], [])
    assert all(answer.first == answer.seconds for answer in answers.whole)


def test_window_begins_and_ends_with_a_measurement(server: SmallServer) -> None:
    driven, _ = drive(server, ask("/whole"))
    assert (driven.first, driven.last) == (0, 1)
    assert driven.begin < driven.end
    assert driven.driver_cpu_seconds > 0


def test_stream_has_a_first_text_and_the_gaps_between_texts(server: SmallServer) -> None:
    _, answers = drive(server, ask("/stream", stream=True), num_clients=1)
    assert answers.whole
    for answer in answers.whole:
        assert answer.tokens == 7
        assert len(answer.gaps) == NUM_PIECES - 1
        assert 0 < answer.first <= answer.seconds


def test_refusals_and_failures_are_counted_separately(server: SmallServer) -> None:
    _, answers = drive(server, ask("/refuse"), ask("/break"), num_clients=2)
    assert answers.refusal_seconds
    assert answers.num_failed > 0
    assert not answers.whole
    assert "status 500" in answers.problems[0]


def test_response_after_the_deadline_is_late_and_not_failed(server: SmallServer) -> None:
    _, answers = drive(server, ask("/silent"), num_clients=2, seconds=0.1, drain=0.05)
    assert len(answers.late) == 2
    assert answers.num_failed == 0
    assert all(first == whole > 0 for first, whole in answers.late)


def test_open_loop_sends_every_arrival_at_its_time(server: SmallServer) -> None:
    offsets = [0.0, 0.05, 0.05, 0.2]
    driven = drive_open(
        Address(server.port),
        [(offset, ask("/whole")) for offset in offsets],
        seconds=0.25,
        drain_seconds=5.0,
        edge=lambda with_memory: None,
    )
    scheduled = [exchange.scheduled - driven.begin for exchange in driven.exchanges]
    assert scheduled == pytest.approx(offsets, abs=1e-6)
    assert all(exchange.pieces[0][0] >= exchange.scheduled for exchange in driven.exchanges)
    assert len(read_answers(driven.exchanges).whole) == len(offsets)


def test_missing_server_is_a_failure() -> None:
    with running() as server:
        port = server.port
    driven = drive_open(
        Address(port), [(0.0, ask("/whole"))], seconds=0.05, drain_seconds=5.0, edge=lambda with_memory: None
    )
    answers = read_answers(driven.exchanges)
    assert answers.num_failed == 1
    assert "Error" in answers.problems[0]
