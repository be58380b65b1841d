"""Page about the effect of each setting, made from the records of `recipe`.

Input: records. Output: Markdown, every figure and verdict computed from the records. Must not know: trainings.
"""

from collections.abc import Mapping, Sequence
from typing import Any

BASE = "base"
NOISE_FACTOR = 2.0  # a change counts where it moves the loss by more than so many times the seeds' spread

HEAD = """# What each setting does, alone

Short trainings of one LSTM that differ from the base in one setting each; the base has every one of them off. The loss
is that of held-out text, in nats a character, at its best evaluation; a change below zero is a gain. Made by
`python -m benchmarks.training.recipe --help`."""


def page(results: Mapping[str, Any]) -> str:
    """Write the page of all records; a share of the text without a base record is left out."""
    machines = sorted({record["machine"] for record in results.values()})
    sections = [HEAD, "Machine: " + "; ".join(machines) + ", one thread; times are the process's own CPU time."]
    for share in sorted({record["share"] for record in results.values()}):
        records = {record["name"]: record for record in results.values() if record["share"] == share}
        if BASE in records:
            sections += _share(share, records)
    return "\n\n".join(sections) + "\n"


def _share(share: float, records: Mapping[str, Any]) -> list[str]:
    bases = [record for name, record in records.items() if name.startswith(BASE)]
    losses = [record["loss"] for record in bases]
    middle, spread = sum(losses) / len(losses), max(losses) - min(losses)
    seconds = sum(record["cpu_seconds"] for record in bases) / len(bases)
    base = records[BASE]
    characters = base["characters"] * 0.9 * share
    title = f"## {base['tokens'] / characters:.1f} epochs of {characters / 1e6:.2f} million characters"
    text = (
        f"{base['corpus']}: LSTM of {base['hidden']} units, {base['steps']:,} steps, "
        f"{base['tokens'] / 1e6:.1f} million tokens. The base reaches {middle:.4f} nats/char (training text "
        f"{base['training_loss']:.3f}) in {seconds:.0f} s; {len(bases)} seeds lie {spread:.4f} apart, and what moves "
        f"the loss by less than {NOISE_FACTOR:g} times that is called noise."
    )
    changed = sorted((record for name, record in records.items() if name not in {b["name"] for b in bases}), key=_loss)
    rows = [
        (
            record["name"],
            f"{record['loss']:.4f}",
            f"{record['loss'] - middle:+.4f}",
            _verdict(record["loss"] - middle, NOISE_FACTOR * spread),
            f"{record['training_loss']:.3f}",
            f"{record['cpu_seconds'] / seconds:.2f} ×",
        )
        for record in changed
    ]
    titles = ("changed alone", "held out", "to the base", "", "training", "time")
    return [title, text, _table(titles, rows)]


def _verdict(difference: float, noise: float) -> str:
    if abs(difference) <= noise:
        return "noise"
    return "gain" if difference < 0 else "loss"


def _loss(record: Mapping[str, Any]) -> float:
    return float(record["loss"])


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(titles) + " |", "|" + " --- |" * len(titles)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])
