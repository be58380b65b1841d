"""Times of completions while somebody types: `python -m benchmarks.typing_times bundles/NAME…`.

Input: folders of bundles. Output: a table with a row a bundle: milliseconds of a keystroke, as it is seen and as CPU
time of the process, while a text is typed at the pace of `KEYS_PER_SECOND`. Must not know: the service.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from meari.runtime.engine import EngineLimits
from meari.runtime.model import LoadedModel, load_model
from meari.runtime.requests import CompleteRequest
from meari.runtime.word_completion import begin_word_completion

KEYS_PER_SECOND = 10.0
CACHE_BYTES = 20 << 20  # as the service has by default
ENGLISH = (
    "It was a dark evening, and the wind was very strong. She could not believe what he said, but she did not answer."
)
KOREAN = "이 영화 정말 재미있게 봤습니다. 배우들 연기도 좋았고 스토리도 괜찮았어요. 다음에 또 보고 싶은 영화예요."


class Unlimited:
    """A budget without limits."""

    share = ""

    def take_bytes(self, count: int) -> None:
        """Take any number."""

    def take_tokens(self, count: int) -> None:
        """Take any number."""


def type_text(model: LoadedModel, text: str, keys_per_second: float) -> list[tuple[float, float, int]]:
    """Return seconds, CPU seconds and searched tokens of each keystroke."""
    figures = []
    for length in range(1, len(text) + 1):
        due = time.perf_counter() + 1 / keys_per_second
        started, cpu = time.perf_counter(), time.process_time()
        request = CompleteRequest(text=text[:length], composing=True)
        completion = begin_word_completion(request, model, Unlimited(), model.engine.clock() + 60.0)
        completion.handle.wait_end()
        completion.handle.raise_for_failure()
        searched = completion.answer().usage.searched_tokens
        figures.append((time.perf_counter() - started, time.process_time() - cpu, searched))
        time.sleep(max(0.0, due - time.perf_counter()))
    return figures


def typing_table(folders: Sequence[Path], keys_per_second: float = KEYS_PER_SECOND, max_chars: int = 200) -> str:
    """Return a table with a row a bundle; the first keystrokes, which load pages of memory, are typed before."""
    lines = [f"{'ms a keystroke':<20}{'p50':>8}{'p95':>8}{'most':>8}{'CPU p50':>9}{'CPU p95':>9}{'tokens':>8}"]
    for folder in folders:
        model = load_model(folder, EngineLimits(cache_bytes=CACHE_BYTES))
        text = (KOREAN if model.bundle.manifest.name.startswith("nsmc") else ENGLISH)[:max_chars]
        type_text(model, text[:5][::-1], keys_per_second)
        seconds, cpu, searched = map(np.array, zip(*type_text(model, text, keys_per_second), strict=True))
        model.engine.stop()
        shown = [*np.percentile(seconds, (50, 95, 100)), *np.percentile(cpu, (50, 95))]
        cells = "".join(f"{1e3 * value:>{width}.1f}" for value, width in zip(shown, (8, 8, 8, 9, 9), strict=True))
        lines.append(f"{folder.name:<20}{cells}{searched.mean():>8.0f}")
    return "\n".join(lines)


def main() -> None:
    """Print the table of the bundles that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+", metavar="bundles/NAME")
    sys.stdout.write(typing_table(parser.parse_args().folders) + "\n")


if __name__ == "__main__":
    main()
