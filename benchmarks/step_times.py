"""Times of a bundle's step: `python -m benchmarks.step_times bundles/NAME`.

Input: a bundle's folder. Output: a table of microseconds by batch size, one thread, the best of many repetitions.
Must not know: the service.
"""

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from meari.bundle_format.names import Precision
from meari.export.sessions import GraphModel, Graphs

BATCH_SIZES = (1, 4, 16, 64)
SECONDS = 0.5  # of measuring for each figure
WRITTEN = 16  # tokens before that, each the likeliest one, so that n-grams meet contexts that they know


def step_seconds(run: Callable[[], object], seconds: float) -> float:
    """Return the shortest time of `run` within `seconds` of repetitions."""
    best, end = float("inf"), time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        run()
        best = min(best, time.perf_counter() - start)
    return best


def step_table(folder: Path, seconds: float = SECONDS) -> str:
    """Return a table with rows for the cell and the output layer, and columns for batch sizes."""
    graphs = Graphs(Precision.FP32, (folder / "cell.onnx").read_bytes(), (folder / "output.onnx").read_bytes())
    model = GraphModel(graphs)
    lines = ["µs a step".ljust(12) + "".join(f"{f'batch {batch}':>12}" for batch in BATCH_SIZES)]
    generator = np.random.default_rng(0)
    cell, output = [], []
    for batch in BATCH_SIZES:
        tokens, state = generator.integers(0, model.vocabulary_size, batch), model.initial_state(batch)
        for _ in range(WRITTEN):
            hidden, state = model.step(tokens, state)
            tokens = model.logprobs(hidden).argmax(axis=1)
        cell.append(step_seconds(partial(model.step, tokens, state), seconds))
        output.append(step_seconds(partial(model.logprobs, hidden), seconds))
    for name, times in (("cell", cell), ("output", output)):
        lines.append(name.ljust(12) + "".join(f"{1e6 * best:>12.0f}" for best in times))
    return "\n".join(lines)


def main() -> None:
    """Print the table of the bundle that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, metavar="bundles/NAME")
    sys.stdout.write(step_table(parser.parse_args().folder) + "\n")


if __name__ == "__main__":
    main()
