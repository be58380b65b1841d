"""Lengths and arrival times against the distributions they are drawn from."""

import itertools
import math
import random
import statistics

from benchmarks.serving.arrivals import LONGEST, MEDIAN, SHORTEST, SIGMA, draw_length, poisson_times


def test_lengths_are_log_normal_between_their_ends() -> None:
    generator = random.Random(1)
    lengths = [draw_length(generator) for _ in range(20_000)]
    logs = [math.log(length) for length in lengths]
    assert min(lengths) >= SHORTEST
    assert max(lengths) <= LONGEST
    assert abs(statistics.median(lengths) - MEDIAN) < 2
    # Cut at two deviations, a normal distribution keeps 0.88 of its deviation.
    assert abs(statistics.stdev(logs) - 0.88 * SIGMA) < 0.02


def test_arrivals_come_at_their_rate_and_as_irregularly_as_chance() -> None:
    times = list(poisson_times(50.0, 400.0, random.Random(2)))
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert times == sorted(times)
    assert times[0] >= 0
    assert times[-1] < 400
    assert abs(len(times) - 20_000) < 5 * math.sqrt(20_000)
    assert abs(statistics.stdev(gaps) / statistics.mean(gaps) - 1) < 0.03


def test_same_seed_gives_the_same_arrivals() -> None:
    first, again = (list(poisson_times(5.0, 10.0, random.Random(3))) for _ in range(2))
    assert first == again
