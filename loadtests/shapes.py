"""Load shapes: how many users there are at each moment of a run.

Input: shapes, the largest number of users, the length of the run. Output: a number of users. Must not know: Locust.
"""

import enum
import math
from collections.abc import Sequence

NUM_STEPS = 5  # of a staircase
SPIKE_SHARE = 4  # the users outside of a spike are one in so many
SPIKE = (0.4, 0.6)  # begin and end, as shares of the run


class Shape(enum.StrEnum):
    """The shapes: all users for long, ever more of them, a short peak, and a few levels."""

    SOAK = "soak"
    RAMP = "ramp"
    SPIKE = "spike"
    STAIRCASE = "staircase"


def users_at(shapes: Sequence[Shape], elapsed: float, seconds: float, users: int) -> int | None:
    """Return the number of users after `elapsed` seconds, at least 1; None once the run of `seconds` is over.

    Several shapes follow one another, each for an equal part of the run.
    """
    number, share = divmod(len(shapes) * elapsed / seconds, 1)
    if number >= len(shapes):
        return None
    shape = shapes[int(number)]
    if shape is Shape.RAMP:
        users = math.ceil(users * share)
    elif shape is Shape.SPIKE and not SPIKE[0] <= share < SPIKE[1]:
        users = users // SPIKE_SHARE
    elif shape is Shape.STAIRCASE:
        users = round(users * (1 + int(share * NUM_STEPS)) / NUM_STEPS)
    return max(1, users)
