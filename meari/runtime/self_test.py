"""The checks of a bundle's graphs on this CPU: golden figures, and whether rows influence one another.

Input: the bytes of golden.npz, the manifest, a runner. Output: a `SelfTest`, or a BundleError. Must not know: requests.

golden.npz holds tokens and the results of the exported graphs:

    tokens      int64 [steps, rows], the boundary token first
    logprobs    float32 [steps, rows, V], of the token after each step
    state_NAME  float32 [rows, *shape], after the last step

onnxruntime may choose other kernels for other numbers of rows, and a graph may compute something across all of them. So
random rows are run together, in parts, and in the ways in which the engine may come to run them: all results must be
the same bits.
"""

from __future__ import annotations

import io
import math
import time
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from meari.bundle_format.manifest import Manifest, contradiction
from meari.bundle_format.names import NGRAM_STATE
from meari.errors import BundleError
from meari.runtime.engine.runner import Choices, Floats, Ids, ReadInputs, Runner, RunResult, States, WriteInputs
from meari.runtime.machine import cpu_name

__all__ = [
    "SelfTest",
    "check_golden",
    "fixed_step_seconds",
    "read_golden",
    "rows_are_isolated",
    "run_output",
    "run_step",
]

Array = npt.NDArray[Any]
MAX_TOKENS: Final = 1024  # an export writes 16
MAX_BYTES: Final = 1 << 28  # of one array, unpacked: 1,024 distributions over 65,536 tokens
HEADER: Final = (1, 0)  # of an .npy, at most 64 KiB; the header of later versions may announce gigabytes
STEPS: Final = 2
FEW_ROWS, MANY_ROWS = 8, 32  # between them, the time of a step grows by the same for each row
TRIALS: Final = 5
GREEDY_SHARE: Final = 0.1  # of the rows
MAX_TOP_K: Final = 8
MANY_STEPS: Final = 8  # of `max_rows` rows: whatever needs no state is computed for all of them together


@dataclass(frozen=True)
class SelfTest:
    """The results of the checks at load, on this CPU."""

    golden_max_difference: float  # nats
    rows_isolated: bool  # False: rows are run one by one, so that results still do not depend on other rows
    batch_sizes: tuple[int, ...]  # compared with one another, bit for bit
    onnxruntime: str  # figures repeat to the bit with one version
    cpu: str = field(default_factory=cpu_name)  # and on one kind of CPU


