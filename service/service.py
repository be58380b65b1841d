"""The parts of the running service, made once by `create_app` and handed to every blueprint."""

from __future__ import annotations

from dataclasses import dataclass, field

from meari.runtime.bundle import Bundle
from meari.runtime.state_tokens import StateTokens
from meari.service.lifetime import Drain
from meari.service.metrics import Metrics, WorkerFigures
from meari.service.registry import Registry
from meari.service.requests.admission import Admission
from meari.service.requests.schema import Schemas
from meari.service.settings import Settings
from meari.service.tracing import Tracing
from meari.service.watch import Disconnects

__all__ = ["Service"]


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
