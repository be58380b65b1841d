"""Test `meari generate` with one prompt and with files of prompts; texts do not depend on other prompts."""

from __future__ import annotations

import csv
import io
import json
import signal
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from meari.bulk.generate import line_seed
from meari.service.app import create_app
from meari.service.settings import Settings
from tests.bulk.command import RELEASED, meari, records, started
from tests.bulk.test_resume import ended
from tests.patience import PATIENCE

PROMPTS = ["ROMEO:", "", "To be, or not ", "é한", "ROMEO:"]
SETTINGS: dict[str, Any] = {
    "max_tokens": 12, "temperature": 0.8, "top_k": 20, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.1,
    "frequency_penalty": 0.5, "presence_penalty": -0.2, "min_tokens": 5, "n": 2, "logprobs": 1,
    "stop": ["th", "\n\n"], "logit_bias": {"5": -1.5},
}  # fmt: skip
WORDS = [
    "--max-tokens", 12, "--temperature", 0.8, "--top-k", 20, "--top-p", 0.9, "--min-p", 0.01,
    "--frequency-penalty", 0.5, "--presence-penalty", -0.2, "--min-tokens", 5,
    "--repetition-penalty", 1.1, "--n", 2, "--logprobs", 1, "--stop", "th", "--stop", "\n\n", "--logit-bias", "5=-1.5",
]  # fmt: skip


@pytest.fixture(scope="module")
def http() -> Any:
    """Return a function that sends POST /generate to the released bundles."""
    app = create_app(Settings(bundles=RELEASED, workers=1, log_level="error"))
    registry = app.extensions["meari"].registry
    assert registry.wait_loaded(PATIENCE)
    client: FlaskClient = app.test_client()

    def generate(**body: Any) -> dict[str, Any]:
        answer = client.post("/generate", json=body)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = json.loads(answer.data)
        return found

    yield generate
    registry.stop()


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(PROMPTS) + "\n", "utf-8")
    return path


def test_every_line_equals_the_response_of_http_for_its_seed(prompts: Path, http: Any) -> None:
    done = meari("generate", "--prompts", prompts, "--model", "shakespeare-gru", "--seed", 11, *WORDS, "--jobs", 2)
    assert done.returncode == 0, done.stderr
    found = records(done.stdout)
    assert [(record["line"], record["prompt"]) for record in found] == list(enumerate(PROMPTS, 1))
    for record in found:
        answer = http(model="shakespeare-gru", prompt=record["prompt"], seed=record["seed"], **SETTINGS)
        assert (record["choices"], record["usage"]["generated_tokens"]) == (
            answer["choices"],
            answer["usage"]["generated_tokens"],
        )
        for choice in record["choices"]:
            alone = {**SETTINGS, "n": 1, "seed": choice["seed"]}
            [again] = http(model="shakespeare-gru", prompt=record["prompt"], **alone)["choices"]
            assert again == choice | {"index": 0}
    assert found[0]["choices"] != found[4]["choices"]  # the same prompt on another line


def test_text_of_a_line_depends_only_on_the_seed_and_the_line_number(bundles: Path, tmp_path: Path) -> None:
    many, few = tmp_path / "many.txt", tmp_path / "few.txt"
    many.write_text("ab\n" * 400)
    few.write_text("ab\n" * 3)
    words = ["--bundles", bundles, "--seed", 5, "--prompts"]
    first = records(meari("generate", *words, many, "--jobs", 1).stdout)
    assert first == records(meari("generate", *words, many, "--jobs", 3).stdout)
    assert first[:3] == records(meari("generate", *words, few).stdout)
    assert len({record["choices"][0]["text"] for record in first}) > 100
    assert [record["seed"] for record in first] == [line_seed(5, line) for line in range(1, 401)]


def test_random_seed_is_reported(bundles: Path, tmp_path: Path) -> None:
    summary = tmp_path / "summary.json"
    first = meari("generate", "--bundles", bundles, "--prompts", "-", "--summary", summary, stdin="a\nb\n")
    seed = json.loads(summary.read_text())["seed"]
    again = meari("generate", "--bundles", bundles, "--prompts", "-", "--seed", seed, stdin="a\nb\n")
    assert first.stdout == again.stdout
    assert first.stdout != meari("generate", "--bundles", bundles, "--prompts", "-", stdin="a\nb\n").stdout


def test_killed_run_resumes_with_the_same_seed(bundles: Path, tmp_path: Path) -> None:
    path, output, summary = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl", tmp_path / "summary.json"
    path.write_text("".join(json.dumps({"id": i, "prompt": "ab" * (i % 3)}) + "\n" for i in range(6000)))
    words = ["generate", "--prompts", path, "--bundles", bundles, "-o", output, "--resume"]
    assert ended(started(*words), output, 200_000, signal.SIGKILL) == -signal.SIGKILL
    done = meari(*words, "--summary", summary)
    assert done.returncode == 0, done.stderr
    seed = json.loads(summary.read_text())["seed"]
    whole = meari("generate", "--prompts", path, "--bundles", bundles, "--seed", seed)
    assert output.read_bytes() == whole.stdout
    other = meari(*words, "--seed", seed + 1)
    assert other.returncode == 1
    assert f"seed: got {seed + 1}, the run to resume had {seed}" in other.stderr.decode()


