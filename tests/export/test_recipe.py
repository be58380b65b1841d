"""Test the description of a training: it names the settings in use and omits those that are off."""

from dataclasses import replace
from typing import Any

from meari.bundle_format.names import Document, Family, TokenizerKind
from meari.export.recipe import recipe
from meari.models.choices import Averaging, Optimizer, Readout, TrainingPrecision
from meari.models.config import Config, CorpusConfig, RecurrentConfig, ReservoirConfig, TokenizerConfig, TrainingConfig

CONFIG = Config(
    CorpusConfig(("a.txt",), Document.LINE, validation_share=0.1),
    TokenizerConfig(TokenizerKind.CHAR),
    RecurrentConfig(Family.LSTM),
    TrainingConfig(steps=1500),
    name="small",
)


def test_settings_that_are_off_are_omitted() -> None:
    assert dict(recipe(CONFIG)) == {
        "steps": "1,500 steps of 32 streams by 64 tokens",
        "learning rate": "0.002, reached after 100 steps, then along a cosine to 0",
        "optimizer": "AdamW, weight decay 0.01, gradients clipped to norm 1",
        "products in training": "float32",
    }


def test_settings_in_use_are_described() -> None:
    model = RecurrentConfig(
        Family.LSTM, num_layers=2, dropout=0.3, output_dropout=0.4, embedding_dropout=0.1, weight_drop=0.5
    )
    training = TrainingConfig(
        epochs=2.5,
        chunk_spread=5,
        patience=4,
        max_minutes=40,
        restart_share=0.01,
        activation_regularisation=2,
        temporal_regularisation=1,
        averaging=Averaging.EMA,
        precision=TrainingPrecision.BFLOAT16,
    )
    rows = dict(recipe(replace(CONFIG, model=model, training=training)))
    assert rows["steps"] == (
        "2.5 epochs of 32 streams by 64 ± 5 tokens, at most 40 minutes, "
        "until 4 evaluations in a row brought nothing better"
    )
    assert rows["dropout"] == (
        "input 0.3, between layers 0.3, output 0.4, embeddings 0.1, recurrent weights 0.5; one mask a chunk"
    )
    assert rows["penalties"] == "of activations 2, of their changes 1"
    assert rows["fresh starts"] == "each stream begins a text anew with probability 0.01 a step"
    assert rows["averaging"] == "of the weights of all steps, each 0.999 times the one before"
    assert rows["products in training"] == "bfloat16, the rest in float32"
    muon = replace(training, optimizer=Optimizer.MUON, matrix_learning_rate=0.02)
    assert dict(recipe(replace(CONFIG, training=muon)))["optimizer"] == (
        "Muon at a rate of 0.02 for the matrices of recurrences, AdamW for the rest, "
        "weight decay 0.01, gradients clipped to norm 1"
    )
    triggered = replace(training, averaging=Averaging.TRIGGERED, trigger_patience=3)
    assert dict(recipe(replace(CONFIG, training=triggered)))["averaging"] == (
        "of the weights of all steps since 3 evaluations brought nothing better"
    )


def test_ridge_readout_has_no_steps() -> None:
    config = replace(CONFIG, model=ReservoirConfig(Family.ESN, readout=Readout.RIDGE, ridge=0.5))
    assert recipe(config) == [("readout", "ridge regression over one pass, penalty 0.5, then calibrated")]


def test_dropout_of_a_gated_readout_is_described() -> None:
    sizes: dict[str, Any] = {"readout": Readout.SOFTMAX, "readout_rank": 8, "readout_gated": True}
    model = ReservoirConfig(Family.ESN, **sizes, readout_dropout=0.4)
    assert dict(recipe(replace(CONFIG, model=model)))["dropout"] == "products of the readout 0.4"
    assert "dropout" not in dict(recipe(replace(CONFIG, model=replace(model, readout_dropout=0.0))))
