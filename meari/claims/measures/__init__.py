"""The claims, one a file, in the lecture's order and in the order in which they are measured.

Input: a workbench. Output: numbers, conditions, sentences and a picture a claim. Must not know: the page, results.json.

Claims that can be cut short are measured last.
"""

from typing import Any

from meari.claims.claim import Claim
from meari.claims.measures import context, data, exploding, gates, series, thread, vanishing

CLAIMS: tuple[Claim[Any], ...] = (
    vanishing.CLAIM,
    exploding.CLAIM,
    gates.CLAIM,
    data.CLAIM,
    series.CLAIM,
    context.CLAIM,
    thread.CLAIM,
)
CUT_SHORT_LAST = (5, 4)


def in_order_of_work(numbers: tuple[int, ...]) -> list[Claim[Any]]:
    """The claims with these numbers, all of them where there are none."""
    wanted = [claim for claim in CLAIMS if not numbers or claim.number in numbers]
    return sorted(wanted, key=_place)


def _place(claim: Claim[Any]) -> tuple[int, int]:
    is_late = claim.number in CUT_SHORT_LAST
    return CUT_SHORT_LAST.index(claim.number) + 1 if is_late else 0, claim.number
