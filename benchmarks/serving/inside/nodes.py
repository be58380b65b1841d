"""nodes: the time of a writing step by part of the graph, from onnxruntime's profile.

Run by `python -m benchmarks.serving.inside.nodes`.

Input: a bundle, batch sizes. Output: a Markdown table, microseconds of a step by part of the graph, the middle of
RUNS runs of STEPS steps in one process with one thread. Must not know: servers.

    products of the cell, the output layer's product
    rest of the cell, rest of the output layer: scales, activations, the softmax
    sampler: from log-probabilities to a token
    control: Scan and If without the nodes in them
    whole: a step without the profile, which takes about a microsecond a node

A node's time is that of its kernel, so that parts add up to the step under the profile, not to the whole.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from meari.runtime.engine.runner import Choices
from meari.runtime.graphs.bundle_graph import BundleGraph, Parts
from meari.runtime.graphs.engine_graphs import writer_graph

RUNS: Final = 60
WARMUP_RUNS: Final = 5
STEPS: Final = 8
PARTS: Final = (
    "products of the cell",
    "rest of the cell",
    "product of the output layer",
    "rest of the output layer",
    "sampler",
    "control",
)
Feeds = dict[str, npt.NDArray[Any]]


def read_parts(folder: Path) -> Parts:
    """Read the two graphs of a bundle in the form in which the engine writes."""
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    cell, output = (BundleGraph((folder / name).read_bytes()) for name in ("cell.onnx", "output.onnx"))
    states = {entry["name"]: tuple(entry["shape"]) for entry in manifest["state"]}
    return Parts(cell, output, states, manifest["sizes"]["vocabulary"])


def open_writer(graph: bytes, profile: Path | None) -> Any:
    """Open a session of one thread; with a profile whose path has that beginning."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 3
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def feeds_of(parts: Parts, rows: int) -> Feeds:
    """Make the inputs of a plain sampling run: temperature 1, no limits."""
    generator = np.random.default_rng(rows)
    states = {f"state.{name}": np.zeros((rows, *shape), np.float32) for name, shape in parts.state.items()}
    uniforms = generator.random((STEPS, rows, 1), np.float32) * np.float32(0.99)
    ones = np.ones((rows, 1), np.float32)
    choices = replace(Choices.likeliest_of(rows), inverse_temperatures=ones, samples=True, unranked=True)
    tokens = generator.integers(2, parts.vocabulary_size, rows)
    return {**states, "token": tokens, "uniforms": uniforms, "redraws": uniforms, **choices.feeds}


def run(session: Any, feeds: Feeds) -> list[float]:
    """Return microseconds of CPU a step, for every run but the first ones."""
    times = []
    for _ in range(WARMUP_RUNS + RUNS):
        begin = time.thread_time()
        session.run(None, feeds)
        times.append(1e6 * (time.thread_time() - begin) / STEPS)
    return times[WARMUP_RUNS:]


def part_of(node: str, kind: str) -> str:
    """Return the part in PARTS of a node; nodes of the bundle's graphs have the writer's prefixes."""
    is_product = kind.startswith(("MatMul", "Gemm", "FusedMatMul"))
    if node.startswith("cell."):
        return PARTS[0] if is_product else PARTS[1]
    if node.startswith("write."):
        return PARTS[2] if is_product else PARTS[3]
    return PARTS[5] if kind in ("Scan", "If") else PARTS[4]


def by_part(events: list[dict[str, Any]]) -> dict[str, float]:
    """Return microseconds a step of the profiled runs, by part."""
    runs = [event for event in events if event["name"] == "model_run"][WARMUP_RUNS:]
    begin, num_steps = runs[0]["ts"], len(runs) * STEPS
    sums: Counter[str] = Counter()
    outer = 0.0
    for event in events:
        if event["cat"] != "Node" or not event["name"].endswith("_kernel_time") or event["ts"] < begin:
            continue
        kind = event["args"]["op_name"]
        if kind == "Scan":
            outer += event["dur"]
        elif kind != "If":  # its time includes that of its nodes: its own is the rest
            sums[part_of(event["name"], kind)] += event["dur"]
    sums["control"] = int(outer - sum(sums.values()))
    return {part: num / num_steps for part, num in sums.items()}


def measure(folder: Path, rows: int) -> dict[str, float]:
    """Return microseconds a step by part, and of the whole without the profile."""
    parts = read_parts(folder)
    graph = writer_graph(parts)
    feeds = feeds_of(parts, rows)
    with tempfile.TemporaryDirectory() as temporary:
        profiled = open_writer(graph, Path(temporary) / "profile")
        run(profiled, feeds)
        figures = by_part(json.loads(Path(profiled.end_profiling()).read_text("utf-8")))
    return {**figures, "whole": statistics.median(run(open_writer(graph, None), feeds))}


def main() -> None:
    """Arguments: bundle, batch sizes."""
    folder, batches = Path(sys.argv[1]), [int(word) for word in sys.argv[2:]]
    columns = [measure(folder, rows) for rows in batches]
    lines = [f"| µs a step, {folder.name} |" + "".join(f" {rows} rows |" for rows in batches)]
    lines.append("| --- |" + " ---: |" * len(batches))
    lines += [
        f"| {part} |" + "".join(f" {column.get(part, 0.0):,.0f} |" for column in columns) for part in (*PARTS, "whole")
    ]
    print("\n".join(lines))  # noqa: T201


if __name__ == "__main__":
    main()
