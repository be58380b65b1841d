"""Small random models of every family, and a run folder of an untrained model."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from meari.bundle_format.names import Document, Family, TokenizerKind
from meari.models.checkpoint import fill_checkpoint
from meari.models.choices import Pattern, Reach, Spread
from meari.models.config import (
    Config,
    CorpusConfig,
    ModelConfig,
    RecurrentConfig,
    ReservoirConfig,
    TokenizerConfig,
    TrainingConfig,
)
from meari.models.families import RecurrentLanguageModel, build_model
from meari.models.language_model import LanguageModel
from meari.models.text.tokens import prepare

RECURRENT = ("rnn", "gru", "lstm")
VARIANTS = {
    "table": RecurrentConfig(Family.RNN, embedding_size=24, hidden_size=20),
    "embedding": RecurrentConfig(Family.RNN, embedding_size=8, hidden_size=33),
    "two layers, tied": RecurrentConfig(Family.RNN, embedding_size=20, hidden_size=20, num_layers=2, tied=True),
    "projection": RecurrentConfig(Family.RNN, embedding_size=10, hidden_size=37, num_layers=2, tied=True),
    "layer sizes": RecurrentConfig(Family.RNN, embedding_size=12, layer_sizes=(40, 16, 27)),
    "layer norm": RecurrentConfig(Family.RNN, embedding_size=12, hidden_size=30, num_layers=2, layer_norm=True),
    "initial state": RecurrentConfig(
        Family.RNN, embedding_size=12, hidden_size=30, num_layers=2, learned_initial_state=True
    ),
    "adaptive": RecurrentConfig(Family.RNN, embedding_size=12, hidden_size=64, adaptive_cutoffs=(20, 50, 60)),
    "all options": RecurrentConfig(
        Family.RNN,
        embedding_size=12,
        layer_sizes=(30, 41),
        layer_norm=True,
        learned_initial_state=True,
        adaptive_cutoffs=(25, 80),
    ),
    "all options, tied": RecurrentConfig(
        Family.RNN, embedding_size=9, layer_sizes=(24, 31), layer_norm=True, learned_initial_state=True, tied=True
    ),
}
MOGRIFIERS = {
    "one round": (RecurrentConfig(Family.LSTM, embedding_size=12, hidden_size=30, mogrifier_rounds=1), 30),
    "four rounds": (RecurrentConfig(Family.LSTM, 8, 33, num_layers=2, tied=True, mogrifier_rounds=4), 300),
    "five rounds, all options": (
        dataclasses.replace(VARIANTS["all options"], family=Family.LSTM, mogrifier_rounds=5),
        130,
    ),
}
RESERVOIRS = {
    "blocks": ReservoirConfig(Family.ESN, units=96, block_size=8),
    "one block": ReservoirConfig(Family.ESN, units=24, block_size=24),
    "blocks of one": ReservoirConfig(Family.ESN, units=24, block_size=1),
    "random": ReservoirConfig(Family.ESN, units=50, pattern=Pattern.RANDOM, in_edges=5),
    "side by side": ReservoirConfig(Family.ESN, units=96, reservoirs=3, block_size=8, spectral_radius_min=0.2),
    "random, side by side, stacked": ReservoirConfig(
        Family.ESN, units=60, reservoirs=2, layers=2, pattern=Pattern.RANDOM, in_edges=5
    ),
    "stacked": ReservoirConfig(Family.ESN, units=48, layers=3, block_size=8, leak_spread=Spread.LOG, leak_min=0.1),
    "embedded": ReservoirConfig(Family.ESN, units=32, block_size=8, embedding_size=6),
    "recent tokens": ReservoirConfig(
        Family.ESN, units=48, block_size=8, input_tokens=4, embedding_size=6, input_reach=Reach.STAGGERED
    ),
    "expanded": ReservoirConfig(
        Family.ESN,
        units=32,
        block_size=8,
        layers=2,
        features=96,
        feature_edges=7,
        feature_block=8,
        input_tokens=2,
        embedding_size=6,
    ),
    "low rank": ReservoirConfig(Family.ESN, units=48, block_size=8, readout_rank=5, features=32, feature_block=32),
    "gated": ReservoirConfig(Family.ESN, units=48, block_size=8, readout_rank=24, readout_gated=True),
    "gated, expanded": ReservoirConfig(
        Family.ESN, units=32, block_size=8, features=32, feature_block=8, readout_rank=20, readout_gated=True
    ),
}
VOCABULARY_SIZES = {"table": 30, "embedding": 300, "projection": 200, "adaptive": 70, "all options": 130}
WORDS = ("the sea ", "the echo ", "answers ", "a mountain ", "and falls\n", "silent. ")


def recurrent_config(family: str, variant: str) -> RecurrentConfig:
    return dataclasses.replace(VARIANTS[variant], family=Family(family), dropout=0.1)


def all_models() -> dict[str, tuple[ModelConfig, int]]:
    """Return every family in every variant, each with a vocabulary size."""
    models: dict[str, tuple[ModelConfig, int]] = {}
    for variant in VARIANTS:
        for family in RECURRENT:
            models[f"{family}, {variant}"] = (recurrent_config(family, variant), VOCABULARY_SIZES.get(variant, 60))
    for variant, (recurrent, vocabulary_size) in MOGRIFIERS.items():
        models[f"mogrified lstm, {variant}"] = (recurrent, vocabulary_size)
    for variant, config in RESERVOIRS.items():
        models[f"esn, {variant}"] = (config, 40)
    return models


def make_model(config: ModelConfig, vocabulary_size: int, seed: int = 1) -> LanguageModel:
    """Make a random model without zero weights or biases."""
    model = build_model(config, vocabulary_size, seed).eval()
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    if isinstance(model, RecurrentLanguageModel) and model.adaptive is not None:
        model.adaptive.order_by(np.random.default_rng(seed).integers(0, 1000, vocabulary_size))
    return model


def make_run(
    folder: Path,
    model: ModelConfig,
    *,
    num_words: int = 6000,
    seed: int = 1,
    words: Sequence[str] = WORDS,
    document: Document = Document.FILE,
    training_share: float = 1.0,
    loss_mask: str = "",
) -> Path:
    """Make the run folder of an untrained model on a text of a few words. loss_mask: an expression."""
    folder.mkdir()
    mask = folder.parent / "mask.txt"
    mask.write_text(loss_mask, encoding="utf-8")
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(len(words), (num_words,), generator=generator).tolist()
    corpus = folder.parent / "corpus.txt"
    corpus.write_text("".join(words[pick] for pick in picks), encoding="utf-8")
    config = Config(
        corpus=CorpusConfig(
            train=(str(corpus),),
            document=document,
            name="echoes",
            licence="public domain",
            source="made by a test",
            validation_share=0.2,
            training_share=training_share,
            loss_mask=str(mask) if loss_mask else "",
            baseline={"order 0": "2.5 nats/char"},
        ),
        tokenizer=TokenizerConfig(TokenizerKind.CHAR),
        model=model,
        training=TrainingConfig(steps=1),
        name="tiny",
    )
    prepared = prepare(config, folder)
    (folder / "config.json").write_text(config.to_json(), encoding="utf-8")
    (folder / "report.png").write_bytes(b"a picture")
    figures: dict[str, object] = {"validation": {"nats_per_token": 2.85, "perplexity": 17.29, "num_tokens": 4321}}
    figures |= {"training_seconds": 138.0, "training_cpu_seconds": 66.0, "machine": "a machine"}
    figures |= {"training_ended": "2026-11-30"}
    (folder / "figures.json").write_text(json.dumps(figures), encoding="utf-8")
    best = folder / "best"
    best.mkdir()
    network = make_model(model, prepared.tokenizer.vocabulary_size)
    fill_checkpoint(best, network, folder / "tokenizer.json", config, step=7, figures={})
    return folder
