"""A bundle is served only when it is what was exported, and computes here what it computed there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.bundle import open_bundle
from service.errors import BundleError
from tests.service.tiny_bundle import rewrite_manifest, write_tiny_bundle


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


def test_sound_bundle_opens_and_says_what_it_found(folder: Path) -> None:
    bundle = open_bundle(folder, max_slots=8)
    assert bundle.manifest.name == "tiny"
    assert bundle.self_test.golden_max_difference <= 1e-6
    assert bundle.self_test.rows_isolated
    assert len(bundle.hash) == 64


def test_single_slot_is_enough_for_the_self_test(folder: Path) -> None:
    assert open_bundle(folder, max_slots=1).self_test.batch_sizes == (1,)


@pytest.mark.parametrize("name", ["cell.onnx", "output.onnx", "tokenizer.json", "golden.npz", "README.md"])
def test_changed_file_is_named(folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(bytes(data))
    with pytest.raises(BundleError, match=f"{name}: SHA-256"):
        open_bundle(folder, max_slots=4)


@pytest.mark.parametrize("name", ["manifest.json", "cell.onnx", "tokenizer.json"])
def test_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(BundleError, match=f"{name}: cannot be read"):
        open_bundle(folder, max_slots=4)


def test_later_format_is_refused(folder: Path) -> None:
    edit_manifest(folder, lambda m: m.update(format_version=2, something_new=True))
    with pytest.raises(BundleError, match="format_version: got 2, expected 1"):
        open_bundle(folder, max_slots=4)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda m: m.update(colour="blue"), "colour"),
        (lambda m: m.update(family="transformer"), "family"),
        (lambda m: m.pop("state"), "state"),
        (lambda m: m["sizes"].pop("vocabulary"), "sizes.vocabulary"),
        (lambda m: m["files"].pop("golden.npz"), "golden.npz"),
        (lambda m: m["state"][0].update(name="other"), "cell.onnx"),
        (lambda m: m["state"][0].update(shape=[2]), "count"),
        (lambda m: m["state"][0].update(dtype="float16"), "dtype"),
        (lambda m: m["sizes"].update(vocabulary=7), "logits|logprobs"),
        (lambda m: m["boundary"].update(id=28), "boundary.id"),
        (lambda m: m.update(name="../elsewhere"), "name"),
        (
            lambda m: m["corpus"].update(has_ends="no"),
            "corpus.has_ends: got 'no', expected true, false or no such field",
        ),
        (lambda m: m["files"].update({"../x": {"sha256": "0", "bytes": 1}}), "plain file name"),
    ],
)
def test_manifest_that_is_not_understood_is_refused_by_field(
    folder: Path, edit: Callable[[dict[str, Any]], object], message: str
) -> None:
    edit_manifest(folder, edit)
    with pytest.raises(BundleError, match=message):
        open_bundle(folder, max_slots=4)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"format_version": 1}'])
def test_manifest_that_is_no_manifest_is_refused(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_text(text, "utf-8")
    with pytest.raises(BundleError, match=r"manifest\.json"):
        open_bundle(folder, max_slots=4)


def test_graph_that_is_no_graph_is_refused(folder: Path) -> None:
    (folder / "cell.onnx").write_bytes(b"not a graph")
    rewrite_manifest(folder)
    with pytest.raises(BundleError, match=r"cell\.onnx: not an ONNX file"):
        open_bundle(folder, max_slots=4)


def test_graph_that_computes_something_else_is_refused(folder: Path, tmp_path: Path) -> None:
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
        ({"tokens": np.array([[28, 0]])}, "from 0 to 27"),
        ({"tokens": np.zeros((0, 2), np.int64)}, "tokens"),
        ({"logprobs": None}, "logprobs"),
        ({"state_count": np.zeros((3, 1), np.float32)}, "state_count"),
    ],
)
def test_golden_figures_must_fit_and_come_out(folder: Path, changes: dict[str, Any], message: str) -> None:
    edit_golden(folder, **changes)
    with pytest.raises(BundleError, match=message):
        open_bundle(folder, max_slots=4)


def test_golden_file_with_a_pickle_is_refused(folder: Path) -> None:
    edit_golden(folder, tokens=np.array([object()]))
    with pytest.raises(BundleError, match=r"golden\.npz: cannot be read"):
        open_bundle(folder, max_slots=4)


def test_leaking_rows_are_found(tmp_path: Path) -> None:
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
def test_bundle_knows_whether_its_training_text_had_ends(
    folder: Path, corpus: dict[str, Any], documents: int | None, has_ends: bool
) -> None:
    figures = {} if documents is None else {"training_documents": documents}
    rewrite_manifest(folder, corpus=corpus, figures=figures)
    assert open_bundle(folder, max_slots=4).manifest.has_ends is has_ends
