"""Test that engine and checkpoint give the same figures for the same text."""

import json
import math
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from meari.bundle_format.names import Document, Family, Precision, TokenizerKind
from meari.export.bundle import export_bundle
from meari.export.perplexity import MAX_LOSS
from meari.models.checkpoint import load_checkpoint
from meari.models.config import (
    Config,
    CorpusConfig,
    ModelConfig,
    RecurrentConfig,
    ReservoirConfig,
    TokenizerConfig,
    TrainingConfig,
)
from meari.models.evaluation import evaluate, open_part
from meari.models.text.corpus import read_documents
from tests.export.serving import score, served
from tests.models.training.tiny_runs import run_training

WORDS = ("바다", "the", "sea", "echo", "answers", "a", "mountain", "falls", "silent", "Über", "e\u0301t\u00e9")
UNSEEN = ("zebra", "≠", "漢字")  # only in the held-out text
TOLERANCE = 1e-4  # nats a token
CASES: dict[str, tuple[ModelConfig, TokenizerConfig, Document]] = {
    "rnn, lines of characters": (
        RecurrentConfig(Family.RNN, 8, 24, layer_norm=True, learned_initial_state=True),
        TokenizerConfig(TokenizerKind.CHAR),
        Document.LINE,
    ),
    "gru, paragraphs of bytes": (
        RecurrentConfig(Family.GRU, 16, layer_sizes=(24, 16), tied=True, learned_initial_state=True),
        TokenizerConfig(TokenizerKind.BPE, 270),
        Document.PARAGRAPH,
    ),
    "lstm, lines of words": (
        RecurrentConfig(Family.LSTM, 8, 20, mogrifier_rounds=3, adaptive_cutoffs=(5, 9)),
        TokenizerConfig(TokenizerKind.WORD),
        Document.LINE,
    ),
    "lstm, a file of characters": (
        RecurrentConfig(Family.LSTM, 8, 32, dropout=0.1, weight_drop=0.1),
        TokenizerConfig(TokenizerKind.CHAR),
        Document.FILE,
    ),
    "esn, lines of characters": (
        ReservoirConfig(Family.ESN, units=64, block_size=8),
        TokenizerConfig(TokenizerKind.CHAR),
        Document.LINE,
    ),
}


def write_text(path: Path, words: tuple[str, ...], num_lines: int, seed: int) -> Path:
    """Write lines of words with repeated spaces, tabs, Windows line ends and blank lines between paragraphs."""
    generator = np.random.default_rng(seed)
    lines = []
    for _ in range(num_lines):
        picked = generator.choice(words, generator.integers(1, 12))
        lines.append(str(generator.choice((" ", "  ", "\t"))).join(picked) + " " * int(generator.integers(0, 3)))
        if generator.random() < 0.2:
            lines.append("   ")
    path.write_bytes("\r\n".join(lines).encode())
    return path


@pytest.fixture(params=CASES, scope="module")
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a model and return the run folder."""
    folder = tmp_path_factory.mktemp("train_and_serve")
    model, tokenizer, unit = CASES[request.param]
    train = write_text(folder / "train.txt", WORDS, 300, seed=1)
    validation = write_text(folder / "validation.txt", WORDS + UNSEEN, 80, seed=2)
    config = Config(
        name="tiny",
        seed=1,
        corpus=CorpusConfig((str(train),), unit, validation=(str(validation),)),
        tokenizer=tokenizer,
        model=model,
        training=TrainingConfig(steps=25, batch_size=8, chunk_length=16, learning_rate=1e-2, warmup_steps=2, threads=1),
    )
    run_training(config, folder / "run")
    return folder / "run"


@pytest.mark.parametrize("precision", Precision)
def test_engine_gives_the_figures_of_the_checkpoint(run: Path, precision: Precision, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(run)
    figures = evaluate(checkpoint.model, open_part(run, "validation"))
    export_bundle(run, tmp_path / "tiny", precision)
    corpus = checkpoint.config.corpus
    texts = [document.text for document in read_documents(corpus.validation, corpus.document)]
    logprobs, num_unknown = as_served(tmp_path / "tiny", texts)
    assert logprobs.size == figures.num_tokens
    assert num_unknown == open_part(run, "validation").counts.num_unknown
    difference = -logprobs.mean() - figures.nats_per_token
    if precision is Precision.FP32:
        assert abs(difference) < TOLERANCE
    else:
        assert difference < math.log1p(MAX_LOSS)
    manifest = json.loads((tmp_path / "tiny" / "manifest.json").read_text("utf-8"))
    written = manifest["figures"]["validation"]
    assert manifest["corpus"]["has_ends"] is (corpus.document is not Document.FILE)
    counted = logprobs if manifest["corpus"]["has_ends"] else logprobs[:-1]
    assert written["num_tokens"] == counted.size
    assert written["nats_per_token"] == pytest.approx(-counted.mean(), abs=1e-6)
    assert written["num_characters"] == sum(len(unicodedata.normalize("NFC", text)) for text in texts)
    assert written["bits_per_char"] == pytest.approx(-counted.sum() / math.log(2) / written["num_characters"], rel=1e-5)


def as_served(bundle: Path, texts: list[str]) -> tuple[NDArray[np.float64], int]:
    """Return the engine's ln P of every token of the texts, ends included, and the number of unknown tokens."""
    with served(bundle) as model:
        encoded = [model.tokenizer.encode(text) for text in texts]
        unknown_id = model.bundle.manifest.tokenizer.unknown_id
        num_unknown = sum(text.count(unknown_id) for text in encoded if unknown_id is not None)
        return np.concatenate([scored.logprobs for scored in score(model, encoded)]), num_unknown
