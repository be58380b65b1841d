"""LitServe with its continuous batching: a loop of its own, `stream=True`, one step for all active sequences.

Tuned by its documentation: one worker a CPU (`workers_per_device`), as many API servers, `fast_queue`. Two things of
the stock loop are changed, both to its advantage: requests that wait are taken between two steps, where the stock one
gives a thread up to a second to fetch each; and it sleeps a millisecond while there is nothing to do, where the stock
one spins.
"""

import asyncio
import json
import os
from queue import Empty, Queue
from typing import Any

import litserve
from litserve.loops.continuous_batching_loop import ContinuousBatchingLoop, Output
from litserve.utils import LitAPIStatus

from benchmarks.serving.servers.onnx_model import MAX_BATCH, Batch, OnnxModel, text_event, usage_event

IDLE_SECONDS = 0.001


class Generate(litserve.LitAPI):
    """The hooks of continuous batching over a batch that sequences may join at any step."""

    def setup(self, device: str) -> None:
        self.model = OnnxModel()
        self.batch_of_rows = Batch(self.model)
        self.counts: dict[str, int] = {}

    def add_request(self, uid: str, request: dict[str, Any]) -> None:
        self.batch_of_rows.add(uid, request)
        self.counts[uid] = 0

    def has_capacity(self) -> bool:
        return len(self.batch_of_rows.rows) < MAX_BATCH

    def has_active_requests(self) -> bool:
        return bool(self.batch_of_rows.rows)

    def step(self, _previous: list[Output] | None) -> list[Output]:
        outputs = []
        for uid, token, is_last in self.batch_of_rows.step():
            key = str(uid)
            self.counts[key] += 1
            event = f"data: {json.dumps(text_event(self.model.text_of(token)))}\n\n"
            outputs.append(Output(key, event, LitAPIStatus.OK))
            if is_last:
                event = f"data: {json.dumps(usage_event(self.counts.pop(key)))}\n\n"
                outputs += [Output(key, event, LitAPIStatus.OK), Output(key, "", LitAPIStatus.FINISH_STREAMING)]
        return outputs

    def decode_request(self, request: dict[str, Any]) -> dict[str, Any]:
        return request

    def encode_response(self, output: str) -> str:
        return output


class Loop(ContinuousBatchingLoop):
    """Loop that takes waiting requests between two steps, without a pause."""

    async def run(self, lit_api: Generate, *arguments: Any, **named: Any) -> None:
        if not lit_api.has_active_requests():
            await asyncio.sleep(IDLE_SECONDS)
        await super().run(lit_api, *arguments, **named)

    async def prefill(
        self,
        pending_requests: list[Any],
        lit_api: Generate,
        lit_spec: Any,
        request_queue: Queue[Any],
        transport: Any,
        max_batch_size: int | None = None,
        batch_timeout: float | None = None,
    ) -> list[Any]:
        while lit_api.has_capacity():
            try:
                queue_id, uid, _, request = request_queue.get_nowait()
            except Empty:
                break
            self.response_queue_ids[uid] = queue_id
            self.add_request(uid, request, lit_api, lit_spec, transport)
        if not lit_api.has_active_requests():
            await asyncio.sleep(IDLE_SECONDS)
        return []

    async def step(self, prev_outputs: list[Output] | None, lit_api: Generate, lit_spec: Any) -> list[Output]:
        outputs: list[Output] = []
        while not outputs:  # prompts give no output, and the stock loop sleeps when there is none
            outputs = lit_api.step(prev_outputs)
        await asyncio.sleep(0)
        return outputs


if __name__ == "__main__":
    api = Generate(stream=True, loop=Loop(), max_batch_size=MAX_BATCH, api_path="/generate")
    workers = int(os.environ["BENCH_WORKERS"])
    server = litserve.LitServer(
        api, accelerator="cpu", devices=1, workers_per_device=workers, timeout=120, fast_queue=True
    )
    server.run(
        host="127.0.0.1",
        port=int(os.environ["BENCH_PORT"]),
        num_api_servers=workers,
        log_level="warning",
        generate_client_file=False,
    )
