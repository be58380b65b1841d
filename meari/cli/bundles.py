"""`meari bundles`: a folder, zip file or URL → a checked bundle in the user's data folder; a list of all bundles."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from meari.cli._options import FloatRange, PathType, complete_bundle, echo_json, json_option
from meari.cli._tables import Table, show
from meari.cli._target import bundles_folder, signing_keys
from meari.paths import expand_home

if TYPE_CHECKING:
    from meari.bundle_format.folders import BundleFolders, Roots
    from meari.bundle_format.store import Added

EXAMPLES = """\b
Examples:
  meari bundles list
  meari bundles add bundles/shakespeare-gru --name my-gru
  meari bundles add my-lstm.zip
  meari bundles add "https://example.org/my-lstm.zip#sha256=HASH"
  meari bundles remove my-lstm
"""
MAX_SECONDS = 3600.0


@click.command("bundles", epilog=EXAMPLES, short_help="List, add and remove bundles of your own.")
@click.argument("action", type=click.Choice(["list", "add", "remove"]))
@click.argument("sources", nargs=-1, metavar="[SOURCE…|NAME]", shell_complete=complete_bundle)
@click.option("--sha256", metavar="HASH", help="With add: SHA-256 that the zip file must have; a URL needs one.")
@click.option("--name", help="With add: name of the bundle, in place of its folder's.")
@click.option(
    "--timeout",
    type=FloatRange(min=1, max=86_400),
    default=MAX_SECONDS,
    show_default=True,
    help="With add: longest time of a download, in seconds.",
)
@click.option(
    "--bundles",
    metavar="DIR",
    type=PathType(path_type=Path),
    help="Folder to list, or to add to or remove from.  [list: MEARI_BUNDLES, or all; else the user's data folder]",
)
@json_option
def command(
    action: str,
    sources: tuple[str, ...],
    sha256: str | None,
    name: str | None,
    timeout: float,
    bundles: Path | None,
    as_json: bool,
) -> None:
    """List the bundles that are found by name, add some (folders, .zip files, URLs of such), or remove one by its NAME.

    Bundles are added to the user's data folder, where every verb looks after bundles/; a name belongs to the first
    folder that has it. A bundle is there as a whole, with the files of its manifest, or not at all; with
    MEARI_SIGNING_KEYS it has to be signed. The hash of a URL stands behind it (#sha256=…) or in --sha256.
    """
    if (not sources) != (action == "list"):
        raise click.UsageError("list takes no name" if action == "list" else f"say which: meari bundles {action} …")
    if (sha256 or name) and (action != "add" or len(sources) != 1):
        raise click.UsageError("--sha256 and --name are for adding one bundle")
    if action == "remove" and len(sources) != 1:
        raise click.UsageError(f"remove takes one name, got {len(sources)}")
    if action == "list":
        _list(bundles, as_json=as_json)
        return
    from meari.bundle_format.places import data_folder

    root = bundles or data_folder()
    if root is None:
        raise click.UsageError("the user has no data folder: say --bundles DIR, or set HOME or XDG_DATA_HOME")
    if action == "add":
        _add_all(sources, root, sha256, name, timeout, as_json=as_json)
    else:
        _remove(sources[0], root, as_json=as_json)
    if bundles is None:
        _warn_unseen(root)


def _add_all(
    sources: tuple[str, ...], root: Path, sha256: str | None, name: str | None, timeout: float, *, as_json: bool
) -> None:
    """Add one after another, and tell of each what was done. Raises as `_add`, with the source in the message."""
    from meari.errors import BundleError

    added: list[Added] = []
    try:
        for source in sources:
            try:
                each = _add(source, root, sha256, name, timeout)
            except BundleError as error:
                is_told = "://" in source or source in str(error)  # a URL may have secrets
                raise BundleError(str(error) if is_told else f"{source}: {error}") from None
            added.append(each)
            if not as_json:
                click.echo(f"{each.name} {'is now' if each.is_new else 'was already'} in {each.folder.parent}")
    finally:
        if as_json and added:  # those before one that failed, too
            echo_json({"added": [{**dataclasses.asdict(each), "folder": str(each.folder)} for each in added]})


def _add(source: str, root: Path, sha256: str | None, name: str | None, timeout: float) -> Added:
    """Add what a path or a URL names. Raises BundleError, RemoteError, UsageError."""
    from meari.bundle_format.store import add_folder, add_zip
    from meari.client.download import HASH_FORM, is_hash

    if sha256 is not None and not is_hash(sha256):
        raise click.BadParameter(f"got {sha256[:100]!r}, expected {HASH_FORM}", param_hint="--sha256")
    if "://" in source:
        return _add_url(source, root, sha256, name, timeout)
    path = Path(expand_home(source))
    if path.is_dir():
        if sha256 is not None:
            raise click.UsageError("--sha256 is for zip files; the files of a folder have hashes in its manifest")
        return add_folder(path, root, name=name, keys=signing_keys())
    if sha256 is not None:
        _check_hash(path, sha256)
    return add_zip(path, root, name=name, keys=signing_keys())


def _add_url(url: str, root: Path, sha256: str | None, name: str | None, timeout: float) -> Added:
    from meari.bundle_format.store import MAX_BUNDLE_BYTES, add_zip, new_folder
    from meari.client.download import HASH_FORM, download, is_hash, split_hash

    try:
        address, given = split_hash(url)
    except ValueError as problem:
        raise click.BadParameter(str(problem), param_hint="SOURCE") from None
    if given and sha256 and given.lower() != sha256.lower():
        raise click.UsageError("the URL and --sha256 give two hashes, expected one")
    expected = given or sha256 or ""
    if not is_hash(expected):
        came = f"got {expected[:100]!r}" if expected else "missing"
        raise click.UsageError(
            f"the SHA-256 of the zip file: {came}, expected #sha256=… after the URL, or --sha256, with {HASH_FORM}; "
            "`sha256sum FILE` prints it"
        )
    with new_folder(root) as part:
        file = part / "bundle.zip"
        download(address, file, expected, max_bytes=MAX_BUNDLE_BYTES, max_seconds=timeout)
        return add_zip(file, root, name=name, keys=signing_keys())


def _check_hash(path: Path, sha256: str) -> None:
    """Raise BundleError unless a file has that hash."""
    import hashlib

    from meari.bundle_format.folders import open_file
    from meari.errors import BundleError

    with open_file(path, inside=False) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != sha256.lower():
        raise BundleError(f"{path}: SHA-256: got {digest}, expected {sha256.lower()}; nothing of it was used")


def _remove(name: str, root: Path, *, as_json: bool) -> None:
    """Remove a bundle. Raises BundleError, which names the folder that has it, if it is another."""
    from meari.bundle_format.folders import find_bundles, printable
    from meari.bundle_format.store import remove_bundle
    from meari.errors import BundleError

    try:
        remove_bundle(name, root)
    except BundleError as error:
        elsewhere = find_bundles(_all_roots(None)).folders.get(name)
        hint = f"; {printable(elsewhere)} is not in it: --bundles DIR says where to remove from" if elsewhere else ""
        raise BundleError(f"{error}{hint}") from None
    if as_json:
        echo_json({"name": name, "folder": str(root / name)})
    else:
        click.echo(f"{name} is no longer in {root}")


def _list(bundles: Path | None, *, as_json: bool) -> None:
    from meari.bundle_format.folders import hiding_entry
    from meari.bundle_format.lookup import list_bundles

    roots = _all_roots(bundles)
    found = list_bundles(roots)
    for name, problem in found.failed.items():
        click.echo(f"meari: {name}: {problem}", err=True)
    rows = [_described(name, folder, None) for name, folder in found.folders.items()]
    rows += [_described(_name(folder), folder, hiding_entry(roots, folder)) for folder in found.hidden]
    if as_json:
        folders = [str(root) for root in (roots if isinstance(roots, tuple) else (roots,))]
        echo_json({"folders": folders, "default": found.default, "bundles": rows, "failed": found.failed})
    else:
        show(_table(rows, found))


def _all_roots(bundles: Path | None) -> Roots:
    return bundles if bundles is not None else bundles_folder(None)[0]


def _name(folder: Path) -> str:
    from meari.bundle_format.folders import bundle_name

    return bundle_name(folder)


def _described(name: str, folder: Path, hidden_by: Path | None) -> dict[str, Any]:
    """Return what is known of a bundle by its manifest alone."""
    from meari.bundle_format.reader import read_manifest
    from meari.errors import BundleError

    row: dict[str, Any] = {"name": name, "folder": str(folder), "hidden_by": hidden_by and str(hidden_by)}
    try:
        manifest, bundle_hash = read_manifest(folder, signing_keys())
    except BundleError as error:
        return {**row, "bytes": None, "bundle_hash": None, "problem": str(error)}
    size = sum(entry.bytes for entry in manifest.files.values())
    return {**row, "bytes": size, "bundle_hash": bundle_hash, "problem": None}


def _table(rows: list[dict[str, Any]], found: BundleFolders) -> Table:
    columns = ("name", "folder", "MB", "hash", "")
    return Table("", columns, [_row(row, found.default) for row in rows], frozenset({"MB"}))


def _row(row: dict[str, Any], default: str) -> tuple[str, ...]:
    is_default = row["name"] == default and row["hidden_by"] is None
    size = "–" if row["bytes"] is None else f"{row['bytes'] / 1e6:.1f}"
    remark = f"hidden by {row['hidden_by']}" if row["hidden_by"] else row["problem"] or ""
    name = row["name"] + (" *" if is_default else "")
    return (name, str(Path(row["folder"]).parent), size, (row["bundle_hash"] or "–")[:12], remark)


def _warn_unseen(root: Path) -> None:
    """Say so where the settings name other folders than the one that was changed."""
    from meari.bundle_format.folders import printable

    roots = _all_roots(None)
    if root not in (roots if isinstance(roots, tuple) else (roots,)):
        click.echo(f"meari: MEARI_BUNDLES is set, so bundles are looked for in {printable(roots)} alone", err=True)
