"""Summarize the JSON log of `meari serve`: requests, refusals, times and tokens by route.

Input: JSON lines from standard input; other lines are counted and skipped. Output: a table and the errors.

    python examples/log_summary.py < service.log
"""

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

Line = dict[str, Any]
OUTCOMES = ("ok", "invalid", "refused", "failed", "aborted")


def requests_of(lines: Iterable[str]) -> tuple[list[Line], int]:
    """Return the request lines and the number of lines that are not JSON."""
    requests, num_skipped = [], 0
    for text in lines:
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            num_skipped += 1
            continue
        if isinstance(line, dict) and "outcome" in line:
            requests.append(line)
    return requests, num_skipped


def percentile(values: list[float], share: float) -> float:
    """Return the value below which this share of the values lies; 0 without values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def row(route: str, requests: list[Line]) -> str:
    """Return one table row with the figures of a route."""
    outcomes = Counter(line["outcome"] for line in requests)
    done = [line for line in requests if line["outcome"] == "ok"]
    totals = [line["total_ms"] for line in done]
    firsts = [line["first_token_ms"] for line in done if "first_token_ms" in line]
    tokens = sum(line.get("generated_tokens", 0) + line.get("scored_tokens", 0) for line in requests)
    counts = "".join(f"{outcomes[name]:>9}" for name in OUTCOMES)
    times = f"{percentile(totals, 0.5):>9.1f}{percentile(totals, 0.95):>9.1f}{percentile(firsts, 0.95):>13.1f}"
    return f"{route:<18}{counts}{times}{tokens:>10}"


def summary(requests: list[Line]) -> list[str]:
    """Return the table, then a line for each error with its count and the id of its last request."""
    by_route: dict[str, list[Line]] = defaultdict(list)
    for line in requests:
        by_route[line["route"]].append(line)
    head = "".join(f"{name:>9}" for name in (*OUTCOMES, "p50 ms", "p95 ms")) + f"{'p95 first ms':>13}{'tokens':>10}"
    table = [f"{'route':<18}{head}", *(row(route, found) for route, found in sorted(by_route.items()))]
    errors = Counter(line["error"] for line in requests if "error" in line)
    last = {line["error"]: line["request_id"] for line in requests if "error" in line}
    return [*table, *(f"{count} × {error}, the last with request id {last[error]}" for error, count in errors.items())]


def main() -> None:
    """Print the summary of standard input."""
    requests, num_skipped = requests_of(sys.stdin)
    print("\n".join(summary(requests)))
    if num_skipped:
        print(f"{num_skipped} lines were not JSON")


if __name__ == "__main__":
    main()
