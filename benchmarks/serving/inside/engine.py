"""engine: meari's loop in process, without HTTP. `python -m benchmarks.serving.inside.engine`.

Input: a bundle, seconds, numbers of requests at a time. Output: tokens per second of wall and of CPU, as `raw` prints
them. Must not know: text: prompts are token ids.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.serving.plan import ENDLESS
from meari.runtime.engine import Engine, EngineLimits, GenerateCall, Generation, Sampling
from meari.runtime.model import LoadedModel, load_model

PROMPT_TOKENS, NEW_TOKENS = 4, 64
NO_END = ((0, -100.0),)
WARMUP_SECONDS = 0.5


@dataclass(frozen=True)
class EngineFigures:
    """Figures of one process with `concurrency` requests at a time."""

    concurrency: int
    tokens_per_second: float
    tokens_per_cpu_second: float


def open_model(folder: Path) -> LoadedModel:
    """Open a model and start its engine."""
    return load_model(folder, EngineLimits())


def submit(engine: Engine, prompt: list[int], max_tokens: int, sampling: Sampling) -> Generation:
    """Queue a continuation."""
    call = GenerateCall(prompt, max_tokens, engine.clock() + 60.0, sampling)
    return engine.generate(call, engine.reserve())


def measure(model: LoadedModel, concurrency: int, seconds: float) -> EngineFigures:
    """Keep so many requests running; count the tokens that the engine reports as sampled."""
    generator = random.Random(1)  # noqa: S311 (no secret)
    bias = () if model.name in ENDLESS else NO_END
    vocabulary_size = model.bundle.manifest.sizes["vocabulary"]
    running: deque[Generation] = deque()
    begin = time.perf_counter() + WARMUP_SECONDS
    first: tuple[float, float, int] | None = None
    number = 0
    while True:
        while len(running) < concurrency:
            prompt = [generator.randrange(2, vocabulary_size) for _ in range(PROMPT_TOKENS)]
            running.append(submit(model.engine, prompt, NEW_TOKENS, Sampling(seed=number, logit_bias=bias)))
            number += 1
        running.popleft().wait_end(60.0)
        now = (time.perf_counter(), time.process_time(), model.engine.stats().tokens_sampled)
        if first is None and now[0] >= begin:
            first = now
        if first is not None and now[0] >= first[0] + seconds:
            break
    for generation in running:
        generation.wait_end(60.0)
    took, cpu, tokens = (last - start for last, start in zip(now, first, strict=True))
    return EngineFigures(concurrency, tokens / took, tokens / cpu)


def main() -> None:
    """Arguments: bundle, seconds, numbers of requests at a time."""
    folder, seconds, numbers = Path(sys.argv[1]), float(sys.argv[2]), [int(word) for word in sys.argv[3:]]
    model = open_model(folder)
    for concurrency in numbers:
        sys.stdin.readline()
        print(json.dumps(asdict(measure(model, concurrency, seconds))), flush=True)  # noqa: T201
    model.engine.stop()


if __name__ == "__main__":
    main()
