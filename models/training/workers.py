"""Processes that train one model together, started by `torchrun`; or a single process.

Input: gradients, sums, states and decisions of one process. Output: those of all processes. Must not know: models,
text.

Training is data-parallel, so that N processes compute what one would: all read the same chunks and draw the same random
numbers, and each takes its share of the rows. Losses and gradients are means over equal shares, so their mean over the
processes is that of the whole batch. Weights and moments stay equal because every process moves them alike; only the
first one measures, shows and writes.
"""

import contextlib
import datetime as dt
import hashlib
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist

# Default arguments of this module hold the process group that is there when it is imported, which torch's optimizers
# do. Before a group is there, nothing is held, and the group's threads end with it instead of aborting at exit.
import torch.distributed.nn
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from meari.models.errors import ProcessFailed, TrainingError

T = TypeVar("T")

SAME_CORPUS = "corpus or tokenizer than the others; every host needs the same files and versions"
JOIN_WAIT = dt.timedelta(minutes=10)
POLL_SECONDS = 0.02
MAX_WAIT = dt.timedelta(days=1)  # the others wait while the first one reads the corpus or measures


class Workers:
    """All processes of a run, seen from one of them. This class is for a single process.

    rank, size   which of how many, from 0
    owns_folder  whether the process writes a run folder that the first one does not see, of another host
    """

    rank = 0
    size = 1
    owns_folder = False

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def writes(self) -> bool:
        """True in one process for each run folder."""
        return self.is_first or self.owns_folder

    def rows(self, batch_size: int) -> slice:
        """Return the rows of a batch that belong to this process. Raises TrainingError if shares would not be equal."""
        if batch_size % self.size:
            raise TrainingError(
                f"training.batch_size: got {batch_size}, expected a multiple of the number of processes ({self.size})"
            )
        share = batch_size // self.size
        return slice(self.rank * share, (self.rank + 1) * share)

    def average_gradients(self, weights: Sequence[nn.Parameter], loss: Tensor) -> Tensor:
        """Put the mean over all processes into the weights' gradients; returns the mean of the loss, a scalar."""
        return loss

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor's numbers by their sum over all processes."""

    def gathered(self, rows: Tensor) -> Tensor:
        """Return [B, …] of every process, concatenated: [size * B, …]."""
        return rows

    def largest(self, number: int) -> int:
        """Return the largest of the numbers of all processes: their way of agreeing on something."""
        return number

    def sent(self, data: bytes, source: int) -> bytes:
        """Return the bytes that the process of rank `source` has; those of the others are ignored."""
        return data

    def same(self, text: str, what: str) -> str:
        """Return a text that all processes must have alike. Raises TrainingError in all of them if they do not.

        what  its name for a message, and the remedy
        """
        number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7])
        if self.largest(number) != -self.largest(-number):
            raise TrainingError(f"process {self.rank} of {self.size}: got another {what}")
        return text

    def first(self, action: Callable[[], object]) -> None:
        """Do something in the first process while the others wait. Raises ProcessFailed in the others if it fails."""
        action()

    def from_first(self, measure: Callable[[], float]) -> float:
        """Return a measurement of the first process. Raises ProcessFailed in the others if it fails."""
        return measure()

    def in_turn(self, action: Callable[[], T]) -> T:
        """Do something in one process after the other. Raises ProcessFailed in all later ones if it fails."""
        return action()


SINGLE_PROCESS = Workers()