def read_golden(data: bytes, manifest: Manifest) -> dict[str, Array]:
    """Return the arrays of golden.npz by name. Raises BundleError where they do not fit the manifest.

    No more is unpacked than arrays of the expected shapes take, whatever the archive says.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return _read_arrays(archive, manifest)
    except (OSError, EOFError, ValueError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise BundleError("golden.npz: cannot be read: not an archive of NumPy arrays, or a damaged one") from error


def check_golden(golden: Mapping[str, Array], manifest: Manifest, runner: Runner) -> tuple[float, tuple[str, ...]]:
    """Run the golden tokens. Raises BundleError where the results differ too much.

    returns  the largest difference of a log-probability or a state, and the state tensors that together equal the
             hidden vector, if there are any
    """
    tokens = golden["tokens"]
    steps, rows = tokens.shape
    states = runner.initial_states(rows)
    logprobs, differences = golden["logprobs"], []
    last = tuple(name for name in states if name == NGRAM_STATE)  # stands behind the hidden vector of the cell
    copies = {(name,) for name in states} | {(name, *last) for name in states}  # equal to the hidden vector so far
    for step in range(steps):
        hidden, states = run_step(runner, tokens[step], states)
        copies = {names for names in copies if np.array_equal(_side_by_side(states, names), hidden)}
        differences.append(("log-probability", _max_difference(run_output(runner, hidden)[1], logprobs[step])))
    differences += [("state", _max_difference(values, golden[f"state_{name}"])) for name, values in states.items()]
    for kind, difference in differences:
        if not difference <= manifest.golden.tolerance:  # written so that NaN is refused
            raise BundleError(
                f"golden.npz: a {kind} computed here differs by {difference:.2g}, "
                f"expected at most {manifest.golden.tolerance:.2g}: this CPU or onnxruntime computes something else"
            )
    return max(difference for _, difference in differences), min(copies, default=())


def _side_by_side(states: States, names: Sequence[str]) -> Floats:
    """Return state tensors of all rows as float32 [rows, size]."""
    return np.concatenate([values.reshape(len(values), -1) for values in (states[name] for name in names)], axis=1)


def _max_difference(left: Floats, right: Floats) -> float:
    """Return the largest difference of two arrays; NaN where either holds one.

    Beyond 32 in magnitude (a token as unlikely as e**-32) differences count in proportion: float32 holds 24 bits.
    """
    scale = np.maximum(1.0, np.abs(right) / 32)
    return float((np.abs(left.astype(np.float64) - right) / scale).max(initial=0.0))


@dataclass(frozen=True, eq=False)
class _Rows:
    """Rows to run.

    tokens   int64 [STEPS, rows]
    states   state tensor -> float32 [rows, *shape]
    draws    float32 [rows, 6]: uniform numbers for both steps, which redraws use too, an inverse temperature, min_p,
             top_p and top_k
    """

    tokens: Ids
    states: States
    draws: Floats

    def part(self, rows: slice) -> _Rows:
        """Return some of the rows."""
        return _Rows(self.tokens[:, rows], {k: v[rows] for k, v in self.states.items()}, self.draws[rows])


def rows_are_isolated(runner: Runner, max_rows: int, sizes: Sequence[int]) -> bool:
    """Return whether a row's results are the same bits in batches of `max_rows` and of every size of `sizes`.

    Rows are tried at several places, in runs of one step and of several, read and written.
    """
    if not _steps_are_isolated(runner, max_rows):
        return False
    random = np.random.default_rng(0)
    everything = _rows_as_they_meet(runner, random, max_rows)
    read, written = _read(runner, everything, 0), _write(runner, everything, by_step=False)
    for size in sizes:
        by_step = size % 2 == 1
        for first in {0, max_rows - size, int(random.integers(0, max_rows - size + 1))}:
            rows = slice(first, first + size)
            if not _equal(_read(runner, everything.part(rows), 1, by_step=by_step), read, rows):
                return False
        if not _equal(_write(runner, everything.part(rows), by_step=by_step), written, rows):
            return False
    return True


def _steps_are_isolated(runner: Runner, num_rows: int) -> bool:
    """Return whether many steps in one run give the results of single runs."""
    tokens = np.random.default_rng(1).integers(0, runner.vocabulary_size, (MANY_STEPS, num_rows))
    states = runner.initial_states(num_rows)
    run = runner.run(tokens, states, want_hidden=True)
    for step, step_tokens in enumerate(tokens):
        hidden, states = run_step(runner, step_tokens, states)
        found = {name: values[step] for name, values in run.states.items()}
        if not _equal([run.hidden[step], *found.values()], [hidden, *states.values()], slice(None)):
            return False
    return True


def _equal(part: list[Array], everything: list[Array], rows: slice) -> bool:
    return all(np.array_equal(got, want[rows], equal_nan=True) for got, want in zip(part, everything, strict=True))


def _rows_as_they_meet(runner: Runner, random: np.random.Generator, num_rows: int) -> _Rows:
    """Return rows of which some have read more than others."""
    states, mixed = runner.initial_states(num_rows), runner.initial_states(num_rows)
    tokens = random.integers(0, runner.vocabulary_size, (3 + STEPS, num_rows))
    for age, step_tokens in enumerate(tokens[:3]):
        _, states = run_step(runner, step_tokens, states)
        for name, values in states.items():
            mixed[name][age::3] = values[age::3]
    draws = random.random((num_rows, 6), np.float32) * (1, 1, 1, 0.5, 0.5, min(runner.vocabulary_size - 1, MAX_TOP_K))
    draws += (0, 0, 0.5, 0, 0.5, 1)
    draws[:, 5] = np.floor(draws[:, 5])
    return _Rows(tokens[3:], mixed, draws.astype(np.float32))


def _read(runner: Runner, rows: _Rows, first_computed: int, *, by_step: bool = False) -> list[Array]:
    """Return the results after two steps of reading: arrays of [rows, …].

    first_computed  distributions are computed from this step on
    by_step         in a run for each step rather than in one for both
    """
    tokens, states = rows.tokens, rows.states
    if by_step:
        _, states = run_step(runner, tokens[0], states)
        tokens, first_computed = tokens[1:], 0
    inputs = _read_inputs(rows, range(first_computed, len(tokens)), rows.draws[:, :1])
    run = runner.run(tokens, states, inputs, want_hidden=True)
    last = slice(-len(rows.draws), None)
    found: list[Array] = [run.picked, run.picked_logprobs, run.logits, run.logprobs]
    return [run.hidden[-1], *_last(run), *(array[last] for array in found)]


def _write(runner: Runner, rows: _Rows, *, by_step: bool) -> list[Array]:
    """Return the results after two steps of writing: arrays of [rows, …].

    by_step  in a run of the reading graph for each step, as the engine does where some of the rows want more
    """
    if not by_step:
        redraws = np.repeat(rows.draws[None, :, :STEPS], STEPS, axis=0)
        inputs = WriteInputs(rows.draws[:, :STEPS].T[:, :, None], redraws, _choices(rows))
        run = runner.write(rows.tokens[0], rows.states, inputs)
        return [*run.picked, *run.picked_logprobs, *_last(run)]
    token, states = rows.tokens[0], rows.states
    picked: list[Array] = []
    logprobs: list[Array] = []
    for step in range(STEPS):
        run = runner.run(token[None], states, _read_inputs(rows, range(1), rows.draws[:, step : step + 1]))
        token, states = run.picked, {name: values[-1] for name, values in run.states.items()}
        picked.append(run.picked)
        logprobs.append(run.picked_logprobs)
    return [*picked, *logprobs, *states.values()]


def _read_inputs(rows: _Rows, steps: range, uniforms: Floats) -> ReadInputs:
    """Ask for all distributions of some steps of a run, sampled with these numbers."""
    num_rows = len(rows.draws)
    places = np.concatenate([step * num_rows + np.arange(num_rows) for step in steps])
    numbers, redraws = (np.tile(columns, (len(steps), 1)) for columns in (uniforms, rows.draws[:, :STEPS]))
    targets, choices = np.full((len(places), 1), -1), _choices(rows).of_rows(places % num_rows)
    return ReadInputs(places, targets, numbers, redraws, choices, logprobs=True, logits=True)


def _choices(rows: _Rows) -> Choices:
    """Return how the tokens are chosen: of about every tenth row the likeliest, of the others by all settings."""
    inverse = np.where(rows.draws[:, :1] < GREEDY_SHARE, np.float32(0), rows.draws[:, 2:3])
    flags = dict.fromkeys(("samples", "likeliest", "unranked", "tempered", "min_p", "nucleus"), True)
    limits = np.where(rows.draws[:, :1] < 0.5, (1, 1, np.inf), 1).astype(np.float32) * rows.draws[:, 3:]
    most = int(limits[limits[:, 2] < np.inf, 2].max(initial=1))
    return Choices(inverse_temperatures=inverse, limits=limits, num_ranked=most, bars=_bars(rows), **flags)


def _bars(rows: _Rows) -> Ids:
    """Return the barred tokens, int64 [rows, 1]: of about every other row the first one."""
    return np.where(rows.draws[:, 2:3] < 1, 0, -1)


def _last(run: RunResult) -> list[Floats]:
    """Return the states after the last step."""
    return [values[-1] for values in run.states.values()]


def fixed_step_seconds(runner: Runner, max_rows: int) -> float:
    """Return the CPU seconds of a writing step that do not depend on its rows; 0.0 where all runs have few rows.

    A line through steps of few and of many rows: a step of N rows takes a + b N seconds, and a is wanted. Of several
    trials the least counts.
    """
    many = min(MANY_ROWS, max_rows)
    if many <= FEW_ROWS:
        return 0.0
    seconds = dict.fromkeys((FEW_ROWS, many), math.inf)
    for _ in range(TRIALS):
        for rows, least in seconds.items():
            halves, ones = np.full((MANY_STEPS, rows, 1), 0.5, np.float32), np.ones((rows, 1), np.float32)
            choices = replace(Choices.likeliest_of(rows), inverse_temperatures=ones, samples=True, unranked=True)
            inputs = WriteInputs(halves, halves, choices)
            started = time.thread_time()
            runner.write(np.full(rows, runner.end_id), runner.initial_states(rows), inputs)
            seconds[rows] = min(least, (time.thread_time() - started) / MANY_STEPS)
    return max(0.0, (seconds[FEW_ROWS] * many - seconds[many] * FEW_ROWS) / (many - FEW_ROWS))


def _read_arrays(archive: zipfile.ZipFile, manifest: Manifest) -> dict[str, Array]:
    names = ["tokens", "logprobs", *(f"state_{entry.name}" for entry in manifest.state)]
    found = sorted(name.removesuffix(".npy") for name in archive.namelist())
    if found != sorted(names):
        raise BundleError(f"golden.npz: got {', '.join(found)[:200]}, expected {', '.join(sorted(names))}")
    shape, dtype = _header(archive, "tokens")
    if dtype != np.int64 or len(shape) != 2 or not 0 < math.prod(shape) <= MAX_TOKENS:
        said = f"{dtype} {list(shape)}, expected int64 [steps, rows], at most {MAX_TOKENS} in all"
        raise BundleError(f"golden.npz: tokens: got {said}")
    steps, rows = shape
    vocabulary_size = manifest.sizes["vocabulary"]
    shapes: dict[str, tuple[int, ...]] = {"logprobs": (steps, rows, vocabulary_size)}
    shapes |= {f"state_{entry.name}": (rows, *entry.shape) for entry in manifest.state}
    for name, expected in shapes.items():
        if math.prod(expected) * np.dtype(np.float32).itemsize > MAX_BYTES:
            raise BundleError(f"golden.npz: {name}: expected at most {MAX_BYTES:,} bytes, not {list(expected)} numbers")
        got, dtype = _header(archive, name)
        if got != expected or dtype != np.float32:
            raise BundleError(f"golden.npz: {name}: got {dtype} {list(got)}, expected float32 {list(expected)}")
    golden = {name: _array(archive, name) for name in names}
    _check_tokens(golden["tokens"], manifest)
    return golden


def _check_tokens(tokens: Array, manifest: Manifest) -> None:
    vocabulary_size = manifest.sizes["vocabulary"]
    if tokens.min() < 0 or tokens.max() >= vocabulary_size:
        raise BundleError(f"golden.npz: tokens: expected ids from 0 to {vocabulary_size - 1}")
    if (tokens[0] != manifest.boundary.id).any():
        raise contradiction("boundary.id", manifest.boundary.id, f"{tokens[0, 0]}, with which golden.npz begins")


def _header(archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return shape and type of an array; nothing of it is unpacked."""
    with archive.open(f"{name}.npy") as member:
        version = np.lib.format.read_magic(member)
        if version != HEADER:
            raise ValueError(f"{name}: an .npy of version {version}")
        shape, _, dtype = np.lib.format.read_array_header_1_0(member)
    return shape, dtype


def _array(archive: zipfile.ZipFile, name: str) -> Array:
    with archive.open(f"{name}.npy") as member:
        array: Array = np.lib.format.read_array(member, allow_pickle=False)
    return array


def run_step(runner: Runner, tokens: Ids, states: Mapping[str, Floats]) -> tuple[Floats, States]:
    """Feed one token to every row, int64 [rows]; returns hidden float32 [rows, H] and the states after it."""
    result = runner.run(tokens[None], states, want_hidden=True)
    return result.hidden[0], {name: values[0] for name, values in result.states.items()}


def run_output(runner: Runner, hidden: Floats) -> tuple[Floats, Floats]:
    """Compute logits and log-probabilities, float32 [rows, V] each, of hidden rows [rows, H]."""
    places = 1 + np.arange(len(hidden))
    inputs = ReadInputs.for_targets(places, np.zeros(len(hidden), np.int64), whole=True)
    result = runner.run(np.zeros((1, 1), np.int64), runner.initial_states(1), inputs, more_hidden=hidden)
    return result.logits, result.logprobs
