"""Test the export of a run folder: the contents of the bundle, and the folder after a failure."""

import dataclasses
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from meari.bundle_format.names import Document, Family, Precision
from meari.export.bundle import export_bundle
from meari.export.description import summarise, summary_table
from meari.export.errors import BundleExists, ExportError, PrecisionLost, TorchMismatch, UnusableRun
from meari.export.sessions import GraphModel, Graphs
from meari.export.weights import ModelWeights
from meari.export.weights_from_torch import read_weights
from meari.models.config import RecurrentConfig, ReservoirConfig
from meari.models.errors import CheckpointError, FolderInUse
from meari.models.files import locked_beside
from meari.models.language_model import LanguageModel
from meari.runtime.bundle import open_bundle
from tests.export.tiny_models import make_run

LSTM = RecurrentConfig(Family.LSTM, embedding_size=8, hidden_size=16)
FILES = {"manifest.json", "cell.onnx", "output.onnx", "tokenizer.json", "golden.npz", "README.md", "report.png"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "tiny", LSTM)


@pytest.fixture(scope="module")
def bundle(run: Path) -> Path:
    folder = run.parent / "bundles" / "tiny-int8"
    export_bundle(run, folder, Precision.INT8)
    return folder


@pytest.fixture
def manifest(bundle: Path) -> dict[str, object]:
    loaded = json.loads((bundle / "manifest.json").read_text("utf-8"))
    assert isinstance(loaded, dict)
    return loaded


def test_bundle_contains_exactly_its_files(bundle: Path) -> None:
    assert {path.name for path in bundle.iterdir()} == FILES
    assert [path.name for path in bundle.parent.iterdir()] == [bundle.name]


def test_second_export_to_the_same_folder_is_refused(run: Path, tmp_path: Path) -> None:
    with locked_beside(tmp_path / "tiny"), pytest.raises(FolderInUse, match="another run is writing to it"):
        export_bundle(run, tmp_path / "tiny", Precision.FP32)
    assert list(tmp_path.iterdir()) == []


