"""The methods of a language model, wherever it runs.

Input: texts and keyword arguments. Output: numbers, arrays, tables, texts and states. Must not know: whether the model
runs in this process or at a service.
"""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, Final, NoReturn, Protocol, Self, TypeVar, Unpack, overload

import numpy as np
import numpy.typing as npt

from meari.api.arguments import (
    LogBase,
    StateLike,
    checked_ids,
    checked_state,
    checked_text,
    checked_texts,
    complete_request,
    generate_request,
    score_options,
)
from meari.api.surprisal import By, Surprisal, checked_by, surprisal_of
from meari.bulk.options import ScoreOptions
from meari.client.answers import Completions, Generation, Token
from meari.client.fields import GenerateFields, State
from meari.client.streams import Stream
from meari.runtime.requests import CompleteRequest, GenerateRequest
from meari.runtime.scores import Scored, TextSums

__all__ = ["LanguageModel", "Model"]

Result = TypeVar("Result")
Floats = npt.NDArray[np.float64]


class Model(Protocol):
    """A model here or at a service, asked with checked requests; safe from several threads.

    name      of the bundle
    where     the bundle's folder, or the service's URL
    has_ends  the end of a text counts unless a request says otherwise
    """

    name: str
    where: str
    has_ends: bool

    def describe(self) -> dict[str, Any]: ...
    def score(self, texts: Sequence[str], options: ScoreOptions, take: Callable[[Scored], Result]) -> list[Result]: ...
    def state_after(self, text: str, state: str | None) -> str: ...
    def generate(self, request: GenerateRequest) -> Generation: ...
    def stream(self, request: GenerateRequest) -> Stream: ...
    def complete(self, request: CompleteRequest) -> Completions: ...
    def tokenize(self, text: str) -> list[Token]: ...
    def detokenize(self, ids: list[int]) -> str: ...
    def close(self) -> None: ...
    def after_fork(self) -> None: ...


