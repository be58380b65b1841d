"""Test `meari filter`: parts of a corpus by quantiles of a figure, byte for byte, with one model and with two."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.bulk.command import meari, records
from tests.runtime.tiny_bundle import write_tiny_bundle

PARTS = ("head", "middle", "tail")


def corpus(count: int) -> list[str]:
    """Return lines of different likelihood; some are equal, and some blank."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    lines = [letters[n % 7 : n % 7 + n % 9] + letters[:: 1 + n % 5][: n % 11] for n in range(count)]
    return [*lines, "  ", "é" * 40]


@pytest.fixture(scope="module")
def two_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_tiny_bundle(folder / "one")
    write_tiny_bundle(folder / "other", peak=1.0)
    return folder


def figures(path: Path, model: str, bundles: Path, name: str = "bits_per_char") -> list[float | None]:
    done = meari("score", path, "--model", model, "--bundles", bundles)
    assert done.returncode == 0, done.stderr
    return [record[name] for record in records(done.stdout)]


def expected_parts(lines: list[bytes], values: list[float | None], head: float, middle: float) -> list[bytes]:
    """Divide the lines as the definition says: up to the smallest value that the share does not exceed."""
    ascending = sorted(value for value in values if value is not None)
    bounds = [
        ascending[rank - 1] if (rank := math.ceil(len(ascending) * share / 100)) else -math.inf
        for share in (head, head + middle)
    ]
    parts: list[list[bytes]] = [[], [], []]
    for line, value in zip(lines, values, strict=True):
        if value is not None:
            parts[0 if value <= bounds[0] else 1 if value <= bounds[1] else 2].append(line + b"\n")
    return [b"".join(part) for part in parts]


def found_parts(folder: Path, suffix: str = ".txt") -> list[bytes]:
    return [(folder / (part + suffix)).read_bytes() for part in PARTS]


@pytest.mark.parametrize(("head", "middle"), [(30, 40), (0, 50), (100, 0), (12.5, 0)])
def test_parts_are_exact_quantiles_and_hold_the_lines_byte_for_byte(
    two_models: Path, tmp_path: Path, head: float, middle: float
) -> None:
    path, lines = tmp_path / "corpus.txt", corpus(300)
    path.write_text("\r\n".join(lines), "utf-8")
    shares = ["--head", head, "--middle", middle]
    done = meari("filter", path, "--model", "one", "--bundles", two_models, "-o", tmp_path / "out", *shares)
    assert done.returncode == 0, done.stderr
    raw = path.read_bytes().split(b"\n")
    assert found_parts(tmp_path / "out") == expected_parts(raw, figures(path, "one", two_models), head, middle)
    assert b" lines without a figure" in done.stderr


def test_difference_of_two_models_divides_jsonl(two_models: Path, tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    lines = [json.dumps({"id": n, "text": line}, ensure_ascii=False) for n, line in enumerate(corpus(200))]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    options = ["--model", "one", "--against", "other", "--head", 20, "--middle", 0, "--bundles", two_models]
    done = meari("filter", path, *options, "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    own, other = figures(path, "one", two_models), figures(path, "other", two_models)
    values = [None if a is None or b is None else a - b for a, b in zip(own, other, strict=True)]
    raw = path.read_bytes().removesuffix(b"\n").split(b"\n")
    assert found_parts(tmp_path / "out", ".jsonl") == expected_parts(raw, values, 20, 0)


def test_thresholds_come_from_the_reference_and_serve_again(two_models: Path, tmp_path: Path) -> None:
    pool, clean = tmp_path / "pool.txt", tmp_path / "clean.txt.gz"
    pool.write_text("\n".join(corpus(120)) + "\n", "utf-8")
    clean.write_bytes(gzip.compress("".join(f"{line}\n" for line in corpus(50) if line).encode()))
    options = ["--model", "one", "--bundles", two_models, "--by", "perplexity"]
    first = meari("filter", pool, *options, "--reference", clean, "--head", 60, "--middle", 20, "-o", tmp_path / "a")
    assert first.returncode == 0, first.stderr
    found = json.loads((tmp_path / "a" / "thresholds.json").read_bytes())
    reference = sorted(value for value in figures(clean, "one", two_models, "perplexity") if value is not None)
    assert found["head"] == np.quantile(reference, 0.6, method="inverted_cdf")
    assert found["num_lines"] == len(reference)
    kept = ["--thresholds", tmp_path / "a" / "thresholds.json"]
    again = meari("filter", pool, *options, *kept, "-o", tmp_path / "b", "--summary", tmp_path / "summary.json")
    assert again.returncode == 0, again.stderr
    assert found_parts(tmp_path / "a") == found_parts(tmp_path / "b")
    summary: dict[str, Any] = json.loads((tmp_path / "summary.json").read_bytes())
    assert sum(summary["files"].values()) + summary["num_left_out"] == len(corpus(120))
    wrong = meari("filter", pool, "--model", "other", "--bundles", two_models, *kept, "-o", tmp_path / "c")
    assert wrong.returncode == 1
    assert b"thresholds.json: figure: got thresholds of 'perplexity', expected those of 'bits_per_char'" in wrong.stderr


def test_finished_folder_is_neither_replaced_by_accident_nor_scored_again(two_models: Path, tmp_path: Path) -> None:
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(corpus(60)) + "\n", "utf-8")
    base = ["filter", path, "--model", "one", "--bundles", two_models, "-o", tmp_path / "out"]
    assert meari(*base).returncode == 0
    before, scored = found_parts(tmp_path / "out"), (tmp_path / "out" / "scores.tsv").stat().st_mtime_ns
    refused = meari(*base)
    assert refused.returncode == 2
    assert b"holds the parts of a run" in refused.stderr
    (tmp_path / "out" / "tail.txt").unlink()  # as if the run had been ended before
    assert meari(*base, "--resume", "--head", 30).returncode == 0
    assert found_parts(tmp_path / "out") == before
    assert (tmp_path / "out" / "scores.tsv").stat().st_mtime_ns == scored


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--head", "80", "--middle", "30"], "got 80 and 30 percent, expected at most 100 together"),
        (["--against", "other", "--by", "perplexity"], "--by: got perplexity with --against, expected bits_per_char"),
        (["--no-text"], "--no-text: got it"),
        (["--head", "nan"], "nan is not in the range 0<=x<=100"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    two_models: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    path = tmp_path / "corpus.txt"
    path.write_text("ab\n", "utf-8")
    done = meari("filter", path, "--model", "one", "--bundles", two_models, "-o", tmp_path / "out", *options)
    assert done.returncode == 2
    assert message.encode() in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_pipe_cannot_be_read_twice(two_models: Path, tmp_path: Path) -> None:
    done = meari("filter", "-", "--model", "one", "--bundles", two_models, "-o", tmp_path / "out", stdin="ab\n")
    assert done.returncode == 2
    assert b"FILE: got standard input, expected files: they are read twice" in done.stderr


def test_corpus_without_lines_is_told_by_its_option(two_models: Path, tmp_path: Path) -> None:
    empty, full = tmp_path / "empty.txt", tmp_path / "full.txt"
    empty.write_bytes(b"")
    full.write_text("ab\n", "utf-8")
    common = ("--model", "one", "--bundles", two_models, "-o")
    done = meari("filter", empty, *common, tmp_path / "first")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(b"meari: FILE: got no line with a figure")
    done = meari("filter", full, "--reference", empty, *common, tmp_path / "second")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(b"meari: --reference: got no line with a figure")
