"""Test random bundles: they open and generate, and the compared servers compute with the same weights."""

import importlib
import math
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from benchmarks.serving.bundles import Recipe, make_bundle, random_checkpoint
from benchmarks.serving.inside.engine import open_model, submit
from benchmarks.serving.inside.operations import operations_per_token
from benchmarks.serving.inside.raw import measure
from benchmarks.serving.requests import make_words
from benchmarks.serving.servers.onnx_model import Batch, OnnxModel
from meari.bundle_format.names import Family, Precision
from meari.models.config import RecurrentConfig, ReservoirConfig
from meari.runtime.bundle import open_bundle
from meari.runtime.engine.calls import Finish, Sampling

VOCABULARY = 120
LSTM = RecurrentConfig(Family.LSTM, embedding_size=24, hidden_size=32, num_layers=2)
RECIPES = {
    "lstm": Recipe("lstm", LSTM, Precision.FP32, VOCABULARY),
    "lstm-int8": Recipe("lstm-int8", LSTM, Precision.INT8, VOCABULARY),
    "gru": Recipe("gru", RecurrentConfig(Family.GRU, 24, 32, 2), Precision.FP32, VOCABULARY),
    "esn": Recipe("esn", ReservoirConfig(Family.ESN, units=64, block_size=8), Precision.FP32, VOCABULARY),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    parent = tmp_path_factory.mktemp("random")
    for recipe in RECIPES.values():
        make_bundle(recipe, parent)
    return parent


@pytest.mark.parametrize("name", RECIPES)
def test_random_bundle_generates_texts_of_the_requested_length(folder: Path, name: str) -> None:
    assert open_bundle(folder / name, max_slots=8).manifest.sizes["vocabulary"] == VOCABULARY
    model = open_model(folder / name)
    try:
        generations = [submit(model.engine, [5, 6], 40, Sampling(seed=seed)) for seed in range(8)]
        assert all(generation.wait_end(30.0) for generation in generations)
        samples = [generation.samples[0] for generation in generations]
        assert {sample.finish for sample in samples} == {Finish.LENGTH}
        assert {len(sample.token_ids) for sample in samples} == {40}
        assert not {0, 1} & {token for sample in samples for token in sample.token_ids}
    finally:
        model.engine.stop()


def test_existing_bundle_is_not_made_again(folder: Path) -> None:
    before = (folder / "lstm" / "manifest.json").stat().st_mtime_ns
    assert make_bundle(RECIPES["lstm"], folder) == folder / "lstm"
    assert (folder / "lstm" / "manifest.json").stat().st_mtime_ns == before


def test_distributions_have_the_configured_entropy() -> None:
    model = random_checkpoint(Recipe("wide", LSTM, Precision.FP32, 2000)).model
    tokens = torch.randint(2, 2000, (32, 20), generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        hidden, _ = model(tokens, model.initial_state(32))
        logprobs = torch.log_softmax(model.logits(hidden[:, 10:]), dim=-1)
    entropy = float(-(logprobs.exp() * logprobs).sum(-1).mean())
    assert abs(entropy - 5.5) < 0.5  # other tokens and a narrower model than the one it was tuned on


def test_every_word_is_one_token(folder: Path) -> None:
    model = OnnxModel(folder / "lstm")
    words = make_words(VOCABULARY - 2)
    assert len(set(model.encode(" ".join(words)))) == len(words)
    assert model.text_of(model.encode(words[3])[0]) == f" {words[3]}"


@pytest.fixture
def flask_torch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    threads = torch.get_num_threads()
    monkeypatch.setenv("BENCH_BUNDLE", str(folder / "lstm"))
    yield importlib.import_module("benchmarks.serving.servers.flask_torch")
    torch.set_num_threads(threads)


def test_torch_server_and_graphs_give_the_same_scores(folder: Path, flask_torch: ModuleType) -> None:
    words = make_words(VOCABULARY - 2)
    texts = [" ".join(words[:9]), words[4], " ".join(words[20:50])]
    theirs = flask_torch.app.test_client().post("/score", json={"texts": texts}).get_json()
    ours = OnnxModel(folder / "lstm").score({"texts": texts})
    assert ours["usage"] == theirs["usage"] == {"scored_tokens": 10 + 2 + 31}
    for left, right in zip(ours["results"], theirs["results"], strict=True):
        assert math.isclose(left["logprob"], right["logprob"], rel_tol=1e-4)


def test_torch_server_generates_whole_and_streamed_responses(flask_torch: ModuleType) -> None:
    client = flask_torch.app.test_client()
    body = {"prompt": "", "max_tokens": 12, "stream": False}
    assert client.post("/generate", json=body).get_json()["usage"] == {"generated_tokens": 12}
    streamed = client.post("/generate", json={**body, "stream": True}).get_data(as_text=True)
    assert streamed.count('"text"') == 12
    assert '"generated_tokens": 12' in streamed


def test_rows_join_and_leave_the_batch_of_the_compared_servers(folder: Path) -> None:
    model = OnnxModel(folder / "gru")
    batch = Batch(model)
    words = make_words(VOCABULARY - 2)
    batch.add("long", {"prompt": " ".join(words[:5]), "max_tokens": 6})
    seen: dict[str, int] = {}
    for turn in range(12):
        if turn == 3:
            batch.add("short", {"prompt": "", "max_tokens": 2})
        for key, token, is_last in batch.step() if batch.rows else []:
            seen[str(key)] = seen.get(str(key), 0) + 1
            assert 2 <= token < VOCABULARY
            assert is_last == (seen[str(key)] == {"long": 6, "short": 2}[str(key)])
    assert seen == {"long": 6, "short": 2}
    assert not batch.rows


def test_raw_loop_feeds_states_back(folder: Path) -> None:
    figures = measure(folder / "lstm", 4, 0.02)
    assert figures.batch == 4
    assert figures.tokens_per_second > 0
    assert np.isclose(figures.cell_ms + figures.output_ms, figures.step_ms)


def test_operations_count_the_matrix_products(folder: Path) -> None:
    cell = 2 * 4 * 32 * ((24 + 32) + (32 + 32))
    assert operations_per_token(folder / "lstm") == cell + 2 * 32 * VOCABULARY
