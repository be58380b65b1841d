"""The folder of a checkpoint: where it is, and what it says of itself.

Input: a folder. Output: the checkpoint's own folder, its description, or a CheckpointError. Must not know: torch, which
takes seconds to import.
"""

import json
from pathlib import Path
from typing import Any

from meari.models.errors import CheckpointError
from meari.models.fields import did_you_mean
from meari.models.files import current_folder

FORMAT_VERSION = 1
DESCRIPTION = "checkpoint.json"
BEST = "best"


def find_checkpoint(folder: Path) -> Path:
    """Return the folder of a run's best weights, or of a checkpoint itself. Raises CheckpointError."""
    if not folder.is_dir():
        beside = [each.name for each in folder.parent.glob("*") if each.is_dir()]
        hint = did_you_mean(folder.name, beside) or did_you_mean(str(folder), map(str, Path("runs").glob("*")))
        raise CheckpointError(f"{folder}: no such folder, expected a run or a checkpoint{hint}")
    if (folder / DESCRIPTION).exists():
        return folder
    best = current_folder(folder / BEST)
    if not best.is_dir():
        raise CheckpointError(f"{folder}: holds neither {DESCRIPTION} nor {BEST}/: not a run, or nothing saved yet")
    return best


def read_description(place: Path) -> dict[str, Any]:
    """Read the JSON of a checkpoint folder. Raises CheckpointError."""
    path = place / DESCRIPTION
    try:
        description = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise CheckpointError(f"{place}: no checkpoint here ({DESCRIPTION}: {error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged: {error}") from error
    version = description.get("format_version") if isinstance(description, dict) else None
    if version != FORMAT_VERSION:
        raise CheckpointError(f"{path}: format_version {version}, expected {FORMAT_VERSION}")
    assert isinstance(description, dict)
    return description
