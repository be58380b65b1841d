"""A trained model on disk: weights as safetensors, everything else as JSON. Nothing is pickled.

Input: a model, a tokenizer, a config, figures. Output: a folder, and the same values read back. Must not know:
training.

    model.safetensors   weights and buffers by their names in the model
    checkpoint.json     format_version, family, tokenizer, vocabulary_size, step, config, figures
    tokenizer.json      the tokenizer, so that the folder is complete on its own

A run folder holds such folders as `best/` and `last/`; `last/` holds more (`models/training/snapshot.py`).
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from meari.bundle_format.names import Family
from meari.models.checkpoint_folder import BEST, DESCRIPTION, FORMAT_VERSION, find_checkpoint, read_description
from meari.models.config import Config, parse_config
from meari.models.errors import CheckpointError, ConfigError, ModelsError, TokenizerError
from meari.models.families import build_model
from meari.models.files import current_folder
from meari.models.language_model import LanguageModel
from meari.models.memory import min_file_bytes
from meari.models.text.tokenizer import Tokenizer

WEIGHTS = "model.safetensors"
TOKENIZER = "tokenizer.json"
FIGURES = "figures.json"
MAX_READS = 10  # attempts to read a checkpoint that is being replaced


@dataclass(frozen=True)
class Checkpoint:
    """A model ready to be evaluated or exported, with its tokenizer, config and figures."""

    model: LanguageModel
    tokenizer: Tokenizer
    config: Config
    figures: dict[str, Any]
    step: int


def fill_checkpoint(
    folder: Path, model: LanguageModel, tokenizer_file: Path, config: Config, *, step: int, figures: dict[str, Any]
) -> None:
    """Write a checkpoint's files into an existing folder; the caller makes that atomic."""
    write_tensors(folder / WEIGHTS, model.state_dict())
    description = {
        "format_version": FORMAT_VERSION,
        "family": model.family,
        "tokenizer": str(config.tokenizer.kind),
        "vocabulary_size": model.vocabulary_size,
        "step": step,
        "config": config.to_tables(),
        "figures": figures,
    }
    (folder / DESCRIPTION).write_text(json.dumps(description, ensure_ascii=False, indent=2) + "\n", "utf-8")
    shutil.copyfile(tokenizer_file, folder / TOKENIZER)


def load_checkpoint(folder: Path, device: torch.device | None = None) -> Checkpoint:
    """Read a run folder (its best weights) or a checkpoint folder; the model comes in evaluation mode.

    A running training may replace the checkpoint meanwhile: then the new one is read.

    Raises CheckpointError where the folder is none, is incomplete, or its parts do not fit one another.
    """
    for _ in range(MAX_READS):
        before = _identity(folder)
        try:
            checkpoint = _load(folder, device)
        except CheckpointError:
            if _identity(folder) == before:
                raise
            continue
        if _identity(folder) == before:
            return checkpoint
    raise CheckpointError(f"{folder}: was replaced {MAX_READS} times while it was read; try again later")


def _identity(folder: Path) -> tuple[int, int, int] | None:
    """Return a value that changes when another folder takes the place of a checkpoint."""
    try:
        found = (folder if (folder / DESCRIPTION).exists() else current_folder(folder / BEST)).stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns


def _load(folder: Path, device: torch.device | None) -> Checkpoint:
    place = find_checkpoint(folder)
    description = read_description(place)
    config = _config(place, description)
    try:
        tokenizer = Tokenizer.load(place / TOKENIZER, config.tokenizer.kind)
        _check_vocabulary(place, description["vocabulary_size"], tokenizer)
        step = int(description["step"])
        _check_size(place, min_file_bytes(config.model, tokenizer.vocabulary_size))
    except TokenizerError as error:
        raise CheckpointError(str(error)) from error
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{place / DESCRIPTION}: damaged: {error}") from error
    try:
        model = build_model(config.model, tokenizer.vocabulary_size, config.seed)
    except ModelsError as error:  # the config does not fit the vocabulary, or no such reservoir exists
        raise CheckpointError(f"{place / DESCRIPTION}: {error}") from error
    except (RuntimeError, TypeError, ValueError, OverflowError, MemoryError) as error:  # torch's texts have its source
        raise CheckpointError(f"{place / DESCRIPTION}: a model of these sizes cannot be made here") from error
    load_weights(model, place / WEIGHTS)
    model.to(device or torch.device("cpu")).eval()
    return Checkpoint(model, tokenizer, config, _figures(folder, description), step)


