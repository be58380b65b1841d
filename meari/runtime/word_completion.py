"""A text that somebody is typing → the likeliest ways to go on to the end of a word.

Input: a checked request and the model that it is for. Output: `WordCompletion`, which gives the answer once its search
has ended. Must not know: HTTP.

The probability of a completion is that of a string, given the text: of all token sequences after the text's head that
spell the text's tail, the share that goes on with the completion and then ends the word. It adds up over sequences.

The search is best-first. A *place* is a token sequence after the head; its mass, the probability of its tokens, bounds
the mass of everything behind it. The heaviest places are run, a few at a time. A run tells the mass of every next
token, so the word ends that come next are summed at once, with no place of their own. The search is over when no place
that is left has more mass than the least of the `n` best completions, or when its rounds are spent. What is left aside
is never lost: it bounds what each completion may still gain, and that bound is in the answer. Over several words mass
alone would try all beginnings and end none, so there a place gains `LENGTH_BONUS` for each character that it has
written; what may be left out and when the search is over is told by mass as before.

All decisions depend on the request's own figures alone, so an answer has the same bits beside others.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt
from msgspec import UNSET

from meari.bundle_format.names import TokenizerKind
from meari.runtime.answers import CompleteAnswer, CompleteUsage, TextCompletion, Work
from meari.runtime.completion import Budget
from meari.runtime.engine import GenerateCall, Searching
from meari.runtime.model import LoadedModel
from meari.runtime.requests import CompleteRequest
from meari.runtime.text.typed import LINKS, Ending, First, Progress, Span, Spelling, TypedText, spelling_of, typed_text

__all__ = ["WordCompletion", "WordSearch", "begin_word_completion"]

WIDTH: Final = 8  # places in a run
MAX_ROUNDS: Final = 16  # for each word, for `MAX_SEARCHED_WORDS` at most
MAX_SEARCHED_WORDS: Final = 3
LENGTH_BONUS: Final = 2.0  # a character costs a bit or two
TAIL_WEIGHT: Final = 64.0  # places inside the tail go first: all probabilities are divided by what they lead to
FLOOR_SHARE: Final = 0.25  # of the mass of the last one of the best: lighter tokens cannot be among them
LEAST_SHARE: Final = 1e-6  # of the mass of the text: lighter tokens are no place
LEAST_MASS: Final = 5e-324  # above zero
MAX_NEXT: Final = 512  # tokens after a place that may be places
BYTES_PER_CHAR: Final = 100  # of a text while it is tokenized
Floats64 = npt.NDArray[np.float64]
Floats32 = npt.NDArray[np.float32]


@dataclass(eq=False, slots=True)
class Place:
    """A token sequence after the head.

    mass       its probability
    spelled    its bytes
    spans      what the tail still needs; () past the tail
    progress   what is written after the text; None inside the tail
    weights    float32 [V], mass of each token after it, once it was run
    parts      tokens that spell more of the tail without ending it
    next_ids   tokens that may be places, heaviest first; `num_taken` of them have been
    """

    mass: float
    spelled: bytes
    spans: tuple[Span, ...]
    progress: Progress | None
    weights: Floats32 = field(default_factory=lambda: np.empty(0, np.float32))
    parts: set[int] = field(default_factory=set)
    next_ids: list[int] = field(default_factory=list)
    num_taken: int = 0

    def masses_aside(self, tokens: Iterable[int]) -> Iterator[float]:
        """Yield the masses of those of some tokens that were left aside."""
        taken = {*self.parts, *self.next_ids[: self.num_taken]}
        return (float(self.weights[token]) for token in tokens if token not in taken)


class WordSearch:
    """The search of one request; see the head of this file.

    found      mass of each completion, as far as it is known
    covered    mass of the places that spell the text, as far as it is known
    is_proven  whether all places that are left have less mass than the last of the best
    """

    def __init__(
        self, spelling: Spelling, typed: TypedText, num_best: int, *, is_spaced: bool, max_words: int = 1
    ) -> None:
        self._spelling = spelling
        self._typed = typed
        self._num_best = num_best
        self._is_spaced = is_spaced
        self._max_rounds = rounds_for(max_words)
        self._bonus = 1.0 if max_words == 1 else LENGTH_BONUS
        self._running = [Place(1.0, typed.lead, typed.spans, None if typed.spans else typed.progress)]
        self._places: list[Place] = []  # that were run
        self._heap: list[tuple[float, int, int, int]] = []  # (-weight, entry, place, token inside the tail or -1)
        self._num_entries = 0
        self._num_rounds = 0
        self._least_best = 0.0  # mass of the last one of the best
        self._most_aside = 0.0  # mass of the heaviest token that was left aside
        self.found: dict[str, float] = {}
        self.covered = 0.0 if typed.spans else 1.0
        self.is_proven = False

    @property
    def num_places(self) -> int:
        """Number of places that were run; the first is that after the head."""
        return len(self._places)

    def advance(self, logprobs: Floats32) -> list[tuple[int, int]]:
        """Take the distributions after the places that were asked for; returns the next ones. See TokenSearch."""
        weights = np.exp(logprobs.astype(np.float64))
        weights *= np.array([[place.mass] for place in self._running])
        for place, row, kept in zip(self._running, weights, weights.astype(np.float32), strict=True):
            place.weights = kept
            self._expand(place, row)
        self._update_best()
        self._running = []
        asked: list[tuple[int, int]] = []
        self._num_rounds += 1
        while self._heap and len(asked) < WIDTH and self._num_rounds <= self._max_rounds:
            _, _, number, token = self._heap[0]
            if self._mass_left(number, token) <= self._least_best:
                if self._bonus == 1.0 or token >= 0:
                    break  # so is all that is left; places inside the tail stay
                heapq.heappop(self._heap)
                continue
            heapq.heappop(self._heap)
            token = self._take_next(number) if token < 0 else token
            after = self._place_after(self._places[number], token)
            if after is not None:
                asked.append((number, token))
                self._running.append(after)
        self.is_proven = max(self._most_aside, self._most_left()) <= self._least_best
        return asked

    # ---- one place ----

    def _expand(self, place: Place, weights: Floats64) -> None:
        """Count what ends right after a place, and note what may follow it. weights: float64 [V]."""
        self._places.append(place)
        if place.spans:
            self._note_next(place, weights, self._expand_tail(place, weights))
        elif place.progress is not None:
            self._note_next(place, weights, self._end_words(place.progress, weights))

    def _expand_tail(self, place: Place, weights: Floats64) -> npt.NDArray[np.int64]:
        """Return the tokens that spell the tail to its end; those that spell a part of it are places by themselves."""
        found = [self._spelling.matching(span) for span in place.spans]
        place.parts = {token for _, parts in found for token in parts}
        number = len(self._places) - 1
        for token in sorted(place.parts):
            if weights[token] > 0.0:
                self._push(float(weights[token]) * TAIL_WEIGHT, number, token)
        whole = np.concatenate([tokens for tokens, _ in found])
        self.covered += float(weights[whole].sum())
        return whole

    def _end_words(self, progress: Progress, weights: Floats64) -> npt.NDArray[np.int64]:
        """Count the tokens that end the last word; returns those that write on."""
        beginning = self._spelling.beginning
        if progress.pending:
            return beginning[First.REST,]
        self._add(progress.at_end(is_spaced=self._is_spaced), float(weights[self._spelling.end_id]))
        if not progress.ends_next:
            return beginning[First.WORD, First.SEPARATOR, First.LINK, First.INCOMPLETE]
        if progress.link_at >= 0:
            self._add(progress.text[: progress.link_at], float(weights[beginning[First.SEPARATOR, First.LINK]].sum()))
            return beginning[First.WORD, First.INCOMPLETE]
        self._add(progress.text, float(weights[beginning[First.SEPARATOR,]].sum()))
        return beginning[First.WORD, First.LINK, First.INCOMPLETE]

    def _note_next(self, place: Place, weights: Floats64, tokens: npt.NDArray[np.int64]) -> None:
        """Note the tokens that are heavy enough to be places, heaviest first."""
        masses = weights[tokens]
        floor = max(self._least_best * FLOOR_SHARE, self.covered * LEAST_SHARE, LEAST_MASS)
        if len(masses) > MAX_NEXT:
            floor = max(floor, float(np.partition(masses, -MAX_NEXT)[-MAX_NEXT]))
            is_heavy = masses >= floor
            self._most_aside = max(self._most_aside, float(masses[~is_heavy].max(initial=0.0)))
            tokens, masses = tokens[is_heavy], masses[is_heavy]
        lightness = -masses
        order = lightness.argsort(kind="stable")
        lightness = lightness[order]
        num_heavy = int(lightness.searchsorted(-floor, side="right"))
        if num_heavy < len(lightness):
            self._most_aside = max(self._most_aside, -float(lightness[num_heavy]))
        place.next_ids = tokens[order[:num_heavy]].tolist()
        self._push_next(len(self._places) - 1)

    def _place_after(self, place: Place, token: int) -> Place | None:
        """Return the place after one more token; None where a completion ends, or nothing is spelled."""
        piece, mass = self._spelling.pieces[token], float(place.weights[token])
        spelled = place.spelled + piece
        if token in place.parts:
            spans = tuple(span for each in place.spans if (span := each.after(piece)) is not None)
            return Place(mass, spelled, spans, None)
        if place.progress is None:
            progress = self._typed.progress.then(spelled[self._typed.stem :])
        else:
            progress = place.progress.then(piece)
        if isinstance(progress, Ending):
            self._add(progress.text, mass)
            if self.found[progress.text] > self._least_best:
                self._update_best()
            return None
        return None if progress is None else Place(mass, spelled, (), progress)

    # ---- the heap and the best ----

    def _push(self, weight: float, number: int, token: int) -> None:
        heapq.heappush(self._heap, (-weight, self._num_entries, number, token))
        self._num_entries += 1

    def _push_next(self, number: int) -> None:
        place = self._places[number]
        if place.num_taken < len(place.next_ids):
            length = 0 if place.progress is None else len(place.progress.text)
            self._push(self._mass_left(number, -1) * self._bonus**length, number, -1)

    def _mass_left(self, number: int, token: int) -> float:
        """Return the mass of an entry of the heap; of one inside the tail its weight, which is more."""
        place = self._places[number]
        if token >= 0:
            return float(place.weights[token]) * TAIL_WEIGHT
        return float(place.weights[place.next_ids[place.num_taken]])

    def _most_left(self) -> float:
        """Return the most mass of an entry of the heap."""
        entries = self._heap[:1] if self._bonus == 1.0 else self._heap
        return max((self._mass_left(number, token) for _, _, number, token in entries), default=0.0)

    def _take_next(self, number: int) -> int:
        place = self._places[number]
        token = place.next_ids[place.num_taken]
        place.num_taken += 1
        self._push_next(number)
        return token

    def _add(self, text: str | None, mass: float) -> None:
        if text is not None and mass > 0.0:
            self.found[text] = self.found.get(text, 0.0) + mass

    def _update_best(self) -> None:
        if len(self.found) >= self._num_best:
            self._least_best = heapq.nlargest(self._num_best, self.found.values())[-1]

    # ---- the answer ----

    def best(self) -> tuple[list[tuple[str, float]], float]:
        """Return the best completions with their probabilities, and how much too low any of these may be."""
        best = sorted(self.found.items(), key=lambda item: (-item[1], item[0]))[: self._num_best]
        left = sum(-weight / TAIL_WEIGHT for weight, _, _, token in self._heap if token >= 0)  # in the tail
        if not self.covered:
            return [], 1.0 if left else 0.0
        most = self.covered + left
        highest = ((mass + left + self._open_mass(text)) / self.covered for text, mass in best)
        error = max((high - mass / most for high, (_, mass) in zip(highest, best, strict=True)), default=0.0)
        return [(text, min(1.0, mass / most)) for text, mass in best], min(1.0, max(0.0, error))

    def _open_mass(self, text: str) -> float:
        """Return the most mass that a completion may still gain from tokens past the tail that were left aside."""
        stem = self._typed.spans[0].low[: self._typed.stem] if self._typed.spans else b""
        target = stem + text.encode()
        return math.fsum(mass for place in self._places for mass in self._open_masses(place, target, text))

    def _open_masses(self, place: Place, target: bytes, text: str) -> Iterator[float]:
        spelled, progress = place.spelled, place.progress
        if target.startswith(spelled):
            rest = target[len(spelled) :]
            pieces = (rest[:length] for length in range(1, len(rest) + 1))
            tokens = {token for piece in pieces if (token := self._spelling.by_piece.get(piece)) is not None}
            yield from place.masses_aside(tokens | self._spelling.ending_behind(rest))
        elif progress is not None and spelled.startswith(target) and progress.text[len(text) :] in ("", *LINKS):
            kind = First.REST if progress.pending else First.INCOMPLETE
            yield from place.masses_aside(self._spelling.beginning[kind,].tolist())


def rounds_for(max_words: int) -> int:
    """Return the most rounds of a search over so many words."""
    return MAX_ROUNDS * min(max_words, MAX_SEARCHED_WORDS)


@dataclass(frozen=True, eq=False)
class WordCompletion:
    """A search for completions that was begun; `handle` tells when it has ended."""

    request: CompleteRequest
    model: LoadedModel
    typed: TypedText
    search: WordSearch
    handle: Searching

    @property
    def usage(self) -> CompleteUsage:
        """Tokens of the text, those of them whose state was known, and those that the search ran."""
        unknown = self.model.tokenizer.vocabulary.num_unknown(self.typed.ids) or UNSET
        return CompleteUsage(len(self.typed.ids), self.handle.cached_tokens, self._num_searched, unknown)

    @property
    def _num_searched(self) -> int:
        return max(0, self.search.num_places - 1)

    def answer(self) -> CompleteAnswer:
        """Return the answer, once the search has ended."""
        best, error = self.search.best()
        replaces = self.typed.replaces if self.request.composing else UNSET
        found = [TextCompletion(text, math.log(probability), probability, replaces) for text, probability in best]
        return CompleteAnswer(self.model.name, found, error, self.search.is_proven, self.usage)

    def work(self) -> Work:
        """Return the work so far, for the log."""
        prompts = (self.request.text,)
        return Work(len(self.typed.ids), self.handle.cached_tokens, self._num_searched, prompts=prompts)


def begin_word_completion(
    request: CompleteRequest, model: LoadedModel, budget: Budget, deadline: float
) -> WordCompletion:
    """Queue a request. Raises RateLimited, Overloaded, TooLarge, NotReady."""
    tokenizer, runner = model.tokenizer, model.bundle.runner
    with model.engine.reserve(budget.share) as reservation:
        num_rounds = rounds_for(request.max_words)
        num_places = WIDTH * num_rounds
        budget.take_bytes(num_places * (4 * tokenizer.vocabulary.size + runner.state_bytes))
        tokenizing_bytes = tokenizer.tokenizing_bytes(request.text)
        budget.take_bytes(tokenizing_bytes)
        typed = typed_text(tokenizer, request.text, request.max_words, composing=request.composing)
        budget.take_bytes(-tokenizing_bytes)
        budget.take_tokens(len(typed.ids) + num_places)
        is_spaced = tokenizer.vocabulary.kind is TokenizerKind.WORD
        search = WordSearch(spelling_of(tokenizer), typed, request.n, is_spaced=is_spaced, max_words=request.max_words)
        call = GenerateCall(typed.head, num_rounds, deadline, num_beams=WIDTH)
        handle = model.engine.search(call, search, reservation)
        handle.num_prompt_tokens = len(typed.ids)
    return WordCompletion(request, model, typed, search, handle)
