"""Test what the workers of a host tell one another, and the end of one of them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from meari.service.host import Report, WorkerState
from meari.service.workers import Board, Drain, Place

LOADING, READY, FAILED, DRAINING = (
    WorkerState.LOADING, WorkerState.READY, WorkerState.FAILED, WorkerState.DRAINING,
)  # fmt: skip


def places(*states: WorkerState) -> list[Place]:
    """Return the places of workers in these states on one board."""
    board = Board(max_workers=8)
    board.begin(expected=len(states))
    found = [Place(board, board.take()) for _ in states]
    for place, state in zip(found, states, strict=True):
        board.set_state(place.slot, state)
    return found


@pytest.mark.parametrize(
    ("held", "has_more"),
    [
        ([0], False),
        ([7], False),
        ([1, 0], True),
        ([0, 1], False),
        ([1, 1], False),
        ([3, 2], True),
        ([100, 95], False),
        ([100, 80], True),
        ([5, 9, 4], True),
        ([5, 9, 5], False),
    ],
)
def test_worker_with_clearly_more_connections_is_found(held: list[int], has_more: bool) -> None:
    workers = places(*[READY] * len(held))
    for place, count in zip(workers, held, strict=True):
        place.note_connections(count)
    assert workers[0].has_clearly_more is has_more


@pytest.mark.parametrize("state", [WorkerState.FREE, LOADING, FAILED, DRAINING])
def test_worker_that_takes_no_connections_does_not_count(state: WorkerState) -> None:
    busy, other = places(READY, state)
    busy.note_connections(5)
    other.note_connections(0)
    assert not busy.has_clearly_more


def test_slot_of_an_ended_worker_begins_anew() -> None:
    first, second = places(READY, READY)
    first.report(Report(("letters",), {}, ""))
    first.note_connections(5)
    first.board.free(first.slot)
    assert first.board.take() == first.slot
    assert first.board.host().loading == 1
    assert not list(first.board.reports(LOADING))
    assert not second.has_clearly_more
    assert first.board.host().starts == 3


def test_processes_read_what_the_others_write() -> None:
    first, second = places(READY, LOADING)
    child = os.fork()
    if not child:
        second.note_connections(0)
        second.report(Report(("letters",), {"broken": "é"}, ""))
        os._exit(0)
    os.waitpid(child, 0)
    first.note_connections(5)
    assert first.has_clearly_more
    assert first.board.host().ready == 2
    assert list(first.board.reports(READY)) == [Report(("letters",), {"broken": "é"}, "")]


@pytest.mark.parametrize(
    ("states", "accepts"),
    [
        ([LOADING], True),  # the first start: somebody has to tell probes why
        ([FAILED, LOADING], True),
        ([LOADING, READY], False),
        ([FAILED, READY], False),
        ([LOADING, DRAINING], False),
        ([READY, READY], True),
        ([DRAINING, READY], False),
        ([DRAINING, LOADING], True),
        ([DRAINING], True),
    ],
)
def test_worker_accepts_if_it_can_answer_or_nobody_else_can(states: list[WorkerState], accepts: bool) -> None:
    assert places(*states)[0].accepts is accepts


def test_every_worker_accepts_while_the_host_drains() -> None:
    workers = places(LOADING, READY, DRAINING)
    workers[0].board.drain()
    assert all(place.accepts for place in workers)


def test_new_master_lets_the_old_one_answer_until_a_worker_is_ready() -> None:
    first, second = places(LOADING, LOADING)
    first.board.begin(2, is_upgrade=True)
    before = first.accepts
    first.report(Report(("letters",), {}, ""))
    assert (before, first.accepts) == (False, True)
    first.board.free(first.slot)
    assert second.accepts


def test_worker_without_a_bundle_that_another_serves_is_not_ready_until_nobody_does() -> None:
    old, new = places(LOADING, LOADING)
    old.report(Report(("letters", "words"), {}, ""))
    new.report(Report(("letters",), {"words": "it is broken"}, ""))
    assert (old.state, new.state) == (READY, FAILED)
    [report] = new.board.reports(FAILED)
    assert report.problem == "could not load what other workers serve: words"
    old.board.free(old.slot)
    new.refresh()
    assert new.state is READY


def test_worker_does_not_wait_for_a_bundle_whose_signature_only_older_settings_took() -> None:
    old, new = places(LOADING, LOADING)
    old.report(Report(("letters", "words"), {}, ""))
    new.report(Report(("letters",), {"words": "signature.json: missing"}, "", ("0123456789abcdef",)))
    assert (old.state, new.state) == (READY, READY)


def test_long_reasons_are_cut_before_names_are_lost() -> None:
    [place] = places(LOADING)
    place.report(Report(("letters",), {f"bundle-{i}": "x" * 9000 for i in range(20)}, ""))
    [report] = place.board.reports(READY)
    assert report.models == ("letters",)
    assert set(report.failed) == {f"bundle-{i}" for i in range(20)}


def test_half_written_report_counts_as_none() -> None:
    [place] = places(LOADING)
    place.report(Report(("letters",), {}, ""))
    place.board._texts[20] ^= 1
    assert not list(place.board.reports(READY))


def test_worker_that_drains_never_becomes_ready_again() -> None:
    [place] = places(LOADING)
    place.drain()
    place.report(Report(("letters",), {}, ""))
    assert place.state is DRAINING


@pytest.mark.parametrize(
    ("soft", "hard", "allowed", "left_as"),
    [
        (200, 2000, 1000, 1064),  # raised to the needed number
        (200, 500, 436, 500),  # raised to the hard limit
        (1500, 2000, 1000, 1500),
        (40, 40, 1, 40),
    ],
)
def test_limit_of_open_files_bounds_the_connections_of_a_worker(
    soft: int, hard: int, allowed: int, left_as: int
) -> None:
    program = (
        "import resource; from meari.service.host import allowed_connections; "
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard})); "
        "print(allowed_connections(1000), resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(allowed), str(left_as)]


def test_worker_that_ends_alone_serves_until_another_is_ready() -> None:
    old, new = places(READY, LOADING)
    now = [0.0]
    drain = Drain(5, 100, old, lambda: now[0])
    drain.begin()
    assert not drain.refuses_work
    assert not drain.may_stop(0)
    new.report(Report(("letters",), {}, ""))
    assert not drain.may_stop(1)
    assert drain.may_stop(0)
    now[0] = 100
    assert drain.may_stop(1)


def test_worker_refuses_work_while_the_host_drains() -> None:
    worker, _ = places(READY, READY)
    now = [0.0]
    drain = Drain(5, 100, worker, lambda: now[0])
    worker.board.drain()
    drain.begin()
    assert drain.refuses_work
    assert not drain.may_stop(0)
    now[0] = 5
    assert drain.may_stop(0)
