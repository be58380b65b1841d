"""Test the recipe benchmark: every single change trains, and the page tells gains from noise."""

import json
from pathlib import Path

import pytest

from benchmarks.training.recipe import CHANGES, base_config, main, measure, split
from benchmarks.training.recipe_page import page

TEXT = "the quick brown fox jumps over the lazy dog, and 0123456789 sheep sleep; "

UNSEEN = ("averaging", "clip_norm")  # these change the kept weights, or only gradients larger than those of this text


def record(name: str, loss: float, share: float = 0.5) -> dict[str, object]:
    return {
        "name": name,
        "loss": loss,
        "training_loss": 1.5,
        "cpu_seconds": 10.0,
        "share": share,
        "steps": 100,
        "hidden": 8,
        "characters": 2_000_000,
        "tokens": 1_800_000,
        "corpus": "a text",
        "machine": "a machine",
    }


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.name)
def test_every_change_trains_and_differs_from_the_base(tmp_path: Path, change) -> None:  # type: ignore[no-untyped-def]
    base = base_config(split(TEXT * 40, 1.0, tmp_path), steps=8, hidden_size=8)
    base_loss = measure(base, CHANGES[0], tmp_path / "base")["training_loss"]
    measured = measure(base, change, tmp_path / "run")
    assert 0 < measured["loss"] < 5
    if change.settings and not change.name.startswith(UNSEEN):
        assert measured["training_loss"] != base_loss


def test_held_out_text_is_the_last_tenth_for_every_share(tmp_path: Path) -> None:
    text = "".join(chr(0x4E00 + place) for place in range(1000))
    split(text, 0.2, tmp_path)
    assert (tmp_path / "train.txt").read_text("utf-8") == text[:180]
    assert (tmp_path / "validation.txt").read_text("utf-8") == text[900:]


def test_measured_results_are_kept_and_reused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text(TEXT * 40, "utf-8")
    arguments = [str(corpus), "--share", "1", "--steps", "4", "--hidden", "8", "--results", str(tmp_path / "r.json")]
    main([*arguments, "--only", "base", "tied"])
    first = json.loads((tmp_path / "r.json").read_text("utf-8"))
    assert set(first) == {"1 base", "1 tied"}
    capsys.readouterr()
    main([*arguments, "--only", "base", "forget_bias 0"])
    assert capsys.readouterr().out.startswith("1 forget_bias 0:")
    assert "| tied |" in (tmp_path / "r.md").read_text("utf-8")


def test_page_distinguishes_gain_and_noise() -> None:
    records = [record("base", 1.60), record("base, seed 2", 1.61), record("tied", 1.50), record("layer_norm", 1.62)]
    records += [record("clip_norm 0.25", 1.70), record("tied", 1.0, share=1.0)]
    text = page({f"{entry['share']} {entry['name']}": entry for entry in records})
    assert "## 2.0 epochs of 0.90 million characters" in text
    assert "2 seeds lie 0.0100 apart" in text
    rows = [line for line in text.splitlines() if line.startswith("| ") and "changed alone" not in line]
    assert rows[1:] == [
        "| tied | 1.5000 | -0.1050 | gain | 1.500 | 1.00 × |",
        "| layer_norm | 1.6200 | +0.0150 | noise | 1.500 | 1.00 × |",
        "| clip_norm 0.25 | 1.7000 | +0.0950 | loss | 1.500 | 1.00 × |",
    ]
    assert text.count("## ") == 1  # the other share has no base result
