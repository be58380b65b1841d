"""Small random models of every family, and a run folder around one of them."""

import json
from pathlib import Path

import torch

from models.checkpoint import fill_checkpoint
from models.config import (
    Config,
    CorpusConfig,
    Document,
    Family,
    ModelConfig,
    Pattern,
    RecurrentConfig,
    ReservoirConfig,
    TokenizerConfig,
    TokenizerKind,
    TrainingConfig,
)
from models.language_model import LanguageModel, build_model
from models.text.tokens import prepare

RECURRENT = ("rnn", "gru", "lstm")
VARIANTS = {
    "table": RecurrentConfig(Family.RNN, embedding_size=24, hidden_size=20),
    "embedding": RecurrentConfig(Family.RNN, embedding_size=8, hidden_size=33),
    "two layers, tied": RecurrentConfig(Family.RNN, embedding_size=20, hidden_size=20, num_layers=2, tied=True),
    "projection": RecurrentConfig(Family.RNN, embedding_size=10, hidden_size=37, num_layers=2, tied=True),
}
RESERVOIRS = {
    "blocks": ReservoirConfig(Family.ESN, units=96, block_size=8),
    "one block": ReservoirConfig(Family.ESN, units=24, block_size=24),
    "blocks of one": ReservoirConfig(Family.ESN, units=24, block_size=1),
    "random": ReservoirConfig(Family.ESN, units=50, pattern=Pattern.RANDOM, in_edges=5),
}
VOCABULARY_SIZES = {"table": 30, "embedding": 300, "projection": 200}
WORDS = ("the sea ", "the echo ", "answers ", "a mountain ", "and falls\n", "silent. ")


def recurrent_config(family: str, variant: str) -> RecurrentConfig:
    config = VARIANTS[variant]
    return RecurrentConfig(
        Family(family), config.embedding_size, config.hidden_size, config.num_layers, 0.1, config.tied
    )


def all_models() -> dict[str, tuple[ModelConfig, int]]:
    """Every family in every variant, each with a vocabulary size."""
    models: dict[str, tuple[ModelConfig, int]] = {}
    for variant in VARIANTS:
        for family in RECURRENT:
            models[f"{family}, {variant}"] = (recurrent_config(family, variant), VOCABULARY_SIZES.get(variant, 60))
    for variant, config in RESERVOIRS.items():
        models[f"esn, {variant}"] = (config, 40)
    return models


def make_model(config: ModelConfig, vocabulary_size: int, seed: int = 1) -> LanguageModel:
    """A random model with all weights, biases included, away from zero."""
    model = build_model(config, vocabulary_size, seed).eval()
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def make_run(folder: Path, model: ModelConfig, *, num_words: int = 6000, seed: int = 1) -> Path:
    """A run folder of an untrained model on a text of a few words."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(len(WORDS), (num_words,), generator=generator).tolist()
    corpus = folder.parent / "corpus.txt"
    corpus.write_text("".join(WORDS[pick] for pick in picks), encoding="utf-8")
    config = Config(
        corpus=CorpusConfig(
            train=(str(corpus),),
            document=Document.FILE,
            name="echoes",
            licence="public domain",
            source="made by a test",
            validation_share=0.2,
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
    figures = {"validation": {"nats_per_token": 3.25, "perplexity": 25.79, "num_tokens": 4321}}
    (folder / "figures.json").write_text(json.dumps(figures), encoding="utf-8")
    best = folder / "best"
    best.mkdir()
    network = make_model(model, prepared.tokenizer.vocabulary_size)
    fill_checkpoint(best, network, folder / "tokenizer.json", config, step=7, figures={})
    return folder
