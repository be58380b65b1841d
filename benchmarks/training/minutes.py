"""Held-out loss after so many minutes on one core, by settings: `python -m benchmarks.training.minutes --help`.

Input: a config with a corpus, minutes, settings that differ. Output: one record a training, added to a JSON file as
soon as it ends, and the page of all of them.

`--chosen` trains what `meari train TEXT --minutes N` would choose for the corpus, for as long as that would train, and
`--written` the config as it is written, for the same time: what choosing by oneself gains. With `--set` a written
config is tuned by hand. The other figures are those that the tables of `meari train TEXT` stand on.

A training has one thread, and its clock counts the CPU time of its own process, which other work on the machine hardly
affects. The learning rate falls over that time, so that configs are compared at equal cost and not at equal steps.
"""

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from meari.export.bundle import export_smallest
from meari.models.config import Config, load_config, parse_config
from meari.models.files import write_file
from meari.models.planning.planner import plan, with_options
from meari.models.planning.speed import measure_speed
from meari.models.search.space import read_option
from meari.models.text.facts import look_at
from meari.models.training.display import NullDisplay
from meari.models.training.process import describe_machine
from meari.models.training.run import train
from meari.models.training.run_folder import Start, open_run

FOREVER = 1_000_000  # steps: the clock ends a run before
SHARED = (
    "training.batch_size=32", "training.chunk_length=64", "training.averaging=ema", "training.ema_decay=0.998",
    "training.precision=bfloat16", "training.warmup_steps=100", "training.weight_decay=0.05",
    "training.learning_rate=3e-3",
)  # fmt: skip
CHOSEN = "chosen by `meari train`"
TOLD = (
    "tokenizer.kind", "tokenizer.vocabulary_size", "model.family", "model.hidden_size", "model.dropout",
    "training.batch_size", "training.chunk_length", "training.learning_rate", "training.max_minutes",
)  # fmt: skip


def config_of(base: Config, minutes: float, settings: Sequence[str], share: float) -> Config:
    """Return the config of one case: corpus of `base`, tables of `settings`. Raises ConfigError."""
    tables: dict[str, Any] = {
        "name": "minutes",
        "corpus": base.to_tables()["corpus"],
        "tokenizer": {"kind": base.tokenizer.kind.value, "vocabulary_size": base.tokenizer.vocabulary_size},
        "model": {},
        "training": {"steps": FOREVER, "evaluate_every": FOREVER, "threads": 1, "schedule": "clock"},
    }
    tables["training"]["max_minutes"] = minutes
    tables["training"]["restart_share"] = base.training.restart_share
    for text in (*SHARED, *settings):
        name, value = _setting(text)
        section, _, key = name.partition(".")
        tables[section][key] = value
    tables["corpus"].pop("test", None)
    tables["corpus"].pop("blocklist", None)
    config = parse_config(tables, "minutes")
    return config if share == 1 else replace(config, corpus=_shortened(config.corpus, share))


def chosen_config(base: Config, minutes: float) -> Config:
    """Return what is chosen for the corpus of a config and a command of so many minutes. Raises ConfigError.

    The corpus keeps its held-out text and the boundaries of its documents, so that figures can be compared.
    """
    corpus = base.corpus
    own: dict[str, object] = {"corpus.document": corpus.document.value, "training.threads": 1}
    if corpus.validation:
        own["corpus.validation"] = list(corpus.validation)
    speed = measure_speed(time.process_time)
    return plan(look_at(corpus.train), corpus.train, minutes, speed, name="minutes", settings=own).config


def written_config(base: Config, minutes: float, settings: Sequence[str] = ()) -> Config:
    """Return a config as it is written, with one thread, cut to so many minutes of training. Raises ConfigError.

    settings  what is changed in it, NAME=VALUE
    """
    length = {"steps": FOREVER, "evaluate_every": FOREVER, "threads": 1, "schedule": "clock", "max_minutes": minutes}
    tables = base.to_tables()
    tables["corpus"].pop("test", None)
    tables["corpus"].pop("blocklist", None)
    own = dict(_setting(text) for text in settings)
    return with_options(tables, {f"training.{name}": value for name, value in length.items()} | own, "--written")


def _setting(text: str) -> tuple[str, object]:
    name, values = read_option(text)
    return name, values[0] if isinstance(values, list) else values


def _shortened(corpus: Any, share: float) -> Any:
    """Return a corpus whose training text is the beginning of the first file's; the validation text is the whole's."""
    whole = Path(corpus.train[0]).read_text("utf-8")
    validation = corpus.validation
    folder = Path(tempfile.mkdtemp(prefix="minutes-"))
    if not validation:
        cut = math.floor(len(whole) * (1 - corpus.validation_share))
        (folder / "validation.txt").write_text(whole[cut:], "utf-8")
        whole, validation = whole[:cut], (str(folder / "validation.txt"),)
    (folder / "train.txt").write_text(whole[: int(len(whole) * share)], "utf-8")
    return replace(corpus, train=(str(folder / "train.txt"),), validation=validation, validation_share=0.0)


