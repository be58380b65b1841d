"""Memory that a training needs, compared with the memory of the machine before anything is allocated.

Input: a config, and the sizes of its corpus as far as known. Output: nothing, or a TrainingError that names the setting
to change. Must not know: text.

The estimate counts only tensors that a training certainly holds at once: weights, their gradients and the optimizer's
moments, fixed weights, and of a step the tokens and the outputs of every layer. So a refused config cannot run, and an
accepted one may still run out of memory: `memory_errors` then gives a one-line error.
"""

import contextlib
import dataclasses
import itertools
import resource
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from meari.models.cells import NUM_GATES
from meari.models.choices import Averaging, Pattern, Readout
from meari.models.config import Config, ModelConfig, RecurrentConfig, ReservoirConfig
from meari.models.config_rules import MIN_VOCABULARY
from meari.models.errors import TrainingError
from meari.models.fields import show

FLOAT, DOUBLE, INDEX = 4, 8, 8  # bytes
TRAINED = 4 * FLOAT  # a weight, its gradient, two moments
UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")
GROUP_LIMITS = ("memory.max", "memory.limit_in_bytes")  # of control groups, version 2 and 1


def check_memory(
    config: Config,
    device: torch.device,
    *,
    vocabulary_size: int | None = None,
    chunk_length: int = 1,
    num_processes: int = 1,
) -> None:
    """Raise TrainingError if a training cannot fit into the memory of the machine.

    vocabulary_size   None: unknown yet, so the smallest that the tokenizer may have
    chunk_length      smallest length of a chunk; 1 while the corpus is unknown
    """
    vocabulary = vocabulary_size or MIN_VOCABULARY[config.tokenizer.kind]
    available = _available(device)
    needed = _least_bytes(config, vocabulary, chunk_length, num_processes)
    if available is None or needed <= available:
        return
    key, value = _largest(config, vocabulary, chunk_length, num_processes)
    raise TrainingError(
        f"{key}: got {value}, with which the training needs at least {_shown(needed)} of memory, "
        f"expected at most {_shown(available)}, the memory of this machine"
    )


def min_file_bytes(model: ModelConfig, vocabulary: int) -> int:
    """Return a number of bytes that a file with the weights of a model has at least, in floats of any precision.

    A file with fewer belongs to another model, which is known so before this one is made: making takes long for large
    sizes.
    """
    if isinstance(model, ReservoirConfig):
        return _fixed_bytes(model, vocabulary) // 2
    return _recurrent_numbers(model, vocabulary)[0] * FLOAT // 2


