"""Detect planted anomalies in a stream of log lines: `python examples/anomalies.py`, for docs/anomalies.md.

A simulated disk service writes sessions: open, several pairs of a read and a write of the same block, sync, close.
A model trained on normal lines scores new lines one by one. A state token for each host carries what the model has
read of that host's log.
"""

import itertools
import random
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.server import post, served
from examples.tiny_model import Recipe, tiny_model

HOSTS = ("alpha", "beta", "gamma")
KINDS = ("message", "value", "order")
ANOMALOUS_SHARE = 0.35  # of sessions
QUANTILE = 0.99
LINES_A_REQUEST = 500


@dataclass(frozen=True)
class Line:
    """Line of a host's log; `kind` is the planted anomaly, "" for a normal line."""

    host: str
    text: str
    kind: str = ""


@dataclass(frozen=True)
class Surprise:
    """Surprisal of a line in bits: the sum over its tokens, and its least expected token."""

    whole: float
    worst: float


def session(generator: random.Random, planted: str = "") -> Iterator[tuple[str, str]]:
    """Yield each line of a session with the kind of its planted anomaly."""
    num_blocks = generator.randint(2, 5)
    place = generator.randrange(num_blocks)
    yield "open session", ""
    for number in range(num_blocks):
        block = f"{generator.randrange(10_000):04d}"
        kind = planted if number == place else ""
        if kind == "message":
            yield f"read {block} failed, checksum", kind
        if kind != "order":
            yield f"read {block} ok {_milliseconds(generator)}", ""
        slow = f"{generator.randint(200, 999)} ms" if kind == "value" else _milliseconds(generator)
        yield f"write {block} ok {slow}", kind if kind in ("value", "order") else ""
    yield f"sync ok {_milliseconds(generator)}", ""
    yield "close session", ""


def log(num_lines: int, seed: int, *, anomalous_share: float = 0.0) -> list[Line]:
    """Return the interleaved log of all hosts."""
    generator = random.Random(seed)
    streams = {host: _stream(random.Random(f"{seed} {host}"), anomalous_share) for host in HOSTS}
    lines = []
    for _ in range(num_lines):
        host = generator.choice(HOSTS)
        lines.append(Line(host, *next(streams[host])))
    return lines


def surprises(address: str, lines: Sequence[Line]) -> list[Surprise]:
    """Return the surprisal of each line given all earlier lines of its host.

    Only the last state token of each host is kept.
    """
    states: dict[str, str | None] = dict.fromkeys(HOSTS)
    found = []
    for line in lines:
        result = _scored(address, [line.text], state=states[line.host], return_state=True)[0]
        states[line.host] = result["state"]
        found.append(_surprise(result))
    return found


def surprises_alone(address: str, lines: Sequence[Line]) -> list[Surprise]:
    """Return the surprisal of each line without any context."""
    found = []
    for begin in range(0, len(lines), LINES_A_REQUEST):
        texts = [line.text for line in lines[begin : begin + LINES_A_REQUEST]]
        found += [_surprise(result) for result in _scored(address, texts)]
    return found


def roc_auc(normal: Sequence[float], planted: Sequence[float]) -> float:
    """Return the area under the ROC curve: the share of pairs in which the planted line is higher; ties count half."""
    wins = sum((high > low) + 0.5 * (high == low) for high in planted for low in normal)
    return wins / (len(normal) * len(planted))


def quantile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least this share of the values does not exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def main(num_lines: int = 600) -> None:
    """Train on normal lines, set the threshold on other normal lines, then score a log with anomalies."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stream = _stream(random.Random(1), 0.0)
        lines = [text for text, _ in itertools.islice(stream, 4000)]
        tiny_model(folder, "disk", lines, Recipe(steps=250, document="file"))
        with served(folder / "bundles") as address:
            normal = surprises(address, log(num_lines // 2, seed=2))
            watched = log(num_lines, seed=3, anomalous_share=ANOMALOUS_SHARE)
            found = surprises(address, watched)
            alone = surprises_alone(address, watched)
        print(f"{'ROC AUC':<22}" + "".join(f"{kind:>9}" for kind in (*KINDS, "all")))
        print(row("each line alone", watched, [one.worst for one in alone]))
        print(row("state, whole line", watched, [one.whole for one in found]))
        print(row("state, worst token", watched, [one.worst for one in found]))
        threshold = quantile([one.worst for one in normal], QUANTILE)
        alarms = [one.worst > threshold for one in found]
        for what, is_planted in (("normal", False), ("planted", True)):
            group = [alarm for alarm, line in zip(alarms, watched, strict=True) if bool(line.kind) is is_planted]
            print(f"above {threshold:.1f} bits: {sum(group) / len(group):.3f} of {len(group)} {what} lines")


def row(label: str, lines: Sequence[Line], bits: Sequence[float]) -> str:
    """Return a table row: the AUC of each kind of anomaly against the normal lines."""
    normal = [value for line, value in zip(lines, bits, strict=True) if not line.kind]
    areas = []
    for kinds in (*((kind,) for kind in KINDS), KINDS):
        planted = [value for line, value in zip(lines, bits, strict=True) if line.kind in kinds]
        areas.append(roc_auc(normal, planted))
    return f"{label:<22}" + "".join(f"{area:>9.3f}" for area in areas)


def _scored(address: str, texts: list[str], **options: Any) -> list[dict[str, Any]]:
    lines = [text + "\n" for text in texts]
    answer = post(address, "/score", model="disk", texts=lines, add_end=False, log_base="2", tokens=True, **options)
    return list(answer["results"])


def _surprise(result: dict[str, Any]) -> Surprise:
    bits = [-token["logprob"] for token in result["tokens"]]
    return Surprise(sum(bits), max(bits))


def _stream(generator: random.Random, anomalous_share: float) -> Iterator[tuple[str, str]]:
    """Yield the lines of an endless series of sessions."""
    while True:
        planted = generator.choice(KINDS) if generator.random() < anomalous_share else ""
        yield from session(generator, planted)


def _milliseconds(generator: random.Random) -> str:
    return f"{generator.randint(10, 49)} ms"


if __name__ == "__main__":
    main()
