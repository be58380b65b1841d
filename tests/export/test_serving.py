"""Test bundles with all model options in the engine: exact probabilities and sampling."""

from pathlib import Path

import numpy as np
import pytest
import torch

from meari.bundle_format.names import Family, Precision
from meari.export.bundle import export_bundle
from meari.models.checkpoint import load_checkpoint
from meari.models.config import RecurrentConfig
from meari.runtime.engine import Sampling
from tests.export.serving import generate, score, served
from tests.export.tiny_models import make_run

ALL_OPTIONS = RecurrentConfig(
    Family.LSTM,
    12,
    layer_sizes=(24, 64),
    layer_norm=True,
    learned_initial_state=True,
    mogrifier_rounds=3,
    adaptive_cutoffs=(5, 9, 12),
)
ADAPTIVE = RecurrentConfig(Family.GRU, 12, 64, adaptive_cutoffs=(50, 300))
MANY_CHARACTERS = tuple(chr(0x4E00 + index) for index in range(800))  # more tokens than the sampler sorts
CONTEXTS: tuple[list[int], ...] = ([], [5], [2, 7, 7, 3, 1, 9, 4])


@pytest.fixture(params=["small vocabulary", "large vocabulary"], scope="module")
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    if request.param == "small vocabulary":
        return make_run(folder, ALL_OPTIONS)
    return make_run(folder, ADAPTIVE, words=MANY_CHARACTERS)


@pytest.fixture(params=Precision, scope="module")
def bundle(run: Path, request: pytest.FixtureRequest) -> Path:
    folder = run.parent / "bundles" / f"tiny-{request.param}"
    export_bundle(run, folder, request.param)
    return folder


def test_probabilities_of_the_whole_vocabulary_sum_to_one_and_match_torch(run: Path, bundle: Path) -> None:
    network = load_checkpoint(run).model
    size = network.vocabulary_size
    with served(bundle) as model, torch.inference_mode():
        for context in CONTEXTS:
            tokens = score(model, [[token] for token in range(1, size)], context, add_end=False)
            (end,) = score(model, [[]], context)
            found = np.array([end.logprobs[0], *(token.logprobs[0] for token in tokens)])
            assert abs(np.exp(found).sum() - 1) < 1e-6
            hidden, _ = network(torch.tensor([[0, *context]]), network.initial_state(1))
            expected = network.logits(hidden[0, -1]).log_softmax(-1).numpy()
            assert np.abs(found - expected).max() < (1e-4 if bundle.name.endswith("fp32") else 0.2)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.0),
        Sampling(seed=3),
        Sampling(temperature=0.7, top_k=5, top_p=0.9, min_p=0.01, seed=4),
        Sampling(top_p=0.5, logit_bias=((3, 2.0),), repetition_penalty=1.3, seed=5),
    ],
    ids=["greedy", "plain", "limited", "reshaped"],
)
def test_generated_tokens_have_the_logprobs_of_scoring(bundle: Path, sampling: Sampling) -> None:
    with served(bundle) as model:
        sample = generate(model, [4, 2], 30, sampling)
        ended = sample.token_ids[-1] == 0
        text = sample.token_ids[:-1] if ended else sample.token_ids
        (scored,) = score(model, [text], [4, 2], add_end=ended)
        assert sample.logprobs == scored.logprobs.tolist()
        if sampling.temperature == 0:
            everything = score(model, [[token] for token in range(1, model.bundle.runner.vocabulary_size)], [4, 2])
            best = max(figures.logprobs[0] for figures in everything)
            assert sample.logprobs[0] >= best


def test_self_test_finds_rows_isolated(bundle: Path) -> None:
    with served(bundle) as model:
        assert model.bundle.self_test.rows_isolated
        assert model.bundle.self_test.golden_max_difference <= 1e-6
