"""Write the surprisal of words in garden-path sentences for R: `python examples/surprisal.py`, for docs/surprisal.md.

A model is trained on made English and Korean in which one reading of a sentence's beginning is far more frequent than
the other. Each item is a pair: a sentence that turns out to have the rare reading, and a control without that
ambiguity. Output: a table with one row for each word.
"""

import argparse
import csv
import json
import math
import random
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

from examples.made_text import with_particle
from examples.tiny_model import Recipe, meari, tiny_model

SUBJECTS = ("I", "We", "She", "They")
VERBS = ("knew", "heard", "saw", "found")  # take an object or a clause
NAMES = ("Ann", "Anna", "Eva", "Tom")
ADVERBS = ("well", "at dawn", "again", "by chance")
TIMES = {"Night.": ("slept", "sang"), "Day.": ("left", "fell")}
ENDS = tuple(verb for verbs in TIMES.values() for verb in verbs)

PEOPLE = ("어부", "농부", "상인", "학생")
THINGS = ("빵", "사과", "편지", "그물")
ANIMALS = ("개", "고양이", "원숭이", "까치")
DEEDS = (
    ("먹었다", "먹은"),
    ("훔쳤다", "훔친"),
    ("숨겼다", "숨긴"),
    ("옮겼다", "옮긴"),
)  # (form that ends a sentence, form that ends a clause)
MEETINGS = ("보았다", "만났다", "찾았다", "쫓았다")

GARDEN_PATH, CONTROL = "garden path", "control"
LANGUAGES = ("english", "korean")

Scored = dict[str, Any]


@dataclass(frozen=True)
class Word:
    """Row of the table; figures in bits.

    surprisal   of the word's letters and of the following space or end of text
    with_space  of the word's letters and of the preceding space, as in `words` of /score
    entropy     of the distribution over the next word, before the word is read
    """

    item: int
    language: str
    condition: str
    position: int
    word: str
    region: str
    surprisal: float
    with_space: float
    entropy: float


def english(generator: random.Random) -> str:
    """Return a sentence; "knew Ann" mostly precedes an adverb, seldom a verb with Ann as its subject."""
    subject, verb, name = map(generator.choice, (SUBJECTS, VERBS, NAMES))
    adverb, end, time = map(generator.choice, (ADVERBS, ENDS, list(TIMES)))
    usual = generator.choice(TIMES[time]) if generator.random() < 0.9 else end
    sentences = (
        f"{subject} {verb} {name} {adverb}.",
        f"{subject} {verb} that {name} {end}.",
        f"{time} {name} {usual}.",
        f"{subject} {verb} {name} {end}.",
    )
    return generator.choices(sentences, (50, 24, 24, 2))[0]


def korean(generator: random.Random) -> str:
    """Return a sentence; the verb nearly always ends it after subject and object, but seldom after an object alone."""
    person = with_particle(generator.choice(PEOPLE), "이", "가")
    thing = with_particle(generator.choice(THINGS), "을", "를")
    animal = with_particle(generator.choice(ANIMALS), "을", "를")
    (deed, clause), meeting = generator.choice(DEEDS), generator.choice(MEETINGS)
    orders = (
        f"{person} {thing} {deed}.",
        f"{person} {animal} {meeting}.",
        f"{thing} {clause} {animal} {person} {meeting}.",
        f"{thing} {person} {deed}.",
        f"{person} {thing} {clause} {animal} {meeting}.",
    )
    return generator.choices(orders, (50, 19, 20, 8, 3))[0]


def stimuli() -> list[Scored]:
    """Return the pairs; `critical` is the position of the word that tells the readings apart."""
    found = []
    for item, (subject, verb, name, end) in enumerate(zip(SUBJECTS, VERBS, NAMES, ENDS, strict=True), 1):
        found += [
            _stimulus(item, "english", GARDEN_PATH, 4, f"{subject} {verb} {name} {end}."),
            _stimulus(item, "english", CONTROL, 5, f"{subject} {verb} that {name} {end}."),
        ]
    for item, (person, thing, (_, clause), animal) in enumerate(zip(PEOPLE, THINGS, DEEDS, ANIMALS, strict=True), 1):
        who, what, whom = with_particle(person, "이", "가"), *(with_particle(x, "을", "를") for x in (thing, animal))
        found += [
            _stimulus(item, "korean", GARDEN_PATH, 3, f"{who} {what} {clause} {whom} {MEETINGS[0]}."),
            _stimulus(item, "korean", CONTROL, 2, f"{what} {clause} {whom} {who} {MEETINGS[0]}."),
        ]
    found += [_stimulus(5, "english", time, 2, "Ann slept.", context=time + " ") for time in TIMES]
    return found


