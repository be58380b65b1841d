"""Page of the benchmark in docs/benchmarks/: the page, the details, the figures as JSON, the pictures.

Input: results. Output: files. Must not know: servers.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.serving.plots import draw_all
from benchmarks.serving.results import Results
from benchmarks.serving.tables import inside_table, peak_table, rates_table, starts_table, targets_table, waits_table
from benchmarks.serving.targets import target_rows

PICTURES = {
    "throughput.png": "Tokens a second by server and load",
    "cpu.png": "Server CPU-seconds for 1,000 tokens by server and load",
    "first-token.png": "p95 of the first token over the offered share of capacity",
}

HOW = """\
- **Servers.** Each serves the same bundle alone, with one worker a CPU and one onnxruntime (or torch) thread a
  worker: `benchmarks/serving/servers/`, a file each. *flask-torch* is Flask and PyTorch as tutorials write it, on
  the same weights in float32. *litserve* batches continuously, step by step; *mosec*, *bentoml* and *ray* batch
  whole requests, up to 64 at a time. BentoML's batched endpoints cannot stream, so its first token comes with
  the last.
- **raw** is a bare onnxruntime loop over the bundle's two graphs with bound buffers, no sampling, no text: the
  best batch size counts. Targets compare a load with this loop just before and after the load, the mean of both,
  because a shared machine is not as fast some minutes later; two servers likewise, each with the loop beside it.
  **engine** is meari's loop in process, without HTTP. Both run as one process a CPU, and alone.
- **Models.** `lstm-*` and `gru-fp32` have two layers of 512 and a vocabulary of 10,000 words, `esn-fp32` 4,096
  units. Their weights are random, the output layer scaled so that a step has about 5.5 nats; the end token is
  out of reach. The others are the released bundles.
- **Closed loads** (`whole × 64`): so many clients, each with one request at a time: a prompt of 4 words, 64 new
  tokens. `stream` reads events as they come. An answer's tokens lie evenly over its time; what falls into the
  window counts.
- **Mixed** lengths of prompt and answer are log-normal between 8 and 256 tokens. `mixed × 128` is a closed
  loop: a server's *capacity*. `mixed 80%` is an open loop: Poisson arrivals at that share of the server's own
  capacity, times counted from when a request was due. Servers that can stream do. *goodput* is the largest such
  load, found by halving, at which the p95 of the first token is at most 100 ms, that of the gap at most 50 ms, and at
  most 1 % of the requests are refused or fail.
- **Scoring**: single sentences of 20 words, lists of 100, and 100-best lists that share prefixes. Tokens are
  those of the texts, ends included, whatever was really run.
- **CPU-seconds** are those of all of a server's processes (/proc, children that have ended included), without
  the driver, which shares the machine. The last columns of the details say what share of one CPU the driver
  took, and what *others* on the machine took: above 10 % in the mean no target is judged. **MB** is the
  sum of PSS over all processes at the end of the window, with the load still on.
- **Times** are in ms: p50 / p95 / p99. *Late* answers were not complete when the load was over; their waiting
  so far counts among the times, as a lower bound. *Refused* is 429 or 503, with the time until it came.
- Figures of one run on one machine compare with one another, and with nothing else."""


def write_page(results: Results, folder: Path) -> None:
    """Write all files into the folder, replacing those of an earlier run."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(results.to_json(), "utf-8")
    pictures = draw_all(results, folder)
    (folder / "README.md").write_text(_page(results, pictures), "utf-8")
    (folder / "details.md").write_text(_details(results), "utf-8")


def _page(results: Results, pictures: list[str]) -> str:
    about = results.about
    versions = ", ".join(f"{name} {version}" for name, version in about.get("versions", {}).items())
    head = [
        "# Benchmarks",
        "meari beside other servers of the same bundles, and beside what onnxruntime itself allows.",
        f"Written by `{about.get('command')}`, {about.get('date')}, in {about.get('minutes')} minutes.",
        f"{about.get('num_cpus')} CPUs: {about.get('cpu')}; {about.get('memory_gb')} GB; {about.get('system')}.",
        versions + ".",
        *_noise(results),
    ]
    sections = [
        ("Targets", targets_table(target_rows(results))),
        *((PICTURES[name], f"![{PICTURES[name]}]({name})") for name in pictures),
        *((f"{model}", rates_table(results, model)) for model in _models(results)),
        ("The limit: raw", f"{inside_table(results, 'raw')}\n\n{peak_table(results)}"),
        ("The engine without HTTP", inside_table(results, "engine")),
        ("kenlm", _kenlm(results)),
        ("Not measured", _failures(results)),
        ("How it is measured", HOW),
    ]
    body = [f"## {title}\n\n{text}" for title, text in sections if text.strip()]
    return "\n\n".join([*head, *body]) + "\n\nTimes, refusals and memory are in [details.md](details.md).\n"


def _noise(results: Results) -> list[str]:
    """Return a warning if something else ran on the machine."""
    if results.is_quiet:
        return []
    most = max(m.other_cpu_share for m in results.measurements)
    others = f"other processes took {results.other_cpu_share:.0%} of a CPU in the mean, {most:.0%} at most"
    return [f"**The machine was not quiet**: {others}. So no target is judged."]


def _details(results: Results) -> str:
    parts = [f"## {model}\n\n{waits_table(results, model)}" for model in _models(results)]
    start = f"## Start and memory\n\n{starts_table(results)}"
    return "\n\n".join(["# Times, refusals, memory", *parts, start]) + "\n"


def _models(results: Results) -> list[str]:
    return list(dict.fromkeys(m.model for m in results.measurements))


def _kenlm(results: Results) -> str:
    found = results.probes.get("kenlm")
    if not found:
        return ""
    return (
        f"`shakespeare-lstm` wrote {found['training_tokens'] + found['held_out_tokens']:,} tokens by sampling from "
        f"itself; a 5-gram model over the same tokens was counted on {found['training_tokens']:,} of them, and both "
        "scored the rest. Perplexity a token: "
        f"meari {found['perplexity_meari']:.2f} (the entropy of the source, which nothing can beat), "
        f"kenlm {found['perplexity_kenlm']:.2f}. Tokens a CPU-second, in process: meari "
        f"{found['tokens_per_cpu_second_meari']:,}, kenlm {found['tokens_per_cpu_second_kenlm']:,}."
    )


def _failures(results: Results) -> str:
    return "\n".join(f"- {what}: {reason.splitlines()[0]}" for what, reason in results.failures.items())
