"""Find the largest load that a server takes within the thresholds: `python -m loadtests.knee`.

Input: the same environment variables as for a load test (see `locustfile.py`), of which MEARI_LOAD_USERS is the most
that is tried and MEARI_LOAD_SECONDS the length of one measurement, 10. Output: knee.md, knee.json and knee.svg in the
folder of results. Must not know: the service's code.

The load is a number of users, who wait for their answers. It is doubled until a threshold breaks; then the gap between
the last load that held and the first that did not is halved until it is a tenth. Without a threshold for time, the 95th
percentile of each request row may be a second; without one for refusals, one request in a hundred may be refused.
"""

import json
import math
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from loadtests.__main__ import RESULTS, target
from loadtests.settings import LoadSettings, Role, SettingsError, Thresholds, check_target, read_settings

WARMUP_SHARE = 0.3  # of a measurement, before it
MAX_P95_MS = 1000.0
MAX_REFUSED_RATIO = 0.01
GAP = 0.1  # between the knee and the load that is too much, at most
MAX_USERS = 4096
WIDTH, HEIGHT, LEFT, RIGHT, PANEL = 640, 440, 72, 616, 150  # of the plot, in pixels
STYLE = (
    "text{font:12px sans-serif;fill:#333}.title{font-weight:bold}.axis{fill:none;stroke:#999}"
    ".bound{fill:none;stroke:#b33;stroke-dasharray:5 4}.line{fill:none;stroke:#1b6ca8;stroke-width:2}"
    ".holds{fill:#1b6ca8}.broken{fill:#fff;stroke:#b33;stroke-width:2}"
)


@dataclass(frozen=True)
class Step:
    """One load and what came of it. broken: the thresholds that did not hold; none: the load is within them."""

    users: int
    requests_per_second: float
    tokens_per_second: float
    p50_ms: float
    p95_ms: float
    broken: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """True if no threshold is broken."""
        return not self.broken


def find_knee(measure: Callable[[int], Step], max_users: int) -> list[Step]:
    """Measure loads until the knee is known; return all of them by their users. `knee_of` names the knee."""
    steps: dict[int, Step] = {}
    users, held, failed = 1, 0, 0
    while True:
        steps[users] = measure(users)
        if steps[users].holds:
            held = users
        else:
            failed = users
        if not failed:
            if users == max_users:
                break
            users = min(2 * users, max_users)
        elif failed - held <= max(1, math.floor(GAP * failed)):
            break
        else:
            users = (held + failed) // 2
    return [steps[count] for count in sorted(steps)]


def knee_of(steps: list[Step]) -> Step | None:
    """Return the largest load below the smallest one that broke a threshold; None if even the smallest did."""
    knee = None
    for step in steps:
        if not step.holds:
            break
        knee = step
    return knee


def with_defaults(thresholds: Thresholds) -> Thresholds:
    """Return the thresholds with bounds for time and refusals where none are set."""
    times = (thresholds.max_p95_ms, thresholds.max_first_token_p95_ms, thresholds.max_gap_p95_ms)
    has_time = any(bound is not None for bound in (*times, thresholds.min_tokens_per_second))
    refused = thresholds.max_refused_ratio
    return replace(
        thresholds,
        max_p95_ms=thresholds.max_p95_ms if has_time else MAX_P95_MS,
        max_refused_ratio=MAX_REFUSED_RATIO if refused is None else refused,
    )


def report_of(steps: list[Step], settings: LoadSettings, url: str) -> str:
    """Return the report in Markdown."""
    knee = knee_of(steps)
    bounds = ", ".join(f"{name} {value:g}" for name, value in asdict(settings.thresholds).items() if value is not None)
    if knee is None:
        found = "Even one user is more than the thresholds allow."
    else:
        rates = f"{knee.requests_per_second:,.1f} requests/s, {knee.tokens_per_second:,.0f} tokens/s"
        found = f"**{knee.users} users, {rates}** (95th percentile {knee.p95_ms:,.0f} ms)."
        if knee is steps[-1]:
            found += " No larger load was tried."
    rows = [
        f"| {step.users} | {step.requests_per_second:,.1f} | {step.tokens_per_second:,.0f} | {step.p50_ms:,.0f} "
        f"| {step.p95_ms:,.0f} | {'; '.join(step.broken) or 'holds'} |"
        for step in steps
    ]
    conditions = (
        f"{url}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC; users: {', '.join(sorted(settings.kinds))}; "
        f"{settings.seconds} s each. Thresholds: {bounds}."
    )
    head = "| users | requests/s | tokens/s | median, ms | 95th percentile, ms | thresholds |"
    plot = "![Requests a second and response times by load](knee.svg)"
    title = "# Largest load within the thresholds"
    return "\n".join([title, "", found, "", conditions, "", plot, "", head, "|---|---|---|---|---|---|", *rows, ""])


