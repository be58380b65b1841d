"""Test that only intact bundles that reproduce their golden figures are opened."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import json
import math
import os
import re
import shutil
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest

from meari.bundle_format import reader
from meari.bundle_format.folders import find_bundles
from meari.bundle_format.reader import read_manifest
from meari.errors import BundleError
from meari.runtime.bundle import check_memory, open_bundle
from meari.runtime.graphs.bundle_graph import BundleGraph
from meari.runtime.self_test import read_golden
from tests.runtime.tiny_bundle import VOCABULARY, make_large, make_socket, rewrite_manifest, sizes_of, write_tiny_bundle

RELEASED = Path(__file__).resolve().parents[2] / "bundles"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny_bundle(tmp_path / "tiny", decay=0.1)


def edit_manifest(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text("utf-8"))
    edit(manifest)
    path.write_text(json.dumps(manifest), "utf-8")


def edit_golden(folder: Path, **changes: Any) -> None:
    path = folder / "golden.npz"
    with np.load(path) as archive:
        arrays = dict(archive) | changes
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    rewrite_manifest(folder)


def update_hashes(folder: Path) -> None:
    """Update the manifest's hashes and sizes to those of the files."""
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    for name, entry in manifest["files"].items():
        data = (folder / name).read_bytes()
        entry |= {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    for name, graph in manifest["graphs"].items():
        graph["bytes"] = manifest["files"][f"{name}.onnx"]["bytes"]
    (folder / "manifest.json").write_text(json.dumps(manifest), "utf-8")


def test_valid_bundle_opens_with_self_test_results(folder: Path) -> None:
    bundle = open_bundle(folder, max_slots=8)
    assert bundle.manifest.name == "tiny"
    assert bundle.self_test.golden_max_difference <= 1e-6
    assert bundle.self_test.rows_isolated
    assert len(bundle.hash) == 64


def test_single_slot_is_enough_for_the_self_test(folder: Path) -> None:
    assert open_bundle(folder, max_slots=1).self_test.batch_sizes == (1,)


@pytest.mark.parametrize("name", ["cell.onnx", "output.onnx", "tokenizer.json", "golden.npz", "README.md"])
def test_changed_file_is_reported(folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(bytes(data))
    with pytest.raises(BundleError, match=f"{name}: SHA-256"):
        open_bundle(folder, max_slots=4)


@pytest.mark.parametrize("name", ["manifest.json", "cell.onnx", "tokenizer.json"])
def test_missing_file_is_reported(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(BundleError, match=f"{name}: cannot be read"):
        open_bundle(folder, max_slots=4)


def test_later_format_is_refused(folder: Path) -> None:
    edit_manifest(folder, lambda m: m.update(format_version=2, something_new=True))
    with pytest.raises(BundleError, match="format_version: got 2, expected 1"):
        open_bundle(folder, max_slots=4)


def change(manifest: Any, field: str, value: object) -> None:
    """Set the field at a path; numbers index lists."""
    *way, last = field.split("/")
    for part in way:
        manifest = manifest[int(part) if isinstance(manifest, list) else part]
    manifest[int(last) if isinstance(manifest, list) else last] = value


# Invalid values for every field of a manifest; the hashes are valid.
HELD_OUT = {
    "nats_per_token": 1.5,
    "perplexity": math.exp(1.5),
    "nats_per_char": 3.0,
    "bits_per_char": 3 / math.log(2),
    "bits_per_char_with_ends": 2 / math.log(2),
    "bits_per_byte": 1 / math.log(2),
    "num_tokens": 8,
    "num_characters": 4,
    "num_bytes": 12,
    "num_ends": 2,
}
LISTED = ("README.md", "cell.onnx", "golden.npz", "output.onnx", "tokenizer.json")
WRONG: dict[str, list[Any]] = {
    "format_version": [2, 0, True, "1", None, 1.5],
    "name": ["", "../elsewhere", "two words", "x" * 200, 5, None],
    "family": ["gru", "lstm", "esn", "transformer", "", None],
    "precision": ["int8", "fp16", None],
    "sizes/vocabulary": [0, 1, 27, 29, 7, -28, 10**12, 10**30, "28", None, 28.5],
    "sizes/hidden": [0, 1, 27, 29, 10**12, None],
    "sizes/layers": [0, 2, 10**12, None],
    "sizes/embedding": [0, 27, 10**12, None],
    "sizes/parameters": [0, 1, 10, 1000, 10**12, None],
    "sizes/trained_parameters": [0, 1, 10**12, None],
    "state": [None, [], {}, "count"],
    "state/0": [None, [], {"name": "count"}],
    "state/0/name": ["", "other", "token", "next_count", "hidden", None, 5],
    "state/0/shape": [[], [0], [2], [1, 1], [-1], [10**12], None, 1],
    "state/0/dtype": ["float16", "float64", "int64", "", None],
    "boundary/id": [-1, 1, 5, 27, 28, 10**9, 10**30, None, "0"],
    "boundary/token": ["", "a", "<|unk|>", "<|END|>", "nothing", None],
    "tokenizer/kind": ["word", "bpe", "unigram", None],
    "tokenizer/normalization": ["NFD", "NFKC", "", None],
    "tokenizer/unknown_id": [-1, 0, 2, 27, 28, 10**9, None, "1"],
    "graphs": [None, [], {}, {"cell": {}}, {"cell": {}, "output": {}, "third": {}}],
    "graphs/cell/file": ["output.onnx", "", None],
    "graphs/cell/bytes": [0, 1, 10**12, None],
    "graphs/cell/operators": [{}, {"Gather": 2}, {"Sin": 1}, None],
    "graphs/output/file": ["cell.onnx", "", None],
    "graphs/output/bytes": [0, 1, 10**12, None],
    "graphs/output/operators": [{}, {"MatMul": 2, "LogSoftmax": 1}, None],
    "corpus": [None, [], "alphabet"],
    "corpus/name": [5, None, "another"],
    "corpus/licence": [5, None, "another"],
    "corpus/source": [5, None, "another"],
    "corpus/document": ["word", "file", "", 5, None],
    "corpus/has_ends": [0, "no", None, False],
    "training": [None, [], "long"],
    "training/model/family": ["gru"],
    "training/model/embedding_size": [27],
    "training/model/hidden_size": [27, "28"],
    "training/model/num_layers": [2],
    "training/tokenizer/kind": ["word"],
    "training/tokenizer/vocabulary_size": [27, "28"],
    "training/corpus/name": ["another"],
    "training/corpus/licence": ["another"],
    "training/corpus/source": ["another"],
    "training/corpus/document": ["file"],
    "figures": [None, [], 1.0],
    "figures/parameters": [0, 1, 10**12, None],
    "figures/validation": [None, [], "good", 1.5],
    "figures/reported_part": ["test", "checkpoint", "", 5, True, []],
    "figures/training_ended": ["", "yesterday", "2026-02-30", "20261130", 20261130, True, []],
    "figures/measured_on": [None, "here", 5],
    "figures/precision_check": [None, [], "passed"],
    "figures/precision_check/perplexity": [0.5, None],
    "figures/ngram": [None, [], {"without": 5}, {"without": {"validation": {"nats_per_token": "low"}}}],
    "figures/checkpoint": [None, [], {"validation": 5}, {"validation": {"nats_per_token": "low"}}],
    **{f"figures/validation/{name}": [-1.0, -1e300, "1", None, True, 7, 10**400] for name in HELD_OUT},
    **{f"figures/checkpoint/validation/{name}": [-1, None, 7, 1e300] for name in HELD_OUT},
    "golden": [None, {}, 1e-4],
    "golden/tolerance": [0, -1, 1e-30, 5e-324, 1.0, 1e300, "1", None],
    "files": [None, [], {}],
    **{f"files/{name}/sha256": ["", "0" * 64, "x" * 64, None] for name in LISTED},
    **{f"files/{name}/bytes": [0, 1, -1, 3 << 30, 10**30, None, "9"] for name in LISTED},
}


@pytest.fixture
def described(folder: Path) -> dict[str, Any]:
    """Return a manifest with every field of an export."""
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text("utf-8"))
    operators = {name: BundleGraph((folder / f"{name}.onnx").read_bytes()).operators() for name in manifest["graphs"]}
    for name, graph in manifest["graphs"].items():
        graph |= {"bytes": manifest["files"][f"{name}.onnx"]["bytes"], "operators": operators[name]}
    manifest["figures"] = {
        "validation": dict(HELD_OUT),
        "checkpoint": {"validation": dict(HELD_OUT)},
        "reported_part": "validation",
        "training_ended": "2026-11-30",
        "measured_on": {},
        "precision_check": {"perplexity": HELD_OUT["perplexity"]},
        "parameters": manifest["sizes"]["trained_parameters"],
    }
    manifest["training"] = {
        "model": {"family": "rnn", "embedding_size": 28, "hidden_size": 28, "num_layers": 1},
        "tokenizer": {"kind": "char", "vocabulary_size": 28},
        "corpus": dict(manifest["corpus"]),
    }
    manifest["corpus"]["has_ends"] = True
    return manifest


def leaves(value: object, path: str = "") -> Iterator[str]:
    """Return the paths of all leaf fields."""
    if path == "graphs/cell/operators" or path == "graphs/output/operators" or path.endswith("/shape"):
        yield path
    elif isinstance(value, dict | list):
        for name, each in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(each, f"{path}/{name}".lstrip("/"))
    else:
        yield path


def test_invalid_values_are_listed_for_every_field(described: dict[str, Any]) -> None:
    assert set(leaves(described)) <= WRONG.keys()


def test_complete_manifest_is_valid(folder: Path, described: dict[str, Any]) -> None:
    (folder / "manifest.json").write_text(json.dumps(described), "utf-8")
    assert open_bundle(folder, max_slots=1).manifest.sizes == described["sizes"]


@pytest.mark.parametrize("field", WRONG)
def test_field_that_contradicts_the_files_is_reported(folder: Path, described: dict[str, Any], field: str) -> None:
    name = "state" if field.startswith("state") else field.replace("/", ".")
    for value in WRONG[field]:
        manifest = copy.deepcopy(described)
        change(manifest, field, value)
        (folder / "manifest.json").write_text(json.dumps(manifest), "utf-8")
        with pytest.raises(BundleError, match=re.escape(name)):
            open_bundle(folder, max_slots=1)


OPTIONAL = re.compile(r"sizes/trained_parameters|(corpus|figures|training)/.*|state/\d+|.*/.*/.*")


@pytest.mark.parametrize("field", [field for field in WRONG if not OPTIONAL.fullmatch(field)])
def test_missing_field_is_reported(folder: Path, described: dict[str, Any], field: str) -> None:
    *way, last = field.split("/")
    table = described[way[0]] if way else described
    del table[last]
    (folder / "manifest.json").write_text(json.dumps(described), "utf-8")
    with pytest.raises(BundleError, match=rf"manifest\.json: .*{'family' if last == 'embedding' else last}"):
        open_bundle(folder, max_slots=1)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda m: m.update(colour="blue"), "colour"),
        (lambda m: m["boundary"].update(colour="blue"), "colour"),
        (lambda m: m["sizes"].update(colour=3), "colour"),
        (lambda m: m["state"].append(m["state"][0]), "state: .*count once"),
        (lambda m: m["files"].pop("golden.npz"), "golden.npz"),
        (lambda m: m["files"].update({"../x": m["files"]["cell.onnx"]}), "plain name"),
        (lambda m: m["files"].update({"manifest.json": m["files"]["cell.onnx"]}), "plain name"),
        (lambda m: m["files"].update({"a\0b": m["files"]["cell.onnx"]}), "plain name"),
        (lambda m: m["boundary"].update(id=5, token="d"), r"boundary\.id, boundary\.token"),
        (lambda m: m["boundary"].update(id=1, token="<|unk|>"), r"tokenizer\.unknown_id"),
    ],
)
def test_invalid_manifest_is_refused_with_the_field(
    folder: Path, edit: Callable[[dict[str, Any]], object], message: str
) -> None:
    edit_manifest(folder, edit)
    with pytest.raises(BundleError, match=message):
        open_bundle(folder, max_slots=4)


