"""raw: the bare onnxruntime loop over a bundle's two graphs, nothing else. `python -m benchmarks.serving.inside.raw`.

Input: a bundle, batch sizes, seconds. Output: for each batch size the time of a step, and tokens per second of wall and
of CPU. Must not know: meari's engine. One process, one onnxruntime thread; inputs and outputs are bound, states change
places between two sets of buffers, and the outputs are those that the graphs have. It waits for a line on standard
input before each batch size, so that several processes measure at the same time.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

WARMUP_STEPS = 3


@dataclass(frozen=True)
class RawFigures:
    """Figures of one batch size in one process; cell_ms and output_ms are the two graphs' parts of step_ms."""

    batch: int
    step_ms: float
    cell_ms: float
    output_ms: float
    tokens_per_second: float
    tokens_per_cpu_second: float


def open_session(path: Path) -> Any:
    """Open a session with one thread that does not spin, like meari's workers."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class StepLoop:
    """Both graphs with bound buffers, for `batch` tokens a step."""

    def __init__(self, folder: Path, batch: int) -> None:
        self._cell = open_session(folder / "cell.onnx")
        self._output = open_session(folder / "output.onnx")
        manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
        shapes = {entry["name"]: tuple(entry["shape"]) for entry in manifest["state"]}
        vocabulary_size = manifest["sizes"]["vocabulary"]
        width = self._output.get_inputs()[0].shape[1]
        tokens = np.random.default_rng(0).integers(2, vocabulary_size, batch)
        hidden = _zeros(batch, width)
        states = [{name: _zeros(batch, *shape) for name, shape in shapes.items()} for _ in range(2)]
        self._cells = [self._bind_cell(tokens, states[i], states[1 - i], hidden) for i in range(2)]
        self._outputs = self._output.io_binding()
        self._outputs.bind_ortvalue_input("hidden", hidden)
        for node in self._output.get_outputs():
            self._outputs.bind_ortvalue_output(node.name, _zeros(batch, vocabulary_size))
        self._turn = 0

    def _bind_cell(self, tokens: Any, old: dict[str, Any], new: dict[str, Any], hidden: Any) -> Any:
        binding = self._cell.io_binding()
        binding.bind_cpu_input("token", tokens)
        for name, value in old.items():
            binding.bind_ortvalue_input(name, value)
            binding.bind_ortvalue_output(f"next_{name}", new[name])
        binding.bind_ortvalue_output("hidden", hidden)
        return binding

    def run_cell(self) -> None:
        """Feed one token to every row."""
        self._cell.run_with_iobinding(self._cells[self._turn])
        self._turn = 1 - self._turn

    def run_output(self) -> None:
        """Compute the distribution of every row."""
        self._output.run_with_iobinding(self._outputs)


def _zeros(*shape: int) -> Any:
    return ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32))


def measure(folder: Path, batch: int, seconds: float) -> RawFigures:
    """Run steps for so long."""
    loop = StepLoop(folder, batch)
    for _ in range(WARMUP_STEPS):
        loop.run_cell()
        loop.run_output()
    steps, in_cell = 0, 0.0
    begin, cpu = time.perf_counter(), time.process_time()
    now = begin
    while now - begin < seconds:
        loop.run_cell()
        middle = time.perf_counter()
        loop.run_output()
        in_cell += middle - now
        now = time.perf_counter()
        steps += 1
    took, cpu = now - begin, time.process_time() - cpu
    return RawFigures(
        batch=batch,
        step_ms=1000 * took / steps,
        cell_ms=1000 * in_cell / steps,
        output_ms=1000 * (took - in_cell) / steps,
        tokens_per_second=batch * steps / took,
        tokens_per_cpu_second=batch * steps / cpu,
    )


def main() -> None:
    """Arguments: bundle, seconds a batch size, batch sizes."""
    folder, seconds, batches = Path(sys.argv[1]), float(sys.argv[2]), [int(word) for word in sys.argv[3:]]
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for batch in batches:
        sys.stdin.readline()
        print(json.dumps(asdict(measure(folder, batch, seconds))), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
