"""Files of weights: safetensors, or a state dict as `torch.save` writes it.

Input: a path. Output: tensors by their names, as they are stored. Must not know: what they mean.

Pickled files are read with `weights_only=True`: tensors, numbers and texts, and no code. torch is imported once a file
is known to be of a kind that it reads.
"""

from __future__ import annotations

import hashlib
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from meari.export.errors import Unimportable

if TYPE_CHECKING:
    from torch import Tensor

USUAL_KEYS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights")
PICKLE, ZIP = b"\x80", b"PK"
LOADED = 'torch.load({path!r}, map_location="cpu", weights_only=False)'
MAX_NAME = 200  # characters
HEADER_BYTES = 9  # of safetensors: the length of its JSON, then a brace


@dataclass(frozen=True)
class WeightsFile:
    """Content of a file.

    notes   what was chosen in it
    """

    path: Path
    sha256: str
    tensors: dict[str, Tensor]
    notes: tuple[str, ...] = ()


def read_weights_file(path: Path) -> WeightsFile:
    """Read a file. Raises Unimportable: not readable, of another kind, a pickled module, without a state dict."""
    is_safetensors = check_kind(path)
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    tensors, where = (_safetensors(path), "") if is_safetensors else _state_dict(path, _unpickled(path))
    notes = (f"The state dict is the entry {where!r} of the file",) if where else ()
    return WeightsFile(path, digest, tensors, notes)


def check_kind(path: Path) -> bool:
    """Return whether a file is safetensors. Raises Unimportable: not readable, nor what torch.save writes."""
    try:
        with path.open("rb") as stream:
            head = stream.read(HEADER_BYTES)
    except OSError as error:
        raise Unimportable(f"{path}: got {error.strerror or error}, expected a file of weights") from error
    is_safetensors = head[8:] == b"{"
    if not is_safetensors and not head.startswith((PICKLE, ZIP)):
        kind = "a file of another kind" if head else "an empty file"
        raise Unimportable(f"{path}: got {kind}, expected safetensors or what torch.save writes")
    return is_safetensors


def _safetensors(path: Path) -> dict[str, Tensor]:
    """Read tensors; a name that the file says to be another's, as of tied weights, gets that tensor."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            aliases = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise Unimportable(f"{path}: cannot be read as safetensors: {error}") from error
    _check_names(path, tensors)
    shared = {name: tensors[kept] for name, kept in aliases.items() if kept in tensors and name not in tensors}
    return tensors | shared


def _unpickled(path: Path) -> Any:
    import torch

    if any(name.endswith("/constants.pkl") for name in _members(path)):
        raise Unimportable(f"{path}: got a TorchScript archive{_how_to_save('torch.jit.load({path!r})', path)}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of protocols that torch may not read; if it does not, that is an error
            return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        if "Unsupported operand" in str(error):  # of protocol 4 and later; a plain state dict may be written so
            said = "damaged, or pickled by another protocol than torch.save's own, of which nothing is loaded"
            anew = f"torch.save({LOADED.format(path=str(path))}, {_new_name(path)!r})"
            raise Unimportable(f"{path}: {said}. If you trust the file, write it anew: import torch; {anew}") from error
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"the Python object {found.group(1)}" if found else "a Python object"
        also = '. Where it is a checkpoint, write ["state_dict"] (or the key it has) in place of .state_dict()'
        said = f"holds {what}, which is not loaded, since that runs the file's code"
        raise Unimportable(f"{path}: {said}{_how_to_save(LOADED, path)}{also}") from error
    except Exception as error:  # a damaged pickle calls torch's own functions with anything
        reason = str(error).strip().partition("\n")[0].partition(". ")[0]
        raise Unimportable(f"{path}: cannot be read: damaged, or not written by torch.save ({reason})") from error


def _members(path: Path) -> list[str]:
    """Return the names in a zip file; none where it is none, or damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError):
        return []


def _new_name(path: Path) -> str:
    return str(path.with_name(f"{path.stem}-weights.pt"))


def _how_to_save(loaded: str, path: Path) -> str:
    line = f"torch.save({loaded.format(path=str(path))}.state_dict(), {_new_name(path)!r})"
    return f"; expected a state dict. If you trust the file, write one where the model's code is: import torch; {line}"


def _state_dict(path: Path, content: Any) -> tuple[dict[str, Tensor], str]:
    """Return the state dict in a file's content, and the key under which it was found, "" if it is the content."""
    from torch import Tensor

    if not isinstance(content, Mapping):
        raise Unimportable(f"{path}: got a {type(content).__name__}, expected a state dict: tensors by their names")
    found = {key: content[key] for key in USUAL_KEYS if _has_tensors(content.get(key))}
    if len(found) > 1:
        raise Unimportable(
            f"{path}: got several state dicts ({', '.join(found)}), expected one: save the model's alone"
        )
    where, tables = next(iter(found.items())) if found else ("", content)
    if not _has_tensors(tables):
        keys = ", ".join(f"{key!r:.80}" for key in [*tables][:8]) or "nothing"
        raise Unimportable(f"{path}: got {keys}, expected tensors by their names, or one of {', '.join(USUAL_KEYS)}")
    _check_names(path, tables)
    for name, value in tables.items():
        if not isinstance(value, Tensor):
            raise Unimportable(f"{path}: {name}: got a {type(value).__name__}, expected a tensor")
    return dict(tables), where


def _check_names(path: Path, names: Iterable[object]) -> None:
    """Raise Unimportable for a name that no module gives a tensor and no message should repeat."""
    for name in names:
        if not isinstance(name, str):
            raise Unimportable(f"{path}: {name!r:.80}: got a {type(name).__name__} as a name, expected a text")
        if not name.isprintable() or len(name) > MAX_NAME:
            expected = f"at most {MAX_NAME} printable characters"
            raise Unimportable(f"{path}: got the name {name[:80]!a} of {len(name):,} characters, expected {expected}")


def _has_tensors(value: object) -> bool:
    from torch import Tensor

    return isinstance(value, Mapping) and any(isinstance(each, Tensor) for each in value.values())
