"""Test that workers share their numbers of connections."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from meari.service.workers import ConnectionBalance


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
    balance = ConnectionBalance()
    for worker, count in enumerate(held, 1):
        balance.note(worker, count)
    assert balance.has_clearly_more(1) is has_more


def test_ended_worker_does_not_count() -> None:
    balance = ConnectionBalance()
    balance.note(1, 5)
    balance.note(2, 0)
    balance.forget(2)
    assert not balance.has_clearly_more(1)


def test_processes_read_the_counts_of_one_another() -> None:
    balance = ConnectionBalance()
    balance.note(1, 5)
    child = os.fork()
    if not child:
        balance.note(2, 0)
        os._exit(0)
    os.waitpid(child, 0)
    assert balance.has_clearly_more(1)


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
        "import resource; from meari.service.workers import allowed_connections; "
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard})); "
        "print(allowed_connections(1000), resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(allowed), str(left_as)]
