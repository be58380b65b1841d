"""Drill: hundreds of thousands of mutated bodies, state tokens and heads on real workers.

Whatever comes, the answer is one of the contract's, soon, and says nothing of the inside; the workers do not grow, and
give a valid request the very same bits as before. A case that fails is written into `cases/`, whose files are sent
again at every run: keep the file with the fix.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NoReturn

import pytest

from tests.drills.drill import Drill
from tests.drills.http_cases import BODIES, cases
from tests.drills.inside import shown_inside
from tests.drills.processes import Held, held_by, workers_of
from tests.drills.raw_http import Answer, Connection, Malformed, answers_of, post
from tests.service.running import ROOT, Server, running_server

CASES: Final = Path(__file__).parent / "cases"
CODES: Final = frozenset(
    re.findall(r"^\| \d+ \| `(\w+)`", (ROOT / "docs" / "errors.md").read_text("utf-8"), re.MULTILINE)
)
HTTP_REFUSALS: Final = (501, 505)  # a part of HTTP that is not there: the client's mistake, by the contract
STATE_KEY: Final = "a-key-of-at-least-thirty-two-characters"
NUM_LANES: Final = 8
MAX_GROWTH_MB: Final = 8.0  # of a worker, after the first tenth of a million; 20,000 requests are all warming up


def problem_of(answer: Answer, sent: bytes) -> str:
    """Return what is wrong with an answer to what was sent, "" if nothing is."""
    if answer.status >= 500 and answer.status not in HTTP_REFUSALS:
        return f"status {answer.status}"
    if "x-request-id" not in answer.fields:
        return "no X-Request-Id"
    if answer.status < 400:
        return ""
    try:
        error = json.loads(answer.body)["error"]
        code, message = error["code"], error["message"]
        is_complete = "type" in error or error["request_id"] == answer.fields["x-request-id"]  # OpenAI's shape, or ours
    except (ValueError, KeyError, TypeError) as problem:
        return f"no error body: {problem!r}"
    if code not in CODES or not is_complete:
        return f"code {code!r}"
    found = shown_inside(message)
    return f"the message shows {found!r}" if found and found.encode() not in sent else ""  # sent: quoted


@dataclass
class Tally:
    """What came of the cases."""

    statuses: Counter[int] = field(default_factory=Counter)
    slowest: float = 0.0
    num_cases: int = 0

    def add(self, answer: Answer) -> None:
        self.statuses[answer.status] += 1
        self.num_cases += 1


class Fuzz:
    """Sends cases to a service over connections that take turns, and checks every answer."""

    def __init__(self, server: Server, max_seconds: float) -> None:
        self.server = server
        self.tally = Tally()
        self._max_seconds = max_seconds
        self._lanes = [Connection(server.port) for _ in range(NUM_LANES)]
        self._waiting: dict[int, tuple[str, bytes, bool]] = {}

    def send(self, number: int, path: str, body: bytes, *, is_refused: bool = False) -> None:
        """Send a body on the lane whose turn it is, after the answer to what it had sent before.

        is_refused  nothing but 4xx is right
        """
        lane = number % NUM_LANES
        self.receive(lane)
        self._lanes[lane].send(post(path, body))
        self._waiting[lane] = (path, body, is_refused)

    def receive(self, lane: int) -> None:
        """Check the answer that a lane waits for."""
        if lane not in self._waiting:
            return
        path, body, is_refused = self._waiting.pop(lane)
        sent = post(path, body)
        try:
            answer = self._lanes[lane].answer()
        except (Malformed, ConnectionError) as error:
            self.fail(sent, repr(error))
        problem = problem_of(answer, sent)
        if is_refused and answer.status < 400:
            problem = f"status {answer.status}"
        if problem:
            self.fail(sent, f"{problem}: {answer.body[:300]!r}")
        self.tally.add(answer)
        self.note_seconds(answer.seconds, sent)

    def finish(self) -> None:
        """Wait for all answers."""
        for lane in range(NUM_LANES):
            self.receive(lane)

    def close(self) -> None:
        """Close all connections."""
        for lane in self._lanes:
            lane.close()

    def send_head(self, data: bytes) -> None:
        """Send bytes on a connection of their own, and check all that comes."""
        try:
            answers, seconds = answers_of(self.server.port, data, is_head=data.startswith(b"HEAD "))
        except (Malformed, ConnectionError) as error:
            self.fail(data, repr(error))
        for answer in answers:
            problem = "" if answer.status == 100 or data.startswith(b"HEAD ") else problem_of(answer, data)
            if problem:
                self.fail(data, f"{problem}: {answer.body[:300]!r}")
            self.tally.add(answer)
        self.note_seconds(seconds, data)

    def note_seconds(self, seconds: float, data: bytes) -> None:
        """Note the time of a case. One that took long is sent alone: a busy machine is slow once, a bad case always."""
        for _ in range(3):
            if seconds <= self._max_seconds:
                break
            seconds = min(seconds, answers_of(self.server.port, data)[1])
        self.tally.slowest = max(self.tally.slowest, seconds)
        if seconds > self._max_seconds:
            self.fail(data, f"it takes {seconds:.2f} s")

    def fail(self, data: bytes, problem: str) -> NoReturn:
        """Keep the case in a file, and fail."""
        CASES.mkdir(exist_ok=True)
        file = CASES / f"{hashlib.sha256(data).hexdigest()[:12]}.http"
        file.write_bytes(data)
        raise AssertionError(f"{file.name}: {problem}\n{data[:500]!r}\n{self.server.log[-2000:]}")


def canary(server: Server) -> list[str]:
    """Return what valid requests give, without what may differ."""
    found = []
    for path, bodies in BODIES.items():
        for template in bodies:
            body = {name: value for name, value in template.items() if "stream" not in name}  # its events vary
            answer = server.post(path, **{"seed": 11, **body} if path in ("/generate", "/v1/completions") else body)
            assert answer.status_code == 200, answer.text
            text = re.sub(r'"usage": ?\{(?:[^{}]|\{[^{}]*\})*\}', "", answer.text)  # counts what the cache gave
            text = (
                re.sub(r'"(id|created|request_id)": ?("cmpl[^"]*"|\d+)', "", text) if path.startswith("/v1") else text
            )
            found.append(text)
    return found


def state_tokens(server: Server) -> list[str]:
    """Return valid state tokens."""
    bodies = [{"prompt": "abc" * n, "max_tokens": 1, "return_state": True, "seed": n} for n in range(1, 6)]
    tokens = [server.post("/generate", **body).json()["choices"][0]["state"] for body in bodies]
    return [*tokens, server.post("/score", text="hello", return_state=True).json()["results"][0]["state"]]


@pytest.fixture
def server(letters: Path, tmp_path: Path) -> Iterator[Server]:
    """Run two workers with small limits: what a valid request may cost is not this drill's matter."""
    with running_server(
        tmp_path, bundles=letters, workers=2, log_level="error", max_tokens=8, state_key=STATE_KEY, cache_bytes=1 << 20
    ) as server:
        yield server


