"""Bundle folder → runner whose results have been checked on this CPU.

Input: a folder. Output: a Bundle, or a BundleError that says which file, tensor or figure is wrong. Must not know:
requests. The manifest must be understood, every file must be the one that was exported, tokenizer and graphs must be as
the manifest says, and the golden figures must come out. Where rows influence one another, each is run alone.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from meari.bundle_format.folders import CELL_GRAPH, OUTPUT_GRAPH
from meari.bundle_format.manifest import Manifest
from meari.bundle_format.reader import check_sizes, read_files, read_manifest
from meari.bundle_format.signatures import PublicKey
from meari.errors import BundleError, NotReady, Problem
from meari.runtime.agreement import check_graphs, check_reserved, check_tokenizer
from meari.runtime.engine.row_by_row import RowByRowRunner
from meari.runtime.engine.runner import Runner, Sessions, StateTensor
from meari.runtime.graphs.bundle_graph import BundleGraph, Parts
from meari.runtime.graphs.engine_graphs import reader_graph, writer_graph
from meari.runtime.graphs.layers import find_gates, fuse_products, vectors_of
from meari.runtime.graphs.onnx_graph import FLOAT
from meari.runtime.machine import granted_memory
from meari.runtime.self_test import SelfTest, check_golden, read_golden, rows_are_isolated
from meari.runtime.text.tokenizer import TextTokenizer, parse_tokenizer, text_tokenizer

__all__ = ["Bundle", "check_memory", "open_bundle", "read_gates"]

# Full batches, single rows, and sizes around the widths of vector registers and kernels.
BATCH_SIZES: Final = (1, 2, 3, 4, 5, 7, 8, 12, 16, 17, 31, 32, 48)
GRAPHS: Final = (CELL_GRAPH, OUTPUT_GRAPH)
OPENING: Final = 5  # times the bytes of the graphs are held at once while they are opened, measured
REGION_BYTES: Final = 1 << 24  # of addresses for the buffers of steps; a greater need takes another region for a while
DOUBLING: Final = 0  # onnxruntime's kNextPowerOfTwo: the first region is never given back
OTHERWISE: Final = "the graph is not valid ONNX, or does not fit the inputs that it gets"
_REASONS: Final = tuple(
    (re.compile(pattern), words)
    for pattern, words in (
        (r"No Op registered for (\w+) with domain_version of (\d+)", "operator {0} is not known in operator set {1}"),
        (r"Fatal error: (?:[\w.]*:)?(\w+)\(-?\d+\) is not a registered", "operator {0} is not known"),
        (r"Could not find an implementation for (?:\w+:)?(\w+)\(\d+\)", "operator {0} cannot be run on this CPU"),
        (r"[Oo]pset (\d+) is under development", "operator set {0} is newer than this onnxruntime knows"),
        (r"IR version: (\d+), max supported IR version: (\d+)", "ONNX IR version: got {0}, expected at most {1}"),
        (r"Node input '([^']{1,100})' is not a graph input", "a node takes {0!r}, which nothing gives"),
        (r"Type Error: .*operator \((\w+)\)", "operator {0} gets an input of a wrong type"),
        (r"Unrecognized attribute: (\w+) for operator (\w+)", "operator {1} has no attribute {0!r}"),
        (r"No opset import for domain '([^']{0,100})'", "operators of {0!r} are not known"),
        (r"Tensor '([^']{1,100})' does not have valid data type", "tensor {0!r} has no type that is known"),
        (
            r"Initializer '([^']{1,100})': raw_data size \((\d+) bytes\).* \((\d+) bytes\)",
            "tensor {0!r}: got {1} bytes, expected the {2} of its shape",
        ),
        (r"not acyclic", "its nodes wait for one another in a circle"),
        (r"schema\((?:[\w.]*::)?(\w+):\d+\) has (input|output) size", "operator {0} has a wrong number of {1}s"),
        (r"running (\w+) node", "operator {0} fails on the inputs that it gets"),
        (r"[Pp]rotobuf parsing failed|No graph was found", "not an ONNX file, or a damaged one"),
    )
)


@dataclass(frozen=True, eq=False)
class Bundle:
    """An opened bundle."""

    folder: Path
    manifest: Manifest
    hash: str  # SHA-256 of manifest.json, which holds those of all other files
    tokenizer: TextTokenizer
    runner: Runner
    self_test: SelfTest


def open_bundle(folder: Path, *, max_slots: int, signing_keys: Sequence[PublicKey] = ()) -> Bundle:
    """Open and check a bundle for batches of up to `max_slots` rows. Raises BundleError.

    signing_keys  keys of which one has signed the bundle; without any it need not be signed

    Each file is read once: the bytes that are used are those that were checked.
    """
    manifest, digest = read_manifest(folder, signing_keys)
    check_sizes(manifest)
    check_memory(manifest, granted_memory())
    files = read_files(folder, manifest)
    with _reading("tokenizer.json"):
        tokenizer = _load_tokenizer(files["tokenizer.json"], manifest)
    with _reading("cell.onnx, output.onnx"):
        parts = _read_parts(files, manifest)
    with _reading("golden.npz"):
        golden = read_golden(files["golden.npz"], manifest)
    sizes = tuple(size for size in BATCH_SIZES if size < max_slots)
    with _reading("cell.onnx, output.onnx"):
        runner = _open_runner(parts, manifest)
        difference, runner.hidden_states = check_golden(golden, manifest, runner)
        isolated = rows_are_isolated(runner, max_slots, sizes)
    if not isolated:
        runner = RowByRowRunner.replacing(runner)
    self_test = SelfTest(difference, isolated, (*sizes, max_slots), ort.__version__)
    return Bundle(folder, manifest, digest, tokenizer, runner, self_test)


def check_memory(manifest: Manifest, memory: int) -> None:
    """Refuse a bundle that is certain not to fit: the system would end the process. memory: bytes that there are."""
    size = sum(manifest.files[name].bytes for name in GRAPHS)
    if size * OPENING > memory:
        reason = f"to open them takes {OPENING} times as many, and there are {memory:,} of memory"
        raise BundleError(Problem(", ".join(GRAPHS), f"{size:,} bytes", f"at most {memory // OPENING:,}", reason))


def read_gates(
    bundle: Bundle, tokens: Sequence[int], states: Mapping[str, npt.NDArray[np.float32]]
) -> dict[str, npt.NDArray[np.float32]]:
    """Return gates and candidates of a GRU's or LSTM's layers while tokens are read; none of another cell.

    tokens   num_tokens ids
    states   state tensor -> float32 [num_tokens, *shape], before each token
    returns  name with the number of its layer -> float32 [num_tokens, units]: r, z, n of a GRU, i, f, g, o of an LSTM

    They are inside the cell's graph, which is read from the folder once more. Raises NotReady if the bundle has changed
    or is gone.
    """
    if not tokens:
        return {}
    try:
        cell = BundleGraph(read_files(bundle.folder, bundle.manifest)[CELL_GRAPH])
    except BundleError as error:
        raise NotReady(f"the bundle of {bundle.manifest.name} was changed; ask again once it is loaded") from error
    gates = find_gates(cell.model.graph, states)
    if not gates:
        return {}
    del cell.model.graph.output[:]
    for value in gates.values():
        cell.model.graph.output.add(name=value).type.tensor_type.elem_type = FLOAT
    inputs = {"token": np.array(tokens, np.int64), **states}
    values = _open_session(cell.model.SerializeToString).run(list(gates.values()), inputs)
    return dict(zip(gates, values, strict=True))


@contextlib.contextmanager
def _reading(files: str) -> Iterator[None]:
    """Name the files that an error comes from; a library's own message is for the log alone."""
    try:
        yield
    except BundleError:
        raise
    except Exception as error:
        raise BundleError(
            f"{files}: {_graph_problem(error)}" if ".onnx" in files else f"{files}: not usable"
        ) from error


