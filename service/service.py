"""The running service: its parts, and the bundles that it serves, loaded once in the background, each on its own.

Input: settings and the folder of bundles. Output: a `LoadedModel` by name, whether the service is ready, with the
reason if not, and the parts that every blueprint is given. A bundle that cannot be loaded is named with its reason and
does not keep the others from being served. Must not know: Flask.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from msgspec import UNSET, UnsetType

from meari.bundle_format.folders import BundleFolders, find_bundles, printable
from meari.errors import BundleError, MeariError, NotReady, Problem, UnknownModel, did_you_mean
from meari.runtime.bundle import Bundle
from meari.runtime.engine import EngineLimits
from meari.runtime.engine.cache import CacheRoom
from meari.runtime.machine import release_free_memory
from meari.runtime.model import LoadedModel, load_model
from meari.runtime.state_tokens import StateTokens
from meari.service.clients import Disconnects
from meari.service.log import flush_log
from meari.service.metrics import Metrics, WorkerFigures
from meari.service.requests.admission import Admission
from meari.service.requests.keys import KeyRing
from meari.service.requests.schema import Schemas
from meari.service.settings import Settings
from meari.service.tracing import Tracing
from meari.service.workers import Drain, ReadyMarks

__all__ = ["Readiness", "Registry", "Service"]

MIN_KNEE = 8  # requests; an engine may have measured its knee at a bad moment
KNEE_SHARE = 7 / 8  # an engine knows its knee as a power of two only; a few less cost 1 % of the tokens, 15 % of p95

log = logging.getLogger("meari.service.registry")  # as operators know it


@dataclass(frozen=True)
class Readiness:
    """State of the service: ready to take requests or not, and why.

    `failed` maps the bundles that could not be loaded to the reason.
    """

    ready: bool
    reason: str
    models: tuple[str, ...]
    failed: dict[str, str]


class Registry:
    """The bundles by name. One background thread fills it, all others read; each attribute is replaced whole, once."""

    def __init__(
        self, settings: Settings, marks: ReadyMarks, load: Callable[[Path, EngineLimits], LoadedModel] | None = None
    ) -> None:
        self._settings = settings
        self._marks = marks
        self._load = load or functools.partial(load_model, signing_keys=settings.signing_keys)
        self._models: dict[str, LoadedModel] = {}
        self._failed: dict[str, str] = {}
        self._problem: str | None = None
        self._named_default = ""
        self._loaded = threading.Event()

    def start(self) -> None:
        """Start loading every bundle, in the background."""
        threading.Thread(target=self._load_all, name="registry", daemon=True).start()

    def stop(self) -> None:
        """Stop every engine."""
        for model in self._models.values():
            model.engine.stop()

    def wait_loaded(self, timeout: float | None = None) -> bool:
        """Block until every bundle was loaded or has failed; return whether that is so."""
        return self._loaded.wait(timeout)

    def get(self, name: str | UnsetType, allowed: tuple[str, ...] | None = None) -> LoadedModel:
        """Return the model of that name, or the default. Raises UnknownModel, NotReady.

        allowed  names of the models that the caller may know of; None for all
        """
        self._check_loaded()
        wanted = self.default_of(allowed) if name is UNSET else name
        is_allowed = allowed is None or wanted in allowed
        if is_allowed and wanted in self._models:
            return self._models[wanted]
        if is_allowed and wanted in self._failed:
            raise UnknownModel(Problem("model", reason=f"{wanted!r} could not be loaded: {self._failed[wanted]}"))
        known = [each for each in self._models if allowed is None or each in allowed]
        if not known:
            raise UnknownModel(Problem("model", reason="no model that this key is for is being served"))
        hint = did_you_mean(wanted, known)
        raise UnknownModel(Problem("model", repr(wanted[:100]), f"one of {', '.join(known)}{hint}"))

    def all(self, allowed: tuple[str, ...] | None = None) -> list[LoadedModel]:
        """Return every allowed model that is being served, in the order of names. Raises NotReady."""
        self._check_loaded()
        return [model for name, model in self._models.items() if allowed is None or name in allowed]

    def loaded(self) -> list[LoadedModel]:
        """Return the models that have been loaded so far."""
        return list(self._models.values())

    def knee(self) -> int:
        """Return the number of requests at which this worker's engines run best; with more, each waits longer."""
        rows = (min(model.engine.knee, model.engine.limits.max_slots) for model in self.loaded())
        return max(MIN_KNEE, int(KNEE_SHARE * max(rows, default=0)))

    @property
    def default(self) -> str:
        """Name of the model for requests that name none.

        The setting; else the name in the folder's DEFAULT file, if that model is served; else the first by name.
        """
        if self._settings.default_model:
            return self._settings.default_model
        return self._named_default if self._named_default in self._models else next(iter(self._models), "")

    def default_of(self, allowed: tuple[str, ...] | None) -> str:
        """Return the default where it is allowed, else the first allowed model that is being served; "" for none."""
        default = self.default
        if allowed is None or default in allowed:
            return default
        return next((name for name in allowed if name in self._models), "")

    def readiness(self) -> Readiness:
        """Return the state of this worker and, until all workers were ready once, of those beside it."""
        return Readiness(self._reason() == "", self._reason(), tuple(self._models), self._failed)

    @property
    def nothing_to_serve(self) -> str:
        """Reason why no worker has a bundle, with the problem of each bundle; "" where one has."""
        if self._problem is None or self._models or self._marks.some_are_ready:
            return ""
        failed = "; ".join(f"{name}: {reason}" for name, reason in self._failed.items())
        return f"{self._problem}:\n{failed}" if failed else self._problem

    def _reason(self) -> str:
        if not self._loaded.is_set():
            return "the bundles are being loaded"
        if self._problem is not None:
            return self._problem
        ended = [f"{model.name}: {model.engine.failure}" for model in self.loaded() if model.engine.failure]
        if ended:
            return f"an engine failed: {'; '.join(ended)}"
        return "" if self._marks.all_were_ready else "other workers are loading the bundles"

    def _check_loaded(self) -> None:
        if not self._loaded.is_set():
            raise NotReady("the bundles are being loaded; try again")
        if self._problem is not None:
            raise NotReady(self._problem)

    def _load_all(self) -> None:
        try:
            found = find_bundles(self._settings.bundles)
            models, failed = self._load_each(found)
            room = CacheRoom(self._settings.cache_bytes)
            for model in models.values():
                model.engine.share_cache(room)
            self._models, self._failed, self._named_default = models, failed, found.default
            if not models:
                self._problem = self._nothing_to_serve(found)
            release_free_memory()
        except BundleError as error:
            self._problem = str(error)
        except Exception as error:
            log.exception("loading the bundles failed")
            self._problem = f"loading the bundles failed, which is a fault of the service: {type(error).__name__}"
        if self._problem is None:
            log.info("serving %s; default %s", ", ".join(self._models), self.default)
            flush_log()  # so that no line of the start follows the message that all are ready
            self._marks.mark()
        else:
            log.error("not ready: %s", self._problem)
        self._loaded.set()

    def _load_each(self, found: BundleFolders) -> tuple[dict[str, LoadedModel], dict[str, str]]:
        models: dict[str, LoadedModel] = {}
        failed = dict(found.failed)
        settings = self._settings
        limits = EngineLimits(settings.max_slots, settings.max_waiting, settings.cache_bytes)
        for name, problem in failed.items():
            log.error("%s in the folder of bundles cannot be used: %s", name, problem)
        for name, folder in found.folders.items():
            try:
                models[name] = self._load(folder, limits)
            except MeariError as error:
                failed[name] = str(error)
                log.error("bundle %s cannot be served: %s", name, error, exc_info=error.__cause__)  # noqa: TRY400
            except Exception as error:
                failed[name] = f"its engine could not be started: {type(error).__name__}"
                log.exception("bundle %s cannot be served", name)
        return models, failed

    def _nothing_to_serve(self, found: BundleFolders) -> str:
        root = printable(self._settings.bundles)
        return f"no bundle in {root} could be loaded" if found.folders else f"there is no bundle in {root}"


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
    tracing: Tracing | None = None  # None where no traces are wanted
    streams: set[object] = field(default_factory=set, repr=False)  # open ones; `add` and `discard` are atomic
    _state_tokens: dict[str, StateTokens] = field(default_factory=dict, init=False, repr=False)  # by the bundle's hash

    def state_tokens(self, bundle: Bundle) -> StateTokens:
        """Return the codec of a bundle's state tokens."""
        if bundle.hash not in self._state_tokens:
            self._state_tokens[bundle.hash] = StateTokens.of(bundle, self.state_keys, self.settings.state_seconds)
        return self._state_tokens[bundle.hash]

    def observe(self) -> None:
        """Copy the engines' counters and the worker's state to the metrics."""
        for model in self.registry.loaded():
            self.metrics.observe_engine(model.name, model.engine.limits.max_slots, model.engine.stats)
        readiness = self.registry.readiness()
        self.metrics.observe_worker(
            WorkerFigures(
                workers=self.settings.workers,
                is_ready=readiness.ready and not self.drain.has_begun,
                failed_bundles=len(readiness.failed),
                requests_in_flight=self.admission.num_requests,
                inflight_bytes=self.admission.num_bytes,
            )
        )
