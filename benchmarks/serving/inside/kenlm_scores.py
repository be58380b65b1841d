"""kenlm beside a bundle, on text that the bundle wrote.

Run by `python -m benchmarks.serving.inside.kenlm_scores BUNDLE FOLDER`.

The bundle writes a corpus by sampling from itself; a 5-gram model over its tokens is counted on most of it, and both
score the rest. So the bundle's own perplexity is the entropy of the source, a lower bound, and kenlm's shows how
much 5-grams learn. Figures: perplexities a token (the end not counted: these texts have none of their own), and
tokens a CPU-second of each scorer in process.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.serving.inside.engine import NO_END, open_model
from meari.runtime.engine.calls import GenerateCall, Sampling, ScoreCall
from meari.runtime.model import LoadedModel

BEGIN, END, UNKNOWN = "<s>", "</s>", "<unk>"
ORDER = 5
Gram = tuple[str, ...]
NUM_SENTENCES, HELD_OUT, SENTENCE_TOKENS = 4000, 400, 50
AT_ONCE = 100
Sentences = list[list[int]]


def write_arpa(path: Path, sentences: Iterable[Sequence[str]], vocabulary: Sequence[str]) -> None:
    """Count n-grams and write them. Words of the vocabulary that occur in no sentence get their share too."""
    counts = count_ngrams(sentences)
    words = [UNKNOWN, END, *vocabulary]
    probabilities: list[dict[Gram, float]] = [{(): 1 / len(words)}]
    backoffs: dict[Gram, float] = {}
    for order in range(1, ORDER + 1):
        probabilities.append(_smoothed(counts[order - 1], probabilities[order - 1], backoffs, words, order))
    probabilities[1].setdefault((BEGIN,), 1e-99)
    with path.open("w", encoding="utf-8") as file:
        file.write("\\data\\\n" + "".join(f"ngram {n}={len(probabilities[n])}\n" for n in range(1, ORDER + 1)))
        for order in range(1, ORDER + 1):
            file.write(f"\n\\{order}-grams:\n")
            for gram, probability in sorted(probabilities[order].items()):
                backoff = f"\t{math.log10(backoffs.get(gram, 1.0)):.6f}" if order < ORDER else ""
                file.write(f"{math.log10(probability):.6f}\t{' '.join(gram)}{backoff}\n")
        file.write("\n\\end\\\n")


def count_ngrams(sentences: Iterable[Sequence[str]]) -> list[Counter[Gram]]:
    """Count n-grams of every order, the begin of a sentence as context alone."""
    counts: list[Counter[Gram]] = [Counter() for _ in range(ORDER)]
    for sentence in sentences:
        padded = [BEGIN, *sentence, END]
        for end in range(1, len(padded)):
            for order in range(1, min(ORDER, end + 1) + 1):
                counts[order - 1][tuple(padded[end - order + 1 : end + 1])] += 1
    return counts


def _smoothed(
    counts: Counter[Gram], shorter: dict[Gram, float], backoffs: dict[Gram, float], words: Sequence[str], order: int
) -> dict[Gram, float]:
    """Return P(last | context) of every n-gram seen (of every word for order 1); add each context's backoff weight."""
    totals: defaultdict[Gram, int] = defaultdict(int)
    kinds: defaultdict[Gram, int] = defaultdict(int)
    for gram, count in counts.items():
        totals[gram[:-1]] += count
        kinds[gram[:-1]] += 1
    grams: Iterable[Gram] = counts if order > 1 else [(word,) for word in words]
    found = {}
    for gram in grams:
        context = gram[:-1]
        total, kind = totals[context], kinds[context]
        below = shorter[gram[1:]] if order > 1 else shorter[()]
        found[gram] = (counts[gram] + kind * below) / (total + kind)
    for context, total in totals.items():
        if context:
            backoffs[context] = kinds[context] / (total + kinds[context])
    return found


def write_sentences(model: LoadedModel) -> Sentences:
    """Sample sentences of so many tokens from the bundle."""
    sentences: Sentences = []
    while len(sentences) < NUM_SENTENCES:
        running = []
        for seed in range(len(sentences), len(sentences) + AT_ONCE):
            sampling = Sampling(seed=seed, logit_bias=NO_END)
            call = GenerateCall([], SENTENCE_TOKENS, model.engine.clock() + 120.0, sampling)
            running.append(model.engine.generate(call, model.engine.reserve()))
        for generation in running:
            generation.wait_end(120.0)
            sentences.append(list(generation.samples[0].token_ids))
    return sentences


def score_by_bundle(model: LoadedModel, sentences: Sentences) -> tuple[float, float]:
    """Return the sum of log-probabilities, and tokens a CPU-second."""
    cpu, total = time.process_time(), 0.0
    for first in range(0, len(sentences), AT_ONCE):
        texts = sentences[first : first + AT_ONCE]
        call = ScoreCall([], texts, model.engine.clock() + 120.0, add_end=False)
        scoring = model.engine.score(call, model.engine.reserve())
        scoring.wait_end(120.0)
        scoring.raise_for_failure()
        total += sum(float(result.logprobs.sum()) for result in scoring.results)
    return total, sum(map(len, sentences)) / (time.process_time() - cpu)


def score_by_kenlm(arpa_file: Path, texts: list[str], num_tokens: int) -> tuple[float, float]:
    """Return the sum of log-probabilities by an n-gram model, and tokens a CPU-second without the loading of the
    file.
    """
    import kenlm  # installed in .venv-bench alone

    scorer = kenlm.Model(str(arpa_file))
    cpu = time.process_time()
    total = sum(scorer.score(text, bos=True, eos=False) for text in texts)
    return total * math.log(10), num_tokens / (time.process_time() - cpu)


def main() -> None:
    """Arguments: bundle, a folder for the ARPA file."""
    folder = Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    model = open_model(Path(sys.argv[1]))
    sys.stdin.readline()
    names = [f"t{token}" for token in range(model.tokenizer.vocabulary.size)]  # white space is no word for kenlm
    sentences = write_sentences(model)
    train, held_out = sentences[:-HELD_OUT], sentences[-HELD_OUT:]
    arpa_file = folder / "5-grams.arpa"
    write_arpa(arpa_file, [[names[token] for token in row] for row in train], names[1:])
    num_tokens = sum(map(len, held_out))
    ours, our_rate = score_by_bundle(model, held_out)
    texts = [" ".join(names[token] for token in row) for row in held_out]
    theirs, their_rate = score_by_kenlm(arpa_file, texts, num_tokens)
    figures = {
        "training_tokens": sum(map(len, train)),
        "held_out_tokens": num_tokens,
        "perplexity_meari": round(math.exp(-ours / num_tokens), 2),
        "perplexity_kenlm": round(math.exp(-theirs / num_tokens), 2),
        "tokens_per_cpu_second_meari": round(our_rate),
        "tokens_per_cpu_second_kenlm": round(their_rate),
    }
    print(json.dumps(figures), flush=True)  # noqa: T201
    model.engine.stop()


if __name__ == "__main__":
    main()