@pytest.mark.parametrize(
    ("name", "field", "values"),
    [
        ("nsmc-lstm", "precision", ["fp32"]),
        ("nsmc-lstm", "family", ["gru", "rnn", "esn"]),
        ("nsmc-lstm", "sizes/parameters", [4004719, 1, 10**9]),
        ("nsmc-lstm", "sizes/embedding", [255, 512]),
        ("nsmc-lstm", "tokenizer/kind", ["char", "word"]),
        ("nsmc-lstm", "tokenizer/unknown_id", [0, 1, 10**9]),
        ("nsmc-lstm", "boundary/id", [1, 300]),
        ("nsmc-lstm", "figures/test/perplexity", [0.0, 97.0]),
        ("shakespeare-gru", "family", ["rnn", "lstm", "esn"]),
        ("shakespeare-esn", "family", ["rnn", "gru", "lstm"]),
        ("shakespeare-esn", "precision", ["fp32"]),
        ("shakespeare-esn", "sizes/trained_parameters", [1484451, 1152578]),
    ],
)
def test_changed_manifest_of_a_released_bundle_is_refused_with_the_field(
    tmp_path: Path, name: str, field: str, values: list[Any]
) -> None:
    folder = Path(shutil.copytree(RELEASED / name, tmp_path / name))
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    for value in values:
        changed = copy.deepcopy(manifest)
        change(changed, field, value)
        (folder / "manifest.json").write_text(json.dumps(changed), "utf-8")
        with pytest.raises(BundleError, match=re.escape(field.replace("/", "."))):
            open_bundle(folder, max_slots=1)


