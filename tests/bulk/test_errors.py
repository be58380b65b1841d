"""Test signals while bulk work imports its libraries."""

from __future__ import annotations

import signal

import pytest

from meari.bulk.errors import Interrupted, interruptible


def import_interrupted_by(number: signal.Signals) -> None:
    try:
        signal.raise_signal(number)
    except Interrupted as interrupted:  # as a compiled module does
        raise ImportError("initialization failed") from interrupted


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_that_an_import_turns_into_its_own_error_is_an_interruption(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as caught, interruptible():
        import_interrupted_by(number)
    assert caught.value.exit_code == 128 + number
    assert signal.getsignal(number) is before


def test_error_of_an_import_without_a_signal_stays() -> None:
    with pytest.raises(ImportError, match="no such library"), interruptible():
        raise ImportError("no such library")
