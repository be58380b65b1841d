"""Cost of sampling in a step. `python -m benchmarks.serving.inside.sampling BUNDLE SECONDS`.

64 requests at a time in meari's engine, once taking the likeliest token, once with temperature, top_k, top_p and min_p.
The difference of the times of a token is the cost of sampling; its share is of the larger time. Taking the likeliest
token costs something too, so the greedy run is compared with `raw` on the page.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections import deque
from pathlib import Path

from benchmarks.serving.inside.engine import PROMPT_TOKENS, open_model, submit
from meari.runtime.engine import Generation, Sampling
from meari.runtime.model import LoadedModel

ROWS, NEW_TOKENS, TURNS = 64, 64, 4


def seconds_per_token(model: LoadedModel, sampling: Sampling, seconds: float) -> float:
    """Return CPU seconds a token, with so many requests always running."""
    generator = random.Random(1)  # noqa: S311 (no secret)
    vocabulary_size = model.bundle.manifest.sizes["vocabulary"]
    running: deque[Generation] = deque()
    begin, cpu, before = time.perf_counter(), time.process_time(), model.engine.stats().tokens_sampled
    while time.perf_counter() - begin < seconds:
        while len(running) < ROWS:
            prompt = [generator.randrange(2, vocabulary_size) for _ in range(PROMPT_TOKENS)]
            running.append(submit(model.engine, prompt, NEW_TOKENS, sampling))
        running.popleft().wait_end(60.0)
    for generation in running:
        generation.wait_end(60.0)
    return (time.process_time() - cpu) / (model.engine.stats().tokens_sampled - before)


def main() -> None:
    """Alternate the two, so that a noisy moment affects both."""
    model, seconds = open_model(Path(sys.argv[1])), float(sys.argv[2])
    sys.stdin.readline()
    greedy = Sampling(temperature=0.0)
    sampled = Sampling(temperature=0.8, top_k=50, top_p=0.9, min_p=0.02)
    seconds_per_token(model, sampled, 0.5)
    times: dict[str, list[float]] = {"greedy": [], "sampled": []}
    for _ in range(TURNS):
        times["greedy"].append(seconds_per_token(model, greedy, seconds / TURNS))
        times["sampled"].append(seconds_per_token(model, sampled, seconds / TURNS))
    without, with_it = (1e6 * min(values) for values in times.values())
    figures = {
        "greedy_us": round(without, 1),
        "sampled_us": round(with_it, 1),
        "share": round(1 - without / with_it, 4),
    }
    print(json.dumps(figures), flush=True)  # noqa: T201
    model.engine.stop()


if __name__ == "__main__":
    main()
