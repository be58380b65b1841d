"""Effect of each setting of the recipe on its own: `python -m benchmarks.training.recipe --help`.

Input: a plain text file. Output: one record a training, added to a JSON file as soon as it ends, and the page of all of
them (`recipe_page`). Must not know: searches.

Every training begins with the same base config and changes one thing. It is measured on the last tenth of the text;
trained on is the first nine tenths, or a share of those from the beginning. A change that moves the loss no further
than another seed does is noise, so the base is trained with several seeds.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.training.recipe_page import BASE, page
from meari.bundle_format.names import Document, Family, TokenizerKind
from meari.models.checkpoint import load_checkpoint
from meari.models.choices import TrainingPrecision
from meari.models.config import Config, CorpusConfig, RecurrentConfig, TokenizerConfig, TrainingConfig
from meari.models.evaluation import evaluate
from meari.models.files import current_folder, write_file
from meari.models.search.space import with_settings
from meari.models.text.tokens import prepare
from meari.models.training.display import NullDisplay
from meari.models.training.process import StopRequest, describe_machine, fast_torch
from meari.models.training.run_folder import Start, open_run
from meari.models.training.trainer import Trainer

HELD_OUT_SHARE = 0.1


@dataclass(frozen=True)
class Change:
    """One thing that differs from the base config.

    settings   by name, "model.dropout"
    """

    name: str
    settings: Mapping[str, object]
    seed: int = 1


CHANGES = (
    Change(BASE, {}),
    Change(f"{BASE}, seed 2", {}, seed=2),
    Change(f"{BASE}, seed 3", {}, seed=3),
    Change("dropout 0.2, locked", {"model.dropout": 0.2}),
    Change("dropout 0.2, not locked", {"model.dropout": 0.2, "model.locked_dropout": False}),
    Change("embedding_dropout 0.05", {"model.embedding_dropout": 0.05}),
    Change("weight_drop 0.2", {"model.weight_drop": 0.2}),
    Change("tied", {"model.tied": True}),
    Change("layer_norm", {"model.layer_norm": True}),
    Change("forget_bias 0", {"model.forget_bias": 0.0}),
    Change("forget_bias 2", {"model.forget_bias": 2.0}),
    Change("learned_initial_state", {"model.learned_initial_state": True}),
    Change("mogrifier_rounds 4", {"model.mogrifier_rounds": 4}),
    Change("layer_sizes 208, 128", {"model.layer_sizes": [208, 128]}),
    Change("adaptive_cutoffs 20", {"model.adaptive_cutoffs": [20]}),
    Change("averaging ema 0.99", {"training.averaging": "ema", "training.ema_decay": 0.99}),
    Change("averaging triggered", {"training.averaging": "triggered", "training.trigger_patience": 1}),
    Change("chunk_spread 5", {"training.chunk_spread": 5.0}),
    Change(
        "activation 2, temporal regularisation 1",
        {"training.activation_regularisation": 2.0, "training.temporal_regularisation": 1.0},
    ),
    Change("weight_decay 0.2", {"training.weight_decay": 0.2}),
    Change("weight_decay 1", {"training.weight_decay": 1.0}),
    Change("clip_norm 0.25", {"training.clip_norm": 0.25}),
    Change("chunk_length 32", {"training.chunk_length": 32, "training.batch_size": 64}),
    Change("precision float32", {"training.precision": "float32"}),
)


def base_config(corpus: CorpusConfig, steps: int, hidden_size: int) -> Config:
    """Return the base config: everything off that can be off; products in bfloat16, to save time."""
    return Config(
        name="recipe",
        seed=1,
        corpus=corpus,
        tokenizer=TokenizerConfig(TokenizerKind.CHAR),
        model=RecurrentConfig(Family.LSTM, embedding_size=hidden_size // 2, hidden_size=hidden_size),
        training=TrainingConfig(
            steps=steps,
            learning_rate=3e-3,
            evaluate_every=max(steps // 8, 1),
            threads=1,
            precision=TrainingPrecision.BFLOAT16,
        ),
    )


def split(text: str, share: float, folder: Path) -> CorpusConfig:
    """Write the two parts of a text and name them: training takes a share of the first nine tenths."""
    held_out_from = int(len(text) * (1 - HELD_OUT_SHARE))
    parts = {"train": text[: int(held_out_from * share)], "validation": text[held_out_from:]}
    for name, part in parts.items():
        (folder / f"{name}.txt").write_text(part, encoding="utf-8")
    return CorpusConfig((str(folder / "train.txt"),), Document.FILE, validation=(str(folder / "validation.txt"),))


def measure(base: Config, change: Change, folder: Path) -> dict[str, float]:
    """Train once.

    Returns `loss`, nats a character of the held-out part; `training_loss`, nats a token at the end, with the
    penalties of regularisation; `cpu_seconds`, evaluations included.
    """
    config = replace(with_settings(base, change.settings), seed=change.seed)
    run = open_run(folder, config, Start.OVERWRITE)
    corpus = prepare(config, run.path)
    began = time.process_time()
    with fast_torch(1):
        trainer = Trainer(config, corpus, run, torch.device("cpu"), NullDisplay(), time.monotonic, StopRequest())
        trainer.run()
    spent = time.process_time() - began
    figures = evaluate(load_checkpoint(current_folder(run.best), torch.device("cpu")).model, corpus.validation)
    return {"loss": figures.nats_per_char, "training_loss": _last_loss(run.path), "cpu_seconds": spent}


def _last_loss(run: Path) -> float:
    lines = [json.loads(line) for line in (run / "history.jsonl").read_text("utf-8").splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    last = losses[-max(len(losses) // 10, 1) :]
    return float(sum(last) / len(last))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the changes that the results file lacks, and write the page of all that it has."""
    options = _options(arguments)
    results: dict[str, Any] = json.loads(options.results.read_text("utf-8")) if options.results.exists() else {}
    text = options.corpus.read_text("utf-8")
    for share in options.share:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            base = base_config(split(text, share, folder), options.steps, options.hidden)
            for change in CHANGES:
                key = f"{share:g} {change.name}"
                if key in results or (options.only and change.name not in options.only):
                    continue
                results[key] = measure(base, change, folder / "run") | {
                    "share": share,
                    "name": change.name,
                    "steps": options.steps,
                    "hidden": options.hidden,
                    "characters": len(text),
                    "tokens": options.steps * base.training.batch_size * base.training.chunk_length,
                    "corpus": options.name or options.corpus.name,
                    "machine": describe_machine(torch.device("cpu")),
                }
                write_file(options.results, (json.dumps(results, indent=1) + "\n").encode())
                write_file(options.results.with_suffix(".md"), page(results).encode())
                sys.stdout.write(f"{key}: {results[key]['loss']:.4f}\n")
                sys.stdout.flush()


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path, help="a text file")
    parser.add_argument("--name", default="", help="of the corpus on the page; its file's name")
    parser.add_argument("--share", nargs="+", type=float, default=[0.2, 1.0], help="of the training text")
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--only", nargs="+", metavar="CHANGE", help="measure these alone")
    parser.add_argument("--results", type=Path, default=Path("docs/benchmarks/recipe.json"))
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