@pytest.mark.parametrize(
    ("file", "other", "message"),
    [
        ("tokenizer.json", "nsmc-lstm/tokenizer.json", r"tokenizer\.kind: got \"char\", expected bpe"),
        ("cell.onnx", "shakespeare-lstm/output.onnx", "state"),
        ("output.onnx", "shakespeare-lstm/cell.onnx", r"output\.onnx: inputs"),
        ("cell.onnx", "shakespeare-rnn/cell.onnx", "state"),
        ("output.onnx", "nsmc-lstm/output.onnx", r"output\.onnx: input 'hidden'"),
        ("output.onnx", "shakespeare-lstm/output.onnx", r"output\.onnx: input 'hidden'"),  # which has n-grams
        ("output.onnx", "shakespeare-rnn/output.onnx", r"golden\.npz: a log-probability"),
        ("golden.npz", "shakespeare-rnn/golden.npz", r"golden\.npz: got "),
        ("golden.npz", "shakespeare-lstm/cell.onnx", r"golden\.npz: cannot be read"),
        ("tokenizer.json", "shakespeare-lstm/README.md", r"tokenizer\.json: not a tokenizer"),
    ],
)
def test_file_of_another_bundle_is_refused_despite_valid_hashes(
    tmp_path: Path, file: str, other: str, message: str
) -> None:
    folder = Path(shutil.copytree(RELEASED / "shakespeare-gru", tmp_path / "mixed"))
    shutil.copyfile(RELEASED / other, folder / file)
    update_hashes(folder)
    with pytest.raises(BundleError, match=message):
        open_bundle(folder, max_slots=1)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("model/vocab", {entry: i for i, entry in enumerate([*VOCABULARY[:-1], "yz"])}, r"tokenizer\.kind: .*'yz'"),
        ("model/vocab", {entry: i for i, entry in enumerate([*VOCABULARY[:-1], ""])}, r"tokenizer\.kind: .*''"),
        ("model/unk_token", "a", r"tokenizer\.unknown_id"),
        ("model/unk_token", "nothing", r"tokenizer\.unknown_id"),
        ("normalizer", {"type": "NFD"}, r"tokenizer\.normalization"),
        ("normalizer", None, r"tokenizer\.normalization"),
        ("decoder", None, r"tokenizer\.kind"),
        ("pre_tokenizer", {"type": "Whitespace"}, r"tokenizer\.kind"),
        ("pre_tokenizer/behavior", "Removed", r"pre_tokenizer"),
        ("truncation", {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}, "truncation"),
        (
            "added_tokens",
            [
                {"id": 0, "content": "<|end|>", "single_word": False, "lstrip": False, "rstrip": False}
                | {"normalized": False, "special": True}
            ],
            "added_tokens",
        ),
    ],
)
def test_unsupported_tokenizer_is_refused(folder: Path, path: str, value: object, message: str) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    change(tokenizer, path, value)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    rewrite_manifest(folder)
    with pytest.raises(BundleError, match=message):
        open_bundle(folder, max_slots=1)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("model/dropout", 0.1),
        ("model/byte_fallback", True),
        ("model/ignore_merges", True),
        ("pre_tokenizer/add_prefix_space", True),
        ("pre_tokenizer/use_regex", False),
    ],
)
def test_byte_tokenizer_with_another_split_is_refused(tmp_path: Path, path: str, value: object) -> None:
    folder = Path(shutil.copytree(RELEASED / "nsmc-lstm", tmp_path / "nsmc"))
    tokenizer = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    change(tokenizer, path, value)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    update_hashes(folder)
    with pytest.raises(BundleError, match=rf"tokenizer\.json: {re.escape(path.replace('/', '.'))}: got "):
        open_bundle(folder, max_slots=1)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "JSON"),
        (b"{", "JSON"),
        (b"[]", "a JSON object"),
        (b"null", "a JSON object"),
        (b'{"format_version": 1}', "missing required field"),
        (b"\xef\xbb\xbf{}", "byte-order mark"),
        ("{}".encode("utf-16"), "UTF-8"),
        (b'{"name": "\xff"}', "UTF-8"),
        (b"[" * 500_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b'{"format_version": NaN}', "NaN"),
        (b'{"format_version": -Infinity}', "-Infinity"),
        (b'{"format_version": 1e999}', "1e999"),
        (b'{"format_version": 1, "format_version": 1}', "format_version: got it twice"),
        (b'{"boundary": {"id": 0, "id": 5}}', "id: got it twice"),
        (b'{"\\ud800": 0, "\\ud800": 5}', "got it twice"),
        (b'{"format_version": 1, "name": "\\ud83d"}', "half a surrogate pair"),
        (b'{"format_version": ' + b"9" * 5000 + b"}", "JSON"),
        (b" " * (1 << 20) + b"{}", "at most 1,048,576"),
    ],
)
def test_malformed_manifest_is_refused(folder: Path, data: bytes, message: str) -> None:
    (folder / "manifest.json").write_bytes(data)
    with pytest.raises(BundleError, match=rf"manifest\.json: .*{message}"):
        open_bundle(folder, max_slots=4)


