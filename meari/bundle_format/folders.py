"""Bundles of a folder or of several, the default one, and the reading of a bundle's files.

Input: a path. Output: folders by name, bytes of files, or the reason why there are none. Must not know: the content of
the files. This is the only place that decides what counts as a bundle.

A folder may hold anything, for example what an interrupted copy left. So nothing is read before it is known to be a
regular file of the expected size: a FIFO would never answer, a device might never end. Links are followed inside a
folder (mounted volumes of Kubernetes have such) and never out of it; the folder itself may be a link.

Of several folders, a name belongs to the first that has it, and the first DEFAULT that names a bundle counts. A damaged
bundle has its name, too: another one in its place would answer with other figures, and nobody would know why.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from meari.errors import BundleError

__all__ = [
    "CELL_GRAPH",
    "DEFAULT",
    "GOLDEN",
    "IN_PASSING",
    "MANIFEST",
    "OUTPUT_GRAPH",
    "REQUIRED_FILES",
    "SIGNATURE",
    "TOKENIZER",
    "BundleFolders",
    "Roots",
    "bundle_name",
    "find_bundles",
    "hiding_entry",
    "holds_bundle",
    "open_file",
    "printable",
    "read_file",
]

MANIFEST: Final = "manifest.json"
DEFAULT: Final = "DEFAULT"  # holds the name of the default bundle
CELL_GRAPH: Final = "cell.onnx"
OUTPUT_GRAPH: Final = "output.onnx"
GOLDEN: Final = "golden.npz"
TOKENIZER: Final = "tokenizer.json"
SIGNATURE: Final = "signature.json"  # in no manifest, because it signs the manifest
REQUIRED_FILES: Final = (CELL_GRAPH, GOLDEN, OUTPUT_GRAPH, TOKENIZER)
IN_PASSING: Final = (".new", ".old", ".part", ".partial", ".tmp")  # exports, downloads and copies on their way
MAX_DEFAULT_BYTES: Final = 4096
_KINDS: Final = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


Roots = Path | tuple[Path, ...]  # a folder of bundles, or several in the order in which names are looked up


@dataclass(frozen=True)
class BundleFolders:
    """Entries of a folder of bundles, or of several.

    folders  name -> folder of each bundle, in the order of names; unread
    failed   name -> reason, for entries that look like a bundle and cannot be one, and for an unusable DEFAULT; such
             an entry has its name all the same: no bundle of a later folder stands in for it unseen
    default  the bundle that DEFAULT names, "" if it names none
    hidden   bundles whose name an earlier folder has
    """

    folders: dict[str, Path] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    default: str = ""
    hidden: tuple[Path, ...] = ()


def find_bundles(roots: Roots) -> BundleFolders:
    """Find the bundles in folders; a folder may be a bundle itself.

    Raises BundleError if one is not a readable folder. One that does not exist counts as empty beside one that does.
    """
    several = roots if isinstance(roots, tuple) else (roots,)
    present = [root for root in several if os.path.lexists(root)]
    found = BundleFolders()
    for root in present or several[:1]:
        entries = _entries(root)
        if len(present) > 1:  # a reason says in which
            failed = {name: f"{printable(root / name)}: {reason}" for name, reason in entries.failed.items()}
            entries = replace(entries, failed=failed)
        found = _merged(found, entries)
    for root in present:
        found = _with_default(root / DEFAULT, found)
        if found.default:
            break
    return found


def _merged(first: BundleFolders, then: BundleFolders) -> BundleFolders:
    taken = first.folders.keys() | first.failed.keys()
    new = {name: path for name, path in then.folders.items() if name not in taken}
    hidden = (path for name, path in then.folders.items() if name in taken)
    failed = first.failed | {name: reason for name, reason in then.failed.items() if name not in taken}
    return BundleFolders(dict(sorted((first.folders | new).items())), failed, hidden=(*first.hidden, *hidden))


def _entries(root: Path) -> BundleFolders:
    """Return the bundles in one folder, without the default. Raises BundleError."""
    try:
        paths = sorted(root.iterdir())
    except FileNotFoundError:
        raise BundleError(f"there is no folder {printable(root)}") from None
    except OSError as error:
        raise BundleError(f"{printable(root)}: got {_kind(root)}, expected a folder: {error.strerror}") from None
    if root / MANIFEST in paths:
        return BundleFolders({bundle_name(root): root})
    found = BundleFolders()
    for path in paths:
        problem = _unfinished(path) if _is_in_passing(path.name) else _problem(path)
        if problem is None:
            found.folders[path.name] = path
        elif problem:
            found.failed[printable(path.name)] = problem
    return found


def bundle_name(folder: Path) -> str:
    """Return the name of a bundle: that of its folder, or of the link to it."""
    return folder.absolute().name if folder.name not in ("", "..") else folder.resolve().name


def hiding_entry(roots: Roots, hidden: Path) -> Path:
    """Return the first entry of the name of a hidden bundle."""
    name = bundle_name(hidden)
    several = roots if isinstance(roots, tuple) else (roots,)
    entries = (root if bundle_name(root) == name and holds_bundle(root) else root / name for root in several)
    return next((entry for entry in entries if os.path.lexists(entry)), hidden)


def _is_in_passing(name: str) -> bool:
    """Return whether an entry is hidden, or exists only while something is being written or replaced."""
    return name[0] in "._" or name.endswith(IN_PASSING)


def _unfinished(path: Path) -> str:
    """Return what to do about an old bundle without its successor, which a stopped export left; "" for other names."""
    name = path.name.removesuffix(".old")
    if name in ("", path.name) or name[0] in "._" or os.path.lexists(path.with_name(name)) or not path.is_dir():
        return ""
    return f"its export was stopped while it took the place of {printable(name)}; rename it to that"


def _problem(path: Path) -> str | None:
    """Return why an entry cannot be a bundle; None if it may be one, "" if it is not meant to be one."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        return "" if _is_gone(path, error) else f"cannot be read: {error.strerror}"
    if stat.S_ISREG(mode) or path.name == DEFAULT or (stat.S_ISDIR(mode) and not holds_bundle(path)):
        return ""
    if not stat.S_ISDIR(mode):
        return f"got {_kind(path)}, expected the folder of a bundle"
    return None if printable(path.name) == path.name else "name: got other than printable UTF-8; rename the folder"


