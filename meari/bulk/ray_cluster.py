"""The Ray that works: items to tasks or actors, their results as they come.

Input: items and the function that works on one. Output: results. Must not know: what the work is.

Ray Data has the actors, the retries when one dies with its node, and the queue. What needs no preparation is done by
tasks of Ray itself, which take milliseconds to start. Through the object store pass only items and results, some
hundred bytes each. A cluster at RAY_ADDRESS is used; without one, one is started here.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any, Final, NamedTuple, Self

from meari.bulk.errors import BadLine, BulkError
from meari.errors import MeariError

__all__ = ["RayCluster"]

MAX_BLOCKS: Final = 10_000
OBJECT_STORE_BYTES: Final = 128 << 20  # of a Ray that is started here
STARTS: Final = 3  # Ray gives its processes 15 s, too few for some busy machines
QUEUED: Final = 4  # tasks for each worker
Work = Callable[[bytes], bytes]


class RayCluster:
    """A cluster from its first use on. A context manager: what is started here ends with it.

    num_workers  at a time, None for one on each CPU of the cluster
    tell         takes what a user should know
    """

    def __init__(self, num_workers: int | None, tell: Callable[[str], None]) -> None:
        self._num_workers = num_workers
        self._tell = tell
        self._is_ours = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_ours:
            import ray

            ray.shutdown()

    def _ray(self) -> Any:
        """Return the module, once it has a cluster. Raises BulkError."""
        try:
            import ray
            from ray.data import DataContext
        except ImportError:
            raise BulkError("--engine ray: got an installation without Ray, expected meari[ray]") from None
        os.environ.setdefault("RAY_DATA_USAGE_DISABLED", "1")  # a process and a query of Prometheus for each job
        if not ray.is_initialized():
            self._is_ours = True
            try:
                self._start()
            except Exception as error:  # noqa: BLE001 (Ray raises nothing narrower)
                raise BulkError(f"Ray: {error}; expected a cluster at RAY_ADDRESS, or one that starts here") from None
            logging.getLogger("ray.data").setLevel(logging.ERROR)
        DataContext.get_current().enable_progress_bars = False
        return ray

    def _start(self) -> None:
        import ray

        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if address := os.environ.get("RAY_ADDRESS"):
            ray.init(address=address, **quiet)
            return
        from meari.runtime.machine import granted_cpus

        num_cpus = self._num_workers or granted_cpus()
        self._tell(f"without RAY_ADDRESS, a Ray with {num_cpus} CPUs starts here, for this run alone")
        own: dict[str, Any] = {"object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
        for left in reversed(range(STARTS)):
            try:
                ray.init(address="local", num_cpus=num_cpus, **own, **quiet)
                return
            except Exception:  # Ray raises nothing narrower
                if not left:
                    raise
                ray.shutdown()

    @property
    def num_workers(self) -> int:
        """Number of workers at a time."""
        return self._num_workers or max(1, int(self._ray().cluster_resources().get("CPU", 1)))

    def share(self, value: object) -> list[Any]:
        """Put a value into the object store; `RayCluster.shared` reads it in a worker."""
        return [self._ray().put(value)]

    @staticmethod
    def shared(holder: Sequence[Any]) -> Any:
        """Return a value that the driver has shared."""
        import ray

        return ray.get(holder[0])

    def in_tasks(self, items: Sequence[bytes], work: Callable[..., bytes], **given: Any) -> Iterator[tuple[int, bytes]]:
        """Work on each item; yield its number and the result as they come. Raises BadLine, BulkError."""
        if not items:
            return
        ray = self._ray()
        task, shared = ray.remote(num_cpus=1)(_outcome), ray.put(partial(work, **given))
        left, queued = enumerate(items), QUEUED * self.num_workers
        futures: dict[Future[Outcome], int] = {}
        with _failures_of(ray):
            while True:
                some = islice(left, queued - len(futures))
                futures |= {task.remote(shared, item).future(): number for number, item in some}
                if not futures:
                    return
                for done in wait(futures, return_when=FIRST_COMPLETED).done:  # `ray.wait` loses what signals raise
                    yield futures.pop(done), _checked(done.result())

    def in_actors(self, items: Sequence[bytes], make: Callable[..., Work], **given: Any) -> Iterator[tuple[int, bytes]]:
        """Let actors that `make` has prepared work on the items; see `in_tasks`. Raises BadLine, BulkError."""
        if not items:
            return
        ray, count = self._ray(), min(self.num_workers, len(items))
        rows = [{"number": number, "item": item} for number, item in enumerate(items)]
        results = ray.data.from_items(rows, override_num_blocks=min(len(items), MAX_BLOCKS)).map_batches(
            Actor,
            fn_constructor_kwargs={"make": partial(make, **given)},
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=count, initial_size=count),
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=1,
        )
        with _failures_of(ray):
            for row in results.iter_rows():
                yield row.pop("number"), _checked(Outcome(**row))


class Outcome(NamedTuple):
    """What became of an item: a result, or why there is none: a bad line, or a failure."""

    result: bytes = b""
    problem: str = ""
    failure: str = ""


def _checked(outcome: Outcome) -> bytes:
    """Return the result. Raises BadLine, BulkError."""
    if outcome.problem:
        raise BadLine(outcome.problem)
    if outcome.failure:
        raise BulkError(outcome.failure)
    return outcome.result


@contextmanager
def _failures_of(ray: Any) -> Iterator[None]:
    """Raise BulkError for what Ray could not do."""
    try:
        yield
    except ray.exceptions.RayError as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise BulkError(f"Ray: {reason}; what is done is kept, --resume goes on") from error


class Actor:
    """A process that is prepared once and then works on one item after another."""

    def __init__(self, make: Callable[[], Work]) -> None:
        self._work: Work | None = None
        self._failure = ""
        try:
            self._work = make()
        except (BulkError, MeariError) as error:
            self._failure = str(error)

    def __call__(self, batch: Any) -> Any:
        """Work on an item, as Ray Data calls it: a table of one row in and out."""
        import pyarrow as pa

        [item] = batch["item"].to_pylist()
        outcome = Outcome(failure=self._failure) if self._work is None else _outcome(self._work, item)
        return pa.table({"number": batch["number"], **{name: [cell] for name, cell in outcome._asdict().items()}})


def _outcome(work: Work, item: bytes) -> Outcome:
    try:
        return Outcome(work(item))
    except BadLine as error:
        return Outcome(problem=str(error))
    except (BulkError, MeariError) as error:
        return Outcome(failure=str(error))
