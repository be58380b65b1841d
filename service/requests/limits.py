"""What a caller may take: tokens a minute and requests at once.

Input: a caller, and what its request may take and took. Output: RateLimited or TooLarge, and the headers that tell a
client where it stands. Must not know: Flask, models.

A request takes the tokens that it may need before its work, and gives back those that it did not use. While Redis is
away each host limits by itself: limits are for fairness, and an answer matters more.
"""

from __future__ import annotations

import logging
import math
import secrets
import time
from collections.abc import Callable
from typing import Final, TypeVar

from meari.errors import RateLimited, TooLarge
from meari.service.requests.keys import Caller
from meari.service.requests.limit_stores import HostStore, RedisStore, Standing, Store, seconds_until

__all__ = ["Limits", "Quota"]

AWAY_SECONDS: Final = 5.0  # before Redis is asked again
Result = TypeVar("Result")

log = logging.getLogger("meari.service.limits")  # as operators know it


class Limits:
    """The store to ask: Redis where it is set and answers, else the host's own; safe from any thread."""

    def __init__(
        self,
        host: HostStore,
        shared: RedisStore | None = None,
        note_failure: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """note_failure: called when Redis does not answer."""
        self._host = host
        self._shared = shared
        self._note_failure = note_failure
        self._clock = clock
        self._ask_at = 0.0
        self._is_away = False

    def start(self) -> None:
        """Start the threads of the stores."""
        if self._shared is not None:
            self._shared.start()

    def stop(self) -> None:
        """Stop them."""
        if self._shared is not None:
            self._shared.stop()

    def ask(self, work: Callable[[Store], Result], before: Store | None = None) -> tuple[Result, Store]:
        """Return the result of `work` with the store that gave it: Redis, if it answers.

        before  the store that the request was opened at: what is not at Redis stays where it is
        """
        if self._shared is not None and before is not self._host:
            result = self._ask_shared(self._shared, work)
            if result is not None:
                return result, self._shared
        return work(self._host), self._host

    def tell(self, work: Callable[[Store], None], store: Store) -> None:
        """Do `work` with a store that was asked before; what Redis is not told runs out there."""
        if store is self._host:
            work(store)
        elif self._shared is not None:
            self._ask_shared(self._shared, work)

    def _ask_shared(self, shared: RedisStore, work: Callable[[Store], Result]) -> Result | None:
        """Return the result of Redis; None if it does not answer, and while it is not asked again after that."""
        if self._clock() < self._ask_at:
            return None
        if self._is_away:
            self._ask_at = self._clock() + AWAY_SECONDS  # one request tries, the others need not wait for it
        try:
            result = work(shared)
        except shared.failures as error:
            self._ask_at = self._clock() + AWAY_SECONDS
            self._note_failure()
            if not self._is_away:
                log.error("Redis does not answer, each host limits by itself: %s", error)  # noqa: TRY400
            self._is_away = True
            return None
        if self._is_away:
            log.info("Redis answers again, the limits hold for all hosts together")
            self._is_away, self._ask_at = False, 0.0
        return result


class Quota:
    """What one request takes of its caller's limits; closed exactly once."""

    def __init__(self, limits: Limits, caller: Caller) -> None:
        self._limits = limits
        self._caller = caller
        self._lease = secrets.token_hex(8)
        self._opened_at: Store | None = None
        self._taken_from: Store | None = None
        self._taken = 0
        self._level: float | None = None
        self._num_open = 0

    @classmethod
    def of(cls, limits: Limits | None, caller: Caller) -> Quota | None:
        """Return the quota of a request; None for a caller without limits."""
        if limits is None or (caller.tokens_per_minute is None and caller.requests_at_once is None):
            return None
        return cls(limits, caller)

    def open(self) -> None:
        """Begin. Raises RateLimited."""
        caller = self._caller
        standing, store = self._limits.ask(lambda store: store.open(caller, self._lease))
        self._note(standing)
        self._num_open = standing.num_open
        if standing.granted:
            self._opened_at = store
        elif standing.num_open:
            message = (
                f"the key {caller.name} may have {caller.requests_at_once} requests at once; retry when one has ended"
            )
            raise RateLimited(message, "requests", 1)
        else:
            self._refuse_tokens(1)

    def take(self, count: int) -> None:
        """Take the tokens that the request may need. Raises TooLarge if no minute has so many, RateLimited."""
        caller = self._caller
        if caller.tokens_per_minute is None:
            return
        if self._taken + count > caller.tokens_per_minute:
            raise TooLarge(
                f"the request may take {self._taken + count} tokens, and the key {caller.name} has "
                f"{caller.tokens_per_minute} a minute: ask for less at once"
            )
        standing, store = self._limits.ask(lambda store: store.take(caller, count), self._opened_at)
        self._note(standing)
        if not standing.granted:
            self._refuse_tokens(count)
        self._taken_from, self._taken = store, self._taken + count

    def close(self, num_used: int) -> None:
        """End, and give back what was not used."""
        unused = max(0, self._taken - num_used)
        opened_at, taken_from = self._opened_at, self._taken_from
        self._opened_at = self._taken_from = None
        if taken_from is not None and taken_from is not opened_at and unused:  # Redis went away in between
            self._give_back(taken_from, unused)
            unused = 0
        if opened_at is not None:
            opened_at.let_go(self._lease)
            self._limits.tell(lambda store: store.close(self._caller, unused, self._lease), opened_at)

    def _give_back(self, store: Store, count: int) -> None:
        def give_back(store: Store) -> None:
            store.take(self._caller, -count)

        self._limits.tell(give_back, store)

    def headers(self) -> dict[str, str]:
        """Return where the caller stands: the IETF's draft 10 of RateLimit, and OpenAI's fields for tokens."""
        policies, standings, headers = [], [], {}
        per_minute, at_once = self._caller.tokens_per_minute, self._caller.requests_at_once
        if per_minute is not None:
            level = per_minute if self._level is None else self._level
            left, seconds = max(0, int(level)), math.ceil((per_minute - level) * 60 / per_minute)
            policies.append(f'"tokens";q={per_minute};w=60')
            standings.append(f'"tokens";r={left};t={seconds}')
            headers["x-ratelimit-limit-tokens"] = str(per_minute)
            headers["x-ratelimit-remaining-tokens"] = str(left)
            headers["x-ratelimit-reset-tokens"] = f"{seconds}s"
        if at_once is not None:
            policies.append(f'"requests";q={at_once};qu="concurrent-requests"')
            standings.append(f'"requests";r={max(0, at_once - self._num_open)}')
        return {"RateLimit-Policy": ", ".join(policies), "RateLimit": ", ".join(standings), **headers}

    def _note(self, standing: Standing) -> None:
        if self._caller.tokens_per_minute is not None:
            self._level = standing.level

    def _refuse_tokens(self, count: int) -> None:
        per_minute, level = self._caller.tokens_per_minute, self._level
        assert per_minute is not None
        assert level is not None
        seconds = seconds_until(count, level, per_minute)
        left = f"{int(level)} of the {per_minute} tokens a minute of the key {self._caller.name} are left"
        raise RateLimited(f"{left}, and the request may take {count}; retry in {seconds} s", "tokens", seconds)
