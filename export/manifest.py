"""Manifest of a bundle that is about to be written.

Input: a `Description` and the bundle's other files. Output: the `Manifest` that a server reads.
Must not know: graphs beyond their summaries, or the folder that the bundle is written to.
"""

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

from meari.bundle_format.manifest import (
    FORMAT_VERSION,
    PARTS,
    Boundary,
    FileEntry,
    Golden,
    Manifest,
    StateEntry,
    TokenizerEntry,
)
from meari.bundle_format.names import NGRAM_STATE, NORMALIZATION, STATE_DTYPE
from meari.export.description import Description
from meari.export.verification import TORCH_TOLERANCE


def make_manifest(description: Description, files: Mapping[str, bytes]) -> Manifest:
    """Return the manifest of a bundle.

    files   every other file of the folder, by name
    """
    checkpoint = description.checkpoint
    model, tokenizer = checkpoint.model, checkpoint.tokenizer
    sizes = dataclasses.asdict(description.sizes)
    return Manifest(
        format_version=FORMAT_VERSION,
        name=description.name,
        family=model.family,
        precision=description.precision,
        sizes={name: size for name, size in sizes.items() if size is not None},
        state=(*model.state_tensors, *_last_tokens(description)),
        boundary=Boundary(tokenizer.end_id, tokenizer.end_token),
        tokenizer=TokenizerEntry(tokenizer.kind, NORMALIZATION, tokenizer.unknown_id),
        graphs={name: _graph(description, name) for name in description.graphs},
        corpus=_corpus(description),
        training=_training(description),
        figures=_figures(description),
        golden=Golden(description.golden.tolerance),
        files={name: _file(content) for name, content in sorted(files.items())},
    )


def _corpus(description: Description) -> dict[str, Any]:
    """The text, as the config names it; of an imported model it is not known."""
    if description.imported is not None:
        return {"has_ends": description.has_ends}
    corpus = description.checkpoint.config.to_tables()["corpus"]
    named = {name: corpus[name] for name in ("name", "licence", "source", "document")}
    return named | {"has_ends": description.has_ends, "baseline": corpus.get("baseline", {})}


def _training(description: Description) -> dict[str, Any]:
    """The config, or in its place where an imported model came from."""
    if description.imported is not None:
        return {"imported": dict(description.imported)}
    return description.checkpoint.config.to_tables()


def _last_tokens(description: Description) -> list[StateEntry]:
    ngram = description.ngram
    return [] if ngram is None else [StateEntry(name=NGRAM_STATE, shape=(ngram.order - 1,), dtype=STATE_DTYPE)]


def _figures(description: Description) -> dict[str, Any]:
    """Figures of the bundle as served and of its checkpoint, and how it was trained and checked."""
    if description.imported is not None:
        return {
            **{part: found.served.to_json() for part, found in description.held_out.items()},
            **({"reported_part": description.reported_part} if description.held_out else {}),
            "measured_on": description.machine,
            "precision_check": precision_check(description),
        }
    trained = {name: value for name, value in description.checkpoint.figures.items() if name not in PARTS}
    return {
        **{part: found.served.to_json() for part, found in description.held_out.items()},
        "reported_part": description.reported_part,
        **trained,
        "checkpoint_chosen_on": "validation",
        "checkpoint": {part: found.checkpoint.to_json() for part, found in description.held_out.items()},
        "measured_on": description.machine,
        "step": description.checkpoint.step,
        **_ngram(description),
        "precision_check": precision_check(description),
    }


def _ngram(description: Description) -> dict[str, Any]:
    """Return the sizes of the n-gram model that is mixed in, its shares by the length of the context found, and the
    figures without it.
    """
    ngram = description.ngram
    if ngram is None:
        return {}
    shares = [round(float(share), 4) for share in ngram.shares]
    sizes = {"order": ngram.order, "num_ngrams": ngram.num_ngrams, "shares": shares}
    return {
        "ngram": sizes | {"without": {part: found.network.to_json() for part, found in description.held_out.items()}}
    }


def precision_check(description: Description) -> dict[str, Any]:
    """Figures that the export measured: against torch in fp32, and the perplexity beside the checkpoint's."""
    agreement, validation = description.agreement, description.held_out.get("validation")
    figures: dict[str, Any] = {
        "fp32_max_difference_from_torch": agreement.max_logprob_difference,
        "fp32_tolerance": TORCH_TOLERANCE,
        "num_distributions": agreement.num_distributions,
        "max_error_of_sum": agreement.max_sum_error,
    }
    if validation is not None:
        figures |= {
            "num_tokens": validation.served.num_tokens,
            "perplexity": validation.network.perplexity,
            "perplexity_fp32": validation.checkpoint.perplexity,
            "relative_loss": validation.loss,
        }
    return figures


def _graph(description: Description, name: str) -> dict[str, Any]:
    summary = description.graphs[name]
    return {"file": summary.file, "bytes": summary.num_bytes, "operators": dict(summary.operators)}


def _file(content: bytes) -> FileEntry:
    return FileEntry(hashlib.sha256(content).hexdigest(), len(content))