def test_single_prompt_gives_the_text_of_http(http: Any) -> None:
    words = ["--model", "shakespeare-lstm", "--seed", 7, "--max-tokens", 60, "--temperature", 0.7]
    done = meari("generate", "ROMEO:\n", *words)
    answer = http(model="shakespeare-lstm", prompt="ROMEO:\n", seed=7, max_tokens=60, temperature=0.7)
    assert done.stdout.decode() == answer["choices"][0]["text"] + "\n"
    [record] = records(meari("generate", "ROMEO:\n", *words, "--format", "jsonl").stdout)
    assert record["choices"] == answer["choices"]
    assert record["seed"] == 7


def test_text_is_written_while_it_is_generated(bundles: Path) -> None:
    words = ["generate", "ab", "--bundles", bundles, "--max-tokens", 50_000_000, "--logit-bias", "0=-100"]
    with started(*words) as process:
        assert process.stdout is not None
        assert process.stdout.read(10)
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.wait(PATIENCE) == 130


def test_beams_are_written_best_first(http: Any) -> None:
    words = ["--model", "shakespeare-rnn", "--num-beams", 4, "--n", 3, "--max-tokens", 8]
    done = meari("generate", "ROMEO:", *words)
    answer = http(model="shakespeare-rnn", prompt="ROMEO:", num_beams=4, n=3, max_tokens=8)
    assert done.stdout.decode() == "---\n".join(choice["text"] + "\n" for choice in answer["choices"])


def test_tsv_and_text_have_one_line_for_each_sample(prompts: Path) -> None:
    words = ["generate", "--prompts", prompts, "--seed", 3, "--n", 2, "--max-tokens", 30, "--model", "shakespeare-rnn"]
    expected = [choice for record in records(meari(*words).stdout) for choice in record["choices"]]
    tsv = meari(*words, "--format", "tsv").stdout.decode()
    found = list(csv.DictReader(io.StringIO(tsv), dialect="excel-tab"))
    lines = meari(*words, "--format", "text").stdout.decode().split("\n")[:-1]
    texts = [choice["text"].replace("\\", "\\\\").replace("\n", "\\n") for choice in expected]
    assert lines == texts
    assert [row["text"] for row in found] == texts
    assert [int(row["seed"]) for row in found] == [choice["seed"] for choice in expected]
    assert len({row["seed"] for row in found}) == len(found)
    assert [(row["line"], row["index"]) for row in found] == [(str(i // 2 + 1), str(i % 2)) for i in range(10)]
    assert all(float(row["logprob"]) < 0 for row in found)


@pytest.mark.parametrize("output_format", ["jsonl", "tsv"])
def test_unknown_tokens_are_counted_in_every_row(output_format: str) -> None:
    words = ["generate", "--prompts", "-", "--model", "shakespeare-lstm", "--max-tokens", 2, "--format", output_format]
    done = meari(*words, stdin="안녕 the\nplain\n")
    if output_format == "jsonl":
        found = [record["usage"].get("unknown_tokens", 0) for record in records(done.stdout)]
    else:
        rows = csv.DictReader(io.StringIO(done.stdout.decode()), dialect="excel-tab")
        found = [int(row["unknown_tokens"]) for row in rows]
    assert found == [2, 0]
    assert b"2 tokens of prompts unknown" in done.stderr


def test_stop_string_matches_in_every_unicode_normalisation() -> None:
    words = ["generate", "이 영화는", "--model", "nsmc-lstm", "--max-tokens", 20, "--seed", 4]
    whole = meari(*words).stdout.decode().rstrip("\n")
    stop = whole.split()[-1][:2]
    cut = [meari(*words, "--stop", unicodedata.normalize(form, stop)).stdout for form in ("NFC", "NFD")]
    assert cut[0] == cut[1] == (whole[: whole.index(stop)] + "\n").encode()


def test_bad_lines_keep_their_position(bundles: Path) -> None:
    stdin = '{"prompt": "a", "id": 1}\n{"text": "a"}\n{"prompt": "b"}\n'
    done = meari("generate", "--bundles", bundles, "--prompts", "-", "--skip-bad", stdin=stdin)
    found = records(done.stdout)
    assert found[1] == {"line": 2, "error": "prompt: missing, expected a string"}
    assert (found[0]["id"], found[2]["line"]) == (1, 3)
    stopped = meari("generate", "--bundles", bundles, "--prompts", "-", stdin=stdin)
    assert stopped.returncode == 1
    assert [record["line"] for record in records(stopped.stdout)] == [1]
    assert b"line 2: prompt: missing" in stopped.stderr


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["a", "--top-p", "1.4"], 2, "--top-p: got 1.4, expected 0 <= top_p <= 1"),
        (["a", "--n", "17"], 2, "--n: got 17"),
        (["a", "--top-k", "-2"], 2, "--top-k: got -2, expected top_k >= -1"),
        (["a", "--logit-bias", "x"], 2, "--logit-bias: got 'x', expected ID=BIAS"),
        (["a", "--logit-bias", "99=1"], 1, "logit_bias: got the key"),
        (["a", "--temperature", "nan"], 2, "--temperature: got nan, expected a number"),
        (["a", "--top-p", "inf"], 2, "--top-p: got inf, expected a number"),
        (["a", "--seed", "-2"], 2, "--seed: got -2"),
        (["a", "--num-beams", "3", "--n", "4"], 2, "--n: got 4, expected at most num_beams"),
        (["a", "--prompts", "-"], 2, "expected one of the two"),
        (["a", "--resume"], 2, "without --prompts"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(bundles: Path, words: list[str], code: int, message: str) -> None:
    done = meari("generate", "--bundles", bundles, *words)
    assert done.returncode == code
    assert message in done.stderr.decode()
    assert b"Traceback" not in done.stderr
