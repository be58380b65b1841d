"""Thresholds of a load test.

Input: Locust's rows and the thresholds. Output: a list of the broken ones. Request rows have type POST; refused
requests have a POST row of their own. Rows of type STREAM hold figures measured inside streams.
"""

from collections.abc import Iterator

from locust.stats import RequestStats, StatsEntry

from loadtests.settings import Thresholds

POST = "POST"
STREAM = "STREAM"
REFUSED = "refused (429)"
FIRST_TOKEN = "first token (ms)"  # noqa: S105 (a metric's name)
GAP = "gap between tokens (ms)"
TOKENS_PER_SECOND = "tokens/s of a stream"
TOKENS = "tokens of an answer"


def broken_thresholds(stats: RequestStats, thresholds: Thresholds) -> list[str]:
    """Return one line for each broken threshold; empty if the run passed.

    A run without any answered request has failed, whatever the thresholds.
    """
    answered = [row for row in stats.entries.values() if row.method == POST and row.name != REFUSED]
    if not any(row.num_requests for row in answered):
        return ["no request was answered"]
    return [
        *_ratios(stats, answered, thresholds),
        *_slow_rows(answered, thresholds.max_p95_ms),
        *_slow_rows([stats.get(FIRST_TOKEN, STREAM)], thresholds.max_first_token_p95_ms),
        *_slow_rows([stats.get(GAP, STREAM)], thresholds.max_gap_p95_ms),
        *_slow_streams(stats.get(TOKENS_PER_SECOND, STREAM), thresholds.min_tokens_per_second),
    ]


def _ratios(stats: RequestStats, answered: list[StatsEntry], thresholds: Thresholds) -> Iterator[str]:
    num_refused = stats.get(REFUSED, POST).num_requests
    num_answered = sum(row.num_requests for row in answered)
    failure_ratio = sum(row.num_failures for row in answered) / num_answered
    refused_ratio = num_refused / (num_refused + num_answered)
    if failure_ratio > thresholds.max_failure_ratio:
        yield f"failed requests: {failure_ratio:.4f} of all, at most {thresholds.max_failure_ratio} wanted"
    if thresholds.max_refused_ratio is not None and refused_ratio > thresholds.max_refused_ratio:
        yield f"refused requests: {refused_ratio:.4f} of all, at most {thresholds.max_refused_ratio} wanted"


def _slow_rows(rows: list[StatsEntry], max_p95_ms: float | None) -> Iterator[str]:
    if max_p95_ms is None:
        return
    for row in rows:
        if row.num_requests == 0:
            yield f"{row.name}: nothing was measured, 95th percentile of at most {max_p95_ms} ms wanted"
            continue
        p95_ms = row.get_response_time_percentile(0.95)
        if p95_ms > max_p95_ms:
            yield f"{row.name}: 95th percentile {p95_ms} ms, at most {max_p95_ms} ms wanted"


def _slow_streams(row: StatsEntry, min_tokens_per_second: float | None) -> Iterator[str]:
    if min_tokens_per_second is None:
        return
    if row.avg_response_time < min_tokens_per_second:
        yield f"{row.name}: {row.avg_response_time:.1f} on average, at least {min_tokens_per_second} wanted"
