"""The choices of /v1/completions: what the engine says of one sample, and of its prompt, in OpenAI's shape."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal

from meari.runtime.answers import Alternative, Choice, TokenWithLogprob
from meari.runtime.completion import ChoiceWriter
from meari.runtime.engine import TextScore
from meari.runtime.text.tokenizer import Vocabulary
from meari.service.openai.bodies import CompletionChoice, Logprobs
from meari.service.openai.prompts import Places, ReadPrompt

__all__ = ["OpenAIChoice", "prompt_logprobs", "token_name"]

# Out of time is a limit that was reached, too: OpenAI has no word for it.
FINISH: Final[dict[str, Literal["stop", "length"]]] = {
    "end": "stop",
    "stop": "stop",
    "length": "length",
    "timeout": "length",
}


class OpenAIChoice:
    """Writes one choice: first what is echoed, then the sample as it grows. writer: None where there is no sample."""

    def __init__(
        self,
        index: int,
        seed: int,
        prompt: ReadPrompt,
        writer: ChoiceWriter | None,
        vocabulary: Vocabulary,
        echo: bool,
        logprobs: int | None,
    ) -> None:
        self._index = index
        self._seed = seed
        self._writer = writer
        self._vocabulary = vocabulary
        self._places = Places(vocabulary, prompt.text_end, len(prompt.text))
        self._echoed = prompt.text if echo else ""
        self._with_logprobs = logprobs is not None
        self._prompt_logprobs: Logprobs | None = None
        self.done = False

    @property
    def num_tokens(self) -> int:
        """Sampled tokens that were taken up."""
        return 0 if self._writer is None else self._writer.num_tokens

    @property
    def kept(self) -> str:
        """As much of the sampled text as is kept for the log."""
        return "" if self._writer is None else self._writer.kept

    def echo_logprobs(self, logprobs: Logprobs) -> None:
        """Before the first `take`: the figures of the prompt's tokens."""
        self._prompt_logprobs = logprobs

    def take(self) -> CompletionChoice | None:
        """What has come since the last call, None where that is nothing."""
        if self.done:
            return None
        choice = None if self._writer is None else self._writer.take()
        self.done = self._writer is None or self._writer.done
        echoed, self._echoed = self._echoed, ""
        figures, self._prompt_logprobs = self._prompt_logprobs, None
        if choice is None and not (echoed or figures or self.done):
            return None
        return CompletionChoice(
            self._index,
            echoed + (choice.text if choice is not None else ""),
            self._logprobs(figures, choice) if self._with_logprobs else None,
            self._finish_reason(choice) if self.done else None,
            self._seed,
        )

    def _finish_reason(self, choice: Choice | None) -> Literal["stop", "length"]:
        return "length" if choice is None else FINISH[str(choice.finish_reason)]

    def _logprobs(self, echoed: Logprobs | None, choice: Choice | None) -> Logprobs:
        tokens = choice.tokens if choice is not None and isinstance(choice.tokens, list) else []
        own = self._sampled(tokens)
        if echoed is None:
            return own
        return Logprobs(
            echoed.tokens + own.tokens,
            echoed.token_logprobs + own.token_logprobs,
            echoed.top_logprobs + own.top_logprobs,
            echoed.text_offset + own.text_offset,
        )

    def _sampled(self, tokens: list[TokenWithLogprob]) -> Logprobs:
        names = [token_name(self._vocabulary, token.id) for token in tokens]
        tops: list[dict[str, float] | None] = [
            self._top(name, token.logprob, token.top) for name, token in zip(names, tokens, strict=True)
        ]
        places = [self._places.of(token.id) for token in tokens]
        return Logprobs(names, [token.logprob for token in tokens], tops, places)

    def _top(self, name: str, logprob: float, alternatives: Iterable[Alternative]) -> dict[str, float]:
        top = {token_name(self._vocabulary, other.id): other.logprob for other in alternatives}
        return top | {name: logprob}


def prompt_logprobs(prompt: ReadPrompt, scores: TextScore, vocabulary: Vocabulary) -> Logprobs:
    """The figures of a prompt's tokens; those of a boundary token in front are null, for nothing stands before it."""
    names = [token_name(vocabulary, token) for token in prompt.ids]
    logprobs: list[float] = (scores.logprobs + 0.0).tolist()
    tops: list[dict[str, float] | None] = [
        {token_name(vocabulary, other): value for other, value in zip(ids, values, strict=True)} | {name: logprob}
        for name, logprob, ids, values in zip(
            names,
            logprobs,
            scores.alternative_ids.tolist(),
            scores.alternative_logprobs.tolist(),
            strict=True,
        )
    ]
    if prompt.has_boundary:
        boundary = vocabulary.texts[vocabulary.end_id]
        return Logprobs([boundary, *names], [None, *logprobs], [None, *tops], [0, *prompt.offsets])
    return Logprobs(names, [*logprobs], tops, prompt.offsets)


def token_name(vocabulary: Vocabulary, token: int) -> str:
    """The token as text; where its bytes are no whole characters, `bytes:` and the bytes, so that no two look alike."""
    part = vocabulary.parts.get(token)
    return vocabulary.texts[token] if part is None else "bytes:" + "".join(f"\\x{byte:02x}" for byte in part)
