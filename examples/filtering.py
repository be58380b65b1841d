"""Filter a made corpus by perplexity: `python examples/filtering.py`, for docs/filtering.md.

The corpus holds orders to four shops in English and Korean; some lines are damaged. First a model of clean lines
finds the damaged ones. Then two models select the orders to the harbour shop from the remaining lines (Moore and
Lewis 2010). Both steps read the output of `meari score`.
"""

import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from examples.server import ROOT
from examples.tiny_model import Recipe, meari, tiny_model

SHOPS = {
    "harbour": ("net", "anchor", "rope", "sail", "oar", "lantern"),
    "bakery": ("roll", "cake", "pie", "biscuit", "pretzel", "bun"),
    "office": ("pen", "ruler", "folder", "stamp", "pencil", "envelope"),
    "garden": ("rake", "spade", "bulb", "seed", "flowerpot", "hose"),
}
KOREAN_SHOPS = {
    "harbour": ("그물", "닻", "밧줄", "돛", "노", "등불"),
    "bakery": ("빵", "케이크", "파이", "과자", "떡", "도넛"),
    "office": ("펜", "자", "공책", "도장", "연필", "봉투"),
    "garden": ("갈퀴", "삽", "구근", "씨앗", "화분", "호스"),
}
MONTHS = ("January", "March", "April", "June", "August", "October")
OWN_SHARE = 0.75  # share of ordered items that belong to the shop; the others come from any shop
CODE_SHARE = 0.3  # share of lines with a random code, which no model can predict
KEPT_QUANTILE = 0.98
HARBOUR_SHARE = 0.25

Line = dict[str, Any]


def order(shop: str, generator: random.Random) -> str:
    """Return an order to a shop, in one of the two languages."""
    is_korean = generator.random() < 0.5
    items = KOREAN_SHOPS if is_korean else SHOPS
    first, second = (_item(items, shop, generator) for _ in range(2))
    number, month, day = f"{generator.randrange(10_000):04d}", generator.randrange(6), generator.randint(1, 28)
    one, other = generator.randint(2, 9), generator.randint(2, 9)
    code = f" {generator.randrange(16**8):08x}." if generator.random() < CODE_SHARE else ""
    if is_korean:
        return f"주문 {number}번: {first} {one}개, {second} {other}개, {2 * month + 1}월 {day}일까지." + code
    return f"Order {number}: {one} {first}s, {other} {second}s, by {day} {MONTHS[month]}." + code


def shuffled(text: str, generator: random.Random) -> str:
    """Return the words of the text in random order."""
    words = text.split()
    return " ".join(generator.sample(words, len(words)))


def misspelt(text: str, generator: random.Random) -> str:
    """Replace one letter in eight by another letter of the text."""
    return "".join(generator.choice(text) if generator.random() < 1 / 8 else letter for letter in text)


def misread(text: str, generator: random.Random) -> str:
    """Decode UTF-8 as Latin-1. ASCII would not change: keep only every second or third letter of it."""
    return text[:: generator.choice((2, 3))] if text.isascii() else text.encode("utf-8").decode("latin-1")


def marked_up(text: str, generator: random.Random) -> str:
    """Surround the text with remains of a web page."""
    return generator.choice(('<td class="x">{}</td>', "&nbsp;|&nbsp;{} [edit]", "{} >> 1 2 3 next")).format(text)


DAMAGES: dict[str, Callable[[str, random.Random], str]] = {
    "shuffled": shuffled,
    "misspelt": misspelt,
    "misread": misread,
    "marked up": marked_up,
}


def pool(num_lines: int, seed: int) -> list[Line]:
    """Return lines with their true labels `damage` ("" for none) and `shop`."""
    generator = random.Random(seed)
    lines = []
    for number in range(num_lines):
        shop = generator.choice(list(SHOPS))
        damage = generator.choice(list(DAMAGES)) if generator.random() < 0.3 else ""
        text = order(shop, generator)
        text = DAMAGES[damage](text, generator) if damage else text
        lines.append({"id": number, "text": text, "shop": shop, "damage": damage})
    return lines


