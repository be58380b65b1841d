"""Train a model on a text and serve it, step by step: `python examples/train_your_own.py`, for docs/train-your-own.md.

Every step is a command line, which is printed and run in a separate folder. With `--language korean` the text is
Korean, and the tokens are pieces of words instead of letters.
"""

import argparse
import contextlib
import json
import shlex
import tempfile
from dataclasses import dataclass
from pathlib import Path

from examples.made_text import sentences
from examples.server import post, served
from examples.tiny_model import meari

CONFIG = """\
name = "my-model"
seed = 1

[corpus]
train = ["my-text.txt"]
validation_share = 0.1
document = "line"

[tokenizer]
kind = "char"

[model]
family = "gru"
embedding_size = 32
hidden_size = 128

[training]
steps = 300
batch_size = 32
chunk_length = 48
learning_rate = 1e-2
warmup_steps = 20
restart_share = 0.2
evaluate_every = 100
threads = 1
"""
CHARACTERS = '[tokenizer]\nkind = "char"\n'
PIECES = '[tokenizer]\nkind = "bpe"\nvocabulary_size = 500\n'


@dataclass(frozen=True)
class Walkthrough:
    """Settings of one language, with a grammatical and an ungrammatical sentence to compare."""

    config: str
    prompt: str
    right: str
    wrong: str


WALKTHROUGHS = {
    "english": Walkthrough(
        CONFIG, "The old", "The sailor mends a net by the river.", "The sailor mend an net by river the."
    ),
    "korean": Walkthrough(
        CONFIG.replace(CHARACTERS, PIECES), "늙은", "어부가 강가에서 그물을 고친다.", "어부이 강가에서 그물를 고친다."
    ),
}


def run(command: str, *, last: int = 100) -> None:
    """Print a command, run it, and print the last lines of its output."""
    print(f"$ {command}")
    verb, *arguments = shlex.split(command.removeprefix("meari "))
    for line in meari(verb, *arguments).splitlines()[-last:]:
        print(line)


def run_steps(language: str, num_sentences: int) -> None:
    """Run all steps in the working folder."""
    steps = WALKTHROUGHS[language]
    Path("my-text.txt").write_text("\n".join(sentences(language, num_sentences, seed=1)) + "\n", "utf-8")
    Path("my-model.toml").write_text(steps.config, "utf-8")
    Path("two.txt").write_text(f"{steps.right}\n{steps.wrong}\n", "utf-8")

    run("meari train my-model.toml", last=1)
    run("meari evaluate runs/my-model")
    run("meari export runs/my-model bundles/my-model --precision int8", last=3)

    run(f'meari generate "{steps.prompt}" --model bundles/my-model --temperature 0.5 --seed 7 -o written.txt')
    written = Path("written.txt").read_text("utf-8").removesuffix("\n")
    print(steps.prompt + written)
    run("meari score two.txt --model bundles/my-model --quiet -o scores.jsonl")
    for line in Path("scores.jsonl").read_text("utf-8").splitlines():
        result = json.loads(line)
        print(f"{result['logprob']:8.2f}  {result['text']}")

    print("$ meari serve --bundles bundles")
    with served(Path("bundles")) as address:
        answer = post(address, "/generate", prompt=steps.prompt, temperature=0.5, seed=7)
        print("the server writes the same:", answer["choices"][0]["text"] == written)
        results = post(address, "/score", texts=[steps.right, steps.wrong])["results"]
        print("and scores:", *(f"{result['logprob']:.2f}" for result in results))


def main() -> None:
    """Run all steps in the named folder, or in a temporary one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--language", choices=sorted(WALKTHROUGHS), default="english")
    parser.add_argument("--sentences", type=int, default=4000, metavar="N", help="number of sentences to train on")
    parser.add_argument("--folder", type=Path, help="folder for all files  [a temporary one]")
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = arguments.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        stack.enter_context(contextlib.chdir(folder))
        run_steps(arguments.language, arguments.sentences)


if __name__ == "__main__":
    main()
