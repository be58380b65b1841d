"""BentoML with adaptive batching of whole requests. A batchable endpoint takes and returns a list; it cannot stream.

Tuned by its documentation: one worker a CPU, `max_batch_size` as large as the model takes, `max_latency_ms` far above
the time of an answer, so that its dispatcher refuses nothing.
"""

import os
from typing import Any

import bentoml

from benchmarks.serving.servers.onnx_model import MAX_BATCH, OnnxModel


@bentoml.service(
    workers=int(os.environ["BENCH_WORKERS"]),
    traffic={"timeout": 120},
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
)
class Model:
    """Whole answers, and scores."""

    def __init__(self) -> None:
        self.model = OnnxModel()

    @bentoml.api(route="/generate", batchable=True, max_batch_size=MAX_BATCH, max_latency_ms=60_000)
    def generate(self, asks: list[dict[str, Any]]) -> list[dict[str, Any]]:
        answers: list[dict[str, Any]] = self.model.generate(asks)
        return answers

    @bentoml.api(route="/score", batchable=True, max_batch_size=MAX_BATCH, max_latency_ms=60_000)
    def score(self, asks: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [self.model.score(ask) for ask in asks]