def _load_tokenizer(data: bytes, manifest: Manifest) -> TextTokenizer:
    """Return the bundle's tokenizer. Raises BundleError where it is not the one that the manifest describes."""
    tokenizer, parts = parse_tokenizer(data)
    check_tokenizer(manifest, parts, tokenizer.get_vocab(with_added_tokens=False))
    found = text_tokenizer(tokenizer, manifest)
    check_reserved(manifest, parts, found.encode(manifest.boundary.token))
    return found


def _read_parts(files: dict[str, bytes], manifest: Manifest) -> Parts:
    """Take the graphs out of the files, which are not held twice."""
    cell, output = (_read_graph(name, files.pop(name)) for name in GRAPHS)
    check_graphs(manifest, cell, output)
    states = {entry.name: entry.shape for entry in manifest.state}
    return Parts(cell, output, states, manifest.sizes["vocabulary"])


def _open_runner(parts: Parts, manifest: Manifest) -> Runner:
    output = parts.output.model.graph
    try:
        writer = _open_session(partial(_drawn, writer_graph, parts))
        fuse_products(output, vectors_of(output))  # pays where there are many rows
        reader = _open_session(partial(_drawn, reader_graph, parts))
    except BundleError:
        raise
    except Exception as error:
        raise BundleError(_whose_problem(parts, error)) from error
    tensors = [StateTensor(name, shape) for name, shape in parts.state.items()]
    sessions = Sessions(reader, writer, _giving_back())
    return Runner(sessions, tensors, parts.hidden_size, parts.vocabulary_size, manifest.boundary.id)