def words_of(scored: Scored, entropies: dict[str, float]) -> Iterable[Word]:
    """Yield the rows of one text; its tokens must not cross word boundaries."""
    bits = [-token["logprob"] for token in scored["tokens"]]
    starts = [token["start"] for token in scored["tokens"]]
    for position, word in enumerate(words_alone(scored), 1):
        own = sum(b for b, start in zip(bits, starts, strict=True) if word["start"] <= start < word["end"])
        behind = bits[starts.index(word["end"])]  # the space, or the end token
        yield Word(
            item=scored["item"],
            language=scored["language"],
            condition=scored["condition"],
            position=position,
            word=word["text"],
            region=_region(position, scored["critical"]),
            surprisal=own + behind,
            with_space=-word["logprob"],
            entropy=entropies[scored["context"] + scored["text"][: word["start"]]],
        )


def words_alone(scored: Scored) -> list[Scored]:
    """Return the words without the end of the text, which has no length."""
    return [word for word in scored["words"] if word["start"] < word["end"]]


def entropy(logprobs: Sequence[float]) -> float:
    """Return the entropy in bits, −Σ p log₂ p, with p normalised over the lexicon; logprobs are in base 2."""
    mass = sum(2**logprob for logprob in logprobs)
    return math.log2(mass) - sum(2**logprob * logprob for logprob in logprobs) / mass


def score(folder: Path, name: str, lines: Iterable[Scored], *options: str) -> list[Scored]:
    """Run `meari score` on the lines and return its results in bits."""
    source, output = folder / f"{name}.jsonl", folder / f"{name}.scores.jsonl"
    source.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), "utf-8")
    bundle = folder / "bundles" / "readers"
    meari("score", source, "--model", bundle, "-o", output, "--log-base", "2", "--quiet", "--jobs", 1, *options)
    return [json.loads(line) for line in output.read_text("utf-8").splitlines()]


def entropies_before(folder: Path, items: Sequence[Scored], lexicons: dict[str, set[str]]) -> dict[str, float]:
    """Return the entropy of the next word after each prefix; every word of the lexicon is scored with its ending."""
    befores = {}
    for item in items:
        for word in words_alone(item):
            befores[item["context"] + item["text"][: word["start"]]] = item["language"]
    candidates = [
        {"text": word if word.endswith(".") else word + " ", "context": before}
        for before, language in befores.items()
        for word in sorted(lexicons[language])
    ]
    logprobs: dict[str, list[float]] = {before: [] for before in befores}
    for scored in score(folder, "lexicon", candidates, "--no-end"):
        logprobs[scored["context"]].append(scored["logprob"])
    return {before: entropy(found) for before, found in logprobs.items()}


def write_table(path: Path, rows: Sequence[Word]) -> None:
    """Write tab-separated values with a header, in the format of R's `read.delim`."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(field.name for field in fields(Word))
        writer.writerows(astuple(row) for row in rows)


def measured(folder: Path) -> list[Word]:
    """Train, score the items and return the rows."""
    generator = random.Random(1)
    writers: dict[str, Callable[[random.Random], str]] = {"english": english, "korean": korean}
    texts = {language: [writers[language](generator) for _ in range(2500)] for language in LANGUAGES}
    lines = [line for some in texts.values() for line in some]
    generator.shuffle(lines)
    tiny_model(folder, "readers", lines, Recipe(steps=250))
    items = score(folder, "stimuli", stimuli(), "--tokens", "--words")
    lexicons = {language: set(" ".join(some).split()) for language, some in texts.items()}
    entropies = entropies_before(folder, items, lexicons)
    return [word for item in items for word in words_of(item, entropies)]


def main() -> None:
    """Write the table; print one garden path of each language and the means at the critical words."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, help="write the table to this file  [not written]")
    output = parser.parse_args().output
    with tempfile.TemporaryDirectory() as name:
        rows = measured(Path(name))
    if output is not None:
        write_table(output, rows)
    print(f"{'bits':<12}{'surprisal':>10}{'with_space':>12}{'entropy':>9}")
    for row in rows:
        if row.item == 1 and row.condition == GARDEN_PATH:
            print(f"{row.word:<12}{row.surprisal:>10.2f}{row.with_space:>12.2f}{row.entropy:>9.2f}")
    for language in LANGUAGES:
        path, control = (_mean_at_critical(rows, language, condition) for condition in (GARDEN_PATH, CONTROL))
        print(f"critical word, {language}: {path:.2f} in the garden path, {control:.2f} in the control")
    for time in TIMES:
        print(f'"Ann slept." after "{time}": slept {_mean_at_critical(rows, "english", time):.2f}')


def _stimulus(item: int, language: str, condition: str, critical: int, text: str, context: str = "") -> Scored:
    named = {"item": item, "language": language, "condition": condition, "critical": critical}
    return {**named, "context": context, "text": text}


def _region(position: int, critical: int) -> str:
    return "before" if position < critical else "critical" if position == critical else "after"


def _mean_at_critical(rows: Sequence[Word], language: str, condition: str) -> float:
    critical = [row for row in rows if row.region == "critical"]
    found = [row.surprisal for row in critical if (row.language, row.condition) == (language, condition)]
    return sum(found) / len(found)


if __name__ == "__main__":
    main()
