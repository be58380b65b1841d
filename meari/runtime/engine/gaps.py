"""How long samples wait from one token to the next.

Noted once a turn of writing, not once a token: the tokens of a turn share the time since the turn before it evenly. A
sample that has just joined has waited since its first token. Tokens of beams are not counted: they come all at once, at
the end. Owned by the engine's thread; any other may read.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from meari.runtime.engine.sequence import Sequence
from meari.runtime.engine.tally import Tallied, Tally

GAP_SECONDS: Final = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
)  # fmt: skip


class TokenGaps:
    """The gaps of one engine's samples."""

    def __init__(self) -> None:
        self._tally = Tally(GAP_SECONDS)
        self._turn_ended_at = 0.0

    def note(self, joined: Iterable[Sequence], num_tokens: int, steps: int, now: float) -> None:
        """Count the gaps of a turn that ended `now`.

        joined      sequences that had their first token, and no other, before this turn
        num_tokens  of all samples in this turn, their first ones left out
        steps       tokens that a sample got which did not end
        """
        for sequence in joined:
            if sequence.continuation is None:
                continue
            count = len(sequence.continuation.sample.token_ids) - 1
            since = sequence.request.handle.first_token_at
            assert since is not None, "whose sample has a token"
            self._tally.note((now - since) / steps, count)
            num_tokens -= count
        if num_tokens > 0:
            self._tally.note((now - self._turn_ended_at) / steps, num_tokens)
        self._turn_ended_at = now

    def read(self) -> Tallied:
        """The gaps so far."""
        return self._tally.read()
