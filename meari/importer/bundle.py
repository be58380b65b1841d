"""Import of a foreign model: weights, mapping and vocabulary → a bundle.

Input: files, and what the caller knows of them. Output: a bundle that has passed the checks of an export, or an error
and nothing changed. Must not know: the command line.
"""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from meari.bundle_format.names import Document, Family, Precision
from meari.export.bundle import ExportedBundle, Run, write_bundle, write_smallest
from meari.export.errors import Unimportable
from meari.export.perplexity import MIN_TOKENS
from meari.export.target import check_target
from meari.importer.layouts import Layout, Parts, find_parts, read_layout, without_common_prefix
from meari.importer.network import read_network, to_model, with_vocabulary
from meari.importer.source import Source
from meari.importer.vocabulary import ForeignVocabulary, make_tokenizer, read_vocabulary
from meari.importer.weights_file import WeightsFile, read_weights_file
from meari.models.checkpoint import Checkpoint
from meari.models.config import Config, CorpusConfig, TokenizerConfig, TrainingConfig
from meari.models.text.corpus import read_pieces
from meari.models.text.text_files import list_files
from meari.models.text.token_file import TokenFile, open_token_file, write_token_file
from meari.models.text.tokenizer import Tokenizer

SEED = 1  # of weights that are replaced
COMPILED = "_orig_mod."  # added by torch.compile to the names of the module that it wraps, which may be any part


def import_model(
    source: Source, folder: Path, *, overwrite: bool = False, tell: Callable[[str], None] = lambda _: None
) -> ExportedBundle:
    """Write a foreign model as a bundle: in int8 where it passes on held-out text, else in float32.

    overwrite   replace an existing bundle
    tell        called with a line for each choice and before each stage

    Raises Unimportable, BundleExists and CheckFailed, and CorpusError for the text. In all of these cases the folder is
    as it was.
    """
    check_target(folder.absolute(), overwrite=overwrite)
    tell(f"Reading {source.weights}")
    run = read_foreign(source, folder.name, tell)
    if source.text is None:
        return write_bundle(run, folder, Precision.FP32, overwrite=overwrite, tell=tell)
    with tempfile.TemporaryDirectory() as place:
        held_out = _held_out(source.text, Path(place), run.checkpoint.tokenizer, has_ends=run.has_ends)
        facts = {**(run.imported or {}), "held_out_text": source.text.name}
        measured = replace(run, parts={"validation": held_out}, imported=facts)
        return write_smallest(measured, folder, overwrite=overwrite, tell=tell)


def _held_out(text: Path, folder: Path, tokenizer: Tokenizer, *, has_ends: bool) -> TokenFile:
    """Return the tokens of a text: a line is a document where the end of a text counts, else the file."""
    path, unit = folder / "validation.tokens", Document.LINE if has_ends else Document.FILE
    counts = write_token_file(path, read_pieces(list_files([str(text)]), unit), tokenizer, unit)
    if counts.num_tokens < MIN_TOKENS:
        raise Unimportable(f"--text: got {counts.num_tokens} tokens, expected at least {MIN_TOKENS} to measure int8 on")
    return open_token_file(path)


def read_foreign(source: Source, name: str, tell: Callable[[str], None] = lambda _: None) -> Run:
    """Read a foreign model as a run without a corpus. Raises Unimportable."""
    layout = None if source.mapping is None else read_layout(source.mapping)
    file = read_weights_file(source.weights)
    tensors, prefix = _unwrapped(file.tensors, layout)
    parts = find_parts(tensors, layout, tied=source.tied)
    vocabulary = read_vocabulary(source.vocabulary, source.units, source.boundary, source.unknown)
    network = read_network(tensors, parts, len(vocabulary.tokens), str(source.vocabulary))
    _check_activation(source.activation, network.family)
    _check_tied(source, parts, tensors)
    for line in (*file.notes, *_notes(parts, prefix, tensors, network.family, source), *vocabulary.notes):
        tell(line)
    model, config = to_model(with_vocabulary(network, vocabulary), SEED)
    tokenizer = make_tokenizer(vocabulary)
    checkpoint = Checkpoint(
        model,
        tokenizer,
        Config(CorpusConfig((), Document.FILE), TokenizerConfig(tokenizer.kind), config, TrainingConfig(), name),
        figures={},
        step=0,
    )
    facts = _facts(file, parts, vocabulary)
    return Run(checkpoint, {}, has_ends=vocabulary.boundary is not None, report=None, imported=facts)


def _unwrapped(tensors: dict[str, Tensor], layout: Layout | None) -> tuple[dict[str, Tensor], str]:
    """Return the tensors without the prefix of a wrapper, as `DataParallel` adds one, and the prefix; within names
    without that of compiled parts, unless the layout has it.
    """
    whole = ""
    while (prefix := without_common_prefix(tensors)) and not _has(tensors, layout):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        whole += prefix
    if layout is not None and any(COMPILED in name for name in (*layout.singles.values(), *layout.layers)):
        return tensors, whole
    inner = {name.replace(COMPILED, ""): tensor for name, tensor in tensors.items()}
    return (inner if len(inner) == len(tensors) else tensors), whole


def _has(tensors: Mapping[str, Tensor], layout: Layout | None) -> bool:
    return layout is not None and any(name in tensors for name in layout.singles.values())


def _check_activation(activation: str | None, family: Family) -> None:
    if activation is not None and family is not Family.RNN:
        raise Unimportable(f"--activation: got {activation}, but the layers are of a {family}, expected no such option")
    if activation == "relu":
        raise Unimportable("--activation: got relu, expected tanh: a bundle cannot represent an RNN with relu")


def _check_tied(source: Source, parts: Parts, tensors: Mapping[str, Tensor]) -> None:
    """Raise Unimportable where --tied contradicts the file."""
    embedding, output = (
        tensors[parts.singles.get(part, parts.singles["embedding"])] for part in ("embedding", "output")
    )
    if source.tied and not torch.equal(embedding, output):
        name = parts.singles["output"]
        raise Unimportable(f"--tied: got {name}, which is not the embedding, expected no such option")


def _notes(parts: Parts, prefix: str, tensors: Mapping[str, Tensor], family: Family, source: Source) -> list[str]:
    number = len(parts.layers)
    notes = [f"Layout: {parts.layout.name}; {family}, {number} layer{'s' if number > 1 else ''}"]
    if prefix:
        notes.append(f"Names are read without {prefix!r}, with which all begin")
    kinds = sorted({str(tensors[name].dtype).removeprefix("torch.") for name in _used(parts)} - {"float32"})
    if kinds:
        notes.append(f"Converted to float32: weights of {', '.join(kinds)}")
    if family is Family.RNN and source.activation is None:
        notes.append("Activation: taken as tanh, since a state dict does not tell; relu cannot be imported")
    return notes


def _used(parts: Parts) -> set[str]:
    return {*parts.singles.values(), *(name for layer in parts.layers for name in layer.values())}


def _facts(file: WeightsFile, parts: Parts, vocabulary: ForeignVocabulary) -> dict[str, Any]:
    """Return what the manifest says in place of a training: where the model came from."""
    special = {"boundary": vocabulary.boundary, "unknown": vocabulary.unknown}
    return {
        "weights": file.path.name,
        "weights_sha256": file.sha256,
        "layout": parts.layout.name,
        "vocabulary": vocabulary.path.name,
        "vocabulary_sha256": vocabulary.sha256,
        "units": vocabulary.units,
        **{name: None if index is None else vocabulary.tokens[index] for name, index in special.items()},
    }
