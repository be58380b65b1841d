"""Test the requests: all servers get the same ones, shaped by the load."""

import itertools
import json
import math
import random
import statistics
from typing import Any

import pytest

from benchmarks.serving.driver import LoadRequest
from benchmarks.serving.measured_servers import SERVERS
from benchmarks.serving.plan import CAPACITY, HTTP_SERVERS, Load, LoadKind, full_plan, quick_plan
from benchmarks.serving.requests import LONGEST, MEDIAN, SHORTEST, SIGMA, Requests, draw_length, poisson_times

MEASURED = [SERVERS[name] for name in HTTP_SERVERS]


def body_of(ask: LoadRequest) -> dict[str, Any]:
    head, _, body = ask.request.partition(b"\r\n\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    found: dict[str, Any] = json.loads(body)
    return found["asks"][0] if "asks" in found else found


def first_bodies(server: str, load: Load, count: int = 5) -> list[dict[str, Any]]:
    return [body_of(ask) for ask in itertools.islice(Requests(SERVERS[server], "lstm-int8").closed(load), count)]


@pytest.mark.parametrize("load", [Load(LoadKind.WHOLE, 64), CAPACITY])
def test_all_servers_get_the_same_prompts_and_lengths(load: Load) -> None:
    asked = [[(body["prompt"], body["max_tokens"]) for body in first_bodies(name, load)] for name in HTTP_SERVERS]
    assert all(other == asked[0] for other in asked)
    assert len({prompt for prompt, _ in asked[0]}) == 5


def test_logit_bias_prevents_the_end_token_of_bundles_that_have_one() -> None:
    for model, expected in (("lstm-int8", None), ("nsmc-lstm", {"0": -100.0})):
        ask = SERVERS["meari"].generate("a", 64, stream=False, model=model)
        assert body_of(ask).get("logit_bias") == expected


def test_mixed_load_streams_if_the_server_can() -> None:
    assert all(body["stream"] for body in first_bodies("mosec", CAPACITY))
    assert not any(body["stream"] for body in first_bodies("bentoml", CAPACITY))


def test_nbest_list_shares_prefixes() -> None:
    (body,) = first_bodies("meari", Load(LoadKind.SCORE_NBEST, 4), 1)
    texts = [tuple(text.split()) for text in body["texts"]]
    prefixes = {text[:length] for text in texts for length in range(1, len(text) + 1)}
    assert len(set(texts)) == 100
    assert len(prefixes) < 0.7 * sum(map(len, texts))


def test_open_load_has_its_rate() -> None:
    arrivals = Requests(SERVERS["meari"], "lstm-int8").open(Load(LoadKind.MIXED, share=0.8), 40.0, 30.0)
    assert 1000 < len(arrivals) < 1400
    assert all(8 <= ask.num_tokens <= 256 for _, ask in arrivals)


def test_plans_measure_capacity_before_loads_that_depend_on_it() -> None:
    for plan in (full_plan(), quick_plan()):
        for turn in plan.rounds:
            names = [load.name for load in turn.loads]
            assert len(set(names)) == len(names)
            if any(load.share for load in turn.loads):
                assert names.index(CAPACITY.name) < min(place for place, load in enumerate(turn.loads) if load.share)


def test_lengths_are_log_normal_within_their_bounds() -> None:
    generator = random.Random(1)
    lengths = [draw_length(generator) for _ in range(20_000)]
    logs = [math.log(length) for length in lengths]
    assert min(lengths) >= SHORTEST
    assert max(lengths) <= LONGEST
    assert abs(statistics.median(lengths) - MEDIAN) < 2
    # Truncation at two standard deviations reduces the standard deviation of a normal distribution to 0.88.
    assert abs(statistics.stdev(logs) - 0.88 * SIGMA) < 0.02


def test_arrivals_are_a_poisson_process_of_the_given_rate() -> None:
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
