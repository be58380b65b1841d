"""Write tasks for lm-evaluation-harness and run its command line in .venv-harness."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = ROOT / ".venv-harness" / "bin" / "lm_eval"
needs_harness = pytest.mark.skipif(
    not PROGRAM.exists(), reason="lm-evaluation-harness is not installed; `make harness` installs it"
)

TASKS = {
    "rolling": """
task: rolling
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - {metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}
  - {metric: byte_perplexity, aggregation: weighted_perplexity, higher_is_better: false}
  - {metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}
""",
    "ended": """
task: ended
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{text}}<|end|>"
metric_list:
  - {metric: byte_perplexity, aggregation: weighted_perplexity, higher_is_better: false}
""",
    "likelihood": """
task: likelihood
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
output_type: loglikelihood
test_split: test
doc_to_text: "{{context}}"
doc_to_target: "{{target}}"
target_delimiter: ""
metric_list:
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
  - {metric: acc, aggregation: mean, higher_is_better: true}
""",
    "writing": """
task: writing
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
output_type: generate_until
test_split: test
doc_to_text: "{{context}}"
doc_to_target: "{{answer}}"
target_delimiter: ""
generation_kwargs: {until: ["e"], max_gen_toks: 40, temperature: 0.0, do_sample: false}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
""",
}


def write_task(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    """Write a task with this name and these documents."""
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    (folder / f"{name}.yaml").write_text(TASKS[name].replace("DATA", json.dumps(str(data))), "utf-8")


def write_tokenizer(folder: Path, bundle: Path) -> Path:
    """Write a bundle's tokenizer for `transformers`; the boundary token starts and ends texts."""
    folder.mkdir()
    (folder / "tokenizer.json").write_bytes((bundle / "tokenizer.json").read_bytes())
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|end|>", "eos_token": "<|end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    return folder


def run_harness(
    folder: Path, port: int, model: str, batch_size: int, **arguments: object
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run all tasks in `folder`; return metrics by task and samples by task."""
    own = {
        "model": model,
        "base_url": f"http://127.0.0.1:{port}/v1/completions",
        "tokenizer_backend": "huggingface",
        **arguments,
    }
    tasks = sorted(path.stem for path in folder.glob("*.yaml"))
    arguments_text = ",".join(f"{name}={value}" for name, value in own.items())
    command = [str(PROGRAM), "run", "--model", "local-completions", "--model_args", arguments_text]
    command += ["--tasks", ",".join(tasks), "--include_path", str(folder), "--batch_size", str(batch_size)]
    command += ["--output_path", str(folder / "out"), "--log_samples"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "cache")}
    done = subprocess.run(
        command, cwd=folder, env=os.environ | offline, capture_output=True, text=True, check=False, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]
    [results] = (folder / "out").rglob("results_*.json")
    samples = {
        task: list(map(json.loads, next(results.parent.glob(f"samples_{task}_*")).read_text("utf-8").splitlines()))
        for task in tasks
    }
    return json.loads(results.read_text("utf-8"))["results"], samples
