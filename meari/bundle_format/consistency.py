"""Consistency of a manifest: rules between its fields.

Input: a `Manifest` whose fields are valid on their own. Output: nothing, or a BundleError that names the fields that
contradict one another. Must not know: the content of other files, which `agreement.py` of
the runtime compares with the fields.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from meari.bundle_format.folders import MANIFEST, REQUIRED_FILES, SIGNATURE
from meari.bundle_format.manifest import PARTS, Manifest, contradiction, show_value
from meari.bundle_format.names import Document
from meari.errors import BundleError

__all__ = ["check_consistency"]

SIZES: Final = ("vocabulary", "hidden", "layers", "parameters")  # the embedding is of trained families alone
OPTIONAL_SIZES: Final = ("embedding", "trained_parameters")
DOCUMENTS: Final = tuple(Document)
RATES: Final = ("nats_per_token", "nats_per_char", "bits_per_char", "bits_per_char_with_ends", "bits_per_byte")
UNITS: Final = {  # of a rate: what it is counted by, and the nats of its unit
    "nats_per_char": (("num_characters",), 1.0),
    "bits_per_char": (("num_characters",), math.log(2)),
    "bits_per_char_with_ends": (("num_characters", "num_ends"), math.log(2)),
    "bits_per_byte": (("num_bytes",), math.log(2)),
}


COUNTS: Final = ("num_tokens", "num_characters", "num_bytes")
TABLES: Final = (*PARTS, "checkpoint", "precision_check", "measured_on", "ngram")  # of `figures`
CONFIGURED: Final = {"name", "licence", "source", "document", "baseline"}  # of `corpus`, as the config says it
MAX_FILES: Final = 100  # an export writes 6
MAX_EXP: Final = 700.0  # nats whose perplexity a float64 holds


def _check_files(manifest: Manifest) -> None:
    absent = [name for name in REQUIRED_FILES if name not in manifest.files]
    if absent:
        raise BundleError(f"{MANIFEST}: files: {', '.join(absent)} not listed, expected with its SHA-256")
    if len(manifest.files) > MAX_FILES:
        raise contradiction("files", len(manifest.files), f"at most {MAX_FILES} files")
    for name in manifest.files:
        if Path(name).name != name or "\0" in name or name in (MANIFEST, SIGNATURE):
            raise contradiction("files", name, f"a plain name of a file other than {MANIFEST} and {SIGNATURE}")


def _check_sizes(manifest: Manifest) -> None:
    sizes = manifest.sizes
    for name in SIZES:
        if name not in sizes:
            raise BundleError(f"{MANIFEST}: sizes.{name}: missing, expected a number of at least 1")
    unknown = sorted(sizes.keys() - {*SIZES, *OPTIONAL_SIZES})
    if unknown:
        raise contradiction("sizes", unknown[0], f"one of {', '.join((*SIZES, *OPTIONAL_SIZES))}")
    if (manifest.family == "esn") == ("embedding" in sizes):
        raise contradiction("family", manifest.family, "esn without sizes.embedding, or another family with it")
    trained = sizes.get("trained_parameters", sizes["parameters"])
    if trained > sizes["parameters"] or (trained < sizes["parameters"] and manifest.family != "esn"):
        field = "sizes.parameters, sizes.trained_parameters"
        raise contradiction(field, [sizes["parameters"], trained], "the same, or more than are trained of an esn")
    names = [entry.name for entry in manifest.state]
    for name in names:
        if names.count(name) > 1:
            raise contradiction("state", names, f"{name} once")


def _check_corpus(manifest: Manifest) -> None:
    corpus = manifest.corpus
    for name in ("name", "licence", "source"):
        if not isinstance(corpus.get(name, ""), str):
            raise contradiction(f"corpus.{name}", corpus[name], "text")
    if corpus.get("document", DOCUMENTS[0]) not in DOCUMENTS:
        raise contradiction("corpus.document", corpus["document"], f"one of {', '.join(DOCUMENTS)}")
    if not isinstance(corpus.get("has_ends", True), bool):
        raise contradiction("corpus.has_ends", corpus["has_ends"], "true, false or no such field")


def _check_training(manifest: Manifest) -> None:
    """Compare the config of the training, as far as there is one, with the fields."""
    for path in ("corpus", "model", "tokenizer"):
        if not isinstance(manifest.training.get(path, {}), dict):
            raise contradiction(f"training.{path}", manifest.training[path], "an object or no such field")
    corpus = {
        f"corpus.{name}": (manifest.corpus[name], f"corpus.{name}") for name in CONFIGURED & manifest.corpus.keys()
    }
    fields = {
        "family": (manifest.family, "model.family"),
        "tokenizer.kind": (manifest.tokenizer.kind, "tokenizer.kind"),
        "sizes.embedding": (manifest.sizes.get("embedding"), "model.embedding_size"),
        **_trained_layers(manifest),
        **corpus,
    }
    for field, (said, place) in fields.items():
        table, _, name = place.partition(".")
        trained = manifest.training.get(table, {}).get(name)
        if trained is not None and said is not None and said != trained:
            raise contradiction(field, said, f"{show_value(trained)}, as training.{place} says")
    most = manifest.training.get("tokenizer", {}).get("vocabulary_size") or math.inf
    if not isinstance(most, int | float) or manifest.sizes["vocabulary"] > most:
        said = f"at most {show_value(most)}, as training.tokenizer.vocabulary_size says"
        raise contradiction("sizes.vocabulary", manifest.sizes["vocabulary"], said)


def _trained_layers(manifest: Manifest) -> dict[str, tuple[object, str]]:
    """Return the sizes of the layers, which a config gives either as one list or as one size and a number."""
    model = manifest.training.get("model", {})
    if manifest.family == "esn" or model.get("layer_sizes"):
        return {}
    return {
        "sizes.hidden": (manifest.sizes["hidden"], "model.hidden_size"),
        "sizes.layers": (manifest.sizes["layers"], "model.num_layers"),
    }


def _check_figures(manifest: Manifest) -> None:
    figures = manifest.figures
    trained = manifest.sizes.get("trained_parameters", manifest.sizes["parameters"])
    if figures.get("parameters", trained) != trained:
        field = "figures.parameters, sizes.trained_parameters"
        raise contradiction(field, [figures["parameters"], trained], "the same")
    try:
        _ = manifest.training_ended
    except (TypeError, ValueError) as error:
        said = "a date as 2026-11-30, or no such field"
        raise contradiction("figures.training_ended", figures["training_ended"], said) from error
    for name in TABLES:
        if not isinstance(figures.get(name, {}), dict):
            raise contradiction(f"figures.{name}", figures[name], "an object or no such field")
    _check_parts(manifest, [name for name in PARTS if name in figures])
    without = figures.get("ngram", {}).get("without", {})
    if not isinstance(without, dict):
        raise contradiction("figures.ngram.without", without, "an object or no such field")
    tables = {
        "figures": figures,
        "figures.checkpoint": figures.get("checkpoint", {}),
        "figures.ngram.without": without,
    }
    for where, table in tables.items():
        for name, part in table.items():
            if isinstance(part, dict):
                _check_held_out(f"{where}.{name}", part)
            elif table is not figures:
                raise contradiction(f"{where}.{name}", part, "an object")


def _check_parts(manifest: Manifest, parts: list[str]) -> None:
    """Compare the reported part, and whether its texts had ends, with the figures."""
    figures = manifest.figures
    if figures.get("reported_part") not in (None, *parts):
        said = f"one of the parts that have figures: {', '.join(parts) or 'none'}"
        raise contradiction("figures.reported_part", figures["reported_part"], said)
    for name in parts:
        ends = figures[name].get("num_ends", 0)
        if ends and not manifest.has_ends:
            said = f"true: figures.{name}.num_ends is {show_value(ends)}"
            raise contradiction("corpus.has_ends", manifest.corpus.get("has_ends"), said)


def _check_held_out(where: str, part: dict[str, Any]) -> None:
    """Check the figures of a part of the corpus; any of them may be absent."""
    bounds = ((RATES, 0.0), (COUNTS, 1), (("num_ends",), 0), (("perplexity", "perplexity_fp32"), 1.0))
    for names, least in bounds:
        for name in part.keys() & set(names):
            if type(part[name]) not in (int, float) or not least <= part[name] <= sys.float_info.max:
                raise contradiction(f"{where}.{name}", part[name], f"a number of at least {least}")
    for name, sources, value in _derived(part):
        if not math.isclose(part[name], value, rel_tol=1e-2):
            fields = (name, *sources)
            said = ", ".join(f"{where}.{field}" for field in fields)
            raise contradiction(said, [part[field] for field in fields], "that they say the same")


def _derived(part: dict[str, Any]) -> Iterator[tuple[str, tuple[str, ...], float]]:
    """Yield figures, perhaps rounded, that follow from others: name, names of the others, and the expected value."""
    nats = float(part.get("nats_per_token", 0.0))
    if {"perplexity", "nats_per_token"} <= part.keys():
        yield "perplexity", ("nats_per_token",), math.exp(min(nats, MAX_EXP))
    if {"bits_per_char", "nats_per_char"} <= part.keys():
        yield "bits_per_char", ("nats_per_char",), part["nats_per_char"] / math.log(2)
    for rate, (counts, unit) in UNITS.items():
        sources = ("nats_per_token", "num_tokens", *counts)
        if {rate, *sources} <= part.keys():
            yield rate, sources, nats * part["num_tokens"] / unit / sum(part[name] for name in counts)


def check_consistency(manifest: Manifest) -> None:
    """Compare files, sizes, corpus, training and figures with one another. Raises BundleError."""
    for check in (_check_files, _check_sizes, _check_corpus, _check_training, _check_figures):
        check(manifest)
