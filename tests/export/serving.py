"""A bundle behind the service's engine, in this process."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from meari.runtime.engine import GenerateCall, Sampling, ScoreCall, TextScore
from meari.runtime.engine.calls import Sample
from meari.service.registry import Model, load_model
from meari.service.settings import Settings


@contextmanager
def served(bundle: Path) -> Iterator[Model]:
    """The opened bundle, its engine running."""
    model = load_model(bundle, replace(Settings(), max_slots=16, workers=1))
    try:
        yield model
    finally:
        model.engine.stop()


def score(
    model: Model, texts: Sequence[Sequence[int]], context: Sequence[int] = (), *, add_end: bool = True
) -> list[TextScore]:
    """Figures of texts, as token ids, after a context."""
    call = ScoreCall(context, texts, deadline=model.engine.clock() + 100, add_end=add_end)
    scoring = model.engine.score(call, model.engine.reserve())
    scoring.wait_end()
    scoring.raise_for_failure()
    return scoring.results


def generate(model: Model, prompt: Sequence[int], max_tokens: int, sampling: Sampling) -> Sample:
    """One continuation of a prompt."""
    call = GenerateCall(prompt, max_tokens, model.engine.clock() + 100, sampling)
    generation = model.engine.generate(call, model.engine.reserve())
    generation.wait_end()
    (sample,) = generation.samples
    return sample
