"""Run the engine of a bundle in this process."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from meari.runtime.engine import EngineLimits, GenerateCall, Sampling, ScoreCall, TextScore
from meari.runtime.engine.calls import Sample
from meari.runtime.model import LoadedModel, load_model


@contextmanager
def served(bundle: Path) -> Iterator[LoadedModel]:
    """Open a bundle and run its engine until the block ends."""
    model = load_model(bundle, EngineLimits(max_slots=16, cache_bytes=1 << 20))
    try:
        yield model
    finally:
        model.engine.stop()


def score(
    model: LoadedModel, texts: Sequence[Sequence[int]], context: Sequence[int] = (), *, add_end: bool = True
) -> list[TextScore]:
    """Score texts, given as token ids, after a context."""
    call = ScoreCall(context, texts, deadline=model.engine.clock() + 100, add_end=add_end)
    scoring = model.engine.score(call, model.engine.reserve())
    scoring.wait_end()
    scoring.raise_for_failure()
    return scoring.results


def generate(model: LoadedModel, prompt: Sequence[int], max_tokens: int, sampling: Sampling) -> Sample:
    """Generate one continuation of a prompt."""
    call = GenerateCall(prompt, max_tokens, model.engine.clock() + 100, sampling)
    generation = model.engine.generate(call, model.engine.reserve())
    generation.wait_end()
    (sample,) = generation.samples
    return sample
