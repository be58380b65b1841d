"""Test the unmodified lm-evaluation-harness against a real server: its figures match `meari evaluate` and /score."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from meari.bundle_format.names import Family, Precision
from meari.cli.evaluate import command as evaluate_command
from meari.export.bundle import export_bundle
from meari.models.config import RecurrentConfig
from tests.export.tiny_models import WORDS, make_run
from tests.service.openai.harness import needs_harness, run_harness, write_task, write_tokenizer
from tests.service.running import Server, running_server

pytestmark = needs_harness
TEXT = "".join(WORDS[(7 * place + place // 5) % len(WORDS)] for place in range(400))
PAIRS = [("the sea", " answers "), ("", "silent. the echo"), ("a mountain", " zzz"), ("and falls", "\nt")]
PROMPTS = ["the ", "a mountain and", "silent"]


@dataclass(frozen=True)
class Measured:
    """Results of the harness, with a server to compare them with."""

    run: Path
    server: Server
    results: dict[str, Any]
    samples: dict[str, Any]

    def score(self, **body: Any) -> Any:
        return self.server.post("/score", model="tiny", **body).json()["results"][0]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Measured]:
    folder = tmp_path_factory.mktemp("harness")
    run = make_run(folder / "run", RecurrentConfig(Family.LSTM, embedding_size=16, hidden_size=24))
    (folder / "bundles").mkdir()
    export_bundle(run, folder / "bundles" / "tiny", Precision.FP32)
    tokenizer = write_tokenizer(folder / "tokenizer", folder / "bundles" / "tiny")
    tasks = folder / "tasks"
    tasks.mkdir()
    write_task(tasks, "rolling", [{"text": TEXT}, {"text": "the sea answers"}])
    write_task(tasks, "ended", [{"text": TEXT}])
    write_task(tasks, "likelihood", [{"context": context, "target": target} for context, target in PAIRS])
    write_task(tasks, "writing", [{"context": prompt, "answer": "none"} for prompt in PROMPTS])
    with running_server(folder, bundles=folder / "bundles") as server:
        results, samples = run_harness(
            tasks, server.port, "tiny", batch_size=4, tokenizer=tokenizer, max_length=100_000
        )
        yield Measured(run, server, results, samples)


def loglikelihood(sample: Any) -> float:
    """Return the loglikelihood of one document from the harness's log."""
    value = sample["filtered_resps"][0]
    return float(value[0] if isinstance(value, list) else value)


def test_perplexity_matches_meari_evaluate(measured: Measured, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, "utf-8")
    done = CliRunner().invoke(evaluate_command, [str(measured.run), "--text", str(path), "--json"])
    assert done.exit_code == 0, done.output
    figures = json.loads(done.output)
    [sample] = [sample for sample in measured.samples["rolling"] if sample["doc"]["text"] == TEXT]
    perplexity = math.exp(-loglikelihood(sample) / figures["num_tokens"])  # without the end: the training text had none
    assert perplexity == pytest.approx(figures["perplexity"], rel=1e-4)


def test_likelihood_of_text_with_its_end_matches_score(measured: Measured) -> None:
    [sample] = measured.samples["ended"]
    assert loglikelihood(sample) == pytest.approx(measured.score(text=TEXT, add_end=True)["logprob"], rel=1e-9)


def test_rolling_figures_match_score(measured: Measured) -> None:
    texts = [TEXT, "the sea answers"]
    scored = [measured.score(text=text, add_end=False) for text in texts]
    nats = -sum(result["logprob"] for result in scored)
    num_bytes = sum(result["num_bytes"] for result in scored)
    found = measured.results["rolling"]
    assert found["byte_perplexity,none"] == pytest.approx(math.exp(nats / num_bytes), rel=1e-4)
    assert found["bits_per_byte,none"] == pytest.approx(nats / num_bytes / math.log(2), rel=1e-4)
    logged = sorted(map(loglikelihood, measured.samples["rolling"]))
    assert logged == pytest.approx(sorted(result["logprob"] for result in scored), rel=1e-9)


def test_loglikelihoods_match_score(measured: Measured) -> None:
    for sample in measured.samples["likelihood"]:
        context, target = sample["doc"]["context"], sample["doc"]["target"]
        body = {"context": context, "text": target, "add_end": False, "tokens": True}
        result = measured.score(**body)
        assert loglikelihood(sample) == pytest.approx(result["logprob"], rel=1e-9)
        is_greedy = all(token["rank"] == 1 for token in result["tokens"])
        assert sample["acc"] == is_greedy


def test_texts_match_generate(measured: Measured) -> None:
    for sample in measured.samples["writing"]:
        body = {"prompt": sample["doc"]["context"], "temperature": 0, "max_tokens": 40, "stop": ["e"]}
        answer = measured.server.post("/generate", model="tiny", **body).json()
        assert sample["resps"][0][0] == answer["choices"][0]["text"]
