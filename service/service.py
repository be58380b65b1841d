"""The running service: its parts, and the bundles that it serves, loaded in the background, each on its own.

Input: settings and the folder of bundles. Output: a `LoadedModel` by name, whether the service is ready, with the
reason if not, and the parts that every blueprint is given. A bundle that cannot be loaded is named with its reason and
does not keep the others from being served, nor the one before it. Must not know: Flask.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from msgspec import UNSET, UnsetType

from meari.bundle_format.folders import printable
from meari.errors import BundleError, NotReady, Problem, UnknownModel, did_you_mean
from meari.runtime.bundle import Bundle
from meari.runtime.engine import EngineLimits, EngineStats
from meari.runtime.machine import release_free_memory
from meari.runtime.model import LoadedModel
from meari.runtime.state_tokens import StateTokens
from meari.service.ahead import AHEAD
from meari.service.clients import Disconnects
from meari.service.host import Readiness, Report, WorkerState, readiness
from meari.service.log import flush_log
from meari.service.metrics import Metrics, WorkerFigures
from meari.service.reload import POLL_SECONDS, BundleLoader, Finding, FolderWatch, Load, may_open_files
from meari.service.requests.admission import Admission
from meari.service.requests.keys import KeyRing
from meari.service.requests.limits import Limits
from meari.service.requests.schema import Schemas
from meari.service.settings import Settings
from meari.service.tracing import Tracing
from meari.service.wishes import TURN_SECONDS, HostWishes, Wishes, WorkerReport
from meari.service.workers import Drain, Place

__all__ = ["Registry", "Service"]

HELD_SECONDS = 30.0  # longest that a request waits for the bundles of a worker that takes another one's place
MAX_LEAVING = 2  # engines of one name that were replaced and still have requests
RELEASE_SECONDS = 2.0  # between two times that freed memory is given back, which takes a few milliseconds
STOP_SECONDS = 5.0  # that a load in progress may take at the end
Allowed = tuple[str, ...] | None

log = logging.getLogger("meari.service.registry")  # as operators know it


class Registry:
    """The bundles by name, each with the engine that runs it.

    One background thread loads them, follows the changes of their folder and the wishes of admins, and stops engines
    that were replaced once their last request has ended. Any thread may look up, borrow and give back.

    serves  False in a worker that only tells that bundles are being opened
    """

    def __init__(
        self, settings: Settings, place: Place, load: Load | None = None, poll_seconds: float = POLL_SECONDS
    ) -> None:
        self._settings = settings
        self.serves = not AHEAD.is_opening
        self.place = place
        self._poll_seconds = poll_seconds
        self.wishes = HostWishes(settings.runtime_folder)
        self._watch = FolderWatch(settings.bundles, settings.signing_keys)
        limits = EngineLimits(settings.max_slots, settings.max_waiting, settings.cache_bytes)
        self._loader = BundleLoader(self._watch, limits, settings.signing_keys, load)
        self._thread: threading.Thread | None = None
        self._loaded = threading.Event()
        self._wake = threading.Event()
        self._stopping = False
        self._lock = threading.Lock()  # guards the next four, of which `_models` is replaced whole
        self._models: dict[str, LoadedModel] = {}
        self._leaving: list[LoadedModel] = []  # replaced or removed; their last requests are running
        self._uses: Counter[LoadedModel] = Counter()  # requests in progress
        self._past: dict[str, EngineStats] = {}  # of engines that have ended, by name
        self._failed: dict[str, str] = {}  # what is in the folder and cannot be served
        self._unloaded: frozenset[str] = frozenset()  # by admins
        self._problem: str | None = None
        self._named_default = ""
        self._signers = tuple(key.id for key in settings.signing_keys)
        self._num_wishes = 0
        self._release_at = 0.0  # when freed memory is given back next

    def start(self) -> None:
        """Start loading every bundle, in the background, if this worker serves any."""
        if not self.serves:
            return
        self._thread = threading.Thread(target=self._run, name="registry", daemon=True)
        self._thread.start()

    def stop(self) -> bool:
        """Stop every engine; return False if a bundle is still being loaded, which must not outlive the interpreter."""
        self._stopping = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(STOP_SECONDS)
        for model in [*self._models.values(), *self._leaving]:
            model.engine.stop()
        return self._thread is None or not self._thread.is_alive()

    def wake(self) -> None:
        """Look at folder and wishes now."""
        self._wake.set()

    def wait_loaded(self, timeout: float | None = None) -> bool:
        """Block until every bundle was loaded or has failed; return whether that is so."""
        return self._loaded.wait(timeout)

    # ---- any thread ----

    def get(self, name: str | UnsetType, allowed: Allowed = None) -> LoadedModel:
        """Return the model of that name, or the default. Raises UnknownModel, NotReady.

        allowed  names of the models that the caller may know of; None for all
        """
        self._check_loaded()
        return self._find(name, allowed)

    def borrow(self, name: str | UnsetType, allowed: Allowed = None) -> LoadedModel:
        """Return the model as `get` does; its engine runs until it was given back, even if it is replaced."""
        self._check_loaded()
        with self._lock:
            model = self._find(name, allowed)
            self._uses[model] += 1
            return model

    def give_back(self, model: LoadedModel) -> None:
        """Note that a request for a borrowed model has ended."""
        with self._lock:
            self._uses -= Counter((model,))

    def all(self, allowed: Allowed = None) -> list[LoadedModel]:
        """Return every allowed model that is being served, in the order of names. Raises NotReady."""
        self._check_loaded()
        return [model for name, model in self._models.items() if allowed is None or name in allowed]

    def loaded(self) -> list[LoadedModel]:
        """Return the models that have been loaded so far."""
        return list(self._models.values())

    def stats(self) -> dict[str, EngineStats]:
        """Return the counters of every model that was ever served: of its engine, and of those before it."""
        with self._lock:
            found = dict(self._past)
            for model in [*self._models.values(), *self._leaving]:
                found[model.name] = found.get(model.name, EngineStats()).plus(model.engine.stats())
            return found

    @property
    def default(self) -> str:
        """Name of the model for requests that name none.

        The setting; else the name in the folder's DEFAULT file, if that model is served; else the first by name.
        """
        if self._settings.default_model:
            return self._settings.default_model
        return self._named_default if self._named_default in self._models else next(iter(self._models), "")

    def default_of(self, allowed: Allowed) -> str:
        """Return the default where it is allowed, else the first allowed model that is being served; "" for none."""
        default = self.default
        if allowed is None or default in allowed:
            return default
        return next((name for name in allowed if name in self._models), "")

    def readiness(self) -> Readiness:
        """Return the state of the host, the same from every worker."""
        board = self.place.board
        states = (WorkerState.READY, WorkerState.DRAINING, WorkerState.FAILED)
        return readiness(board.host(), {state: list(board.reports(state)) for state in states})

    @property
    def nothing_to_serve(self) -> str:
        """Reason why no worker has a bundle, with the problem of each bundle; "" where one has, or may have."""
        board = self.place.board
        if self._problem is None or self._unloaded or board.was_ready or board.has(WorkerState.LOADING):
            return ""
        failed = "; ".join(f"{name}: {reason}" for name, reason in sorted(self._failed.items()))
        return f"{self._problem}:\n{failed}" if failed else self._problem

    def report_failed_engine(self) -> bool:
        """Tell whether an engine has ended for good, and the other workers why: one of them takes this one's place."""
        ended = [f"{model.name}: {model.engine.failure}" for model in self.loaded() if model.engine.failure]
        if ended:
            problem = f"an engine failed: {'; '.join(ended)}"
            self.place.report(Report(tuple(self._models), self._failed, problem, self._signers))
        return bool(ended)

    def _check_loaded(self) -> None:
        """Raise NotReady while there is nothing to serve.

        Once a worker has been ready, a request waits for the bundles: no other worker could answer it.
        """
        if not self._loaded.wait(HELD_SECONDS if self.serves and self.place.board.was_ready else 0):
            raise NotReady("the bundles are being loaded; try again")
        if self._problem is not None:
            raise NotReady(self._problem)

    def _find(self, name: str | UnsetType, allowed: Allowed) -> LoadedModel:
        wanted = self.default_of(allowed) if name is UNSET else name
        models = self._models
        is_allowed = allowed is None or wanted in allowed
        if is_allowed and wanted in models:
            return models[wanted]
        if is_allowed and wanted in self._unloaded:
            raise UnknownModel(Problem("model", reason=f"{wanted!r} was unloaded by an admin"))
        if is_allowed and wanted in self._failed:
            raise UnknownModel(Problem("model", reason=f"{wanted!r} could not be loaded: {self._failed[wanted]}"))
        known = [each for each in models if allowed is None or each in allowed]
        if not known:
            raise UnknownModel(Problem("model", reason="no model that this key is for is being served"))
        hint = did_you_mean(wanted, known)
        raise UnknownModel(Problem("model", repr(wanted[:100]), f"one of {', '.join(known)}{hint}"))

    # ---- the registry's thread ----

    def _run(self) -> None:
        self._load_all()
        is_well = True
        while not self._stopping:
            self._wake.wait(self._poll_seconds)
            self._wake.clear()
            if not may_open_files():  # clients have them all: nothing can be told of the folder now
                continue
            try:
                self._follow()
                is_well = True
            except Exception:
                if is_well:
                    log.exception("the folder of bundles cannot be followed")
                is_well = False

    def _load_all(self) -> None:
        try:
            wishes, found = self.wishes.read(), self._watch.first()
            for name in sorted(found.due.keys() - wishes.unloaded):
                if self._stopping:
                    return
                self._take(name, found.due[name])
            self._note(found, wishes)
            release_free_memory()
        except BundleError as error:
            self._problem = str(error)
        except Exception as error:
            log.exception("loading the bundles failed")
            self._problem = f"loading the bundles failed, which is a fault of the service: {type(error).__name__}"
        if self._problem is None:
            log.info("serving %s; default %s", ", ".join(self._models), self.default)
            flush_log()  # so that no line of the start follows the message that all are ready
        else:
            log.error("not ready: %s", self._problem)
        self._report()
        self._loaded.set()

    def _follow(self) -> None:
        """Take over what has changed since the last look, a bundle at a time and one worker of the host at a time."""
        if self._stop_idle() or time.monotonic() >= self._release_at:
            release_free_memory()
            self._release_at = time.monotonic() + RELEASE_SECONDS
        wishes = self.wishes.read()
        found = self._look(wishes)
        for name in self._models.keys() & wishes.unloaded:
            self._swap(name, None, "it was unloaded")
        for name in found.gone:
            self._swap(name, None, "it is gone from the folder")
        until = time.monotonic() + TURN_SECONDS
        for name, folder in found.due.items():
            if name in wishes.unloaded:
                continue
            if not self._may_swap(name):
                wishes = msgspec.structs.replace(wishes, number=self._num_wishes)  # what is asked for is not done yet
                continue
            with self.wishes.turn(until - time.monotonic()):
                self._take(name, folder)
        before = self._problem, self.default
        self._note(found, wishes)
        if (self._problem, self.default) != before:
            log.info("%s; default %s", self._problem or f"serving {', '.join(self._models)}", self.default)
        self._report()

    def _look(self, wishes: Wishes) -> Finding:
        wanted = wishes.loads_since(self._num_wishes)
        try:
            return self._watch.look(self._models, wanted)
        except BundleError as error:  # what is served goes on
            failed = dict.fromkeys((printable(self._settings.bundles), *wanted), str(error))
            return Finding(frozenset(self._loader.failed), failed=failed, default=self._named_default)

    def _may_swap(self, name: str) -> bool:
        """Tell whether a bundle may be loaded beside those that it replaces: their memory adds up."""
        return sum(model.name == name for model in self._leaving) < MAX_LEAVING and not self._stopping

    def _take(self, name: str, folder: Path) -> None:
        """Load a bundle and serve it from now on; if it cannot be, the one before stays."""
        model = self._loader.load(name, folder, self._models.get(name))
        if model is not None:
            self._swap(name, model)

    def _swap(self, name: str, model: LoadedModel | None, reason: str = "") -> None:
        """Serve a model, or none, under a name; the one before ends with its last request."""
        with self._lock:
            old = self._models.get(name)
            others = {key: each for key, each in self._models.items() if key != name}
            self._models = dict(sorted((others if model is None else others | {name: model}).items()))
            if old is not None:
                self._leaving.append(old)
        if model is None:
            log.info("bundle %s is no longer served: %s", name, reason)
        elif self._loaded.is_set():
            before = f", before it {old.bundle.hash[:12]}" if old is not None else ""
            log.info("bundle %s is served: %s%s", name, model.bundle.hash[:12], before)

    def _stop_idle(self) -> bool:
        """Stop the engines that were replaced and whose last request has ended; returns whether there were any."""
        with self._lock:
            idle = [model for model in self._leaving if not self._uses[model]]
        for model in idle:
            if model.engine.stop():
                with self._lock:
                    self._leaving.remove(model)
                    self._past[model.name] = self._past.get(model.name, EngineStats()).plus(model.engine.stats())
        return bool(idle)

    def _note(self, found: Finding, wishes: Wishes) -> None:
        """Keep the result of a look, after its bundles were loaded."""
        for name, problem in found.failed.items():
            if self._failed.get(name) != problem:
                log.error("%s in the folder of bundles cannot be used: %s", name, problem)
        self._loader.forget_others(found.names - wishes.unloaded)
        self._failed = found.failed | self._loader.failed
        self._named_default, self._unloaded, self._num_wishes = found.default, wishes.unloaded, wishes.number
        root = printable(self._settings.bundles)
        nothing = f"no bundle in {root} could be loaded" if found.names else f"there is no bundle in {root}"
        nothing = "no model is loaded" if found.names & self._unloaded else nothing
        self._problem = None if self._models else nothing

    def _report(self) -> None:
        if not self.report_failed_engine():
            self.place.report(Report(tuple(self._models), self._failed, self._problem or "", self._signers))
        hashes = {name: model.bundle.hash for name, model in self._models.items()}
        self.wishes.report(WorkerReport(os.getpid(), self._num_wishes, hashes, self._failed))


