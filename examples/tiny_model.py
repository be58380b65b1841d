"""A model that is trained in seconds: lines of text → a bundle, by the verbs that a person would type.

In: lines. Out: the folder of a bundle. Knows of meari its command line alone.
"""

import contextlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from meari.cli.main import group

__all__ = ["Recipe", "meari", "tiny_model"]

HELD_OUT = 20  # one line in so many
CONFIG = """\
name = "{name}"
seed = 1

[corpus]
train = [{train}]
validation = [{validation}]
document = "{document}"

[tokenizer]
kind = "char"

[model]
family = "gru"
embedding_size = 32
hidden_size = {hidden_size}

[training]
steps = {steps}
batch_size = 32
chunk_length = 48
learning_rate = 1e-2
warmup_steps = 10
restart_share = 0.2
evaluate_every = {steps}
threads = 1
"""


@dataclass(frozen=True)
class Recipe:
    """What differs from example to example; `document` is a line, or a file where lines follow from one another."""

    steps: int = 220
    hidden_size: int = 96
    document: str = "line"


def meari(*arguments: object) -> str:
    """Run a verb as the command line does, in this process, so that torch is loaded once. Returns what it prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        group.main([str(argument) for argument in arguments], prog_name="meari", standalone_mode=False)
    return printed.getvalue()


def tiny_model(folder: Path, name: str, lines: Sequence[str], recipe: Recipe) -> Path:
    """Train on the first lines, measure on the last ones, export; what belongs to it lies in `folder`."""
    held_out = max(1, len(lines) // HELD_OUT)
    train, validation = folder / f"{name}.train.txt", folder / f"{name}.validation.txt"
    train.write_text("\n".join(lines[:-held_out]) + "\n", "utf-8")
    validation.write_text("\n".join(lines[-held_out:]) + "\n", "utf-8")
    config = folder / f"{name}.toml"
    config.write_text(
        CONFIG.format(
            name=name,
            train=json.dumps(str(train)),
            validation=json.dumps(str(validation)),
            document=recipe.document,
            hidden_size=recipe.hidden_size,
            steps=recipe.steps,
        ),
        "utf-8",
    )
    meari("train", config, "--run", folder / "runs" / name)
    bundle = folder / "bundles" / name
    meari("export", folder / "runs" / name, bundle)
    return bundle
