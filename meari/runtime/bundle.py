"""From a bundle's folder to a runner that is known to compute what it should, on this CPU.

Enters: a folder. Leaves: a Bundle, or a BundleError that says which file, tensor or figure is wrong. On the way:
the manifest is understood, every file is the one that was exported, tokenizer and graphs are what the manifest says,
the golden figures come out, and rows do not influence one another. It knows nothing of requests.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime as ort

from meari.bundle_format.manifest import Manifest
from meari.bundle_format.reader import read_files, read_manifest
from meari.errors import BundleError
from meari.runtime.engine.runner import RowByRowRunner, Runner, Sessions, StateTensor
from meari.runtime.graphs.agreement import check_graphs
from meari.runtime.graphs.bundle_graph import BundleGraph, Parts
from meari.runtime.graphs.fusion import fuse_products, vectors_of
from meari.runtime.graphs.problems import graph_problem
from meari.runtime.graphs.reader import reader_graph
from meari.runtime.graphs.writer import writer_graph
from meari.runtime.self_test import SelfTest, check_golden, read_golden, rows_are_isolated
from meari.runtime.text.tokenizer import TextTokenizer, load_tokenizer

__all__ = ["Bundle", "open_bundle"]

# Full batches, lone rows, and sizes around the widths of vector registers and kernels.
BATCH_SIZES = (1, 2, 3, 4, 5, 7, 8, 12, 16, 17, 31, 32, 48)


@dataclass(frozen=True, eq=False)
class Bundle:
    """An opened bundle."""

    folder: Path
    manifest: Manifest
    hash: str  # SHA-256 of manifest.json, which holds those of all other files
    tokenizer: TextTokenizer
    runner: Runner
    self_test: SelfTest


def open_bundle(folder: Path, *, max_slots: int) -> Bundle:
    """Open and check a bundle for batches of up to `max_slots` rows. Raises BundleError."""
    manifest, digest = read_manifest(folder)
    files = read_files(folder, manifest)
    with _reading("tokenizer.json"):
        tokenizer = load_tokenizer(files["tokenizer.json"], manifest)
    with _reading("cell.onnx, output.onnx"):
        parts = _read_parts(files, manifest)
    with _reading("golden.npz"):
        golden = read_golden(files["golden.npz"], manifest)
    sizes = tuple(size for size in BATCH_SIZES if size < max_slots)
    with _reading("cell.onnx, output.onnx"):
        runner = _open_runner(parts, manifest)
        difference, runner.hidden_state = check_golden(golden, manifest, runner)
        isolated = rows_are_isolated(runner, max_slots, sizes)
    if not isolated:
        runner = RowByRowRunner.replacing(runner)
    self_test = SelfTest(difference, isolated, (*sizes, max_slots), ort.__version__)
    return Bundle(folder, manifest, digest, tokenizer, runner, self_test)


@contextlib.contextmanager
def _reading(files: str) -> Iterator[None]:
    """Name the files that whatever goes wrong comes from; a library's own words are for the log alone."""
    try:
        yield
    except BundleError:
        raise
    except Exception as error:
        raise BundleError(f"{files}: {graph_problem(error)}" if ".onnx" in files else f"{files}: not usable") from error


def _read_parts(files: Mapping[str, bytes], manifest: Manifest) -> Parts:
    cell, output = (_read_graph(name, files[name]) for name in ("cell.onnx", "output.onnx"))
    check_graphs(manifest, cell, output)
    states = {entry.name: entry.shape for entry in manifest.state}
    return Parts(cell, output, states, manifest.sizes["vocabulary"])


def _open_runner(parts: Parts, manifest: Manifest) -> Runner:
    try:
        reader, writer = _draw_graphs(parts)
        sessions = Sessions(_open_session(reader), _open_session(writer))
    except BundleError:
        raise
    except Exception as error:
        raise BundleError(_whose_problem(parts, error)) from error
    tensors = [StateTensor(name, shape) for name, shape in parts.state.items()]
    return Runner(sessions, tensors, parts.hidden_size, parts.vocabulary_size, manifest.boundary.id)


def _draw_graphs(parts: Parts) -> tuple[bytes, bytes]:
    """The reader's graph and the writer's."""
    output = parts.output.model.graph
    try:
        writer = writer_graph(parts)
        fuse_products(output, vectors_of(output))  # pays where there are many rows
        return reader_graph(parts), writer
    except ValueError as error:
        raise BundleError(f"cell.onnx, output.onnx: {error}") from error


def _read_graph(name: str, data: bytes) -> BundleGraph:
    try:
        return BundleGraph(data)
    except ValueError as error:
        raise BundleError(f"{name}: {error}") from error


def _open_session(graph: bytes) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1  # one engine a worker, a worker a CPU
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_cpu_mem_arena = False  # malloc is as quick, and gives back what a large batch took
    options.log_severity_level = 4  # what goes wrong is told by who catches it
    with _as_file(graph) as file:
        return ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def _whose_problem(parts: Parts, error: Exception) -> str:
    """Which file cannot be opened on its own, and why; else what is wrong with both together."""
    for name, graph in (("cell.onnx", parts.cell), ("output.onnx", parts.output)):
        try:
            _open_session(graph.model.SerializeToString())
        except Exception as own:  # noqa: BLE001 (it becomes the reason)
            return f"{name}: {graph_problem(own)}"
    return f"cell.onnx, output.onnx: {graph_problem(error)}"


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
