"""`meari score` and `meari generate` over files: tokens a CPU-second, without what their start takes.

Enters: a bundle. Leaves: plain figures. CPU time is that of the command with all of its processes.
"""

from __future__ import annotations

import random
import resource
import subprocess
import sys
from pathlib import Path

from benchmarks.serving.requests import NEW_TOKENS, PROMPT_WORDS, SENTENCE_WORDS
from benchmarks.serving.words import make_text, make_words

SHORT_RUN = 100  # lines, of a run that is subtracted for the start that both share
LINES = {"score": 2000, "generate": 500}  # of the long run, for a second of it and a CPU, about
TOKENS = {"score": SENTENCE_WORDS + 1, "generate": NEW_TOKENS}  # a line
TIMEOUT_SECONDS = 120


def bulk_rates(bundle: Path, work: Path, seconds: float) -> dict[str, int]:
    """Tokens a CPU-second of both commands, from the difference of a short run and one of some `seconds`."""
    rates = {}
    for verb, lines in LINES.items():
        many = SHORT_RUN + round(lines * seconds)
        cpu = _cpu_seconds(bundle, work, verb, many) - _cpu_seconds(bundle, work, verb, SHORT_RUN)
        rates[f"{verb}_tokens_per_cpu_second"] = round((many - SHORT_RUN) * TOKENS[verb] / cpu)
    return rates


def _cpu_seconds(bundle: Path, work: Path, verb: str, num_lines: int) -> float:
    generator = random.Random(num_lines)  # noqa: S311 (no secret)
    words = make_words()
    length = SENTENCE_WORDS if verb == "score" else PROMPT_WORDS
    lines = work / "lines.txt"
    lines.write_text("".join(make_text(words, length, generator) + "\n" for _ in range(num_lines)), "utf-8")
    files = [str(lines)] if verb == "score" else ["--prompts", str(lines), "--max-tokens", str(NEW_TOKENS)]
    command = [sys.executable, "-m", "meari.cli.main", verb, *files, "--bundles", str(bundle), "--quiet"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=True, timeout=TIMEOUT_SECONDS)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
