"""`meari sign`: a bundle and a private key → the bundle with a signature; or a new pair of keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from meari.cli._options import PathType, complete_bundle, echo_json, json_option
from meari.cli._tables import facts, show
from meari.cli._target import bundles_folder

EXAMPLES = """\b
Examples:
  meari sign --new-key signing-key.pem
  meari sign shakespeare-lstm --key signing-key.pem
  meari sign bundles/shakespeare-lstm --key signing-key.pem --json
"""


@click.command("sign", short_help="Sign a bundle, or make a key for it.", epilog=EXAMPLES)
@click.argument("model", metavar="[BUNDLE]", required=False, shell_complete=complete_bundle)
@click.option("--key", metavar="FILE", type=PathType(path_type=Path), help="Private Ed25519 key that signs, in PEM.")
@click.option(
    "--new-key",
    metavar="FILE",
    type=PathType(path_type=Path),
    help="Make a key: FILE is private, FILE.pub is for MEARI_SIGNING_KEYS.",
)
@json_option
def command(model: str | None, key: Path | None, new_key: Path | None, as_json: bool) -> None:
    """Sign BUNDLE, a name or a path: every file is compared with its hash, then signature.json is written.

    A signature says who vouches for the bundle; where MEARI_SIGNING_KEYS is set, only signed bundles are served. It
    changes no other file and not the bundle's hash, and replaces a signature that was there.
    """
    if (model is None) != (key is None) or (key is None) == (new_key is None):
        raise click.UsageError("expected BUNDLE with --key FILE, or --new-key FILE alone")
    if new_key is not None:
        from meari.bundle_format.signatures import make_private_key

        made = make_private_key(new_key)
        files = {"private_key": str(new_key), "public_key_file": f"{new_key}.pub"}
        _tell({"key_id": made.id, "public_key": made.text, **files}, as_json)
    elif model is not None and key is not None:
        from meari.bundle_format.lookup import find_bundle

        _tell(_sign(find_bundle(bundles_folder(None)[0], model), key), as_json)


def _sign(folder: Path, key: Path) -> dict[str, Any]:
    """Sign a bundle whose files are those of its manifest. Raises BundleError."""
    from meari.bundle_format.reader import naming_folder, read_files, read_manifest
    from meari.bundle_format.signatures import sign_manifest

    with naming_folder(folder):
        manifest, bundle_hash = read_manifest(folder)
        read_files(folder, manifest)
    signer = sign_manifest(folder, bundle_hash, key)
    return {"key_id": signer.id, "public_key": signer.text, "bundle": str(folder), "bundle_hash": bundle_hash}


def _tell(made: dict[str, Any], as_json: bool) -> None:
    if as_json:
        echo_json(made)
        return
    show(facts("", [(name.replace("_", " "), value) for name, value in made.items()]))