def _check_size(place: Path, least: int) -> None:
    """Raise CheckpointError where the weights are too few for the config; to make a large model takes long."""
    path = place / WEIGHTS
    try:
        size = path.stat().st_size
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    if size < least:
        needed = f"a model of these sizes has at least {least} bytes of weights"
        raise CheckpointError(f"{place / DESCRIPTION}: {needed}, {WEIGHTS} has {size}")


def _check_vocabulary(place: Path, size: object, tokenizer: Tokenizer) -> None:
    """Raise CheckpointError where a checkpoint's number of tokens is not that of its tokenizer."""
    if size != tokenizer.vocabulary_size:
        sizes = f"{tokenizer.vocabulary_size} tokens, the model {size!r:.60}"
        raise CheckpointError(f"{place}: the tokenizer has {sizes}; they are from different runs")


def load_weights(model: LanguageModel, path: Path) -> None:
    """Fill a model from a safetensors file. Raises CheckpointError if names, shapes or kinds of numbers differ."""
    tensors = read_tensors(path)
    problem = misfit(tensors, model.state_dict(), _numbers)  # floats of any precision become those of the model
    if problem is not None:
        raise CheckpointError(f"{path}: the weights do not fit the model: {problem}")
    model.load_state_dict(tensors)


def misfit(
    tensors: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    describe_numbers: Callable[[Tensor | None], str] = lambda tensor: "" if tensor is None else str(tensor.dtype),
) -> str | None:
    """Return what is wrong with the names, the shapes or the kinds of numbers of tensors; None if they are as expected.

    expected   may be on torch's meta device: nothing else of them is looked at
    """
    for name in sorted({*tensors, *expected}):
        got, wanted = tensors.get(name), expected.get(name)
        for describe in (_shape, describe_numbers):
            if describe(got) != describe(wanted):
                return f"{name}: got {describe(got)}, expected {describe(wanted)}"
    return None


def _shape(tensor: Tensor | None) -> str:
    return "none" if tensor is None else f"the shape {list(tensor.shape)}"


def _numbers(tensor: Tensor | None) -> str:
    """Return the kind of a tensor's numbers."""
    if tensor is None or tensor.dtype.is_floating_point:
        return "floats"
    return "complex numbers" if tensor.dtype.is_complex else "integers"


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write named tensors as safetensors. Raises CheckpointError, for a full disk say."""
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: cannot be written: {error}") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file. Raises CheckpointError."""
    try:
        # Copies have torch's own alignment: matrix products may round differently at another alignment.
        return {name: tensor.clone() for name, tensor in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error


def _config(place: Path, description: dict[str, Any]) -> Config:
    try:
        config = parse_config(description.get("config"), str(place / DESCRIPTION))
    except ConfigError as error:
        raise CheckpointError(str(error)) from error
    family = description.get("family")
    if family != Family(config.model.family):
        raise CheckpointError(f"{place}: family {family!r}, but its config is of {config.model.family!s}")
    return config


def _figures(folder: Path, description: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of the finished run, or those of the time of writing if the run has not finished."""
    path = folder / FIGURES
    if path.exists():
        try:
            figures = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{path}: damaged: {error}") from error
        if isinstance(figures, dict):
            return figures
    figures = description.get("figures", {})
    if not isinstance(figures, dict):
        raise CheckpointError(f"{folder}: damaged: figures: got {figures!r:.60}, expected a table")
    return figures