def plot_of(steps: list[Step], max_p95_ms: float | None) -> str:
    """Return an SVG: requests a second and, below, the 95th percentile, by the number of users (logarithmic)."""
    rates = _panel(steps, 36.0, "requests/s", [step.requests_per_second for step in steps], None)
    times = _panel(steps, 236.0, "95th percentile, ms", [step.p95_ms for step in steps], max_p95_ms)
    ticks = [2**power for power in range(steps[-1].users.bit_length())]
    marks = [
        f'<text x="{_across(steps, users):.1f}" y="{HEIGHT - 36}" text-anchor="middle">{users}</text>'
        for users in ticks
    ]
    knee = knee_of(steps)
    found = "none" if knee is None else f"{knee.users} users, {knee.requests_per_second:,.0f} requests/s"
    legend = f"users (filled: within the thresholds; hollow: too much; large, the knee: {found})"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}">',
            f'<style>{STYLE}</style><rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
            *(*rates, *times, *marks),
            f'<text x="{WIDTH / 2}" y="{HEIGHT - 12}" text-anchor="middle">{legend}</text>',
            "</svg>\n",
        ]
    )


def _across(steps: list[Step], users: int) -> float:
    return LEFT + (RIGHT - LEFT) * math.log2(users) / max(math.log2(steps[-1].users), 1.0)


def _round_above(value: float) -> float:
    """Return a round number above the value, by half as much again at most."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(power * step for step in (1.5, 2, 3, 4, 5, 6, 8, 10, 15) if power * step > value)


def _panel(steps: list[Step], top: float, title: str, values: list[float], bound: float | None) -> list[str]:
    """Return the elements of one diagram, from `top` on."""
    highest = _round_above(max([*values, bound or 0.0]))
    bottom = top + PANEL
    drawn = [
        f'<text x="{LEFT}" y="{top - 8:.0f}" class="title">{title}</text>',
        f'<path d="M{LEFT} {top:.0f}V{bottom:.0f}H{RIGHT}" class="axis"/>',
        f'<text x="{LEFT - 6}" y="{bottom:.0f}" text-anchor="end">0</text>',
        f'<text x="{LEFT - 6}" y="{top + 8:.0f}" text-anchor="end">{highest:,g}</text>',
    ]
    if bound is not None:
        y = bottom - PANEL * bound / highest
        drawn.append(f'<path d="M{LEFT} {y:.1f}H{RIGHT}" class="bound"/>')
        drawn.append(f'<text x="{LEFT + 6}" y="{y - 4:.1f}">at most {bound:,g} ms</text>')
    places = [
        (_across(steps, step.users), bottom - PANEL * value / highest)
        for step, value in zip(steps, values, strict=True)
    ]
    drawn.append(f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in places)}" class="line"/>')
    knee = knee_of(steps)
    for step, (x, y) in zip(steps, places, strict=True):
        kind, radius = "holds" if step.holds else "broken", 7 if step is knee else 4
        drawn.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" class="{kind}"/>')
    return drawn


def write_results(steps: list[Step], settings: LoadSettings, url: str, folder: Path) -> None:
    """Write report, figures and plot."""
    knee = knee_of(steps)
    figures = {
        "url": url,
        "kinds": sorted(settings.kinds),
        "seconds": settings.seconds,
        "thresholds": asdict(settings.thresholds),
        "knee": None if knee is None else asdict(knee),
        "steps": [asdict(step) for step in steps],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "knee.json").write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
    (folder / "knee.md").write_text(report_of(steps, settings, url), "utf-8")
    (folder / "knee.svg").write_text(plot_of(steps, settings.thresholds.max_p95_ms), "utf-8")


def main() -> None:
    """Check settings and target, then search; exit code 1 if even one user is too much."""
    defaults = {"MEARI_LOAD_USERS": str(MAX_USERS), "MEARI_LOAD_SECONDS": "10"}
    url = target(os.environ)
    try:
        settings = read_settings({**defaults, **os.environ})
        check_target(url, settings)
    except SettingsError as error:
        sys.exit(f"loadtests: {error}")
    if settings.shapes or settings.role is Role.WORKER:
        sys.exit("loadtests: MEARI_LOAD_SHAPE, MEARI_LOAD_ROLE: the search makes its own loads, and it is no worker")
    settings = replace(settings, thresholds=with_defaults(settings.thresholds))
    from loadtests.measuring import running_locust  # replaces all sockets of this process by gevent's

    with running_locust(settings, url) as measure:
        steps = find_knee(measure, settings.users)
    write_results(steps, settings, url, RESULTS)
    print(report_of(steps, settings, url))  # noqa: T201 (the result of the command)
    sys.exit(0 if knee_of(steps) else 1)


if __name__ == "__main__":
    main()
