"""Snapshot of a run in its `last/` folder, from which training continues bit for bit.

Input: the moving parts of a training loop. Output: a checkpoint folder with two more files, and the parts restored from
it. Must not know: the loop.

    optimizer.safetensors   AdamW's moments, the mean of the weights, the recurrent state of every stream, torch's
                            generator states
    progress.json           finished steps, streams, best figure, patience, times, fingerprint of the corpus
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch
from torch import Tensor

from meari.models.checkpoint import (
    WEIGHTS,
    fill_checkpoint,
    load_weights,
    misfit,
    read_tensors,
    write_tensors,
)
from meari.models.checkpoint_folder import read_description
from meari.models.config import Config
from meari.models.errors import CheckpointError
from meari.models.files import current_folder, replaced_folder
from meari.models.language_model import LanguageModel, State
from meari.models.training.optimizer import WeightAverage, expected_moments, optimizer_tensors, restore_optimizer
from meari.models.training.run_folder import RunFolder
from meari.models.training.streams import Streams

OPTIMIZER = "optimizer.safetensors"
PROGRESS = "progress.json"
Count = Annotated[int, msgspec.Meta(ge=0)]
Amount = Annotated[float, msgspec.Meta(ge=0)]


@dataclass(frozen=True)
class Progress:
    """Progress of a run.

    step                    finished steps
    best_validation         lowest nats per token so far, None before the first evaluation
    best_step               its step
    evaluations_since_best  for early stopping
    seconds                 of training, all parts of the run together
    is_finished             True if nothing is left to do
    tokens                  of all streams together
    cpu_seconds             processor time, all threads and processes together; None if a part of the run did not count
    """

    step: Count = 0
    best_validation: float | None = None
    best_step: Count = 0
    evaluations_since_best: Count = 0
    seconds: Amount = 0.0
    is_finished: bool = False
    tokens: Count = 0
    cpu_seconds: Amount | None = None


@dataclass(frozen=True)
class Snapshot:
    """Values that are saved besides weights and moments."""

    progress: Progress
    streams: dict[str, Any]
    state: State
    average: dict[str, Tensor]


def save_snapshot(
    run: RunFolder,
    config: Config,
    model: LanguageModel,
    optimizer: torch.optim.Optimizer,
    snapshot: Snapshot,
    fingerprint: str,
) -> None:
    """Replace `last/` atomically."""
    progress = snapshot.progress
    tensors = _named("optimizer/", optimizer_tensors(optimizer, model))
    tensors |= _named("state/", snapshot.state) | _named("average/", snapshot.average)
    tensors |= _generator_states()
    described = dataclasses.asdict(progress) | {"streams": snapshot.streams, "fingerprint": fingerprint}
    figures = {"validation": {"nats_per_token": progress.best_validation}} if progress.best_validation else {}
    with replaced_folder(run.last) as folder:
        fill_checkpoint(folder, model, run.tokenizer, config, step=progress.step, figures=figures)
        write_tensors(folder / OPTIMIZER, tensors)
        (folder / PROGRESS).write_text(json.dumps(described) + "\n", "utf-8")


def load_snapshot(
    run: RunFolder,
    model: LanguageModel,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage,
    streams: Streams,
    fingerprint: str,
) -> tuple[Progress, State]:
    """Fill model, optimizer, average, streams and torch's generators from `last/`; return what else was saved.

    Raises CheckpointError: nothing there, damaged, its parts do not fit the run, or the corpus is not the one the run
    was started with.
    """
    folder = current_folder(run.last)
    progress = restore_progress(run, folder, streams, fingerprint)
    load_weights(model, folder / WEIGHTS)
    path = folder / OPTIMIZER
    tensors = read_tensors(path)
    moments, means, state = (_under(prefix, tensors) for prefix in ("optimizer/", "average/", "state/"))
    expected = {"generator/cpu": torch.get_rng_state()}
    expected |= {name: tensors[name] for name in tensors if name == "generator/cuda"}  # looked at by torch itself
    if progress.step:
        expected |= _named("optimizer/", expected_moments(optimizer, model, moments, _num_directions(moments)))
    expected |= _named("average/", average.expected_tensors(is_empty=not means))
    expected |= _named("state/", _like(model.initial_state(streams.size), state))
    check_fit(path, tensors, expected)
    restore_optimizer(optimizer, model, moments)
    average.restore(means)
    _restore_generators(path, tensors)
    return progress, {name: tensor.to(model.device) for name, tensor in state.items()}


def restore_progress(run: RunFolder, folder: Path, streams: Streams, fingerprint: str) -> Progress:
    """Return the progress that a snapshot tells, and let the streams continue where they were. Raises CheckpointError.

    folder   of the snapshot
    """
    path = folder / PROGRESS
    step = read_description(folder).get("step")
    try:
        described = json.loads(path.read_text("utf-8"))
        if described["fingerprint"] != fingerprint:
            raise CheckpointError(
                f"{run.path}: the corpus has changed since this run was started; "
                "bring it back, or start again with --overwrite"
            )
        progress = msgspec.convert(described, Progress)
        _check_names_and_step(described, step)
        streams.restore(described["streams"])
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}; start again with --overwrite") from error
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        problem = f"damaged: {type(error).__name__}: {error}"
        raise CheckpointError(f"{path}: {problem:.200}; start again with --overwrite") from error
    return progress


def _check_names_and_step(described: dict[str, Any], step_of_weights: object) -> None:
    unknown = {*described} - {field.name for field in dataclasses.fields(Progress)} - {"streams", "fingerprint"}
    if unknown:
        raise ValueError(f"unknown: {min(unknown)!r}")
    if described["step"] != step_of_weights:
        raise ValueError(f"step: got {described['step']}, but the weights are those of step {step_of_weights!r:.20}")


def check_fit(path: Path, tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Raise CheckpointError where the tensors of a file have other names, shapes or types than a run expects."""
    problem = misfit(tensors, expected)
    if problem is not None:
        raise CheckpointError(f"{path}: does not fit the run: {problem}; start again with --overwrite")


def _num_directions(moments: dict[str, Tensor]) -> int:
    """Return the columns of the directions of a reservoir's states, which were measured at the first step."""
    shapes = [tensor.shape for name, tensor in moments.items() if name.endswith("/directions")]
    return shapes[0][1] if shapes and len(shapes[0]) == 2 else 0


def _like(initial: State, state: State) -> State:
    """Return what is expected of a state: it may be bfloat16 after a step in that precision."""
    halves = {name for name, tensor in state.items() if tensor.dtype is torch.bfloat16}
    return {name: tensor.bfloat16() if name in halves else tensor for name, tensor in initial.items()}


def _named(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _generator_states() -> dict[str, Tensor]:
    states = {"generator/cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["generator/cuda"] = torch.cuda.get_rng_state()
    return states


def _restore_generators(path: Path, tensors: dict[str, Tensor]) -> None:
    try:
        torch.set_rng_state(tensors["generator/cpu"])
        if torch.cuda.is_available() and "generator/cuda" in tensors:
            torch.cuda.set_rng_state(tensors["generator/cuda"])
    except (RuntimeError, TypeError) as error:  # torch's texts have its source
        raise CheckpointError(f"{path}: no states of generators; start again with --overwrite") from error
