"""Times of `meari.load` and of lists: `python -m benchmarks.library_times bundles/NAME… --texts FILE`.

Input: folders of bundles, texts of the models' languages. Output: a table with a row a bundle: seconds from
`import meari` to the first score, in a process of its own; tokens/s of `lm.score` of a list and of `meari score` of a
file with as many workers, both once they are open. CPU figures count all threads and processes. Must not know: the
service.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import meari
from meari.bulk.options import ScoreOptions
from meari.bulk.plan import RunPlan
from meari.bulk.run import run
from meari.bulk.source import Source
from meari.bulk.totals import ScoreTotals
from meari.runtime.machine import granted_cpus

ROUNDS = 3
NUM_CHARS = 200_000  # of a list
LOADING = """
import time
started = time.perf_counter()
import meari, resource, sys
lm = meari.load(sys.argv[1])
lm.score("a")
seconds = time.perf_counter() - started
used = resource.getrusage(resource.RUSAGE_SELF)
print(seconds, used.ru_utime + used.ru_stime)
"""


@dataclass(frozen=True)
class Times:
    """Seconds by the clock and of CPU."""

    wall: float
    cpu: float

    def less(self, other: "Times") -> "Times":
        """Return the times without those of `other`."""
        return Times(self.wall - other.wall, self.cpu - other.cpu)


def median(times: Sequence[Times]) -> Times:
    """Return the median of each figure."""
    return Times(statistics.median(each.wall for each in times), statistics.median(each.cpu for each in times))


def loading_times(folder: Path, bytecode: Path) -> Times:
    """Return the times of a process that loads a bundle and scores a letter. bytecode: folder for Python's caches."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [sys.executable, "-c", LOADING, str(folder.resolve())],
        env={**kept, "PYTHONPYCACHEPREFIX": str(bytecode)},
        capture_output=True,
        text=True,
        check=True,
    )
    return Times(*map(float, done.stdout.split()))


def bulk_times(folder: Path, file: Path, num_workers: int) -> tuple[Times, ScoreTotals]:
    """Score a file as `meari score` does; the clock starts with the first line, the CPU time with the processes."""
    before = _cpu_seconds()
    options = ScoreOptions(
        bundle=str(folder.resolve()), input_format="text", format="jsonl", with_text=False, add_end=False
    )
    plan = RunPlan(file.with_suffix(".out"), num_workers, overwrite=True)
    result = run(Source([str(file)]), options, plan)
    assert isinstance(result.totals, ScoreTotals)
    return Times(result.seconds, _cpu_seconds() - before), result.totals


def list_times(score: Callable[[], object]) -> Times:
    """Return the times of a call."""
    started, cpu = time.perf_counter(), _cpu_seconds()
    score()
    return Times(time.perf_counter() - started, _cpu_seconds() - cpu)


def _cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def library_row(folder: Path, texts: Sequence[str], num_workers: int, rounds: int = ROUNDS) -> str:
    """Return the figures of a bundle. Lists and files are scored in turn; the medians are shown."""
    with tempfile.TemporaryDirectory() as name:
        file, one = Path(name) / "texts.txt", Path(name) / "one.txt"
        file.write_text("".join(f"{text}\n" for text in texts), "utf-8")
        one.write_text("a\n", "utf-8")
        loading_times(folder, Path(name))  # writes the caches
        loading = median([loading_times(folder, Path(name)) for _ in range(rounds)])
        opening = Times(0.0, num_workers * bulk_times(folder, one, 1)[0].cpu)
        lists, files = [], []
        with meari.load(folder, num_engines=num_workers) as lm:
            lm.score(texts, end=False)  # opens the engines for lists
            for _ in range(rounds):
                lists.append(list_times(lambda: lm.score(texts, end=False)))
                found, totals = bulk_times(folder, file, num_workers)
                files.append(found.less(opening))
    ours, bulk, count = median(lists), median(files), totals.num_tokens
    cells = f"{loading.wall:>8.2f}{loading.cpu:>9.2f}{count / ours.wall:>10,.0f}{count / bulk.wall:>10,.0f}"
    cells += f"{bulk.wall / ours.wall:>8.0%}{count / ours.cpu:>12,.0f}{count / bulk.cpu:>12,.0f}"
    return f"{folder.name:<18}{cells}{bulk.cpu / ours.cpu:>8.0%}"


def library_table(
    folders: Sequence[Path], texts: Sequence[str], num_workers: int | None = None, rounds: int = ROUNDS
) -> Iterator[str]:
    """Yield a title and a row a bundle. num_workers: engines, or processes; None: one for each CPU."""
    names = ("load s", "CPU s", "list/s", "file/s", "ratio", "list/CPU s", "file/CPU s", "ratio")
    yield f"{'tokens/s':<18}" + "".join(
        f"{name:>{width}}" for name, width in zip(names, (8, 9, 10, 10, 8, 12, 12, 8), strict=True)
    )
    for folder in folders:
        yield library_row(folder, texts, num_workers or granted_cpus(), rounds)


def read_texts(file: Path, num_chars: int = NUM_CHARS) -> list[str]:
    """Return the lines of a file that are not empty, about so many characters of them."""
    texts: list[str] = []
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            if num_chars <= 0:
                break
            if text := line.rstrip("\n"):
                texts.append(text)
                num_chars -= len(text)
    return texts


def main() -> None:
    """Print the table of the bundles that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", metavar="bundles/NAME")
    parser.add_argument("--texts", type=Path, required=True, help="a text file, a text a line")
    parser.add_argument("--workers", type=int, help="engines of lists, and worker processes  [one for each CPU]")
    parser.add_argument("--chars", type=int, default=NUM_CHARS, help=f"of the texts that are scored  [{NUM_CHARS:,}]")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"of which the medians are shown  [{ROUNDS}]")
    options = parser.parse_args()
    texts = read_texts(options.texts, options.chars)
    for line in library_table(options.folders, texts, options.workers, options.rounds):
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
