"""Log-probabilities of a text's tokens → the figures of /score.

Enters: a text with its tokens and the engine's natural log-probabilities. Leaves: sums, perplexity, bits, figures by
token and by word. Knows no JSON.

The log-probabilities lie on a grid on which sums are exact, so `logprob` is their exact sum, in whatever order.

Words are stretches without white space. A token belongs to the word in which it begins; white space belongs to the
word that follows it, and at the end of a text to the last word. The end token belongs to no word, nor does anything
in a text without words. So `logprob` is the sum over the words, plus the end token's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from service.answers.bodies import Alternative, ScoredToken, ScoredWord, TextFigures
from service.answers.sums import LN_OF, TextSums
from service.engine import TextScore
from service.engine.calls import GRID
from service.requests.schema import LogBase
from service.state_tokens import TextState
from service.text.tokenizer import END_ID, Encoded, Vocabulary, nfc

__all__ = ["ScoredText"]

_WORD: Final = re.compile(r"\S+")


@dataclass(frozen=True, eq=False)
class ScoredText:
    """One scored text; `scores` has one row a token of `encoded`, and one more where the end was asked for.

    `state` is the text's end, where it was asked for.
    """

    encoded: Encoded
    scores: TextScore
    vocabulary: Vocabulary
    log_base: LogBase
    state: TextState | None = None

    def figures(self) -> TextFigures:
        """The sums over the whole text, as figures."""
        return self.sums().figures(self.log_base)

    def sums(self) -> TextSums:
        """The sums over the whole text."""
        logprobs = self.scores.logprobs
        text = nfc(self.encoded.text)
        num_chars = len(text)
        num_bytes = num_chars if text.isascii() else len(text.encode("utf-8"))
        units = _units(logprobs)
        unknown_id = self.vocabulary.unknown_id
        num_unknown = 0 if unknown_id is None else self.encoded.ids.count(unknown_id)
        known_units = _units(logprobs[self._known()]) if num_unknown else units
        return TextSums(units, known_units, len(logprobs), num_chars, num_bytes, num_unknown)

    def tokens(self, first: int, last: int) -> list[ScoredToken]:
        """The figures of tokens number `first` to `last` (exclusive)."""
        scores, texts = self.scores, self.vocabulary.texts
        assert scores.ranks is not None, "ranks are asked for together with tokens"
        logprobs = self._all_in_base(scores.logprobs[first:last])
        ranks = scores.ranks[first:last].tolist()
        alternatives = zip(
            scores.alternative_ids[first:last].tolist(),
            map(self._all_in_base, scores.alternative_logprobs[first:last]),
            strict=True,
        )
        return [
            ScoredToken(
                token,
                texts[token],
                logprob,
                rank,
                start,
                end,
                [Alternative(id_, texts[id_], value) for id_, value in zip(ids, values, strict=True)],
            )
            for (token, start, end), logprob, rank, (ids, values) in zip(
                self._places(first, last), logprobs, ranks, alternatives, strict=True
            )
        ]

    def words(self) -> list[ScoredWord]:
        """The figures of every word, in order."""
        words = list(_WORD.finditer(self.encoded.text))
        if not words:
            return []
        ends = np.array([word.end() for word in words])
        owners = np.minimum(np.searchsorted(ends, self.encoded.starts, side="right"), len(words) - 1)
        own = self.scores.logprobs[: len(self.encoded.ids)]
        sums = self._all_in_base(np.bincount(owners, weights=own, minlength=len(words)).astype(np.float64))
        return [
            ScoredWord(word.group(), logprob, word.start(), word.end())
            for word, logprob in zip(words, sums, strict=True)
        ]

    def _places(self, first: int, last: int) -> Iterator[tuple[int, int, int]]:
        """Id, start and end of some tokens; the end token stands after the last character."""
        encoded = self.encoded
        yield from zip(
            encoded.ids[first:last],
            encoded.starts[first:last].tolist(),
            encoded.ends[first:last].tolist(),
            strict=True,
        )
        if last > len(encoded.ids) and first <= len(encoded.ids):
            yield END_ID, len(encoded.text), len(encoded.text)

    def _known(self) -> npt.NDArray[np.bool_]:
        known = np.ones(len(self.scores.logprobs), bool)
        if self.vocabulary.unknown_id is not None:
            known[: len(self.encoded.ids)] = np.array(self.encoded.ids, np.int64) != self.vocabulary.unknown_id
        return known

    def _all_in_base(self, logprobs: npt.NDArray[np.float64]) -> list[float]:
        values: list[float] = (logprobs / LN_OF[self.log_base] + 0.0).tolist()
        return values


def _units(logprobs: npt.NDArray[np.float64]) -> int:
    """Their sum in units of the grid, on which each of them lies."""
    return round(math.fsum(logprobs.tolist()) * GRID)
