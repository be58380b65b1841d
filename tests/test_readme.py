"""Test the examples of the README and the guide: curl and Python against a real server, verbs, config."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from meari.models.config import load_config
from tests import forked
from tests.patience import PATIENCE
from tests.service.running import Server, clean_environment, events, running_server

ROOT = Path(__file__).parents[1]
README, GUIDE, MEASURED = (
    (ROOT / name).read_text("utf-8") for name in ("README.md", "docs/guide.md", "docs/released-bundles.md")
)
EXAMPLES = f"{README}\n{GUIDE}"
VERBS = re.findall(r"^\.venv/bin/meari ((?:score|generate|models) ?.*?)(?: +#.*)?$", EXAMPLES, re.MULTILINE)
CURLS = re.findall(r"^(?:\$ )?(curl .*)$", EXAMPLES, re.MULTILINE)


def network_figures(figures: dict[str, Any]) -> dict[str, Any]:
    """Return the held-out figures of a bundle's network, without n-grams."""
    found: dict[str, Any] = figures["ngram"]["without"] if "ngram" in figures else figures
    return found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Serve the released bundles like `make serve`."""
    with running_server(tmp_path_factory.mktemp("log"), bundles=ROOT / "bundles") as running:
        yield running


@pytest.mark.parametrize("command", CURLS)
def test_curl_command_succeeds(server: Server, command: str) -> None:
    words = shlex.split(command)
    [path] = [word.removeprefix("localhost:8000") for word in words if word.startswith("localhost:8000")]
    headers = {"Content-Type": "application/json"}
    response = server.client.post(path, content=words[words.index("-d") + 1].encode(), headers=headers)
    assert response.status_code == 200, response.text
    shown = re.findall(rf"^\$ {re.escape(command)}\n(.*)$", EXAMPLES, re.MULTILINE)
    if path == "/score" and shown:  # bit for bit on one kind of CPU; int8 results differ slightly between CPUs
        figures, expected = (json.loads(text)["results"][0] for text in (response.text, shown[0]))
        assert figures == pytest.approx(expected, rel=0.02)
    if "-sN" in words:
        assert events(response)[-1] == "[DONE]"
    else:
        assert response.json()["model"] in command


def test_bulk_examples_run_in_order(tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("To be, or not to be\n\nHe said so.\n", "utf-8")
    (tmp_path / "prompts.txt").write_text("ROMEO:\nJULIET:\n", "utf-8")
    (tmp_path / "nbest.jsonl").write_text('{"id": 1, "text": "a day", "context": "What "}\n', "utf-8")
    environment = clean_environment(bundles=ROOT / "bundles") | {"PYTHONPATH": str(ROOT)}
    assert len(VERBS) > 4
    for line in VERBS:
        done = forked.run(shlex.split(line), cwd=tmp_path, env=environment)
        assert done.returncode == 0, (line, done.stderr)
        assert done.stdout or "-o" in line
    assert len((tmp_path / "scores.jsonl").read_text("utf-8").splitlines()) == 3
    assert len((tmp_path / "texts.jsonl").read_text("utf-8").splitlines()) == 2


def test_python_example_prints_two_scores(server: Server) -> None:
    first, second = json.loads(_output(server, "def score("))
    assert first > second


def test_python_example_joins_the_parts_of_a_text(server: Server) -> None:
    assert _output(server, "return_state=True") == "True\n"


def test_httpx_example_prints_two_texts_with_their_scores(server: Server) -> None:
    first, second = _output(server, "import httpx").splitlines()
    assert float(first.split()[0]) > float(second.split()[0])


def test_openai_example_scores_and_streams(server: Server) -> None:
    score, text = _output(server, "import openai").split("\n", 1)
    expected = server.post("/score", model="shakespeare-lstm", text="To be", add_end=False).json()
    assert float(score) == pytest.approx(expected["results"][0]["logprob"])
    own = server.post("/generate", model="shakespeare-lstm", prompt="ROMEO:\n", max_tokens=40, seed=7).json()
    assert text == own["choices"][0]["text"]


def _output(server: Server, phrase: str) -> str:
    """Run the Python example that contains the phrase and return its output."""
    [code] = [code for code in re.findall(r"```python\n(.*?)```", EXAMPLES, re.DOTALL) if phrase in code]
    code = code.replace("localhost:8000", f"127.0.0.1:{server.port}")
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_config_example_is_valid(tmp_path: Path) -> None:
    [example] = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
    path = tmp_path / "my-model.toml"
    path.write_text(example, "utf-8")
    assert load_config(path).name == "my-model"


@pytest.mark.parametrize("name", ["docs/released-bundles.md", "docs/guide.ko.md"])
def test_released_bundles_are_as_close_to_their_checkpoints_as_the_page_states(name: str) -> None:
    stated = re.search(r"(?:within|float32 체크포인트의 값과) ([0-9.]+) %", (ROOT / name).read_text("utf-8"))
    assert stated is not None
    ratios = [
        network_figures(figures)[part]["perplexity"] / checkpoint["perplexity"]
        for path in (ROOT / "bundles").glob("*/manifest.json")
        for figures in [json.loads(path.read_text("utf-8"))["figures"]]
        for part, checkpoint in figures["checkpoint"].items()
    ]
    assert len(ratios) >= 6
    assert max(abs(ratio - 1) for ratio in ratios) <= float(stated[1]) / 100


@pytest.mark.parametrize("folder", sorted((ROOT / "bundles").glob("*/")), ids=lambda folder: folder.name)
def test_figures_match_the_bundle(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    figures = manifest["figures"]
    [row] = re.findall(rf"^\| `{folder.name}` \|(.*)\|$", README, re.MULTILINE)
    part = figures["reported_part"]
    assert figures["checkpoint_chosen_on"] == "validation"
    unit, name = (
        ("nats/char", "nats_per_char") if part == "validation" else ("bits/char with ends", "bits_per_char_with_ends")
    )
    assert f"**{figures[part][name]:.3f}** {unit}, {part}" in row
    assert f" | {network_figures(figures)[part][name]:.3f} | " in row
    if part == "test":
        assert f"{figures[part]['bits_per_char']:.3f}" in MEASURED  # counted like /score
    assert f"{figures['training_seconds'] / 60:.1f} min" in row
    assert manifest["precision"] in row
    assert f"{manifest['sizes']['trained_parameters']:,}" in row


def test_claims_match_their_evidence() -> None:
    benchmarks = (ROOT / "docs/benchmarks/README.md").read_text("utf-8")
    [[written, int8]] = re.findall(r"writes ([\d,]+) tokens/s for one client: ([\d.]+) times", README)
    [fp32] = re.findall(r"in float32 meari writes ([\d.]+) times", README)
    against = "one client, against Flask + PyTorch"
    assert re.search(rf"^\| {re.escape(against)}, int8 \| .*\| {int8} × \({written} against", benchmarks, re.MULTILINE)
    assert re.search(rf"^\| {re.escape(against)}, fp32 \| .*\| {fp32} × \(", benchmarks, re.MULTILINE)
    [[bundle, figure, alone, baseline]] = re.findall(
        r"`([a-z-]+)` has (\d\.\d+) nats .*, its network alone (\d\.\d+); KenLM of order 6\s+has (\d\.\d+)", README
    )
    manifest = json.loads((ROOT / "bundles" / bundle / "manifest.json").read_text("utf-8"))
    for figures, said in ((manifest["figures"], figure), (network_figures(manifest["figures"]), alone)):
        assert f"{figures['validation']['nats_per_char']:.3f}" == said
    assert manifest["corpus"]["baseline"]["KenLM, characters, order 6, validation"] == f"{baseline} nats/char"


def test_number_of_batch_sizes_matches_the_self_test(server: Server) -> None:
    [sizes] = re.findall(r"batches of (\d+) sizes, from 1 to 64", README)
    batches = server.client.get("/models/shakespeare-lstm").json()["self_test"]["batch_sizes"]
    assert (len(batches), min(batches), max(batches)) == (int(sizes), 1, 64)
