"""mosec with dynamic batching of whole requests; streamed answers by its server-sent events worker.

Tuned by its documentation: one worker process a CPU, `max_batch_size` as large as the model takes, a short
`max_wait_time`, a timeout and a queue that no request of the load runs into.
"""

import json
import os
from typing import Any

from mosec import Server, SSEWorker, Worker

from benchmarks.serving.servers.onnx_model import MAX_BATCH, Ask, OnnxModel, text_event, usage_event

WAIT_MS = 5


class Whole(Worker):
    """Whole answers, and scores."""

    def __init__(self) -> None:
        super().__init__()
        self.model = OnnxModel()

    def forward(self, data: Any) -> Any:
        """A batch of either kind; a list of texts to score is a batch by itself."""
        generating = [index for index, ask in enumerate(data) if "prompt" in ask]
        answers: dict[int, Ask] = dict(
            zip(generating, self.model.generate([data[index] for index in generating]), strict=True)
        )
        return [answers[i] if i in answers else self.model.score(ask) for i, ask in enumerate(data)]


class Streamed(SSEWorker):
    """One event a token."""

    def __init__(self) -> None:
        super().__init__()
        self.model = OnnxModel()

    def forward(self, data: Any) -> Any:
        counts = [0] * len(data)
        for index, token in (news for step in self.model.steps(data) for news in step):
            counts[index] += 1
            self.send_stream_event(json.dumps(text_event(self.model.text_of(token))), index)
            if counts[index] == data[index]["max_tokens"]:
                self.send_stream_event(json.dumps(usage_event(counts[index])), index)
        return data


if __name__ == "__main__":
    workers = int(os.environ["BENCH_WORKERS"])
    server = Server()
    server.append_worker(
        Whole,
        num=workers,
        max_batch_size=MAX_BATCH,
        max_wait_time=WAIT_MS,
        timeout=120,
        route=["/generate", "/score"],
    )
    server.append_worker(
        Streamed, num=workers, max_batch_size=MAX_BATCH, max_wait_time=WAIT_MS, timeout=120, route="/stream"
    )
    server.run()