@contextlib.contextmanager
def memory_errors() -> Iterator[None]:
    """Turn the ways in which numpy and torch report exhausted memory into a TrainingError."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise _ran_out(error) from error
    except RuntimeError as error:
        if not any(words in str(error) for words in OUT_OF_MEMORY):
            raise
        raise _ran_out(error) from error


def _ran_out(error: BaseException) -> TrainingError:
    said = str(error).splitlines()[0] if str(error) else type(error).__name__
    return TrainingError(
        f"memory ran out ({said}); lower training.batch_size, training.chunk_length or the sizes under [model]"
    )


# --- memory needed -----------------------------------------------------------------------------------


def _least_bytes(config: Config, vocabulary: int, chunk: int, num_processes: int) -> int:
    tokens = config.training.batch_size * chunk
    rows = tokens // num_processes
    if isinstance(config.model, ReservoirConfig):
        return 2 * INDEX * tokens + _reservoir_bytes(config.model, vocabulary, rows)
    each = TRAINED + FLOAT * (config.training.averaging is not Averaging.NONE)
    weights, outputs = _recurrent_numbers(config.model, vocabulary)
    return 2 * INDEX * tokens + each * weights + FLOAT * rows * outputs


def _recurrent_numbers(model: RecurrentConfig, vocabulary: int) -> tuple[int, int]:
    """Count trained weights, and the outputs of all layers for one token."""
    gates, embedding = NUM_GATES[model.family], model.embedding_size
    if model.layer_sizes:
        inputs = (embedding, *model.layer_sizes)
        weights = sum(gates * size * (below + size) for below, size in itertools.pairwise(inputs))
        last, outputs = model.layer_sizes[-1], sum(model.layer_sizes)
    else:
        last, outputs = model.hidden_size, model.hidden_size * model.num_layers
        weights = gates * last * (embedding + last + 2 * last * (model.num_layers - 1))
    weights += model.mogrifier_rounds * embedding * (model.layer_sizes or (last,))[0]
    head = model.adaptive_cutoffs[0] if model.adaptive_cutoffs else vocabulary
    weights += vocabulary * embedding + (0 if model.tied else last * head)
    return weights, embedding + outputs


def _fixed_bytes(model: ReservoirConfig, vocabulary: int) -> int:
    edge = FLOAT if model.pattern is Pattern.BLOCK else FLOAT + INDEX
    edges = model.block_size if model.pattern is Pattern.BLOCK else model.in_edges
    fixed = edge * model.units * edges * (2 * model.layers - 1)
    size = model.embedding_size
    entering = vocabulary * size + model.input_tokens * size * model.units if size else vocabulary * model.units
    return fixed + FLOAT * (entering + model.features * model.feature_edges)


def _reservoir_bytes(model: ReservoirConfig, vocabulary: int, rows: int) -> int:
    inputs = model.layers * model.units + model.features
    if model.readout is Readout.RIDGE:
        trained = DOUBLE * inputs * (inputs + vocabulary) + FLOAT * vocabulary * inputs
    else:
        rank = model.readout_rank
        linear = inputs * vocabulary if model.readout_gated or not rank else 0
        trained = TRAINED * (linear + rank * (inputs * (1 + model.readout_gated) + vocabulary))
    return _fixed_bytes(model, vocabulary) + trained + FLOAT * rows * inputs


def _largest(config: Config, vocabulary: int, chunk: int, num_processes: int) -> tuple[str, str]:
    """Return name and value of the setting whose reduction saves most memory."""
    found = [
        (_least_bytes(replace(config, model=smaller), vocabulary, chunk, num_processes), f"model.{key}", value)
        for key, value, smaller in _smaller_models(config.model)
    ]
    training = config.training
    one_row = replace(config, training=replace(training, batch_size=num_processes))
    found += [
        (_least_bytes(one_row, vocabulary, chunk, num_processes), "training.batch_size", training.batch_size),
        (_least_bytes(config, vocabulary, 1, num_processes), "training.chunk_length", training.chunk_length),
        (_least_bytes(config, 1, chunk, num_processes), "tokenizer.vocabulary_size", vocabulary),
    ]
    _, key, value = min(found, key=lambda each: each[0])
    return key, show(value)


def _smaller_models(model: Any) -> Iterator[tuple[str, object, Any]]:
    """Yield each setting that is a size, its value, and the model with that size at its smallest."""
    for field in dataclasses.fields(model):
        value = getattr(model, field.name)
        if isinstance(value, tuple) and value:
            yield field.name, list(value), replace(model, **{field.name: (1,) * len(value)})
        elif type(value) is int and value > 1:
            yield field.name, value, replace(model, **{field.name: 1})


# --- memory available --------------------------------------------------------------------------------


def _available(device: torch.device) -> int | None:
    """Return the bytes of the device, with swap and a container's limits; None if unknown."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    swap = _meminfo("SwapTotal") or 0
    physical, group = _meminfo("MemTotal"), _group_bytes()
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    limits = [None if each is None else each + swap for each in (physical, group)]
    limits += [None if limit == resource.RLIM_INFINITY else limit]
    return min((each for each in limits if each is not None), default=None)


def _meminfo(name: str) -> int | None:
    lines = _read(Path("/proc/meminfo")).splitlines()
    kilobytes = [int(line.split()[1]) for line in lines if line.startswith(f"{name}:")]
    return 1024 * kilobytes[0] if kilobytes else None


def _group_bytes(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> int | None:
    """Return the tightest limit of this process' control groups and of those above them."""
    folders = [root, root / "memory"]
    for line in _read(membership).splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controllers in {"", "memory"}:
            mount = root / controllers
            group = mount / path.lstrip("/")
            folders += [group, *(parent for parent in group.parents if parent.is_relative_to(mount))]
    said = (_read(folder / name).strip() for folder in folders for name in GROUP_LIMITS)
    return min((int(limit) for limit in said if limit.isdigit()), default=None)


def _read(path: Path) -> str:
    try:
        return path.read_text("ascii")
    except (OSError, UnicodeDecodeError):
        return ""


def _shown(num_bytes: int) -> str:
    """Format bytes in the largest unit of which there is at least one."""
    place = min(max(0, (num_bytes.bit_length() - 1) // 10), len(UNITS) - 1)
    value = num_bytes / (1 << 10 * place) if num_bytes.bit_length() < 1000 else float("inf")
    return f"{value:,.1f} {UNITS[place]}" if value < 1e6 else f"{value:.1e} {UNITS[place]}"