class TorchrunWorkers(Workers):
    """Processes that `torchrun` started; each calls the same methods in the same order."""

    def __init__(self, device: torch.device) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._device = device

    def average_gradients(self, weights: Sequence[nn.Parameter], loss: Tensor) -> Tensor:
        # One reduction for all. A weight that no process used has no gradient, and the optimizer leaves it alone; one
        # that only another process used has zeros here.
        shares = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
        used = torch.tensor([weight.grad is not None for weight in weights], dtype=torch.float32, device=self._device)
        flat = torch.cat([loss.detach().view(1), used, *(share.flatten() for share in shares)])
        self.add_up([flat])
        flat /= self.size
        mean_loss, users, *means = torch.split(flat, [1, len(shares), *(share.numel() for share in shares)])
        for weight, is_used, mean in zip(weights, users.tolist(), means, strict=True):
            weight.grad = mean.view_as(weight) if is_used else None
        return mean_loss.squeeze(0)

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            with _lost_process_errors():
                dist.all_reduce(tensor)

    def gathered(self, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(self.size)]
        with _lost_process_errors():
            dist.all_gather(parts, rows.detach().contiguous())
        return torch.cat(parts)

    def largest(self, number: int) -> int:
        numbers = torch.tensor([number], device=self._device)
        with _lost_process_errors():
            dist.all_reduce(numbers, dist.ReduceOp.MAX)
        return int(numbers)

    def sent(self, data: bytes, source: int) -> bytes:
        length = torch.tensor([len(data)], device=self._device)
        with _lost_process_errors():
            dist.broadcast(length, src=source)
        own = bytearray(data) if self.rank == source else bytearray(int(length))
        if not own:
            return b""
        content = torch.frombuffer(own, dtype=torch.uint8).to(self._device)
        with _lost_process_errors():
            dist.broadcast(content, src=source)
        return content.cpu().numpy().tobytes()

    def first(self, action: Callable[[], object]) -> None:
        if self.is_first:
            self._watched(action)
        else:
            self._wait()

    def from_first(self, measure: Callable[[], float]) -> float:
        measured = [0.0]
        self.first(lambda: measured.insert(0, measure()))
        number = torch.tensor(measured[:1], dtype=torch.float64, device=self._device)
        with _lost_process_errors():
            dist.broadcast(number, src=0)
        return float(number)

    def in_turn(self, action: Callable[[], T]) -> T:
        results: list[T] = []
        for turn in range(self.size):
            if turn == self.rank:
                results.append(self._watched(action))
            else:
                self._wait()
        return results[0]

    def _watched(self, action: Callable[[], T]) -> T:
        """Do something that the others wait for, and notify them if it fails."""
        try:
            result = action()
        except BaseException:
            self.largest(1)
            raise
        self.largest(0)
        return result

    def _wait(self) -> None:
        if self.largest(0):
            raise ProcessFailed(f"process {self.rank} of {self.size} ends because another one failed")


@contextlib.contextmanager
def joined_workers(device: torch.device, batch_size: int) -> Iterator[Workers]:
    """Join the processes of this run within the block; none leaves it normally before all others are done.

    Raises TrainingError: batch_size has no equal shares, or there are more processes on a machine than GPUs.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield SINGLE_PROCESS
        return
    _take_gpu(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    store, rank, size = next(rendezvous("env://", timeout=JOIN_WAIT))
    own = PrefixStore(agree_on_round(store, rank, size), store)
    dist.init_process_group(backend, store=own, rank=rank, world_size=size, timeout=MAX_WAIT)
    try:
        workers = TorchrunWorkers(device)
        workers.rows(batch_size)
        yield workers
        workers.largest(0)
    finally:
        dist.destroy_process_group()


def agree_on_round(store: Store, rank: int, size: int) -> str:
    """Return a name that these very processes share, and no earlier ones that torchrun has started for this run.

    torchrun keeps its store when it starts the processes again, with the addresses of those that have ended; under a
    new name nobody finds them. Each process leaves a number of its own. The first offers the numbers that it finds,
    which may be of ended processes, until all have confirmed an offer with theirs. Raises ProcessFailed.
    """
    number = uuid.uuid4().hex
    store.set(f"number/{rank}", number)
    until = time.monotonic() + JOIN_WAIT.total_seconds()
    while time.monotonic() < until:
        if rank == 0:
            offer = " ".join(_read(store, f"number/{each}") for each in range(size))
            store.set("offer", offer)
            if all(_read(store, f"confirmed/{each}") == offer for each in range(1, size)):
                store.set("round", offer)
        else:
            offer = _read(store, "offer")
            if number in offer:
                store.set(f"confirmed/{rank}", offer)
        agreed = _read(store, "round")
        if number in agreed:
            return hashlib.sha256(agreed.encode()).hexdigest()
        time.sleep(POLL_SECONDS)
    raise ProcessFailed(f"process {rank} of {size}: the others have not come within {JOIN_WAIT}")


def _read(store: Store, key: str) -> str:
    return store.get(key).decode() if store.check([key]) else ""


def _take_gpu(device: torch.device) -> None:
    """Make this process's own GPU the one that `cuda` means."""
    if device.type != "cuda":
        return
    index, num_gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if index >= num_gpus:
        raise TrainingError(f"--nproc-per-node: got more than {num_gpus}, expected at most one process a GPU")
    torch.cuda.set_device(index)


@contextlib.contextmanager
def _lost_process_errors() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise ProcessFailed(f"another process of this run has ended: {error}") from error