def test_manifest_has_size_and_hash_of_every_other_file(bundle: Path, manifest: dict[str, object]) -> None:
    files = manifest["files"]
    assert isinstance(files, dict)
    assert set(files) == FILES - {"manifest.json"}
    for name, entry in files.items():
        content = (bundle / name).read_bytes()
        assert entry == {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def test_manifest_describes_the_bundle(manifest: dict[str, object]) -> None:
    expected = {
        "format_version": 1,
        "name": "tiny-int8",
        "family": "lstm",
        "precision": "int8",
        "boundary": {"id": 0, "token": "<|end|>"},
        "tokenizer": {"kind": "char", "normalization": "NFC", "unknown_id": 1},
        "state": [{"name": name, "shape": [16], "dtype": "float32"} for name in ("h0", "c0")],
    }
    assert {key: manifest[key] for key in expected} == expected
    corpus, figures, training = (manifest[key] for key in ("corpus", "figures", "training"))
    assert isinstance(corpus, dict)
    assert isinstance(figures, dict)
    assert isinstance(training, dict)
    assert corpus["licence"] == "public domain"
    assert corpus["has_ends"] is False
    assert corpus["baseline"] == {"order 0": "2.5 nats/char"}
    assert figures["reported_part"] == figures["checkpoint_chosen_on"] == "validation"
    assert figures["measured_on"]["onnxruntime"] == onnxruntime.__version__
    assert figures["measured_on"]["cpu"]
    served, checkpoint = figures["validation"], figures["checkpoint"]["validation"]
    assert served["perplexity"] != checkpoint["perplexity"]
    assert served["num_tokens"] == checkpoint["num_tokens"]
    assert figures["precision_check"]["perplexity"] == served["perplexity"]
    assert figures["precision_check"]["perplexity_fp32"] == checkpoint["perplexity"]
    assert figures["precision_check"]["relative_loss"] <= 0.01
    assert figures["precision_check"]["fp32_max_difference_from_torch"] <= 1e-4
    assert training["model"]["hidden_size"] == 16


def test_exported_bundle_passes_the_self_test_of_the_server(bundle: Path) -> None:
    opened = open_bundle(bundle, max_slots=16)
    assert opened.self_test.golden_max_difference <= 1e-6
    assert opened.self_test.rows_isolated


@pytest.mark.parametrize("family", ["rnn", "gru", "esn"])
def test_bundles_of_all_families_pass_the_self_test(family: str, tmp_path: Path) -> None:
    reservoir = ReservoirConfig(Family.ESN, units=32, block_size=8)
    model = reservoir if family == "esn" else dataclasses.replace(LSTM, family=Family(family), num_layers=2, tied=True)
    run = make_run(tmp_path / "run", model)
    for precision in Precision:
        folder = tmp_path / "bundles" / f"{family}-{precision}"
        export_bundle(run, folder, precision)
        opened = open_bundle(folder, max_slots=8)
        assert (opened.manifest.family, opened.manifest.precision) == (family, str(precision))
        assert opened.self_test.rows_isolated


def test_golden_figures_begin_with_the_boundary_token_and_the_initial_state(bundle: Path) -> None:
    golden = np.load(bundle / "golden.npz")
    assert golden["tokens"].shape == (8, 2)
    assert golden["tokens"].dtype == np.int64
    assert (golden["tokens"][0] == 0).all()
    graphs = Graphs(Precision.INT8, (bundle / "cell.onnx").read_bytes(), (bundle / "output.onnx").read_bytes())
    model = GraphModel(graphs)
    state = model.initial_state(2)
    for tokens, expected in zip(golden["tokens"], golden["logprobs"], strict=True):
        hidden, state = model.step(tokens, state)
        np.testing.assert_array_equal(model.logprobs(hidden), expected)
    np.testing.assert_array_equal(state["c0"], golden["state_c0"])


def test_model_card_describes_the_run(bundle: Path) -> None:
    card = (bundle / "README.md").read_text("utf-8")
    for piece in (
        "# tiny-int8",
        "public domain",
        "20 % of the text for validation",
        "| validation | ",
        "also chose the checkpoint",
        "bits/char with ends",
        "| order 0 | 2.5 nats/char |",
        "| model | LSTM, 1 layer of 16, embeddings of 8 |",
        "| steps | 1 steps of 32 streams by 64 tokens |",
        "| optimizer | AdamW, weight decay 0.01, gradients clipped to norm 1 |",
        "| products in training | float32 |",
        "trained for 2.3 minutes (1.1 minutes of CPU) on a machine, until 2026-11-30",
        "the int8 bundle has perplexity",
        "curl -s",
        "## Samples",
        "## Limits",
        "(report.png)",
    ):
        assert piece in card, piece


@pytest.mark.parametrize(("document", "sampled"), [(Document.LINE, "lines"), (Document.FILE, "text")])
def test_model_card_tells_what_was_not_learnt(tmp_path: Path, document: Document, sampled: str) -> None:
    words = ("to be\n", "or not\n", "let be\n")
    run = make_run(tmp_path / "run", LSTM, words=words, document=document, training_share=0.25, loss_mask="or")
    export_bundle(run, tmp_path / "tiny", Precision.FP32)
    card = (tmp_path / "tiny" / "README.md").read_text("utf-8")
    assert f"- trained on a sample of 25 % of the training {sampled}\n" in card
    assert "- text that a loss mask matched was read but not learnt; in the held-out text it counts\n" in card


def test_repeated_export_gives_the_same_bytes(run: Path, bundle: Path, tmp_path: Path) -> None:
    again = tmp_path / bundle.name
    export_bundle(run, again, Precision.INT8)
    for name in FILES:
        assert (again / name).read_bytes() == (bundle / name).read_bytes(), name


def test_permissions_of_the_bundle_follow_the_umask(bundle: Path) -> None:
    umask = os.umask(0o022)
    os.umask(umask)
    assert bundle.stat().st_mode & 0o777 == 0o777 & ~umask


def test_existing_bundle_is_replaced_only_with_overwrite(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "echo"
    export_bundle(run, folder, Precision.FP32)
    before = _contents(folder)
    with pytest.raises(BundleExists, match="--overwrite"):
        export_bundle(run, folder, Precision.INT8)
    assert _contents(folder) == before
    export_bundle(run, folder, Precision.INT8, overwrite=True)
    assert json.loads((folder / "manifest.json").read_text("utf-8"))["precision"] == "int8"
    assert [path.name for path in tmp_path.iterdir()] == ["echo"]


def test_folder_without_a_bundle_is_never_replaced(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter1.txt").write_text("years of work", encoding="utf-8")
    with pytest.raises(BundleExists, match="not a bundle"):
        export_bundle(run, folder, Precision.FP32, overwrite=True)
    assert (folder / "chapter1.txt").exists()


def test_changed_weights_fail_the_export_without_leaving_a_bundle(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meari.export.bundle.read_weights", _tampered)
    with pytest.raises(TorchMismatch):
        export_bundle(run, tmp_path / "echo", Precision.FP32)
    assert list(tmp_path.iterdir()) == []


def test_failed_check_keeps_the_existing_bundle(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "echo"
    export_bundle(run, folder, Precision.FP32)
    before = _contents(folder)
    monkeypatch.setattr("meari.export.perplexity.MAX_LOSS", -1.0)
    with pytest.raises(PrecisionLost, match=r"the int8 bundle has perplexity .* the checkpoint"):
        export_bundle(run, folder, Precision.INT8, overwrite=True)
    assert _contents(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["echo"]


def test_failed_write_keeps_the_existing_bundle(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "echo"
    export_bundle(run, folder, Precision.FP32)
    before = _contents(folder)

    def full_disk(*_: object) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("meari.export.bundle.make_manifest", full_disk)
    with pytest.raises(OSError, match="No space"):
        export_bundle(run, folder, Precision.INT8, overwrite=True)
    assert _contents(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["echo"]


def test_export_accepts_a_checkpoint_folder(run: Path, bundle: Path, tmp_path: Path) -> None:
    export_bundle(run / "best", tmp_path / "best-int8", Precision.INT8)
    assert (tmp_path / "best-int8" / "cell.onnx").read_bytes() == (bundle / "cell.onnx").read_bytes()


def test_int8_without_held_out_text_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", LSTM, num_words=10)
    with pytest.raises(UnusableRun, match="held-out tokens"):
        export_bundle(run, tmp_path / "bundles" / "echo", Precision.INT8)
    assert not (tmp_path / "bundles").exists()
    export_bundle(run, tmp_path / "bundles" / "echo", Precision.FP32)


def test_missing_run_and_invalid_name_are_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        export_bundle(tmp_path / "nothing", tmp_path / "echo", Precision.FP32)
    with pytest.raises(ExportError, match="bundle name"):
        export_bundle(run, tmp_path / ".hidden", Precision.FP32)


def test_summary_counts_operators(run: Path, bundle: Path, manifest: dict[str, object]) -> None:
    graphs = Graphs(Precision.INT8, (bundle / "cell.onnx").read_bytes(), (bundle / "output.onnx").read_bytes())
    summaries = summarise(graphs)
    stated = manifest["graphs"]
    assert isinstance(stated, dict)
    assert stated["cell"]["operators"] == summaries["cell"].operators
    assert stated["cell"]["bytes"] == len(graphs.cell)
    table = summary_table(list(summaries.values()))
    assert "cell.onnx" in table
    assert "MatMulInteger 1" in table


def _tampered(model: LanguageModel) -> ModelWeights:
    weights = read_weights(model)
    weights.output.maps[-1].bias[0] += 0.01
    return weights


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