def _is_gone(path: Path, error: BaseException | None) -> bool:
    """Return whether an entry was renamed or removed meanwhile; another may have its name already."""
    return isinstance(error, FileNotFoundError) and not path.is_symlink()


def holds_bundle(folder: Path) -> bool:
    """Return whether a folder has any of a bundle's files, or cannot be listed."""
    try:
        return not {MANIFEST, *REQUIRED_FILES}.isdisjoint(os.listdir(folder))  # noqa: PTH208 (a third of the time)
    except OSError:
        return True


def _with_default(path: Path, found: BundleFolders) -> BundleFolders:
    if not os.path.lexists(path):
        return found
    try:
        named = read_file(path, MAX_DEFAULT_BYTES, inside=False).decode("utf-8").strip()
    except UnicodeDecodeError:
        return replace(found, failed=found.failed | {DEFAULT: "got other than UTF-8, expected a bundle's name"})
    except BundleError as error:
        gone = _is_gone(path, error.__context__)
        return found if gone else replace(found, failed=found.failed | {DEFAULT: str(error)})
    if not named or named in found.folders:
        return replace(found, default=named)
    names = ", ".join(found.folders) or "a bundle beside it"
    return replace(found, failed=found.failed | {DEFAULT: f"got {named[:100]!r}, expected one of {names}"})


def read_file(path: Path, max_bytes: int, *, inside: bool = True) -> bytes:
    """Read a whole file. Raises BundleError, naming the file, unless it is a regular one of at most `max_bytes`.

    inside  see `open_file`
    """
    with open_file(path, inside=inside) as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(max_bytes + 1) if size <= max_bytes else b""
    if size > max_bytes or len(data) > max_bytes:
        raise BundleError(f"{path.name}: got {max(size, len(data)):,} bytes, expected at most {max_bytes:,}")
    return data


def open_file(path: Path, *, inside: bool = True) -> io.BufferedReader:
    """Open a file for reading. Raises BundleError, naming it, unless it is a regular file or a link to one.

    inside  refuse links that lead out of the folder
    """
    try:
        if stat.S_ISREG(path.stat().st_mode):
            place = os.path.realpath(path, strict=True)
            if inside and not Path(place).is_relative_to(os.path.realpath(path.parent)):
                raise BundleError(f"{path.name}: got a link out of its folder, expected a file inside")
            # In case that something else has taken its place: O_NONBLOCK, O_NOFOLLOW.
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
            file = os.fdopen(os.open(place, flags), "rb")
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return file
            file.close()
    except OSError as error:
        raise BundleError(f"{path.name}: cannot be read: {error.strerror}") from None
    raise BundleError(f"{path.name}: got {_kind(path)}, expected a file")


def _kind(path: Path) -> str:
    try:
        mode = path.stat().st_mode
    except OSError:
        return "nothing that can be read"
    return next((name for is_kind, name in _KINDS if is_kind(mode)), "a file")


def printable(name: str | Roots) -> str:
    """Return a path, or several, for messages: bytes that are not UTF-8 and unprintable characters as escapes."""
    if isinstance(name, tuple):
        return ", ".join(map(printable, name))
    return "".join(_escaped(os.fsencode(name).decode("utf-8", "backslashreplace")))


def _escaped(text: str) -> Iterator[str]:
    for character in text:
        yield character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
