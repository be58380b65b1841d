"""Test the bulk verbs on the command line: their imports, their help and `--words`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from meari.cli.main import group
from tests import forked

ROOT = Path(__file__).parents[2]
ELSEWHERE = ("torch", "rich", "onnx", "scipy", "matplotlib", "safetensors", "models", "export", "flask", "gunicorn")


def loaded_after(code: str) -> set[str]:
    code = f"import sys\n{code}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_bulk_verbs_import_neither_training_nor_http() -> None:
    code = "from meari.bulk import generate, remote, run, score, worker; import meari.cli.generate, meari.cli.score"
    assert loaded_after(code).isdisjoint(ELSEWHERE)


def test_help_does_not_import_the_engine() -> None:
    code = "from meari.cli.main import group\ngroup(['score', '--help'], standalone_mode=False)"
    assert loaded_after(code).isdisjoint({*ELSEWHERE, "onnxruntime", "numpy", "tokenizers", "msgspec"})


@pytest.mark.parametrize(("verb", "example"), [("score", "--resume"), ("generate", "--prompts prompts.txt")])
def test_help_shows_examples(verb: str, example: str) -> None:
    result = CliRunner().invoke(group, [verb, "--help"])
    assert result.exit_code == 0
    assert f"  meari {verb} " in result.output
    assert example in result.output.split("Examples:")[1]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["--words", "TEXT"], ["ab", "cd."]),
        (["TEXT", "--words"], ["ab", "cd."]),
        (["--words", "--no-end", "TEXT"], ["ab", "cd."]),
        (["--words", "spaces", "TEXT"], ["ab", "cd."]),
        (["--words=unicode", "TEXT"], ["ab", "cd", "."]),
        (["TEXT", "--words", "unicode"], ["ab", "cd", "."]),
    ],
)
def test_words_is_a_flag_or_takes_a_method(words: list[str], found: list[str], tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("ab cd.\n")
    own = [str(tmp_path / "text.txt") if word == "TEXT" else word for word in words]
    arguments = ["score", *own, "--no-end", "--quiet", "--bundles", str(ROOT / "bundles" / "shakespeare-rnn")]
    done = forked.run(arguments)
    assert [word["text"] for word in json.loads(done.stdout)["words"]] == found


def test_score_without_arguments_is_a_usage_error() -> None:
    result = CliRunner().invoke(group, ["score"])
    assert result.exit_code == 2
    assert "got none" in result.output
