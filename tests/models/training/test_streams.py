"""Test streams: their tokens, fresh starts, resuming; the number of steps and the learning rate."""

import numpy as np
import pytest

from meari.bundle_format.names import Document
from meari.models.config import TrainingConfig
from meari.models.text.token_file import UNCOUNTED
from meari.models.training.optimizer import learning_rate
from meari.models.training.streams import Streams, chunk_length, num_steps


def make(
    ids: list[int] | np.ndarray,
    unit: Document = Document.FILE,
    *,
    batch_size: int = 2,
    length: int = 4,
    restart_share: float = 0.0,
    starts: tuple[int, ...] = (0,),
    seed: int = 0,
    spread: float = 0.0,
    masked: np.ndarray | None = None,
) -> Streams:
    row = np.asarray(ids, dtype=np.uint16)
    starting = np.zeros(int(row.max()) + 1, dtype=np.bool_)
    starting[list(starts)] = True
    generator = np.random.default_rng(seed)
    return Streams(
        row, unit, starting, batch_size=batch_size, length=length, restart_share=restart_share, generator=generator,
        length_spread=spread, masked=masked,
    )  # fmt: skip


def test_targets_are_the_inputs_one_token_later() -> None:
    chunk = make([0, *range(1, 40), 0], batch_size=1).next_chunk()
    assert chunk.inputs.tolist() == [[0, 1, 2, 3]]
    assert chunk.targets.tolist() == [[1, 2, 3, 4]]


def test_masked_tokens_are_inputs_but_no_targets() -> None:
    masked = np.array([1, 4, 5, 9, 17, 18], np.int64)
    plain, streams = (make([0, *range(1, 20), 0], masked=each) for each in (None, masked))
    for _ in range(12):
        expected, chunk = plain.next_chunk(), streams.next_chunk()
        assert (chunk.inputs == expected.inputs).all()
        is_masked = np.isin(expected.targets, masked)  # each token of this row is its own place
        assert (chunk.targets == np.where(is_masked, UNCOUNTED, expected.targets)).all()
        assert chunk.num_learnt == expected.num_learnt - is_masked.sum()


def test_stream_continues_after_its_last_chunk() -> None:
    streams = make([0, *range(1, 100), 0], batch_size=3)
    first, second = streams.next_chunk(), streams.next_chunk()
    assert (second.inputs[:, 0] == first.targets[:, -1]).all()
    assert not second.fresh.any()


def test_every_stream_starts_with_the_boundary_token() -> None:
    chunk = make([0, *range(1, 100), 0], batch_size=5).next_chunk()
    assert chunk.fresh.all()
    assert (chunk.inputs[:, 0] == 0).all()


def test_stream_restarts_at_the_end_of_the_corpus() -> None:
    streams = make([0, 1, 2, 3, 4, 5, 6, 7, 8, 0], batch_size=1)
    streams.next_chunk(), streams.next_chunk()
    chunk = streams.next_chunk()
    assert chunk.fresh.tolist() == [True]
    assert chunk.inputs.tolist() == [[0, 1, 2, 3]]


def test_restarts_of_lines_are_at_document_starts() -> None:
    documents = [[0, *([number] * (3 + number % 5))] for number in range(1, 60)]
    ids = [token for document in documents for token in document] + [0]
    streams = make(ids, Document.LINE, batch_size=4, restart_share=0.5)
    restarted = 0
    for _ in range(50):
        chunk = streams.next_chunk()
        for row in np.flatnonzero(chunk.fresh):
            restarted += 1
            first = chunk.targets[row, 0]
            length = 3 + first % 5
            assert (chunk.targets[row, : min(4, length)] == first).all()  # begins with the document's first token
    assert restarted > 50


def test_restarts_of_a_file_are_at_random_line_starts() -> None:
    newline = 1
    line = [2, 3, 4, 5, 6, newline]
    streams = make([0, *(line * 200), 0], batch_size=4, restart_share=0.5, starts=(0, newline))
    places = set()
    for _ in range(40):
        chunk = streams.next_chunk()
        assert (chunk.targets[chunk.fresh, 0] == 2).all()
        assert (chunk.inputs[chunk.fresh, 0] == 0).all()
        places |= set(np.array(streams.state()["cursors"])[chunk.fresh].tolist())
    assert len(places) > 20


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_share_of_restarts_matches_its_setting(share: float) -> None:
    streams = make([0, *range(1, 5000), 0], batch_size=50, restart_share=share)
    streams.next_chunk()
    fresh = np.mean([streams.next_chunk().fresh.mean() for _ in range(20)])
    assert fresh == pytest.approx(share, abs=0.04)


