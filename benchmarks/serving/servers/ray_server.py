"""Ray Serve with dynamic batching; answers stream through its batched generators.

Tuned by its documentation: one replica a CPU, `max_batch_size` as large as the model takes, a short
`batch_wait_timeout_s`, `max_ongoing_requests` above the batch size. The model runs in a thread, so that a replica's
event loop continues to collect requests.
"""

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from typing import Any

import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from benchmarks.serving.servers.onnx_model import MAX_BATCH, Ask, OnnxModel, text_event, usage_event

WAIT_SECONDS = 0.005
WORKERS = int(os.environ["BENCH_WORKERS"])


@serve.deployment(num_replicas=WORKERS, max_ongoing_requests=256, ray_actor_options={"num_cpus": 1})
class Model:
    """Whole answers, streams, and scores."""

    def __init__(self) -> None:
        self.model = OnnxModel()

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=WAIT_SECONDS)
    async def generate(self, asks: list[Ask]) -> list[Ask]:
        return await asyncio.to_thread(self.model.generate, asks)

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=WAIT_SECONDS)
    async def score(self, asks: list[Ask]) -> list[Ask]:
        return await asyncio.to_thread(lambda: [self.model.score(ask) for ask in asks])

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=WAIT_SECONDS)
    async def stream(self, asks: list[Ask]) -> AsyncIterator[list[Any]]:
        """Yield one list a step: an event a request, "" before its first, StopIteration after its end."""
        left = [ask["max_tokens"] for ask in asks]
        steps = self.model.steps(asks)
        while step := await asyncio.to_thread(next, steps, None):
            news: list[Any] = ["" if count else StopIteration for count in left]
            for index, token in step:
                left[index] -= 1
                event = f"data: {json.dumps(text_event(self.model.text_of(token)))}\n\n"
                last = f"data: {json.dumps(usage_event(asks[index]['max_tokens']))}\n\n" if not left[index] else ""
                news[index] = event + last
            yield news

    async def __call__(self, request: Request) -> Response:
        if request.method == "GET":
            return JSONResponse("ok")
        ask = await request.json()
        if "texts" in ask:
            return JSONResponse(await self.score(ask))
        if ask.get("stream"):
            return StreamingResponse(self.stream(ask), media_type="text/event-stream")
        return JSONResponse(await self.generate(ask))


if __name__ == "__main__":
    ray.init(
        num_cpus=WORKERS,
        include_dashboard=False,
        object_store_memory=100 * 2**20,
        _node_ip_address="127.0.0.1",
        runtime_env={"env_vars": {name: os.environ[name] for name in ("BENCH_BUNDLE", "BENCH_WORKERS", "PYTHONPATH")}},
    )
    serve.start(http_options={"host": "127.0.0.1", "port": int(os.environ["BENCH_PORT"])})
    serve.run(Model.bind(), route_prefix="/")  # type: ignore[attr-defined]
    while True:
        time.sleep(3600)
