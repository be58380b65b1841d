"""A prompt of /v1/completions as it is read and echoed, and its choices in OpenAI's shape.

Input: a prompt as text or token ids; choices of the runtime, scores of the prompt's tokens. Output: `EchoedPrompt`,
`CompletionChoice`. Must not know: Flask, the engine's queue.

Token ids may begin with the boundary token: it is the one that stands in front of every text anyway.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from meari.runtime.answers import Alternative, Choice, TokenWithLogprob
from meari.runtime.completion import ChoiceWriter, ReadPrompt
from meari.runtime.engine import TextScore
from meari.runtime.requests import checked_ids
from meari.runtime.text.detokenizer import NO_TEXT, Detokenizer, TextEnd
from meari.runtime.text.tokenizer import TextTokenizer, Vocabulary
from meari.service.openai.bodies import CompletionChoice, Logprobs

__all__ = ["EchoedPrompt", "OpenAIChoice", "prompt_logprobs", "read_ids", "read_text", "token_name"]

# Out of time is a limit that was reached, too: OpenAI has no word for it.
FINISH: Final[dict[str, Literal["stop", "length"]]] = {
    "end": "stop",
    "stop": "stop",
    "length": "length",
    "timeout": "length",
}


@dataclass(frozen=True, eq=False)
class EchoedPrompt(ReadPrompt):
    """A prompt that may be echoed.

    has_boundary  a boundary token came in front of `ids`
    offsets       of `ids` in the text; empty if not needed
    """

    has_boundary: bool
    offsets: list[int]


class Offsets:
    """Counts the offsets of tokens that are joined to a text one after another."""

    def __init__(self, vocabulary: Vocabulary, before: TextEnd, length: int) -> None:
        """Begin after `length` characters."""
        self._writer = Detokenizer(vocabulary, before)
        self._vocabulary = vocabulary
        self.length = length

    def of(self, token: int) -> int:
        """Return the offset of the next token."""
        first = self.length
        text = self._writer.feed(token)
        self.length += len(text)
        own = self._vocabulary.texts[token]
        if text.endswith(own) and "\ufffd" not in own:
            return self.length - len(own)  # before it may stand a space, or U+FFFD for bytes that were no character
        return first


def read_text(text: str, tokenizer: TextTokenizer, *, with_offsets: bool) -> EchoedPrompt:
    """Read a text by the model's own tokenizer."""
    offsets: list[int] = []
    if with_offsets:
        encoded = tokenizer.encode_with_offsets(text)
        ids, offsets = encoded.ids, encoded.starts.tolist()
    else:
        ids = tokenizer.encode(text)
    num_unknown = tokenizer.vocabulary.num_unknown(ids)
    return EchoedPrompt(text, ids, NO_TEXT.then(text), num_unknown, has_boundary=False, offsets=offsets)


def read_ids(ids: list[int], vocabulary: Vocabulary, path: str) -> EchoedPrompt:
    """Read token ids, which a message calls `path`. Raises InvalidRequest."""
    checked_ids(ids, vocabulary.size, path)
    has_boundary = ids[:1] == [vocabulary.end_id]
    own = ids[1:] if has_boundary else ids
    counted = Offsets(vocabulary, NO_TEXT, 0)
    offsets = [counted.of(token) for token in own]
    writer = Detokenizer(vocabulary)
    text = writer.feed_all(own)
    num_unknown = vocabulary.num_unknown(own)
    return EchoedPrompt(text, own, writer.text_end, num_unknown, has_boundary=has_boundary, offsets=offsets)


class OpenAIChoice:
    """Writes one choice: first the echo, then the sample as it grows.

    writer    None if there is no sample
    logprobs  alternatives of each token, None if no figures are wanted
    """

    def __init__(
        self,
        index: int,
        seed: int,
        prompt: EchoedPrompt,
        writer: ChoiceWriter | None,
        vocabulary: Vocabulary,
        *,
        echo: bool,
        logprobs: int | None,
    ) -> None:
        self._index = index
        self._seed = seed
        self._writer = writer
        self._vocabulary = vocabulary
        self._offsets = Offsets(vocabulary, prompt.text_end, len(prompt.text))
        self._echoed = prompt.text if echo else ""
        self._with_logprobs = logprobs is not None
        self._prompt_logprobs: Logprobs | None = None
        self.done = False

    @property
    def num_tokens(self) -> int:
        """Number of sampled tokens that were given out."""
        return 0 if self._writer is None else self._writer.num_tokens

    @property
    def kept(self) -> str:
        """The beginning of the sampled text, as far as the log keeps it."""
        return "" if self._writer is None else self._writer.kept

    def echo_logprobs(self, logprobs: Logprobs) -> None:
        """Take the figures of the prompt's tokens, before the first `take`."""
        self._prompt_logprobs = logprobs

    def take(self) -> CompletionChoice | None:
        """Return the text since the last call, None if there is none."""
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
        offsets = [self._offsets.of(token.id) for token in tokens]
        return Logprobs(names, [token.logprob for token in tokens], tops, offsets)

    def _top(self, name: str, logprob: float, alternatives: Iterable[Alternative]) -> dict[str, float]:
        top = {token_name(self._vocabulary, other.id): other.logprob for other in alternatives}
        return top | {name: logprob}


def prompt_logprobs(prompt: EchoedPrompt, scores: TextScore, vocabulary: Vocabulary) -> Logprobs:
    """Return the figures of a prompt's tokens; those of a boundary token in front are null."""
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
    """Return the token as text, or for a part of a character `bytes:` and the bytes, so that no two look alike."""
    part = vocabulary.parts.get(token)
    return vocabulary.texts[token] if part is None else "bytes:" + "".join(f"\\x{byte:02x}" for byte in part)
