"""Bundles of random weights, made with the export's own functions and kept between runs.

Input: a recipe and a folder. Output: a bundle that a server accepts, with a word tokenizer of 10,000 entries, and
beside it the same weights as torch saves them, for servers that run torch. Must not know: servers.

Random logits are nearly even at first, and samplers cost something else on those than on a trained model's. So the
output weights are scaled until a step has about 5.5 nats, as word models of small corpora have. The end token and the
unknown one are biased out of reach: every answer has the length that was asked for.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.serving.requests import make_words
from meari.bundle_format.folders import CELL_GRAPH, GOLDEN, MANIFEST, OUTPUT_GRAPH, TOKENIZER
from meari.bundle_format.names import Document, Family, Precision, TokenizerKind
from meari.export.bundle import NO_TOKENS, build_graphs
from meari.export.description import Description, summarise
from meari.export.manifest import make_manifest
from meari.export.verification import check_against_torch, check_valid, make_golden
from meari.export.weights_from_torch import read_weights
from meari.models.checkpoint import Checkpoint
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
from meari.models.files import replaced_folder
from meari.models.language_model import LanguageModel
from meari.models.text.tokenizer import Tokenizer, train_tokenizer

NATS = 5.5
UNREACHABLE = -30.0  # the bias of the end and the unknown token
NUM_RESERVED = 2
ROWS, STEPS = 64, 24  # of the random text on which the entropy is measured
SHORT_RUNS = ((1, 16), (4, 8))
SEED = 1
VERSION = "2"  # counts up when the same recipe would give other files


@dataclass(frozen=True)
class Recipe:
    """One random bundle; `vocabulary_size` counts the end and the unknown token."""

    name: str
    model: ModelConfig
    precision: Precision
    vocabulary_size: int = 10_000


def _recurrent(family: Family) -> RecurrentConfig:
    return RecurrentConfig(family, embedding_size=512, hidden_size=512, num_layers=2)


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("lstm-fp32", _recurrent(Family.LSTM), Precision.FP32),
        Recipe("lstm-int8", _recurrent(Family.LSTM), Precision.INT8),
        Recipe("gru-fp32", _recurrent(Family.GRU), Precision.FP32),
        Recipe("esn-fp32", ReservoirConfig(Family.ESN, units=4096), Precision.FP32),
    )
}


def make_bundle(recipe: Recipe, folder: Path) -> Path:
    """Write the bundle `folder`/NAME, or keep that of an earlier run; return its folder."""
    place = folder / recipe.name
    if (place / "manifest.json").exists() and (place / f"version-{VERSION}").exists():
        return place
    checkpoint = random_checkpoint(recipe)
    folder.mkdir(parents=True, exist_ok=True)
    with replaced_folder(place) as new:
        _fill(new, recipe, checkpoint)
        if isinstance(checkpoint.model, RecurrentLanguageModel):
            torch.save(plain_weights(checkpoint.model), new / "torch.pt")
        (new / f"version-{VERSION}").touch()
    return place


def random_checkpoint(recipe: Recipe) -> Checkpoint:
    """Make an untrained model with realistic entropy and endless texts."""
    tokenizer = _tokenizer(recipe.vocabulary_size)
    config = Config(
        corpus=CorpusConfig(train=(), document=Document.LINE, name="nothing", licence="none", source="random weights"),
        tokenizer=TokenizerConfig(TokenizerKind.WORD),
        model=recipe.model,
        training=TrainingConfig(steps=1),
        name=recipe.name,
        seed=SEED,
    )
    model = build_model(recipe.model, tokenizer.vocabulary_size, SEED).eval()
    set_entropy(model, NATS)
    return Checkpoint(model, tokenizer, config, {}, 0)


@torch.no_grad()
def set_entropy(model: LanguageModel, nats: float) -> None:
    """Draw the output weights at the scale that gives a step so many nats on random text."""
    generator = torch.Generator().manual_seed(SEED)
    output = output_layer(model)
    output.weight.copy_(torch.randn(output.weight.shape, generator=generator))
    output.bias.zero_()
    tokens = torch.randint(NUM_RESERVED, model.vocabulary_size, (ROWS, STEPS), generator=generator)
    hidden, _ = model(tokens, model.initial_state(ROWS))
    logits = model.logits(hidden[:, STEPS // 2 :: 4])[..., NUM_RESERVED:]
    low, high = 0.0, 1.0
    while _entropy(logits * high) > nats:
        high *= 2
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if _entropy(logits * middle) > nats else (low, middle)
    output.weight.mul_(high)
    output.bias[:NUM_RESERVED] = UNREACHABLE


def output_layer(model: LanguageModel) -> nn.Linear:
    """Return the last linear map of an untied model."""
    layer = getattr(model, "output", None) or getattr(model, "readout", None)
    assert isinstance(layer, nn.Linear)
    return layer


def plain_weights(model: RecurrentLanguageModel) -> dict[str, Tensor]:
    """Return the weights under the names of an nn.Module of nn.Embedding, one nn.LSTM or nn.GRU, and nn.Linear."""
    weights = {"embedding.weight": model.embedding.weight}
    for index, cell in enumerate(model.cells):
        for name, parameter in cell.kernel.named_parameters():
            weights["rnn." + name.replace("_l0", f"_l{index}")] = parameter
    output = output_layer(model)
    weights |= {"output.weight": output.weight, "output.bias": output.bias}
    return {name: tensor.detach().clone() for name, tensor in weights.items()}


def _entropy(logits: Tensor) -> float:
    logprobs = torch.log_softmax(logits, dim=-1)
    return float(-(logprobs.exp() * logprobs).sum(-1).mean())


def _tokenizer(vocabulary_size: int) -> Tokenizer:
    words = make_words(vocabulary_size - NUM_RESERVED)
    return train_tokenizer([" ".join(words)], TokenizerConfig(TokenizerKind.WORD, vocabulary_size=vocabulary_size))


def _fill(folder: Path, recipe: Recipe, checkpoint: Checkpoint) -> None:
    """Write a bundle's files. The fp32 graphs are compared with torch, briefly; there is no model card."""
    weights = read_weights(checkpoint.model)
    reference = build_graphs(weights, Precision.FP32)
    agreement = check_against_torch(reference, checkpoint.model, NO_TOKENS, SHORT_RUNS)
    graphs = reference if recipe.precision is Precision.FP32 else build_graphs(weights, recipe.precision)
    check_valid(graphs)
    golden = make_golden(graphs, NO_TOKENS)
    description = Description(
        has_ends=True,
        name=recipe.name,
        precision=recipe.precision,
        checkpoint=checkpoint,
        graphs=summarise(graphs),
        agreement=agreement,
        held_out={},
        golden=golden,
        samples=(),
        has_report=False,
    )
    checkpoint.tokenizer.save(folder / TOKENIZER)
    tokenizer = (folder / TOKENIZER).read_bytes()
    files = {CELL_GRAPH: graphs.cell, OUTPUT_GRAPH: graphs.output, GOLDEN: golden.content}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    manifest = make_manifest(description, {**files, TOKENIZER: tokenizer})
    (folder / MANIFEST).write_bytes(manifest.to_json())


def copy_bundle(source: Path, folder: Path) -> Path:
    """Copy a released bundle into a folder of its own."""
    return Path(shutil.copytree(source, folder / source.name, dirs_exist_ok=True))
