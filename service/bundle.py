"""From a bundle's folder to a runner that is known to compute what it should, on this CPU.

Enters: a folder. Leaves: a Bundle, or a BundleError that says which file, tensor or figure is wrong. On the way:
the manifest is understood, every file is the one that was exported, the graphs have the expected inputs and
outputs, the golden figures come out, and rows do not influence one another. It knows nothing of requests.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from service.engine.isolation import rows_are_isolated
from service.engine.runner import Runner, Sessions
from service.engine.runs import StateTensor
from service.errors import BundleError
from service.graphs.bundle_graph import BundleGraph, Parts
from service.graphs.fusion import fuse_products, vectors_of
from service.graphs.reader import reader_graph
from service.graphs.writer import writer_graph
from service.manifest import Manifest, check_files, parse_manifest

__all__ = ["Bundle", "SelfTest", "open_bundle"]

# Full batches, lone rows, and sizes around the widths of vector registers and kernels.
BATCH_SIZES = (1, 2, 3, 4, 5, 7, 8, 12, 16, 17, 31, 32, 48)


@dataclass(frozen=True)
class SelfTest:
    """What was found at load, on this CPU."""

    golden_max_difference: float  # nats
    rows_isolated: bool  # False: rows are run one by one, so that results still do not depend on neighbours
    batch_sizes: tuple[int, ...]  # compared with one another, bit for bit


@dataclass(frozen=True, eq=False)
class Bundle:
    """An opened bundle."""

    folder: Path
    manifest: Manifest
    hash: str  # SHA-256 of manifest.json, which holds those of all other files
    runner: Runner
    self_test: SelfTest


def open_bundle(folder: Path, *, max_slots: int) -> Bundle:
    """Open and check a bundle for batches of up to `max_slots` rows. Raises BundleError."""
    try:
        data = (folder / "manifest.json").read_bytes()
    except OSError as error:
        raise BundleError(f"manifest.json: cannot be read: {error.strerror}") from error
    manifest = parse_manifest(data)
    check_files(folder, manifest)
    runner = _open_runner(folder, manifest)
    difference = _check_golden(folder / "golden.npz", manifest, runner)
    sizes = tuple(size for size in BATCH_SIZES if size < max_slots)
    runner.rows_isolated = rows_are_isolated(runner, max_slots, sizes)
    self_test = SelfTest(difference, runner.rows_isolated, (*sizes, max_slots))
    return Bundle(folder, manifest, hashlib.sha256(data).hexdigest(), runner, self_test)


def _open_runner(folder: Path, manifest: Manifest) -> Runner:
    states = {entry.name: entry.shape for entry in manifest.state}
    vocabulary_size = manifest.sizes["vocabulary"]
    if manifest.boundary.id >= vocabulary_size:
        raise BundleError(f"manifest.json: boundary.id: got {manifest.boundary.id}, expected < {vocabulary_size}")
    cell, output = (_read_graph(folder / name) for name in ("cell.onnx", "output.onnx"))
    new = {f"next_{name}": list(shape) for name, shape in states.items()}
    _check_shapes("cell.onnx: input", cell.inputs, {"token": [], **{k: list(v) for k, v in states.items()}})
    _check_shapes("cell.onnx: output", cell.outputs, {"hidden": None, **new})
    _check_shapes("output.onnx: input", output.inputs, {"hidden": None})
    both = {"logits": [vocabulary_size], "logprobs": [vocabulary_size]}
    _check_shapes("output.onnx: output", output.outputs, both)
    parts = Parts(cell, output, states, vocabulary_size)
    try:
        writer = writer_graph(parts)
        fuse_products(output.model.graph, vectors_of(output.model.graph))  # pays where there are many rows
        sessions = Sessions(_open_session(reader_graph(parts)), _open_session(writer))
    except ValueError as error:
        raise BundleError(f"cell.onnx, output.onnx: {error}") from error
    tensors = [StateTensor(name, shape) for name, shape in states.items()]
    return Runner(sessions, tensors, parts.hidden_size, vocabulary_size, manifest.boundary.id)


def _read_graph(path: Path) -> BundleGraph:
    try:
        return BundleGraph(path.read_bytes())
    except ValueError as error:
        raise BundleError(f"{path.name}: {error}") from error


def _open_session(graph: bytes) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1  # one engine a worker, a worker a CPU
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_cpu_mem_arena = False  # malloc is as quick, and gives back what a large batch took
    options.log_severity_level = 3
    try:
        with _as_file(graph) as file:
            return ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise BundleError(f"cell.onnx, output.onnx: onnxruntime cannot open them: {error}") from error


@contextlib.contextmanager
def _as_file(graph: bytes) -> Iterator[str | bytes]:
    """A path in memory, where there is such a thing: a session keeps the bytes that it was made from, a path's not."""
    if not hasattr(os, "memfd_create"):
        yield graph
        return
    with os.fdopen(os.memfd_create("graph"), "wb") as file:
        file.write(graph)
        file.flush()
        yield f"/proc/self/fd/{file.fileno()}"


