"""A bundle's `golden.npz`: tokens, and what the exported graphs made of them.

Enters: the bytes of the file and the manifest. Leaves: arrays of the expected shapes, or a BundleError. No more is
unpacked than they take, whatever the archive says.

    tokens      int64 [steps, rows], the boundary token first
    logprobs    float32 [steps, rows, V], of the token after each step
    state_NAME  float32 [rows, *shape], after the last step
"""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from meari.bundle_format.manifest import Manifest, contradiction
from meari.errors import BundleError

__all__ = ["read_golden"]

MAX_TOKENS: Final = 1024  # an export writes 16
HEADERS: Final = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_golden(data: bytes, manifest: Manifest) -> dict[str, npt.NDArray[Any]]:
    """The arrays by name. Raises BundleError where they do not fit the manifest."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return _read_arrays(archive, manifest)
    except (OSError, EOFError, ValueError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise BundleError("golden.npz: cannot be read: not an archive of NumPy arrays, or a damaged one") from error


def _read_arrays(archive: zipfile.ZipFile, manifest: Manifest) -> dict[str, npt.NDArray[Any]]:
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
        got, dtype = _header(archive, name)
        if got != expected or dtype != np.float32:
            raise BundleError(f"golden.npz: {name}: got {dtype} {list(got)}, expected float32 {list(expected)}")
    golden = {name: _array(archive, name) for name in names}
    _check_tokens(golden["tokens"], manifest)
    return golden


def _check_tokens(tokens: npt.NDArray[Any], manifest: Manifest) -> None:
    vocabulary_size = manifest.sizes["vocabulary"]
    if tokens.min() < 0 or tokens.max() >= vocabulary_size:
        raise BundleError(f"golden.npz: tokens: expected ids from 0 to {vocabulary_size - 1}")
    if (tokens[0] != manifest.boundary.id).any():
        raise contradiction("boundary.id", manifest.boundary.id, f"{tokens[0, 0]}, with which golden.npz begins")


def _header(archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of an array; nothing of it is unpacked."""
    with archive.open(f"{name}.npy") as member:
        version = np.lib.format.read_magic(member)
        if version not in HEADERS:
            raise ValueError(f"{name}: an .npy of version {version}")
        shape, _, dtype = HEADERS[version](member)
    return shape, dtype


def _array(archive: zipfile.ZipFile, name: str) -> npt.NDArray[Any]:
    with archive.open(f"{name}.npy") as member:
        array: npt.NDArray[Any] = np.lib.format.read_array(member, allow_pickle=False)
    return array
