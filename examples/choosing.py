"""Train every family in a few sizes on one text and compare them: `python examples/choosing.py`.

Input: a text (a made one by default), sizes and steps. Output: the table of docs/choosing.md with the held-out loss,
the CPU time of training and the time of one step of the exported bundle. All models train for the same number of
steps on the same text.
"""

import argparse
import importlib
import json
import random
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.step_times import step_table
from examples.made_text import LANGUAGES, sentences
from examples.tiny_model import meari

CONFIG = """\
name = "{name}"
seed = 1

[corpus]
train = [{text}]
validation_share = 0.1
document = "line"

[tokenizer]
kind = "char"

[model]
{model}

[training]
steps = {steps}
batch_size = 32
chunk_length = 64
learning_rate = {learning_rate}
clip_norm = {clip_norm}
warmup_steps = 20
restart_share = 0.2
evaluate_every = {steps}
threads = 1
"""
RECURRENT = 'family = "{family}"\nembedding_size = 32\nhidden_size = {size}'
RESERVOIR = 'family = "esn"\nunits = {units}\nspectral_radius = 0.9\nleak_min = 0.7'
UNITS = 8  # units of a reservoir for each unit of a trained network: about as many trained parameters
LEARNING_RATES = {"rnn": 2e-3, "gru": 5e-3, "lstm": 5e-3, "esn": 5e-3}
CLIP_NORMS = {"rnn": 1.0, "gru": 1.0, "lstm": 1.0, "esn": 10.0}
STEP_SECONDS = 0.1  # time spent on measuring each figure


@dataclass(frozen=True)
class Row:
    """Figures of one model; `microseconds` is the time of a step with its output layer at batch sizes 1 and 64."""

    family: str
    size: int
    precision: str
    parameters: int
    nats_per_char: float
    cpu_seconds: float
    microseconds: tuple[float, float]

    def __str__(self) -> str:
        one, many = self.microseconds
        return (
            f"{self.family:<6}{self.size:>6}{self.parameters:>12,}{self.nats_per_char:>11.3f}"
            f"{self.cpu_seconds:>10.1f}{self.precision:>8}{one:>9.0f}{many:>10.0f}"
        )


HEAD = f"{'':<6}{'units':>6}{'parameters':>12}{'nats/char':>11}{'CPU s':>10}{'':>8}{'µs at 1':>9}{'µs at 64':>10}"


def rows(folder: Path, text: Path, family: str, size: int, steps: int, precisions: tuple[str, ...]) -> list[Row]:
    """Train one model and measure its bundle in each precision; reservoirs are exported in fp32 only."""
    name = f"{family}-{size}"
    units = size * UNITS if family == "esn" else size
    model = RESERVOIR.format(units=units) if family == "esn" else RECURRENT.format(family=family, size=size)
    config, run = folder / f"{name}.toml", folder / "runs" / name
    settings = {
        "text": json.dumps(str(text)),
        "steps": steps,
        "learning_rate": LEARNING_RATES[family],
        "clip_norm": CLIP_NORMS[family],
    }
    config.write_text(CONFIG.format(name=name, model=model, **settings), "utf-8")
    begun = time.process_time()
    meari("train", config, "--run", run)
    cpu_seconds = time.process_time() - begun
    figures = json.loads((run / "figures.json").read_text("utf-8"))
    found = []
    for precision in precisions if family != "esn" else ("fp32",):
        bundle = folder / "bundles" / f"{name}-{precision}"
        meari("export", run, bundle, "--precision", precision)
        found.append(
            Row(
                family,
                units,
                precision,
                figures["parameters"],
                figures["validation"]["nats_per_char"],
                cpu_seconds,
                step_microseconds(bundle),
            )
        )
    return found


def step_microseconds(bundle: Path) -> tuple[float, float]:
    """Return the time of cell and output layer together, at batch sizes 1 and 64."""
    _, *parts = (line.split()[1:] for line in step_table(bundle, STEP_SECONDS).splitlines())
    totals = [sum(map(float, column)) for column in zip(*parts, strict=True)]
    return totals[0], totals[-1]


def main() -> None:
    """Print a row for each model when it is finished."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--text", type=Path, help="file to train on, one text a line  [made text in English and Korean]"
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[64], metavar="N", help="hidden units")
    parser.add_argument("--steps", type=int, default=100, metavar="N", help="training steps of 2,048 tokens each")
    parser.add_argument("--precision", nargs="+", default=["fp32"], choices=["fp32", "int8"])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = arguments.text or folder / "made.txt"
        if arguments.text is None:
            lines = [line for language in LANGUAGES for line in sentences(language, 4000, seed=1)]
            random.Random(1).shuffle(lines)
            text.write_text("\n".join(lines) + "\n", "utf-8")
        importlib.import_module("torch")  # not part of the first model's CPU time
        print(HEAD)
        for size in arguments.sizes:
            for family in LEARNING_RATES:
                for row in rows(folder, text, family, size, arguments.steps, tuple(arguments.precision)):
                    print(row, flush=True)


if __name__ == "__main__":
    main()