def _check_shapes(where: str, found: dict[str, list[int | str]], expected: Mapping[str, list[int] | None]) -> None:
    """Compare names and trailing dimensions; None stands for one dimension of any size."""
    if set(found) != set(expected):
        raise BundleError(f"{where}s: got {sorted(found)}, expected {sorted(expected)}")
    for name, shape in expected.items():
        batch, *rest = found[name] or [0]
        if isinstance(batch, int) or (shape is None and len(rest) != 1) or (shape is not None and rest != shape):
            raise BundleError(
                f"{where} {name!r}: got shape {found[name]}, expected a free batch, then {shape or 'one'}"
            )


def _check_golden(path: Path, manifest: Manifest, runner: Runner) -> float:
    """Run the golden tokens; returns the largest difference of a log-probability or a state."""
    golden = _read_golden(path, manifest)
    tokens = golden["tokens"]
    steps, rows = tokens.shape
    states = runner.initial_states(rows)
    logprobs, differences = golden["logprobs"], []
    same = set(states)  # as the hidden vector, so far
    for step in range(steps):
        hidden, states = runner.step(tokens[step], states)
        same &= {name for name, values in states.items() if np.array_equal(values, hidden)}
        differences.append(("log-probability", _largest(runner.output(hidden)[1], logprobs[step])))
    runner.hidden_state = min(same, default=None)
    differences += [("state", _largest(values, golden[f"state_{name}"])) for name, values in states.items()]
    for what, difference in differences:
        if not difference <= manifest.golden.tolerance:  # written so that NaN is refused
            raise BundleError(
                f"golden.npz: a {what} computed here differs by {difference:.2g}, "
                f"expected at most {manifest.golden.tolerance:.2g}: this CPU or onnxruntime computes something else"
            )
    return max(difference for _, difference in differences)


def _read_golden(path: Path, manifest: Manifest) -> dict[str, npt.NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            golden = dict(archive)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise BundleError(f"golden.npz: cannot be read: {error}") from error
    tokens = golden.get("tokens")
    if tokens is None or tokens.ndim != 2 or tokens.dtype != np.int64 or not tokens.size:
        raise BundleError("golden.npz: tokens: expected int64 [steps, rows]")
    steps, rows = tokens.shape
    vocabulary_size = manifest.sizes["vocabulary"]
    if tokens.min() < 0 or tokens.max() >= vocabulary_size:
        raise BundleError(f"golden.npz: tokens: expected ids from 0 to {vocabulary_size - 1}")
    shapes = {"logprobs": (steps, rows, vocabulary_size)}
    shapes |= {f"state_{entry.name}": (rows, *entry.shape) for entry in manifest.state}
    for name, shape in shapes.items():
        got = golden[name].shape if name in golden else None
        if got != shape:
            raise BundleError(f"golden.npz: {name}: got shape {got}, expected {shape}")
    return golden


def _largest(left: npt.NDArray[np.float32], right: npt.NDArray[np.float32]) -> float:
    """The largest difference of two arrays; not a number where either holds one.

    Beyond 32 in magnitude (a token as unlikely as e**-32) differences count in proportion: float32 holds 24 bits.
    """
    scale = np.maximum(1.0, np.abs(right) / 32)
    return float((np.abs(left.astype(np.float64) - right) / scale).max(initial=0.0))