class LanguageModel:
    """A language model: what it thinks of texts, and how it goes on with them.

    Made by `meari.load`. The methods and the bits of their results are the same for a bundle in this process and for a
    model of a service; see docs/python.md for what equal bits need. Safe from several threads, and in a forked
    process, which opens its own engines. A context manager: `close()` ends its threads and connections.

    All methods raise `meari.InvalidRequest` for a wrong argument, naming it, what came and what was expected. Of a
    service they also raise the other errors of `meari.errors`, and `meari.RemoteError` if it does not answer.
    """

    def __init__(self, model: Model) -> None:
        """Use `meari.load` instead."""
        self._model = model
        _models.add(self)

    def __reduce__(self) -> NoReturn:
        message = "a LanguageModel cannot be copied or pickled: open it where it is used, with meari.load"
        raise TypeError(message)

    @property
    def name(self) -> str:
        """Name of the model: that of its bundle's folder."""
        return self._model.name

    @property
    def description(self) -> dict[str, Any]:
        """Family, sizes, tokenizer, corpus, held-out figures and hashes, as GET /models/NAME gives them."""
        return self._model.describe()

    @overload
    def score(  # type: ignore[overload-overlap]  # a text is no list of texts
        self,
        text: str,
        *,
        context: str | None = None,
        state: StateLike = None,
        log_base: LogBase = "e",
        end: bool | None = None,
    ) -> float: ...
    @overload
    def score(
        self,
        text: Iterable[str],
        *,
        context: str | None = None,
        state: StateLike = None,
        log_base: LogBase = "e",
        end: bool | None = None,
    ) -> Floats: ...
    def score(
        self,
        text: str | Iterable[str],
        *,
        context: str | None = None,
        state: StateLike = None,
        log_base: LogBase = "e",
        end: bool | None = None,
    ) -> float | Floats:
        """Return the log-probability of a text, or of each of several, which run as batches.

        text      a text, or several
        context   text before every text; it is not scored itself
        state     score after this state, in place of a context
        log_base  "e" (nats), 2 (bits) or 10
        end       count the probability that the text ends there; by default if the model's training text had ends
        returns   float; of several texts float64 [num_texts], in their order

        >>> lm.score("To be, or not to be") < lm.score("To be")
        True
        >>> lm.score(["To be", "Be to"], context="Hamlet: ").shape
        (2,)
        """
        return self._figures(text, lambda sums, base: sums.figures(base).logprob, context, state, log_base, end)

    @overload
    def perplexity(  # type: ignore[overload-overlap]
        self, text: str, *, context: str | None = None, state: StateLike = None, end: bool | None = None
    ) -> float: ...
    @overload
    def perplexity(
        self, text: Iterable[str], *, context: str | None = None, state: StateLike = None, end: bool | None = None
    ) -> Floats: ...
    def perplexity(
        self,
        text: str | Iterable[str],
        *,
        context: str | None = None,
        state: StateLike = None,
        end: bool | None = None,
    ) -> float | Floats:
        """Return exp(−log-probability / number of tokens) of a text, or of each of several; nan without tokens.

        returns  float, 1 or more; of several texts float64 [num_texts], in their order

        `context`, `state` and `end` are those of `score`. Of different tokenizers perplexities do not compare;
        `bits_per_char` does.

        >>> round(lm.perplexity("To be", end=False), 6) == round(math.exp(-lm.score("To be", end=False) / 5), 6)
        True
        """
        return self._figures(text, lambda sums, base: _number(sums.figures(base).perplexity), context, state, "e", end)

    @overload
    def bits_per_char(  # type: ignore[overload-overlap]
        self, text: str, *, context: str | None = None, state: StateLike = None, end: bool | None = None
    ) -> float: ...
    @overload
    def bits_per_char(
        self, text: Iterable[str], *, context: str | None = None, state: StateLike = None, end: bool | None = None
    ) -> Floats: ...
    def bits_per_char(
        self,
        text: str | Iterable[str],
        *,
        context: str | None = None,
        state: StateLike = None,
        end: bool | None = None,
    ) -> float | Floats:
        """Return −log₂ probability a code point of a text (in NFC), or of each of several; nan without any.

        returns  float, in bits; of several texts float64 [num_texts], in their order

        `context`, `state` and `end` are those of `score`.
        """
        return self._figures(
            text, lambda sums, base: _number(sums.figures(base).bits_per_char), context, state, "e", end
        )

    def surprisal(
        self,
        text: str,
        by: By = "token",
        *,
        context: str | None = None,
        state: StateLike = None,
        log_base: LogBase = 2,
        end: bool | None = None,
    ) -> Surprisal:
        """Return a table with the surprisal, −log probability, of each token, word or character of a text.

        by        "token"; "word" (between white space); "unicode" (words by ICU, which needs `meari[segment]`);
                  "char" (code points: a token's surprisal is spread evenly over its characters)
        log_base  2 (bits), "e" (nats) or 10
        returns   a table whose rows add up to the text's score; in a notebook the text shaded by surprisal

        `context`, `state` and `end` are those of `score`.

        >>> table = lm.surprisal("To be, or not to be", by="word")
        >>> [row.text for row in table][:3]
        ['To', 'be,', 'or']
        """
        text, by = checked_text(text), checked_by(by)
        words = "unicode" if by == "unicode" else by == "word"
        options = score_options(
            context=context,
            state=state,
            end=end,
            has_ends=self._model.has_ends,
            log_base=log_base,
            tokens=not words,
            words=words,
        )
        take = surprisal_of(text, by, options.log_base)
        return self._model.score([text], options, take)[0]

    def generate(self, prompt: str = "", **fields: Unpack[GenerateFields]) -> Generation:
        """Return continuations of a prompt; `fields` are those of `meari.GenerateFields`, as of POST /generate.

        >>> lm.generate("To be", max_tokens=8, seed=7).text == lm.generate("To be", max_tokens=8, seed=7).text
        True
        """
        return self._model.generate(generate_request(prompt, fields))

    def stream(self, prompt: str = "", **fields: Unpack[GenerateFields]) -> Stream:
        """Return continuations of a prompt piece by piece: an iterator of `meari.Choice`.

        `fields` are those of `generate`.

        >>> with lm.stream("To be", max_tokens=8, seed=7) as pieces:
        ...     "".join(piece.text for piece in pieces) == lm.generate("To be", max_tokens=8, seed=7).text
        True
        """
        return self._model.stream(generate_request(prompt, fields))

    def complete(self, text: str, n: int = 5, max_words: int = 1, *, composing: bool = False) -> Completions:
        """Return the likeliest ways to go on from exactly this text to the end of a word, best first.

        n          completions at most, 1 … 20
        max_words  words that a completion may have, the one that is being typed included, 1 … 8
        composing  the last characters may still become another Korean syllable; a completion stands in their place
        returns    a sequence of `meari.TextCompletion` (`text`, `logprob` in nats, `probability` of the string given
                   the text), with `error`, `proven` and `usage`; shorter where the model knows fewer

        The probability of a string adds up over all token sequences that spell it; docs/completing.md says how far it
        is exact.

        >>> [completion.text for completion in lm.complete("Romeo, Romeo, wherefore art th", n=1)]
        ['ou']
        """
        return self._model.complete(complete_request(text, {"n": n, "max_words": max_words, "composing": composing}))

    def state(self, text: str, *, state: StateLike = None) -> State:
        """Return the model's state after a text: a value to score or continue from, to keep and to send.

        state  the text follows that of this state

        >>> state = lm.state("To be, ")
        >>> lm.score("or not", state=meari.State(bytes(state))) == lm.score("or not", context="To be, ")
        True
        """
        return State(self._model.state_after(checked_text(text), checked_state(state)))

    def tokenize(self, text: str) -> list[Token]:
        """Return the tokens of a text, without the boundary token.

        >>> "".join(token.text for token in lm.tokenize("To be"))
        'To be'
        """
        return self._model.tokenize(checked_text(text))

    def detokenize(self, tokens: Iterable[Token | int]) -> str:
        """Return the text of `tokens`, or of their ids."""
        return self._model.detokenize(checked_ids(tokens))

    def close(self) -> None:
        """End the threads and connections; further calls raise `meari.errors.NotReady`."""
        self._model.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<meari.LanguageModel {self.name} of {self._model.where}>"

    def _figures(
        self,
        text: str | Iterable[str],
        figure: Callable[[TextSums, Any], float],
        context: str | None,
        state: StateLike,
        log_base: LogBase,
        end: bool | None,  # noqa: FBT001 (by position from the methods above)
    ) -> float | Floats:
        """Return one figure of each text, a float of a text alone."""
        is_alone = isinstance(text, str)
        texts = [checked_text(text)] if isinstance(text, str) else checked_texts(text)
        options = score_options(context=context, state=state, end=end, has_ends=self._model.has_ends, log_base=log_base)
        base = options.log_base
        found = self._model.score(texts, options, lambda scored: figure(scored.sums(), base)) if texts else []
        return found[0] if is_alone else np.array(found, np.float64)


def _number(figure: float | None) -> float:
    return math.nan if figure is None else figure


_models: Final[weakref.WeakSet[LanguageModel]] = weakref.WeakSet()


def _after_fork() -> None:
    """Tell the models of a forked process that the threads which answered are the parent's."""
    for model in _models:
        model._model.after_fork()  # noqa: SLF001


os.register_at_fork(after_in_child=_after_fork)