def test_malformed_graph_is_refused(folder: Path) -> None:
    (folder / "cell.onnx").write_bytes(b"not a graph")
    update_hashes(folder)
    with pytest.raises(BundleError, match=r"cell\.onnx: not an ONNX file"):
        open_bundle(folder, max_slots=4)


def test_graph_with_other_results_is_refused(folder: Path, tmp_path: Path) -> None:
    other = write_tiny_bundle(tmp_path / "other", decay=0.2)
    (folder / "cell.onnx").write_bytes((other / "cell.onnx").read_bytes())
    rewrite_manifest(folder)
    with pytest.raises(BundleError, match=r"golden\.npz: a log-probability computed here differs by 0\."):
        open_bundle(folder, max_slots=4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"state_count": np.full((2, 1), 5.0, np.float32)}, "a state"),
        ({"state_count": np.full((2, 1), np.nan, np.float32)}, "a state"),
        ({"tokens": np.full((4, 2), 28)}, "from 0 to 27"),
        ({"tokens": np.zeros((0, 2), np.int64)}, "tokens"),
        ({"tokens": np.zeros((4, 2), np.float32)}, "tokens"),
        ({"tokens": np.full((4, 2), 2)}, r"boundary\.id: got 0, expected 2"),
        ({"logprobs": None}, "logprobs"),
        ({"logprobs": np.zeros((4, 2, 28))}, "logprobs: got float64"),
        ({"more": np.zeros(3)}, "more"),
        ({"state_count": np.zeros((3, 1), np.float32)}, "state_count"),
    ],
)
def test_golden_figures_must_have_the_right_shape_and_be_reproduced(
    folder: Path, changes: dict[str, Any], message: str
) -> None:
    edit_golden(folder, **changes)
    with pytest.raises(BundleError, match=message):
        open_bundle(folder, max_slots=4)


