"""The running service: its parts, and the bundles that it serves, loaded once in the background, each on its own.

Input: settings and the folder of bundles. Output: a `LoadedModel` by name, whether the service is ready, with the
reason if not, and the parts that every blueprint is given. A bundle that cannot be loaded is named with its reason and
does not keep the others from being served. Must not know: Flask.
"""

from __future__ import annotations

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
from meari.service.log import flush_log
from meari.service.metrics import Metrics, WorkerFigures
from meari.service.requests.admission import Admission
from meari.service.requests.schema import Schemas
from meari.service.settings import Settings
from meari.service.tracing import Tracing
from meari.service.watch import Disconnects
from meari.service.workers import Drain, ReadyMarks

__all__ = ["Readiness", "Registry", "Service"]

MIN_KNEE = 8  # requests: what was seen of an engine may be of a bad moment
KNEE_SHARE = 7 / 8  # an engine knows its knee as a power of two only; a few less cost 1 % of the tokens, 15 % of p95

log = logging.getLogger("meari.service.registry")  # as operators know it


@dataclass(frozen=True)
class Readiness:
    """Whether requests are taken. `failed` names the bundles that could not be loaded, with the reason."""

    ready: bool
    reason: str
    models: tuple[str, ...]
    failed: dict[str, str]


class Registry:
    """Filled by one background thread, read by all others; each attribute is replaced whole, once."""

    def __init__(
        self, settings: Settings, marks: ReadyMarks, load: Callable[[Path, EngineLimits], LoadedModel] = load_model
    ) -> None:
        self._settings = settings
        self._marks = marks
        self._load = load
        self._models: dict[str, LoadedModel] = {}
        self._failed: dict[str, str] = {}
        self._problem: str | None = None
        self._named_default = ""
        self._loaded = threading.Event()

    def start(self) -> None:
        """Begin to load every bundle, in the background."""
        threading.Thread(target=self._load_all, name="registry", daemon=True).start()

    def stop(self) -> None:
        """Stop every engine."""
        for model in self._models.values():
            model.engine.stop()

    def wait_loaded(self, timeout: float | None = None) -> bool:
        """Block until every bundle was loaded or has failed; returns whether that is so."""
        return self._loaded.wait(timeout)

    def get(self, name: str | UnsetType) -> LoadedModel:
        """The model of that name, or the default. Raises UnknownModel, NotReady."""
        self._check_loaded()
        wanted = self.default if name is UNSET else name
        if wanted in self._models:
            return self._models[wanted]
        if wanted in self._failed:
            raise UnknownModel(Problem("model", reason=f"{wanted!r} could not be loaded: {self._failed[wanted]}"))
        hint = did_you_mean(wanted, self._models)
        raise UnknownModel(Problem("model", repr(wanted[:100]), f"one of {', '.join(self._models)}{hint}"))

    def all(self) -> list[LoadedModel]:
        """Every model that is being served, by name. Raises NotReady."""
        self._check_loaded()
        return list(self._models.values())

    def loaded(self) -> list[LoadedModel]:
        """The models that have been loaded so far."""
        return list(self._models.values())

    def knee(self) -> int:
        """Requests that keep the engines of this worker at their best; more make each of them wait longer."""
        rows = (min(model.engine.knee, model.engine.limits.max_slots) for model in self.loaded())
        return max(MIN_KNEE, int(KNEE_SHARE * max(rows, default=0)))

    @property
    def default(self) -> str:
        """The name of the model that a request means when it names none.

        As set; else as the folder's DEFAULT file says, if that model is served; else the first by name.
        """
        if self._settings.default_model:
            return self._settings.default_model
        return self._named_default if self._named_default in self._models else next(iter(self._models), "")

    def readiness(self) -> Readiness:
        """Of this worker, and until it was so once, of all workers beside it."""
        return Readiness(self._reason() == "", self._reason(), tuple(self._models), self._failed)

    @property
    def nothing_to_serve(self) -> str:
        """Why there is no bundle, and what is wrong with each; "" where there is one, here or in another worker."""
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
            flush_log()  # so that nothing of the start comes after the word that all are ready
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
    """Safe to share between threads: every part guards itself."""

    settings: Settings
    schemas: Schemas
    registry: Registry
    admission: Admission
    metrics: Metrics
    drain: Drain
    disconnects: Disconnects
    state_keys: tuple[str, ...] = field(repr=False)  # the first signs state tokens, every one verifies
    tracing: Tracing | None = None  # None where no traces are wanted
    streams: set[object] = field(default_factory=set, repr=False)  # that are open; the interpreter makes changes whole
    _state_tokens: dict[str, StateTokens] = field(default_factory=dict, init=False, repr=False)  # by the bundle's hash

    def state_tokens(self, bundle: Bundle) -> StateTokens:
        """What writes and reads the state tokens of a bundle."""
        if bundle.hash not in self._state_tokens:
            self._state_tokens[bundle.hash] = StateTokens.of(bundle, self.state_keys)
        return self._state_tokens[bundle.hash]

    def observe(self) -> None:
        """Carry over to the metrics what the engines have done and how the worker stands."""
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