def _drawn(draw: Callable[[Parts], bytes], parts: Parts) -> bytes:
    try:
        return draw(parts)
    except ValueError as error:
        raise BundleError(f"cell.onnx, output.onnx: {error}") from error


def _read_graph(name: str, data: bytes) -> BundleGraph:
    try:
        return BundleGraph(data)
    except ValueError as error:
        raise BundleError(f"{name}: {error}") from error


def _open_session(draw: Callable[[], bytes]) -> Any:
    """Open a graph, whose bytes are made here and held no longer than they are needed."""
    _share_buffers()
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1  # one engine a worker, a worker a CPU
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.use_env_allocators", "1")
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")  # weights are not buffers
    options.enable_mem_pattern = False  # else all buffers of a run are one piece, for which the heap has to have a hole
    options.log_severity_level = 4  # who catches an error logs it
    with _as_file(draw()) as file:
        return ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])


@functools.cache
def _share_buffers() -> None:
    """Let the graphs of a process take their buffers from one region, whose pages stay with it once they were used.

    From malloc, large buffers are fresh pages at every step, which cost more than a pass over them. Of the region, only
    pages that were in use at the same time are in memory.
    """
    info = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(info, ort.OrtArenaCfg(0, DOUBLING, REGION_BYTES, -1))


@functools.cache
def _giving_back() -> Any:
    """Return options of a run at whose end all other regions are given back in which nothing is left.

    The results of a large run are left there until the next run.
    """
    options = ort.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


def _whose_problem(parts: Parts, error: Exception) -> str:
    """Return which file cannot be opened on its own, and why; else what is wrong with both together."""
    for name, graph in (("cell.onnx", parts.cell), ("output.onnx", parts.output)):
        try:
            _open_session(graph.model.SerializeToString)
        except Exception as own:  # noqa: BLE001 (it becomes the reason)
            return f"{name}: {_graph_problem(own)}"
    return f"cell.onnx, output.onnx: {_graph_problem(error)}"


@contextlib.contextmanager
def _as_file(graph: bytes) -> Iterator[str | bytes]:
    """Yield a path in memory where possible: a session keeps the bytes that it is made from, but no file."""
    if not hasattr(os, "memfd_create"):
        yield graph
        return
    with os.fdopen(os.memfd_create("graph"), "wb") as file:
        file.write(graph)
        file.flush()
        del graph
        yield f"/proc/self/fd/{file.fileno()}"


def _graph_problem(error: Exception) -> str:
    """Return why a graph cannot be opened or run, in our own words, which a client may read.

    The runtime's text has paths of its source and changes with its versions; it stays the error's cause, for the log.
    """
    for pattern, words in _REASONS:
        found = pattern.search(str(error))
        if found is not None:
            return words.format(*found.groups())
    return "there is not enough memory for it" if isinstance(error, MemoryError) else OTHERWISE
