"""When requests come and how long they are: Poisson arrivals, log-normal lengths. All from a seed."""

import math
import random
from collections.abc import Iterator

SHORTEST, LONGEST = 8, 256  # tokens
MEDIAN = math.sqrt(SHORTEST * LONGEST)
SIGMA = math.log(LONGEST / SHORTEST) / 4  # both ends two standard deviations away from the middle


def draw_length(generator: random.Random) -> int:
    """A log-normal length between 8 and 256 tokens, drawn again where it lies outside."""
    while True:
        length = round(generator.lognormvariate(math.log(MEDIAN), SIGMA))
        if SHORTEST <= length <= LONGEST:
            return length


def poisson_times(rate: float, seconds: float, generator: random.Random) -> Iterator[float]:
    """Times in [0, seconds) at which a Poisson process of so many events a second has one."""
    time = generator.expovariate(rate)
    while time < seconds:
        yield time
        time += generator.expovariate(rate)