def send_all(fuzz: Fuzz, made: Iterator[tuple[str, bytes, bool]], look_at: int) -> dict[int, Held]:
    """Send the kept cases and all others; return what the workers held after `look_at` of them."""
    held: dict[int, Held] = {}
    for case in sorted(CASES.glob("*.http")):
        fuzz.send_head(case.read_bytes())
    for number, (path, body, is_refused) in enumerate(made):
        if path:
            fuzz.send(number, path, body, is_refused=is_refused)
        else:
            fuzz.send_head(body)
        if number == look_at:
            held = {pid: held_by(pid) for pid in workers_of(fuzz.server.process.pid)}
    fuzz.finish()
    return held


def test_mutated_requests_get_an_answer_of_the_contract(drill: Drill, server: Server, letters: Path) -> None:
    total = drill.size(20_000, 1_000_000)
    bundle_hash = hashlib.sha256((letters / "letters" / "manifest.json").read_bytes()).hexdigest()
    signing_key = hmac.digest(STATE_KEY.encode(), b"meari state token of bundle " + bundle_hash.encode(), "sha256")
    tokens, before, workers = state_tokens(server), canary(server), workers_of(server.process.pid)
    with contextlib.closing(Fuzz(server, drill.pick(5.0, 1.0))) as fuzz:
        held = send_all(fuzz, cases(total, drill.seed, tokens, signing_key), total // 10)
    grown = max(held_by(pid).private_mb - held[pid].private_mb for pid in workers)
    refused = fuzz.tally.statuses[429] / fuzz.tally.num_cases
    drill.record("mutated bodies, state tokens and heads", total, "≥ 1,000,000")
    drill.record("seed", str(drill.seed))
    drill.record(
        "answers by status", ", ".join(f"{s}: {n:,}" for s, n in sorted(fuzz.tally.statuses.items())), "no 5xx"
    )
    drill.record("slowest answer, s", fuzz.tally.slowest, "≤ 1")
    drill.record("growth of a worker after the first tenth, MB", grown, f"≤ {MAX_GROWTH_MB:g}")
    drill.record("workers that ended", len(set(workers) - set(workers_of(server.process.pid))), 0)
    assert workers_of(server.process.pid) == workers
    assert refused < 0.01
    assert [pair for pair in zip(canary(server), before, strict=True) if pair[0] != pair[1]] == []
    assert grown <= drill.pick(2 * MAX_GROWTH_MB, MAX_GROWTH_MB)