def scored(folder: Path, model: str, lines: Sequence[Line]) -> list[Line]:
    """Return the lines with figures named MODEL_…. The run is interrupted after its first output, then resumed."""
    source, output = folder / f"{model}.jsonl", folder / f"{model}.scores.jsonl"
    source.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), "utf-8")
    arguments = ["score", source, "--model", folder / "bundles" / model, "-o", output, "--quiet", "--jobs", 1]
    arguments += ["--prefix", f"{model}_"]
    command = [sys.executable, "-m", "meari.cli.main", *map(str, arguments)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (output.exists() and output.stat().st_size):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    process.wait()
    meari(*arguments, "--resume")
    with output.open(encoding="utf-8") as file:  # lines end only at "\n"; str.splitlines splits at other characters too
        return [json.loads(line) for line in file]


def quantile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least this share of the values does not exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def precision_recall(
    kept: Sequence[Line], wanted: Callable[[Line], bool], lines: Sequence[Line]
) -> tuple[float, float]:
    """Return the share of kept lines that are wanted and the share of wanted lines that are kept."""
    hits = sum(map(wanted, kept))
    return hits / max(1, len(kept)), hits / sum(map(wanted, lines))


def drop_damaged(lines: Sequence[Line], clean: Sequence[Line]) -> list[Line]:
    """Return the lines below the quantile of clean lines in bits per character; print precision and recall."""
    threshold = quantile([line["all_bits_per_char"] for line in clean], KEPT_QUANTILE)
    kept = [line for line in lines if line["all_bits_per_char"] <= threshold]
    print(f"up to {threshold:.2f} bits/char{'lines':>12}{'kept':>8}")
    for damage in ("", *DAMAGES):
        group = [line for line in lines if line["damage"] == damage]
        share = sum(line["all_bits_per_char"] <= threshold for line in group) / len(group)
        print(f"  {damage or 'clean':<18}{len(group):>12}{share:>8.3f}")
    precision, recall = precision_recall(kept, lambda line: not line["damage"], lines)
    print(f"clean lines: precision {precision:.3f}, recall {recall:.3f}")
    return kept


def select(lines: Sequence[Line], key: Callable[[Line], float], label: str) -> None:
    """Select the expected number of harbour orders, lowest key first; print precision and recall."""
    taken = sorted(lines, key=key)[: round(HARBOUR_SHARE * len(lines))]
    precision, recall = precision_recall(taken, lambda line: line["shop"] == "harbour", lines)
    print(f"{label:<36}precision {precision:.3f}, recall {recall:.3f}")


def difference(line: Line) -> float:
    """Return bits per character by the harbour model minus those by the model of all shops."""
    return float(line["harbour_bits_per_char"] - line["all_bits_per_char"])


def main(num_lines: int = 1200) -> None:
    """Train on clean lines of all shops and of the harbour shop, then filter a pool."""
    with tempfile.TemporaryDirectory() as name:
        folder, generator = Path(name), random.Random(1)
        shops = list(SHOPS)
        tiny_model(folder, "all", [order(generator.choice(shops), generator) for _ in range(4000)], Recipe(steps=220))
        tiny_model(folder, "harbour", [order("harbour", generator) for _ in range(2000)], Recipe(steps=160))
        clean = [{"text": order(generator.choice(shops), generator)} for _ in range(300)]
        lines = pool(num_lines, seed=2)
        figures = scored(folder, "all", [*lines, *clean])
        kept = drop_damaged(figures[: len(lines)], figures[len(lines) :])
        both = scored(folder, "harbour", kept)
        select(both, lambda line: line["harbour_bits_per_char"], "harbour, by its model alone:")
        select(both, difference, "harbour, by the difference of two:")


def _item(items: Mapping[str, tuple[str, ...]], shop: str, generator: random.Random) -> str:
    own = generator.random() < OWN_SHARE
    return generator.choice(items[shop if own else generator.choice(list(items))])


if __name__ == "__main__":
    main()
