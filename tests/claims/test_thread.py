import numpy as np
import pytest
import torch

from meari.bundle_format.names import Family
from meari.claims.claim import Verdict, verdict
from meari.claims.evaluation import NGRAM, SAMPLINGS, WINDOW, Sampling, pick, repeated, write_texts
from meari.claims.measures.thread import CLAIM, HELD_OUT, Course, Thread
from tests.claims.workbenches import tiny_bench


def test_repetitions_are_found_within_the_window_only() -> None:
    gram = np.arange(NGRAM)
    fresh = np.arange(100, 100 + 2 * WINDOW)
    near = np.concatenate((gram, fresh[:10], gram))
    far = np.concatenate((gram, fresh[:WINDOW], gram))
    assert repeated(near[None], NGRAM)[0].tolist() == [0.0] * (len(near) - NGRAM - 1) + [1.0]
    assert repeated(far[None], NGRAM).sum() == 0


def test_loop_counts_as_fully_repeated() -> None:
    loop = np.tile(np.arange(5), 20)[None]
    assert repeated(loop, NGRAM + 5).mean() == 1.0


def test_greedy_picks_the_likeliest_token_and_top_p_only_the_nucleus() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).repeat(2000, 1)
    generator = torch.Generator().manual_seed(1)
    assert set(pick(logits, SAMPLINGS[0], generator).tolist()) == {0}
    shares = torch.bincount(pick(logits, Sampling("", 1.0, 0.6), generator), minlength=4) / 2000
    assert shares.tolist() == pytest.approx([0.625, 0.375, 0.0, 0.0], abs=0.04)
    cold = torch.bincount(pick(logits, Sampling("", 0.5), generator), minlength=4) / 2000
    assert float(cold[0]) == pytest.approx(0.25 / (0.25 + 0.09 + 0.0225 + 0.0025), abs=0.04)


def test_same_seed_gives_the_same_texts() -> None:
    bench = tiny_bench()
    texts = [write_texts(bench.fresh(Family.GRU), bench.pieces(2, 9), 6, SAMPLINGS[3], seed=5) for _ in range(2)]
    assert texts[0].shape == (2, 6)
    assert np.array_equal(texts[0], texts[1])


STEADY = Course((1.0,) * 10, (0.1,) * 10)
LOOPS = Course((1.0,) * 10, tuple(0.1 * tenth for tenth in range(10)))
DRIFTS = Course(tuple(1 + 0.1 * tenth for tenth in range(10)), (0.1,) * 10)


@pytest.mark.parametrize(
    ("courses", "expected"),
    [((LOOPS, DRIFTS), Verdict.HOLDS), ((LOOPS, STEADY), Verdict.IN_PART), ((STEADY, STEADY), Verdict.DOES_NOT)],
)
def test_criterion(courses: tuple[Course, Course], expected: Verdict) -> None:
    named = dict(zip(("greedy", "temperature 1.0"), courses, strict=True))
    numbers = Thread(4, tuple(map(float, range(10))), {HELD_OUT: STEADY} | named)
    assert verdict(CLAIM.judge(numbers)) is expected


def test_tiny_run_has_every_sampling_and_keeps_no_text() -> None:
    measured = CLAIM.measure(tiny_bench())
    assert measured.numbers.samplings == [sampling.name for sampling in SAMPLINGS]
    assert all(len(course.losses) == 10 for course in measured.numbers.courses.values())
    assert len(CLAIM.draw([measured.numbers]).axes) == 2
