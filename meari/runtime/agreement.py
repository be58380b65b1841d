"""Comparison of `manifest.json` with a bundle's tokenizer and graphs, field by field.

Input: the manifest, the parts of tokenizer.json, the graphs. Output: nothing, or a BundleError. Must not know: how the
files are run. Whether the graphs compute the right figures is checked by self_test.py.

A tokenizer that does not do exactly what its kind says would cut texts differently from the model's training, or let a
text contain the token that ends it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from meari.bundle_format.manifest import Manifest, contradiction
from meari.bundle_format.names import NGRAM_STATE, RESERVOIR_STATE, STATE_NAMES
from meari.errors import BundleError
from meari.runtime.graphs.bundle_graph import BundleGraph
from meari.runtime.graphs.onnx_graph import FLOAT, INT64

__all__ = ["check_graphs", "check_reserved", "check_tokenizer"]

TOKEN: Final = "token"  # noqa: S105 (an input's name)
GATES: Final = range(1, 5)  # of a layer, side by side in a table of products
INTEGER_OPERATORS: Final = ("MatMulInteger", "QuantizeLinear")
MIN_WEIGHTS: Final = 16  # values of a graph that are no weights: limits, ones, zeros

ABSENT_PARTS: Final[Mapping[str, object]] = {
    "truncation": None,
    "padding": None,
    "post_processor": None,
    "added_tokens": [],
}
PARTS: Final = ("model", "pre_tokenizer", "decoder")
KINDS: Final = {  # as `export` writes them
    "char": ("WordLevel", "Split", "Fuse"),
    "bpe": ("BPE", "ByteLevel", "ByteLevel"),
    "word": ("WordLevel", "Whitespace", None),
}
SPLIT_AT_SPACES: Final = ("WordLevel", "WhitespaceSplit", None)  # kind word too, of imported models
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
    """Check that no text gives the boundary token, and that kind char has single characters. Raises BundleError.

    spelled  ids of the text that reads like the boundary token
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
    also = SPLIT_AT_SPACES if manifest.tokenizer.kind == "word" else None
    if found not in (KINDS[manifest.tokenizer.kind], also):
        kind = next((kind for kind, expected in KINDS.items() if expected == found), "another")
        said = f"{kind}: tokenizer.json has " + ", ".join(f"{p} {f}" for p, f in zip(PARTS, found, strict=True))
        raise contradiction("tokenizer.kind", manifest.tokenizer.kind, said)
    for part, expected in ABSENT_PARTS.items():
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


def check_graphs(manifest: Manifest, cell: BundleGraph, output: BundleGraph) -> None:
    """Compare names, shapes, types, sizes, family, precision and operators. Raises BundleError."""
    _check_state(manifest, cell)
    _check_values(manifest, cell, output)
    _check_precision(manifest, cell, output)
    _check_family(manifest, cell)
    _check_embedding(manifest, cell)
    _check_parameters(manifest, cell, output)
    _check_listed(manifest, {"cell": cell, "output": output})


def _check_state(manifest: Manifest, cell: BundleGraph) -> None:
    """Compare `state` with the cell's inputs."""
    found = {name: dimensions[1:] for name, dimensions in cell.inputs.items() if name != TOKEN}
    names = [entry.name for entry in manifest.state]
    if set(names) != set(found):
        raise contradiction("state", names, f"{', '.join(found) or 'none'}, the inputs of cell.onnx beside {TOKEN}")
    for entry in manifest.state:
        if list(entry.shape) != found[entry.name]:
            raise contradiction(f"state, {entry.name}: shape", entry.shape, f"{found[entry.name]}, as in cell.onnx")


def _check_values(manifest: Manifest, cell: BundleGraph, output: BundleGraph) -> None:
    """Compare names, trailing dimensions and types of inputs and outputs."""
    states = {entry.name: list(entry.shape) for entry in manifest.state}
    vocabulary, remembered = [manifest.sizes["vocabulary"]], states.get(NGRAM_STATE, [])
    hidden = [manifest.sizes["hidden"] + sum(remembered)]  # of n-grams: the last tokens follow
    following = {f"next_{name}": shape for name, shape in states.items()}
    _check_shapes("cell.onnx: input", cell, cell.inputs, {TOKEN: [], **states})
    _check_shapes("cell.onnx: output", cell, cell.outputs, {"hidden": hidden, **following})
    _check_shapes("output.onnx: input", output, output.inputs, {"hidden": hidden})
    _check_shapes("output.onnx: output", output, output.outputs, {"logits": vocabulary, "logprobs": vocabulary})


