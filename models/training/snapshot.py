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
from typing import Any

import torch
from torch import Tensor

from meari.models.checkpoint import (
    WEIGHTS,
    fill_checkpoint,
    load_weights,
    read_description,
    read_tensors,
    write_tensors,
)
from meari.models.config import Config
from meari.models.errors import CheckpointError
from meari.models.files import current_folder, replaced_folder
from meari.models.language_model import LanguageModel, State
from meari.models.training.optimizer import optimizer_tensors, restore_optimizer
from meari.models.training.run_folder import RunFolder

OPTIMIZER = "optimizer.safetensors"
PROGRESS = "progress.json"


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

    step: int = 0
    best_validation: float | None = None
    best_step: int = 0
    evaluations_since_best: int = 0
    seconds: float = 0.0
    is_finished: bool = False
    tokens: int = 0
    cpu_seconds: float | None = None


@dataclass(frozen=True)
class Snapshot:
    """Values that `load_snapshot` returns besides the weights and moments that it fills in."""

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
    tensors = {f"optimizer/{name}": tensor for name, tensor in optimizer_tensors(optimizer, model).items()}
    tensors |= {f"state/{name}": tensor for name, tensor in snapshot.state.items()}
    tensors |= {f"average/{name}": tensor for name, tensor in snapshot.average.items()}
    tensors |= _generator_states()
    described = dataclasses.asdict(progress) | {"streams": snapshot.streams, "fingerprint": fingerprint}
    figures = {"validation": {"nats_per_token": progress.best_validation}} if progress.best_validation else {}
    with replaced_folder(run.last) as folder:
        fill_checkpoint(folder, model, run.tokenizer, config, step=progress.step, figures=figures)
        write_tensors(folder / OPTIMIZER, tensors)
        (folder / PROGRESS).write_text(json.dumps(described) + "\n", "utf-8")


def load_snapshot(run: RunFolder, model: LanguageModel, optimizer: torch.optim.Optimizer, fingerprint: str) -> Snapshot:
    """Fill model, optimizer and torch's generators from `last/`.

    Raises CheckpointError: nothing there, damaged, or the corpus is not the one the run was started with.
    """
    folder = current_folder(run.last)
    read_description(folder)
    described = _read_progress(folder / PROGRESS)
    try:
        return _restored(run, folder, described, model, optimizer, fingerprint)
    except (KeyError, TypeError, ValueError) as error:  # something is missing, or of another kind
        problem = f"damaged: {type(error).__name__}: {error}"
        raise CheckpointError(f"{folder}: {problem:.200}; start again with --overwrite") from error


def _restored(
    run: RunFolder,
    folder: Path,
    described: dict[str, Any],
    model: LanguageModel,
    optimizer: torch.optim.Optimizer,
    fingerprint: str,
) -> Snapshot:
    if described.pop("fingerprint") != fingerprint:
        raise CheckpointError(
            f"{run.path}: the corpus has changed since this run was started; "
            "bring it back, or start again with --overwrite"
        )
    load_weights(model, folder / WEIGHTS)
    tensors = read_tensors(folder / OPTIMIZER)
    restore_optimizer(optimizer, model, _under("optimizer/", tensors))
    _restore_generators(tensors)
    streams = described.pop("streams")
    state = {name: tensor.to(model.device) for name, tensor in _under("state/", tensors).items()}
    return Snapshot(Progress(**described), streams, state, _under("average/", tensors))


def _read_progress(path: Path) -> dict[str, Any]:
    try:
        described = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}; start again with --overwrite") from error
    if not isinstance(described, dict):
        raise CheckpointError(f"{path}: got {described!r:.60}, expected a table; start again with --overwrite")
    return described


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _generator_states() -> dict[str, Tensor]:
    states = {"generator/cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["generator/cuda"] = torch.cuda.get_rng_state()
    return states


def _restore_generators(tensors: dict[str, Tensor]) -> None:
    torch.set_rng_state(tensors["generator/cpu"])
    if torch.cuda.is_available() and "generator/cuda" in tensors:
        torch.cuda.set_rng_state(tensors["generator/cuda"])