@dataclass(frozen=True, eq=False)
class Service:
    """The parts of the service; safe to share between threads, because every part guards itself."""

    settings: Settings
    schemas: Schemas
    registry: Registry
    admission: Admission
    metrics: Metrics
    drain: Drain
    disconnects: Disconnects
    state_keys: tuple[str, ...] = field(repr=False)  # the first signs state tokens, every one verifies
    keys: KeyRing | None = field(default=None, repr=False)  # None where no keys are set: anybody may ask
    limits: Limits | None = None  # None where no keys are set
    tracing: Tracing | None = None  # None where no traces are wanted
    streams: set[object] = field(default_factory=set, repr=False)  # open ones; `add` and `discard` are atomic
    _state_tokens: dict[str, StateTokens] = field(default_factory=dict, init=False, repr=False)  # by the bundle's hash

    def state_tokens(self, bundle: Bundle) -> StateTokens:
        """Return the codec of a bundle's state tokens."""
        found = self._state_tokens.get(bundle.hash)
        if found is None:
            for replaced in self._state_tokens.keys() - {model.bundle.hash for model in self.registry.loaded()}:
                self._state_tokens.pop(replaced, None)
            found = StateTokens.of(bundle, self.state_keys, self.settings.state_seconds)
            self._state_tokens[bundle.hash] = found
        return found

    def observe(self) -> None:
        """Copy the engines' counters and the worker's state to the metrics."""
        served = {model.name for model in self.registry.loaded()}
        self.metrics.observe_engines(served, self.settings.max_slots, self.registry.stats)
        fixed = math.fsum(stats.fixed_seconds for stats in self.registry.stats().values())
        self.admission.observe(time.process_time(), fixed)
        readiness = self.registry.readiness()
        self.metrics.observe_worker(
            WorkerFigures(
                failed_bundles=frozenset(readiness.failed),
                requests_in_flight=self.admission.num_requests,
                inflight_bytes=self.admission.num_bytes,
            )
        )