def test_golden_file_with_a_pickle_is_refused(folder: Path) -> None:
    edit_golden(folder, tokens=np.array([object()]))
    with pytest.raises(BundleError, match=r"golden\.npz: tokens: got object"):
        open_bundle(folder, max_slots=4)


def test_golden_file_that_decompresses_to_a_huge_size_is_refused_unread(folder: Path) -> None:
    with np.load(folder / "golden.npz") as archive:
        arrays = {name: archive[name] for name in ("tokens", "state_count")}
    with zipfile.ZipFile(folder / "golden.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as member:
                np.save(member, array)
        with archive.open("logprobs.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(
                member, {"descr": "<f4", "fortran_order": False, "shape": (1 << 40, 2, 28)}
            )
            for _ in range(64):
                member.write(bytes(1 << 20))
    update_hashes(folder)
    with peak_memory_below(32 << 20), pytest.raises(BundleError, match=r"golden\.npz: logprobs: got .* expected"):
        open_bundle(folder, max_slots=4)


@contextlib.contextmanager
def peak_memory_below(num_bytes: int) -> Iterator[None]:
    """Assert an upper bound for Python's allocations in the block."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < num_bytes
    finally:
        tracemalloc.stop()


def test_golden_array_is_refused_unread_even_if_the_state_is_as_huge(folder: Path) -> None:
    manifest, _ = read_manifest(folder)
    huge = msgspec.structs.replace(manifest, state=(msgspec.structs.replace(manifest.state[0], shape=(1 << 34,)),))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive, np.load(folder / "golden.npz") as golden:
        for name in ("tokens", "logprobs"):
            with archive.open(f"{name}.npy", "w") as member:
                np.save(member, golden[name])
        with archive.open("state_count.npy", "w") as member:
            np.lib.format.write_array_header_1_0(
                member, {"descr": "<f4", "fortran_order": False, "shape": (2, 1 << 34)}
            )
            member.write(bytes(1 << 20))
    with peak_memory_below(8 << 20), pytest.raises(BundleError, match=r"golden\.npz: state_count: expected at most"):
        read_golden(packed.getvalue(), huge)


def test_golden_header_that_announces_gigabytes_is_refused_unread(folder: Path) -> None:
    manifest, _ = read_manifest(folder)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive, np.load(folder / "golden.npz") as golden:
        for name in ("logprobs", "state_count"):
            with archive.open(f"{name}.npy", "w") as member:
                np.save(member, golden[name])
        with archive.open("tokens.npy", "w") as member:
            member.write(np.lib.format.magic(2, 0) + (1 << 31).to_bytes(4, "little") + bytes(64 << 20))
    with peak_memory_below(8 << 20), pytest.raises(BundleError, match=r"golden\.npz: cannot be read"):
        read_golden(packed.getvalue(), manifest)


def add_sparse(target: Any, tensor: Any) -> None:
    target.add(dims=[4]).values.CopyFrom(tensor)


def unflagged(model: Any, tensor: Any) -> None:
    tensor.data_location = onnx.TensorProto.DEFAULT
    model.graph.initializer[0].CopyFrom(tensor)


def graph_of(tensor: Any) -> Any:
    return onnx.helper.make_graph([], "inner", [], [], [tensor])


def add_node(model: Any, kind: str, **attributes: Any) -> None:
    model.graph.node.append(onnx.helper.make_node(kind, ["token"], ["more"], **attributes))


EXTERNAL: dict[str, Callable[[Any, Any], object]] = {
    "initializer": lambda model, tensor: model.graph.initializer[0].CopyFrom(tensor),
    "initializer without the flag": unflagged,
    "sparse initializer": lambda model, tensor: add_sparse(model.graph.sparse_initializer, tensor),
    "attribute": lambda model, tensor: add_node(model, "Constant", value=tensor),
    "list of an attribute": lambda model, tensor: add_node(model, "Constant", values=[tensor]),
    "sparse attribute": lambda model, tensor: add_node(
        model, "Constant", sparse_value=onnx.SparseTensorProto(values=tensor, dims=[4])
    ),
    "body of a loop": lambda model, tensor: add_node(model, "Loop", body=graph_of(tensor)),
    "list of graphs": lambda model, tensor: add_node(model, "Loop", bodies=[graph_of(tensor)]),
    "branch in a branch": lambda model, tensor: add_node(
        model,
        "If",
        then_branch=onnx.helper.make_graph(
            [onnx.helper.make_node("If", [], ["x"], else_branch=graph_of(tensor))], "outer", [], []
        ),
    ),
}


@pytest.mark.parametrize("part", ["functions", "training_info"])
def test_graph_with_more_than_operators_is_refused(folder: Path, part: str) -> None:
    model = onnx.load(str(folder / "output.onnx"))
    getattr(model, part).add()
    (folder / "output.onnx").write_bytes(model.SerializeToString())
    update_hashes(folder)
    with pytest.raises(BundleError, match=rf"output\.onnx: {part}: got 1, expected none"):
        open_bundle(folder, max_slots=4)


@pytest.mark.parametrize("place", EXTERNAL)
def test_graph_with_external_weights_is_refused(folder: Path, place: str) -> None:
    model = onnx.load(str(folder / "cell.onnx"))
    weight = model.graph.initializer[0]
    external = onnx.TensorProto(name=weight.name, data_type=weight.data_type, dims=weight.dims)
    external.data_location = onnx.TensorProto.EXTERNAL
    external.external_data.add(key="location", value="../../etc/passwd")
    EXTERNAL[place](model, external)
    (folder / "cell.onnx").write_bytes(model.SerializeToString())
    update_hashes(folder)
    with pytest.raises(BundleError, match=r"cell\.onnx: tensor 'following': its data are in another file"):
        open_bundle(folder, max_slots=4)


STRANGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "FIFO": (os.mkfifo, "got a FIFO, expected a file"),
    "socket": (make_socket, "got a socket, expected a file"),
    "folder": (Path.mkdir, "got a folder, expected a file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "got a device, expected a file"),
    "terminal": (lambda path: path.symlink_to("/dev/tty"), "got a device, expected a file|cannot be read"),
    "itself": (lambda path: path.symlink_to(path), "cannot be read: Too many levels of symbolic links"),
    "nowhere": (lambda path: path.symlink_to("nowhere"), "cannot be read: No such file"),
    "elsewhere": (lambda path: path.symlink_to("/etc/passwd"), "got a link out of its folder, expected a file inside"),
    "3 GiB": (make_large, r"got 3,221,225,472 bytes, expected"),
}


def test_bundle_that_does_not_fit_into_memory_is_refused(tmp_path: Path) -> None:
    manifest, _ = read_manifest(write_tiny_bundle(tmp_path / "tiny"))
    size = sum(manifest.files[name].bytes for name in ("cell.onnx", "output.onnx"))
    check_memory(manifest, 5 * size)
    with pytest.raises(BundleError) as caught:
        check_memory(manifest, 5 * size - 1)
    assert str(caught.value) == (
        f"cell.onnx, output.onnx: got {size:,} bytes, expected at most {size - 1:,}: "
        f"to open them takes 5 times as many, and there are {5 * size - 1:,} of memory"
    )


@pytest.mark.parametrize("kind", STRANGE)
@pytest.mark.parametrize("name", ["manifest.json", "cell.onnx", "golden.npz", "tokenizer.json", "README.md"])
def test_special_files_are_refused_unread(folder: Path, name: str, kind: str) -> None:
    make, message = STRANGE[kind]
    (folder / name).unlink()
    make(folder / name)
    with peak_memory_below(32 << 20), pytest.raises(BundleError, match=rf"{re.escape(name)}: ({message})"):
        open_bundle(folder, max_slots=4)


def test_oversized_file_in_the_manifest_is_refused_unread(folder: Path) -> None:
    make_large(folder / "cell.onnx")
    edit_manifest(folder, lambda m: m["files"]["cell.onnx"].update(bytes=3 << 30))
    with pytest.raises(BundleError, match=r"files\.cell\.onnx\.bytes: got 3221225472, expected at most 2147483647"):
        open_bundle(folder, max_slots=4)


def test_links_to_the_right_files_elsewhere_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    for path in list(folder.iterdir()):
        path.rename(tmp_path / "store" / path.name)
        path.symlink_to(tmp_path / "store" / path.name)
    with pytest.raises(BundleError, match=r"manifest\.json: got a link out of its folder, expected a file inside"):
        open_bundle(folder, max_slots=4)


def test_links_inside_a_mounted_volume_are_followed(folder: Path, tmp_path: Path) -> None:
    """A volume of Kubernetes: each file is a link through `..data`, a link that is replaced at an update."""
    volume, version = tmp_path / "volume", "..2026_11_28_12_00_00.1"
    volume.mkdir()
    folder.rename(volume / version)
    (volume / "..data").symlink_to(version)
    for path in (volume / version).iterdir():
        (volume / path.name).symlink_to(f"..data/{path.name}")
    (tmp_path / "bundles").mkdir()
    (tmp_path / "bundles" / "tiny").symlink_to(volume)
    assert open_bundle(tmp_path / "bundles" / "tiny", max_slots=4).manifest.name == "tiny"
    assert open_bundle(volume / "..data", max_slots=4).manifest.name == "tiny"
    assert list(find_bundles(tmp_path / "bundles").folders) == ["tiny"]
    assert list(find_bundles(volume).folders) == ["volume"]


def test_hard_links_are_files_of_the_folder(folder: Path, tmp_path: Path) -> None:
    for path in list(folder.iterdir()):
        path.rename(tmp_path / path.name)
        os.link(tmp_path / path.name, path)
    assert open_bundle(folder, max_slots=4).manifest.name == "tiny"


def test_file_that_changes_during_the_load_is_used_as_it_was_checked(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes that were hashed are those that are used: files may be replaced from then on."""
    read = reader.read_files

    def replace_then_return(place: Path, manifest: Any) -> dict[str, bytes]:
        files = read(place, manifest)
        for name in manifest.files:
            (place / name).write_bytes(b"replaced")
        return files

    monkeypatch.setattr("meari.runtime.bundle.read_files", replace_then_return)
    assert open_bundle(folder, max_slots=4).self_test.golden_max_difference <= 1e-6


@pytest.mark.parametrize("depth", [40, 900, 100_000])
def test_manifest_nested_deeply_is_refused(folder: Path, depth: int) -> None:
    text = (folder / "manifest.json").read_text("utf-8")
    nested = "[" * depth + "]" * depth
    (folder / "manifest.json").write_text(text.replace('"training": {}', f'"training": {{"deep": {nested}}}'), "utf-8")
    with pytest.raises(BundleError, match=r"manifest\.json: got JSON nested too deeply, expected at most 32 levels"):
        read_manifest(folder)


def test_manifest_with_too_many_files_is_refused(folder: Path) -> None:
    entry = {"sha256": "0" * 64, "bytes": 1}
    edit_manifest(folder, lambda m: m["files"].update({f"{number}.txt": entry for number in range(100)}))
    with pytest.raises(BundleError, match=r"files: got 105, expected at most 100 files"):
        open_bundle(folder, max_slots=4)


def test_unreadable_file_is_reported(folder: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root can read every file")
    (folder / "cell.onnx").chmod(0)
    with pytest.raises(BundleError, match=r"cell\.onnx: cannot be read: Permission denied"):
        open_bundle(folder, max_slots=4)


def test_rows_that_influence_one_another_are_detected(tmp_path: Path) -> None:
    leaky = write_tiny_bundle(tmp_path / "leaky", decay=0.1, leak=True)
    assert not open_bundle(leaky, max_slots=8).self_test.rows_isolated


@pytest.mark.parametrize(
    ("corpus", "documents", "has_ends"),
    [
        ({"document": "line"}, 1, True),
        ({"document": "paragraph"}, None, True),
        ({"document": "file"}, 1, False),
        ({"document": "file"}, None, False),
        ({"document": "file"}, 100, True),
        ({}, None, True),
        ({"document": "line", "has_ends": False}, 9, False),
        ({"document": "file", "has_ends": True}, 1, True),
    ],
)
def test_bundle_states_whether_its_training_text_had_ends(
    folder: Path, corpus: dict[str, Any], documents: int | None, has_ends: bool
) -> None:
    figures = {} if documents is None else {"training_documents": documents}
    rewrite_manifest(folder, corpus=corpus, figures=figures)
    assert open_bundle(folder, max_slots=4).manifest.has_ends is has_ends


LIBRARY_WORDS = re.compile(
    r"ONNXRuntimeError|onnxruntime_src|\.cc:|\.h:|/onnxruntime|INVALID_|std::|Traceback|see the log|line 1 column",
    re.IGNORECASE,
)


def edit_cell(folder: Path, edit: Callable[[Any], object]) -> None:
    """Change the graph of the cell and update the manifest."""
    model = onnx.load(folder / "cell.onnx")
    edit(model)
    (folder / "cell.onnx").write_bytes(model.SerializeToString())
    rewrite_manifest(folder)
    operators: dict[str, int] = {}
    for node in model.graph.node:
        operators[node.op_type] = operators.get(node.op_type, 0) + 1
    edit_manifest(folder, lambda manifest: manifest["graphs"]["cell"].update(operators=operators))


def set_operator(name: str, domain: str = "") -> Callable[[Any], object]:
    def edit(model: Any) -> None:
        node = model.graph.node[-1]
        node.op_type, node.domain = name, domain
        if domain:
            model.opset_import.add(domain=domain, version=1)

    return edit


def set_opset(model: Any) -> None:
    model.opset_import[0].version = 99


def cut_input(model: Any) -> None:
    model.graph.node[-1].input[0] = "nowhere"


def close_circle(model: Any) -> None:
    first, last = model.graph.node[0], model.graph.node[-1]
    first.input[0] = last.output[0]


def add_attribute(model: Any) -> None:
    model.graph.node[-1].attribute.add(name="colour", type=onnx.AttributeProto.FLOAT, f=1.0)


def leave_out_domain(model: Any) -> None:
    model.graph.node[-1].domain = "my.ops"


def first_tensor(model: Any) -> Any:
    return next(tensor for tensor in model.graph.initializer if tensor.dims)


def halve_tensor(model: Any) -> None:
    tensor = first_tensor(model)
    tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor), tensor.name))  # raw bytes
    tensor.raw_data = tensor.raw_data[: len(tensor.raw_data) // 2]


def unknown_type(model: Any) -> None:
    first_tensor(model).data_type = 99


def more_inputs(model: Any) -> None:
    model.graph.node[-1].input.append("peak")


def other_type(model: Any) -> None:
    model.graph.node[-1].op_type = "And"


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (set_operator("Frobnicate"), r"cell\.onnx: operator Frobnicate is not known in operator set \d+"),
        (set_operator("Mine", "my.ops"), r"cell\.onnx: operator Mine is not known"),
        (set_opset, r"operator sets?: got \[21, 99\]|operator set 99 is newer"),
        (cut_input, r"cell\.onnx: a node takes 'nowhere', which nothing gives"),
        (more_inputs, r"cell\.onnx: operator Mul has a wrong number of inputs"),
        (close_circle, r"cell\.onnx: its nodes wait for one another in a circle"),
        (add_attribute, r"cell\.onnx: operator Mul has no attribute 'colour'"),
        (leave_out_domain, r"cell\.onnx: operators of 'my\.ops' are not known"),
        (halve_tensor, r"cell\.onnx: tensor '\w+': got \d+ bytes, expected the \d+ of its shape"),
        (unknown_type, r"cell\.onnx: tensor '\w+' has no type that is known"),
        (other_type, r"cell\.onnx: operator And gets an input of a wrong type"),
    ],
)
def test_unloadable_graph_is_reported_without_the_message_of_onnxruntime(
    folder: Path, edit: Callable[[Any], object], reason: str
) -> None:
    edit_cell(folder, edit)
    with pytest.raises(BundleError, match=reason) as caught:
        open_bundle(folder, max_slots=4)
    assert not LIBRARY_WORDS.search(str(caught.value)), caught.value


