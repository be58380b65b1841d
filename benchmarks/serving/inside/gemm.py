"""Peak of the machine at matrix products, with one thread. `python -m benchmarks.serving.inside.gemm`.

float32 by numpy's BLAS; int8 (unsigned by signed, as in the bundles) by onnxruntime's MatMulInteger. In giga-operations
a second, a multiplication and an addition counting as two.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper

ROWS, INNER, COLUMNS = 512, 1024, 2048


def float32_peak(seconds: float) -> float:
    """Measure numpy's matmul; OMP_NUM_THREADS and OPENBLAS_NUM_THREADS must be 1 before the start."""
    random = np.random.default_rng(0)
    left = random.standard_normal((ROWS, INNER), dtype=np.float32)
    right = random.standard_normal((INNER, COLUMNS), dtype=np.float32)
    out = np.empty((ROWS, COLUMNS), np.float32)
    return _rate(lambda: np.matmul(left, right, out=out), seconds)


def int8_peak(seconds: float) -> float:
    """Measure MatMulInteger with a constant right side."""
    random = np.random.default_rng(0)
    right = random.integers(-64, 64, (INNER, COLUMNS)).astype(np.int8)
    left = random.integers(0, 256, (ROWS, INNER)).astype(np.uint8)
    zero = helper.make_tensor("zero", TensorProto.UINT8, [], [128])
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["left", "right", "zero"], ["product"])],
        "peak",
        [helper.make_tensor_value_info("left", TensorProto.UINT8, [ROWS, INNER])],
        [helper.make_tensor_value_info("product", TensorProto.INT32, [ROWS, COLUMNS])],
        [helper.make_tensor("right", TensorProto.INT8, right.shape, right.tobytes(), raw=True), zero],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return _rate(lambda: session.run(None, {"left": left}), seconds)


def _rate(multiply: Callable[[], object], seconds: float) -> float:
    """Return the best rate of the calls within so many seconds."""
    multiply()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        begin = time.perf_counter()
        multiply()
        best = min(best, time.perf_counter() - begin)
    return 2 * ROWS * INNER * COLUMNS / best / 1e9


def main() -> None:
    """Argument: seconds for each of the two."""
    seconds = float(sys.argv[1])
    sys.stdin.readline()
    peaks = {"fp32_gops": float32_peak(seconds), "int8_gops": int8_peak(seconds)}
    print(json.dumps(peaks), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
