"""All claims, in the lecture's order, and the order in which they are measured: those that can be cut short last."""

from typing import Any

from claims.claim import Claim
from claims.measures import exploding, vanishing

CLAIMS: tuple[Claim[Any], ...] = (vanishing.CLAIM, exploding.CLAIM)
CUT_SHORT_LAST = (5, 4)


def in_order_of_work(numbers: tuple[int, ...]) -> list[Claim[Any]]:
    """The claims with these numbers, all of them where there are none."""
    wanted = [claim for claim in CLAIMS if not numbers or claim.number in numbers]
    return sorted(wanted, key=lambda claim: (claim.number in CUT_SHORT_LAST, claim.number))