@pytest.mark.parametrize("name", ["cell.onnx", "output.onnx", "tokenizer.json", "golden.npz"])
@pytest.mark.parametrize("data", [b"", b"garbage", b"{}", b"PK\x03\x04" + b"\0" * 100, b"\x08\x0a" * 50, b"\xff" * 300])
def test_malformed_file_is_reported_without_the_message_of_its_library(folder: Path, name: str, data: bytes) -> None:
    sizes = sizes_of(folder)
    (folder / name).write_bytes(data)
    rewrite_manifest(folder, sizes=sizes)
    with pytest.raises(BundleError, match=re.escape(name)) as caught:
        open_bundle(folder, max_slots=4)
    assert not LIBRARY_WORDS.search(str(caught.value)), caught.value


@pytest.mark.parametrize("name", ["cell.onnx", "output.onnx", "tokenizer.json", "golden.npz"])
def test_truncated_file_is_reported_without_the_message_of_its_library(folder: Path, name: str) -> None:
    data, sizes = (folder / name).read_bytes(), sizes_of(folder)
    for size in (1, len(data) // 3, len(data) // 2, len(data) - 1):
        (folder / name).write_bytes(data[:size])
        rewrite_manifest(folder, sizes=sizes)
        with pytest.raises(BundleError, match=r"\.onnx|\.json|\.npz") as caught:
            open_bundle(folder, max_slots=4)
        assert not LIBRARY_WORDS.search(str(caught.value)), caught.value