def measure(config: Config) -> dict[str, Any]:
    """Train once; return the figures of held-out text, by the run and by its bundle, and the length of the training."""
    with tempfile.TemporaryDirectory() as name:
        run = open_run(Path(name) / "run", config, Start.FRESH)
        result = train(config, run, resume=False, display=NullDisplay(), clock=time.process_time)
        bundle = export_smallest(run.path, Path(name) / "bundle").description
    assert result.figures is not None
    figures = result.figures
    held_out = figures["validation"]
    return {
        **{name: figures[name] for name in ("steps", "epochs", "best_step", "parameters")},
        **{name: round(held_out[name], 4) for name in ("bits_per_char", "nats_per_char", "nats_per_token")},
        "bits_per_char_of_bundle": round(bundle.held_out["validation"].served.bits_per_char, 4),
        "ngrams": 0 if bundle.ngram is None else sum(bundle.ngram.num_ngrams),
    }


def page(results: Sequence[Mapping[str, Any]]) -> str:
    """Return the page of all records: for each machine what is chosen beside the best config by hand, then all rows."""
    lines = [
        "# Held-out loss by minutes",
        "",
        "Trainings of one thread that end by their own CPU time; bits a character of the validation text. Settings",
        "that a row does not name are those of `SHARED` in `benchmarks/training/minutes.py`, or the named config's.",
        "What is chosen is trained for as long as `meari train TEXT --minutes N` would train (export taken off),",
        "and so is all of a config, unless the row names its `training.max_minutes`. Figures of different",
        "machines do not compare. *Bundle*: the figure of the bundle that `meari train TEXT` would write, with its",
        "n-grams. Made by `python -m benchmarks.training.minutes --help`.",
    ]
    for machine in sorted({each["machine"] for each in results}):
        rows = [each for each in results if each["machine"] == machine]
        lines += ["", f"## {machine}", *_summary(rows), *_table(rows)]
    return "\n".join([*lines, ""])


def _summary(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield a table of the cases that were both chosen and made by hand, if there are any."""
    cases = sorted({(each["corpus"], each["minutes"]) for each in rows if each["share"] == 1})
    header = ["", "| corpus | minutes | chosen | best by hand | chosen / best |", "|---|---|---|---|---|"]
    for corpus, minutes in cases:
        losses: dict[bool, list[float]] = {True: [], False: []}
        for each in rows:
            if (each["corpus"], each["share"], each["minutes"]) == (corpus, 1, minutes):
                losses[each["settings"][0] == CHOSEN].append(each["bits_per_char"])
        if all(losses.values()):
            chosen, by_hand = min(losses[True]), min(losses[False])
            yield from header
            header = []
            yield f"| {corpus} | {minutes:g} | {chosen:.3f} | {by_hand:.3f} | {chosen / by_hand:.3f} |"


def _table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield from (
        "",
        "| corpus | text | minutes | settings | parameters | steps | epochs | bits/char | bundle |",
        "|---|---|---|---|---|---|---|---|---|",
    )
    for each in sorted(rows, key=lambda each: (each["corpus"], each["share"], each["minutes"], each["bits_per_char"])):
        settings = ", ".join(f"`{setting}`" if "=" in setting else setting for setting in each["settings"])
        names = ("bits_per_char", "bits_per_char_of_bundle")
        losses = " | ".join(f"{each[name]:.3f}" if name in each else "–" for name in names)
        yield (
            f"| {each['corpus']} | {100 * each['share']:g} % | {each['minutes']:g} | {settings} "
            f"| {each['parameters']:,} | {each['steps']:,} | {each['epochs']:.2f} | {losses} |"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure one case and write the page of all."""
    options = _options(arguments)
    base = load_config(options.config)
    config = _case(base, options)
    record = {
        "corpus": base.corpus.name,
        "share": options.share,
        "minutes": options.minutes,
        "settings": _described(config, options),
    }
    record |= measure(config)
    record |= {"machine": describe_machine(torch.device("cpu"))}
    results = json.loads(options.results.read_text("utf-8")) if options.results.exists() else []
    results.append(record)
    write_file(options.results, (json.dumps(results, indent=1) + "\n").encode())
    write_file(options.results.with_suffix(".md"), page(results).encode())
    sys.stdout.write(json.dumps(record) + "\n")


def _described(config: Config, options: argparse.Namespace) -> list[str]:
    """Return what a row names: of a chosen config the settings that matter most."""
    if not options.chosen:
        return [*([f"all of {options.config.name}"] if options.written else []), *options.settings]
    tables = config.to_tables()
    values = {name: tables[name.partition(".")[0]].get(name.partition(".")[2]) for name in TOLD}
    return [CHOSEN, *(f"{name}={value}" for name, value in values.items() if value is not None)]


def _case(base: Config, options: argparse.Namespace) -> Config:
    if not options.chosen and not options.written:
        return config_of(base, options.minutes, options.settings, options.share)
    chosen = chosen_config(base, options.minutes)
    return chosen if options.chosen else written_config(base, chosen.training.max_minutes, options.settings)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="a TOML file, for its corpus and tokenizer")
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--share", type=float, default=1.0, help="of the training text, from its beginning")
    parser.add_argument("--set", dest="settings", metavar="NAME=VALUE", action="append", default=[])
    whole = parser.add_mutually_exclusive_group()
    whole.add_argument("--chosen", action="store_true", help="train what `meari train` chooses for that corpus")
    whole.add_argument("--written", action="store_true", help="train the config as it is, for as long as --chosen")
    parser.add_argument("--results", type=Path, default=Path("docs/benchmarks/minutes.json"))
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