def _check_shapes(
    where: str, graph: BundleGraph, found: Mapping[str, list[int | str]], expected: Mapping[str, list[int]]
) -> None:
    if set(found) != set(expected):
        raise BundleError(f"{where}s: got {sorted(found)}, expected {sorted(expected)}")
    for name, shape in expected.items():
        batch, *rest = found[name] or [0]
        if isinstance(batch, int) or rest != shape:
            size = {"hidden": "sizes.hidden", "logits": "sizes.vocabulary", "logprobs": "sizes.vocabulary"}.get(name)
            said = f" (manifest.json: {size})" if size else ""
            raise BundleError(f"{where} {name!r}: got shape {found[name]}, expected a free batch, then {shape}{said}")
        dtype = "int64" if name == TOKEN else "float32"
        if graph.dtypes[name] != {"int64": INT64, "float32": FLOAT}[dtype]:
            raise BundleError(f"{where} {name!r}: got ONNX type {graph.dtypes[name]}, expected {dtype}")


def _check_precision(manifest: Manifest, *graphs: BundleGraph) -> None:
    integers = {name for graph in graphs for name in graph.operators() if name in INTEGER_OPERATORS}
    if (manifest.precision == "int8") != bool(integers):
        found = f"the graphs have {', '.join(sorted(integers))}" if integers else "no graph has integer products"
        raise contradiction("precision", manifest.precision, f"{'int8' if integers else 'fp32'}: {found}")


def _check_family(manifest: Manifest, cell: BundleGraph) -> None:
    """Compare the number of states a layer and whether there are gates, which is all that a graph shows of a family."""
    family, layers = manifest.family, manifest.sizes["layers"]
    states = sum(entry.name != NGRAM_STATE for entry in manifest.state)
    expected = len(STATE_NAMES.get(family, (RESERVOIR_STATE,))) * layers
    if states != expected and (family != "esn" or states < expected):
        said = f"those that go with the state tensors of cell.onnx, which are {states}"
        raise contradiction("family, sizes.layers", [family, layers], said)
    has_gates = "Sigmoid" in cell.operators()
    if has_gates != (family in ("gru", "lstm")):
        said = f"a family {'with' if has_gates else 'without'} gates: cell.onnx has {'' if has_gates else 'no '}Sigmoid"
        raise contradiction("family", family, said)


def _check_embedding(manifest: Manifest, cell: BundleGraph) -> None:
    """Compare sizes.embedding with the table in which the cell looks up tokens.

    The table holds the embedding, or its products with the first layer's weights.
    """
    size = manifest.sizes.get("embedding")
    widths = cell.table_widths(TOKEN)
    products = {gates * entry.shape[-1] for entry in manifest.state for gates in GATES if entry.shape}
    if size is not None and widths and not widths & {size, *products}:
        raise contradiction("sizes.embedding", size, f"{max(widths)}, as in cell.onnx")


def _check_parameters(manifest: Manifest, cell: BundleGraph, output: BundleGraph) -> None:
    """Compare sizes.parameters with the weights in the graphs, within the changes that an export makes.

    Weights that are used twice are stored twice, integers have scales, and embedding and input weights may have become
    a table of their products.
    """
    sizes = manifest.sizes
    found = cell.num_weights + output.num_weights
    folded = sizes.get("embedding", 0) * (sizes["vocabulary"] + sum(cell.table_widths(TOKEN)))
    if not found // 3 - MIN_WEIGHTS <= sizes["parameters"] <= (found + folded) * 3 // 2:
        raise contradiction("sizes.parameters", sizes["parameters"], f"about {found}, the weights in the graphs")


def _check_listed(manifest: Manifest, graphs: Mapping[str, BundleGraph]) -> None:
    """Compare the fields of `graphs` with the files."""
    if set(manifest.graphs) != set(graphs):
        raise contradiction("graphs", list(manifest.graphs), "cell and output")
    for name, graph in graphs.items():
        found: dict[str, Any] = {
            "file": f"{name}.onnx",
            "bytes": manifest.files[f"{name}.onnx"].bytes,
            "operators": graph.operators(),
        }
        for key, said in manifest.graphs[name].items():
            if key in found and said != found[key]:
                raise contradiction(f"graphs.{name}.{key}", said, f"{found[key]}, as in {name}.onnx")
