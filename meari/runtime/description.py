"""What a bundle says of itself, for people and programs that choose one. Enters: a manifest. No Flask, no engine."""

from __future__ import annotations

from typing import Any

from meari.bundle_format.manifest import Manifest

__all__ = ["describe_bundle"]


def describe_bundle(name: str, manifest: Manifest, bundle_hash: str) -> dict[str, Any]:
    """The part of GET /models that any bundle has, served or not.

    name         of its folder, by which it is called
    bundle_hash  SHA-256 of the manifest's bytes
    """
    return {
        "name": name,
        "family": manifest.family,
        "precision": manifest.precision,
        "sizes": manifest.sizes,
        "state": manifest.state,
        "tokenizer": {
            "kind": manifest.tokenizer.kind,
            "normalization": manifest.tokenizer.normalization,
            "unknown_id": manifest.tokenizer.unknown_id,
            "vocabulary_size": manifest.sizes["vocabulary"],
            "boundary": manifest.boundary,
        },
        "graphs": manifest.graphs,
        "corpus": {**manifest.corpus, "has_ends": manifest.has_ends},
        "figures": manifest.figures,
        "hashes": {"bundle": bundle_hash, "files": {name: entry.sha256 for name, entry in manifest.files.items()}},
    }
