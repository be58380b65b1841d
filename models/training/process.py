"""The training process: its device, its threads, the name of its machine, and the signals that stop it.

Input: a device and a number of threads; signals. Output: settings of torch for a while; `StopRequest.signal`.
Must not know: models, text.

A signal is noted, and the loop asks for it between two steps. A second signal has its usual effect.
"""

import contextlib
import os
import platform
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch

from meari.models.choices import Device
from meari.models.errors import TrainingError

INSTRUCTIONS = frozenset(("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm", "sve"))
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def choose_device(wanted: Device) -> torch.device:
    """Return the GPU if there is one and it is wanted. Raises TrainingError if `cuda` is asked for and missing."""
    if wanted is Device.CUDA and not torch.cuda.is_available():
        raise TrainingError('training.device: got "cuda", but torch finds no GPU here; use "auto" or "cpu"')
    use_cuda = wanted is not Device.CPU and torch.cuda.is_available()
    return torch.device("cuda" if use_cuda else "cpu")


@contextlib.contextmanager
def fast_torch(threads: int) -> Iterator[None]:
    """Use that many threads (0: torch's own choice) and flush denormal numbers, which are slow, to zero.

    Both hold for the whole process, so both are put back at the end.
    """
    before = torch.get_num_threads()
    if threads:
        torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(before)


def describe_machine(device: torch.device, num_processes: int = 1) -> str:
    """Describe the machine of a training, for the figures."""
    described = _described(device)
    return described if num_processes == 1 else f"{num_processes} processes, each: {described}"


def _described(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    return f"{processor()}, threads: {torch.get_num_threads()} of {os.cpu_count()} cores, torch {torch.__version__}"


def processor() -> str:
    """Return the CPU's name, with the instructions that matrix products may use: the last bits depend on them."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    found = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in reversed(lines))}
    used = [each for each in (found.get("flags") or found.get("Features", "")).split() if each in INSTRUCTIONS]
    name = found.get("model name") or platform.processor() or platform.machine()
    return f"{name} ({', '.join(used)})" if used else name


class StopRequest:
    """Signal that asked to stop, if any."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Catch the first SIGINT or SIGTERM within the block; in another thread than the main one, none."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}

    def note(number: int, _frame: FrameType | None) -> None:
        request.signal = signal.Signals(number)
        _restore()

    def _restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in _SIGNALS:
        signal.signal(number, note)
    try:
        yield request
    finally:
        _restore()
