"""Comparison of `manifest.json` with `tokenizer.json`, field by field.

Enters: the manifest, and the parts of the tokenizer's file. Leaves: nothing, or a BundleError. A tokenizer that does
more or other than its kind says would cut texts in another way than the model was trained on, or let a text hold the
token that ends it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from meari.bundle_format.manifest import Manifest, contradiction
from meari.errors import BundleError

__all__ = ["check_reserved", "check_tokenizer"]

NOTHING: Final[Mapping[str, object]] = {"truncation": None, "padding": None, "post_processor": None, "added_tokens": []}
PARTS: Final = ("model", "pre_tokenizer", "decoder")
KINDS: Final = {  # as `export` writes them
    "char": ("WordLevel", "Split", "Fuse"),
    "bpe": ("BPE", "ByteLevel", "ByteLevel"),
    "word": ("WordLevel", "Whitespace", None),
}
SPLIT: Final = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False}
PLAIN_BPE: Final = (
    "dropout",
    "unk_token",
    "continuing_subword_prefix",
    "end_of_word_suffix",
    "byte_fallback",
    "ignore_merges",
)
NUM_BYTES: Final = 256


def check_tokenizer(manifest: Manifest, parts: Mapping[str, Any], vocabulary: Mapping[str, int]) -> None:
    """Compare kind, normal form, vocabulary, boundary and unknown token. Raises BundleError.

    parts       tokenizer.json
    vocabulary  entry -> id
    """
    _check_kind(manifest, parts)
    size = manifest.sizes["vocabulary"]
    if len(vocabulary) != size:
        raise contradiction("sizes.vocabulary", size, f"{len(vocabulary)}, the number of tokens in tokenizer.json")
    if set(vocabulary.values()) != set(range(size)):
        raise BundleError(
            f"tokenizer.json: got ids up to {max(vocabulary.values())}, expected each from 0 to {size - 1}"
        )
    boundary = manifest.boundary
    if vocabulary.get(boundary.token) != boundary.id:
        names = {number: entry for entry, number in vocabulary.items()}
        found = f"{names[boundary.id]!r} is {boundary.id}" if boundary.id in names else f"there is no {boundary.id}"
        if boundary.token in vocabulary:
            found += f" and {boundary.token[:40]!r} is {vocabulary[boundary.token]}"
        said = [boundary.id, boundary.token]
        raise contradiction("boundary.id, boundary.token", said, f"one token; in tokenizer.json {found}")
    _check_unknown(manifest, parts["model"], vocabulary)


def check_reserved(manifest: Manifest, parts: Mapping[str, Any], spelled: Sequence[int]) -> None:
    """No text may lead to the boundary token, and a token of characters is one of them. Raises BundleError.

    spelled  ids of a text that reads like the boundary token
    """
    token = manifest.boundary.token
    merged = (
        "".join(pair) if isinstance(pair, list) else pair.replace(" ", "") for pair in parts["model"].get("merges", [])
    )
    if manifest.boundary.id in spelled or len(token) == 1 or token in merged:
        expected = f"a token that no text leads to; {token[:40]!r} is a part of texts"
        raise contradiction("boundary.id, boundary.token", [manifest.boundary.id, token], expected)
    reserved = (token, parts["model"].get("unk_token"))
    longer = next((entry for entry in parts["model"]["vocab"] if len(entry) != 1 and entry not in reserved), None)
    if manifest.tokenizer.kind == "char" and longer is not None:
        expected = f"single characters in tokenizer.json, which has {longer[:40]!r}"
        raise contradiction("tokenizer.kind", manifest.tokenizer.kind, expected)


def _check_kind(manifest: Manifest, parts: Mapping[str, Any]) -> None:
    normalizer = (parts.get("normalizer") or {}).get("type")
    if normalizer != manifest.tokenizer.normalization:
        said = f"{normalizer}, the normalizer of tokenizer.json"
        raise contradiction("tokenizer.normalization", manifest.tokenizer.normalization, said)
    found = tuple((parts.get(part) or {}).get("type") for part in PARTS)
    if found != KINDS[manifest.tokenizer.kind]:
        kind = next((kind for kind, expected in KINDS.items() if expected == found), "another")
        said = f"{kind}: tokenizer.json has " + ", ".join(f"{p} {f}" for p, f in zip(PARTS, found, strict=True))
        raise contradiction("tokenizer.kind", manifest.tokenizer.kind, said)
    for part, expected in NOTHING.items():
        if parts.get(part) != expected:
            raise BundleError(f"tokenizer.json: {part}: got {str(parts[part])[:60]}, expected {expected}")
    splits = parts["pre_tokenizer"]
    if splits["type"] == "Split" and splits != SPLIT:
        raise BundleError("tokenizer.json: pre_tokenizer: got another Split, expected one into single characters")
    if splits.get("add_prefix_space"):
        raise BundleError("tokenizer.json: pre_tokenizer.add_prefix_space: got true, expected false")
    if not splits.get("use_regex", True):
        raise BundleError("tokenizer.json: pre_tokenizer.use_regex: got false, expected true")


def _check_unknown(manifest: Manifest, model: Mapping[str, Any], vocabulary: Mapping[str, int]) -> None:
    unknown_id = manifest.tokenizer.unknown_id
    if model["type"] == "BPE":
        for option in PLAIN_BPE:
            if model.get(option):
                raise BundleError(f"tokenizer.json: model.{option}: got {model[option]!r}, expected none")
        if sum(len(entry) == 1 for entry in vocabulary) < NUM_BYTES:
            raise BundleError("tokenizer.json: got a part of the 256 bytes, expected a token for each")
        if unknown_id is not None:
            raise contradiction("tokenizer.unknown_id", unknown_id, "null: a tokenizer of bytes knows every text")
        return
    name = str(model.get("unk_token"))
    if unknown_id is None or vocabulary.get(name) != unknown_id:
        said = f"{vocabulary.get(name)}, {name!r} of tokenizer.json"
        raise contradiction("tokenizer.unknown_id", unknown_id, said)
    if unknown_id == manifest.boundary.id:
        raise contradiction("tokenizer.unknown_id", unknown_id, "another than boundary.id")