def test_streams_resume_exactly() -> None:
    ids = [0, *np.random.default_rng(1).integers(1, 9, 3000).tolist(), 0]
    whole, part = (make(ids, batch_size=3, restart_share=0.3) for _ in range(2))
    for _ in range(17):
        whole.next_chunk(), part.next_chunk()
    resumed = make(ids, batch_size=3, restart_share=0.3, seed=99)
    resumed.restore(part.state())
    for _ in range(300):
        expected, chunk = whole.next_chunk(), resumed.next_chunk()
        assert np.array_equal(expected.inputs, chunk.inputs)
        assert np.array_equal(expected.targets, chunk.targets)
        assert np.array_equal(expected.fresh, chunk.fresh)


def test_chunk_lengths_are_spread_around_their_setting() -> None:
    streams = make([0, *([1, 2, 3] * 40_000), 0], batch_size=1, length=40, spread=4.0)
    lengths = np.array([streams.next_chunk().inputs.shape[1] for _ in range(2000)])
    assert lengths.mean() == pytest.approx(40, abs=0.4)
    assert lengths.std() == pytest.approx(4, abs=0.3)


@pytest.mark.parametrize("num_tokens", [3, 30, 58, 3000])
def test_chunk_is_at_most_one_and_a_half_lengths_and_at_most_the_corpus(num_tokens: int) -> None:
    streams = make([0, *range(1, num_tokens - 1), 0], batch_size=2, length=min(40, num_tokens - 1), spread=100.0)
    lengths = {streams.next_chunk().inputs.shape[1] for _ in range(200)}
    assert max(lengths) == min(60, num_tokens - 1, int(1.5 * min(40, num_tokens - 1)))
    assert min(lengths) >= min(40, num_tokens - 1) // 2


def test_streams_of_uneven_chunks_are_contiguous_and_resume_exactly() -> None:
    ids = [0, *range(1, 3000), 0]
    streams, resumed = make(ids, batch_size=1, length=20, spread=5.0), make(ids, batch_size=1, length=20, spread=5.0)
    for _ in range(7):
        first = streams.next_chunk()
    resumed.restore(streams.state())
    second, expected = resumed.next_chunk(), streams.next_chunk()
    assert second.inputs[0, 0] == first.targets[0, -1]
    assert np.array_equal(second.inputs, expected.inputs)


def test_corpus_of_one_character_is_accepted() -> None:
    streams = make([0, 1, 0], batch_size=3, length=2)
    for _ in range(3):
        chunk = streams.next_chunk()
        assert chunk.targets.tolist() == [[1, 0]] * 3


def test_file_without_line_ends_is_entered_at_random_positions() -> None:
    streams = make([0, *range(1, 300), 0], batch_size=4, restart_share=0.5)
    assert len(set(streams.state()["cursors"])) == 4
    streams.next_chunk()
    places = set()
    for _ in range(20):
        chunk = streams.next_chunk()
        places |= set(np.array(streams.state()["cursors"])[chunk.fresh].tolist())
    assert len(places) > 20


def test_warmup_is_linear_up_to_the_peak() -> None:
    config = TrainingConfig(steps=100, learning_rate=0.4, warmup_steps=4)
    assert [learning_rate(config, step, 100) for step in range(4)] == pytest.approx([0.1, 0.2, 0.3, 0.4])


def test_cosine_falls_from_the_peak_to_the_minimum() -> None:
    config = TrainingConfig(steps=110, learning_rate=0.5, min_learning_rate=0.1, warmup_steps=10)
    assert learning_rate(config, 10, 110) == pytest.approx(0.5)
    assert learning_rate(config, 60, 110) == pytest.approx(0.3)
    assert learning_rate(config, 109, 110) == pytest.approx(0.1, abs=1e-3)


def test_first_step_without_warmup_has_the_peak_rate() -> None:
    assert learning_rate(TrainingConfig(steps=10, learning_rate=0.5, warmup_steps=0), 0, 10) == pytest.approx(0.5)


def test_rate_of_a_run_that_ends_by_the_clock_follows_its_time() -> None:
    config = TrainingConfig(steps=1000, learning_rate=0.4, warmup_steps=10)
    assert learning_rate(config, 10, 1000, share_of_time=0.5) == pytest.approx(0.2)
    assert learning_rate(config, 990, 1000, share_of_time=0.5) < 1e-3  # the steps are taken sooner
    assert learning_rate(config, 500, 1000, share_of_time=1.5) == 0.0


def test_warmup_longer_than_the_run_is_shortened() -> None:
    config = TrainingConfig(steps=2, learning_rate=0.5, warmup_steps=100)
    assert [learning_rate(config, step, 2) for step in range(2)] == pytest.approx([0.25, 0.5])


def test_epochs_are_converted_to_steps() -> None:
    config = TrainingConfig(epochs=1.5, batch_size=4, chunk_length=10)
    assert num_steps(config, 1000) == 38  # 1,500 targets, 40 in each step
    assert num_steps(TrainingConfig(steps=7), 1000) == 7


def test_chunk_is_never_longer_than_the_corpus() -> None:
    assert chunk_length(TrainingConfig(steps=1, chunk_length=64), 5) == 5
