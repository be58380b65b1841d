"""Train a small model in seconds with the verbs of the command line.

Input: lines of text. Output: the folder of a bundle. Must not know: anything of meari beyond its command line.
"""

import contextlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from meari.cli.main import group

__all__ = ["Recipe", "meari", "tiny_model"]

HELD_OUT = 20  # one line in 20 is held out
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
    """Settings that differ between examples; `document` is "file" if a line depends on the lines before it."""

    steps: int = 220
    hidden_size: int = 96
    document: str = "line"


def meari(*arguments: object) -> str:
    """Run a verb in this process, which loads torch only once, and return its printed output."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        group.main([str(argument) for argument in arguments], prog_name="meari", standalone_mode=False)
    return printed.getvalue()


def tiny_model(folder: Path, name: str, lines: Sequence[str], recipe: Recipe) -> Path:
    """Train on the first lines, validate on the last ones and export; all files are written to `folder`."""
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
