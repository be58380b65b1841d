"""What was done for one request, as its log line and its span tell it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Work"]


@dataclass(frozen=True, slots=True)
class Work:
    """Of a request that is over, or was given up.

    prompt_tokens     of all prompts, contexts and texts, boundary tokens left out
    cached_tokens     those of them whose state was known already
    generated_tokens  sampled, over all samples
    scored_tokens     log-probabilities that were reported
    finish_reasons    of each sample, as the engine names them; none where it has not ended
    prompts, answers  the texts themselves, and as much of what was written as was kept
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    scored_tokens: int = 0
    finish_reasons: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
