"""Test that every family approaches the entropy of a known source, and gated families also one that needs memory."""

import itertools
import math
from dataclasses import replace
from pathlib import Path

import pytest

from meari.bundle_format.names import Document, Family
from meari.models.choices import Readout
from meari.models.config import CorpusConfig, ModelConfig, RecurrentConfig, ReservoirConfig
from tests.models.training.grammar import BRACKETS, LETTERS, Grammar, bigram_nats
from tests.models.training.tiny_runs import run_training, tiny_config

NUM_TRAINING, NUM_HELD_OUT = 20_000, 4_000
LUCK = 0.01  # nats per letter by which the held-out sample may favour a model

RESERVOIR = ReservoirConfig(Family.ESN, units=64, block_size=16, spectral_radius=0.5, ridge=1e-2)


def excess(grammar: Grammar, model: ModelConfig, folder: Path, *, steps: int) -> float:
    """Train on one text and measure another; return nats per letter above the source's own."""
    train, held_out = grammar.text(NUM_TRAINING, seed=1), grammar.text(NUM_HELD_OUT, seed=2)
    (folder / "train.txt").write_text(train)
    (folder / "held_out.txt").write_text(held_out)
    config = tiny_config(folder, batch_size=16, chunk_length=32, evaluate_every=1000, steps=steps)
    files = [(str(folder / f"{name}.txt"),) for name in ("train", "held_out")]
    corpus = CorpusConfig(files[0], Document.FILE, validation=files[1])
    figures = run_training(replace(config, corpus=corpus, model=model), folder / "run")[0].figures
    assert figures is not None
    measured = figures["validation"]
    assert measured["num_characters"] == NUM_HELD_OUT
    nats: float = measured["nats_per_char"] * NUM_HELD_OUT - math.log(NUM_TRAINING)  # approximate cost of the end token
    return (nats - grammar.nats(held_out)) / NUM_HELD_OUT


@pytest.mark.parametrize("grammar", [LETTERS, BRACKETS])
def test_probabilities_of_all_texts_of_one_length_sum_to_one(grammar: Grammar) -> None:
    letters = sorted({letter for choices in grammar.rules.values() for letter in choices})
    texts = ("".join(text) for text in itertools.product(letters, repeat=5))
    assert sum(math.exp(-grammar.nats(text)) for text in texts) == pytest.approx(1)


@pytest.mark.parametrize("grammar", [LETTERS, BRACKETS])
def test_long_text_has_the_entropy_rate(grammar: Grammar) -> None:
    text = grammar.text(100_000, seed=0)
    assert grammar.nats(text) / len(text) == pytest.approx(grammar.entropy_rate(), abs=5e-3)


def test_entropy_rate_matches_a_value_worked_by_hand() -> None:
    """A pair of brackets has one letter of entropy ln 2 and on average five further letters."""
    inside = -(2 * 0.4 * math.log(0.4) + 0.2 * math.log(0.2))
    assert BRACKETS.entropy_rate() == pytest.approx((math.log(2) + 5 * inside) / 6)


@pytest.mark.parametrize(
    ("model", "margin"),
    [
        (RecurrentConfig(Family.RNN, 8, 16), 0.04),
        (RecurrentConfig(Family.GRU, 8, 16), 0.04),
        (RecurrentConfig(Family.LSTM, 8, 16), 0.04),
        # The source's state is not a linear function of a small reservoir; bigrams have an excess of 0.25.
        (replace(RESERVOIR, readout=Readout.SOFTMAX), 0.15),
        (replace(RESERVOIR, readout=Readout.RIDGE), 0.15),
    ],
    ids=lambda value: f"{value.family}-{getattr(value, 'readout', '')}" if not isinstance(value, float) else "",
)
def test_cross_entropy_is_slightly_above_the_entropy(tmp_path: Path, model: ModelConfig, margin: float) -> None:
    assert -LUCK < excess(LETTERS, model, tmp_path, steps=250) < margin


@pytest.mark.parametrize("family", [Family.GRU, Family.LSTM])
def test_gated_families_learn_long_dependencies_that_bigrams_lack(tmp_path: Path, family: Family) -> None:
    train, held_out = BRACKETS.text(NUM_TRAINING, seed=1), BRACKETS.text(NUM_HELD_OUT, seed=2)
    of_bigrams = (bigram_nats(train, held_out) - BRACKETS.nats(held_out)) / NUM_HELD_OUT
    assert of_bigrams > 0.08  # by hand: 5/6 * 4/5 * 0.2 * ln 2 = 0.092
    assert -LUCK < excess(BRACKETS, RecurrentConfig(family, 8, 24), tmp_path, steps=350) < 0.03
