"""The recurrent state after each token of a short text → numbers for a picture.

Input: the token ids of a text, and its scoring by the engine. Output: `StatesAnswer`. Must not know: HTTP.

The engine has no call of its own for this: a text's state is its value before its last token, so the prefixes of one
text, scored as one list that runs shared prefixes once, have all the states of the text, and every token is run once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from meari.runtime.answers import StatesAnswer, StatesUsage, StateTensorValues, token_texts
from meari.runtime.engine import ScoreCall, Scoring, StateValue
from meari.runtime.text.tokenizer import Vocabulary

__all__ = ["MAX_CHARS", "MAX_TOKENS", "states_answer", "states_bytes", "states_call"]

MAX_TOKENS: Final = 256
MAX_CHARS: Final = 4096
DECIMALS: Final = 4
BYTES_PER_NUMBER: Final = 64  # as a Python number, then as text


def states_call(ids: Sequence[int], end_id: int, deadline: float) -> ScoreCall:
    """Return the call of the engine: every prefix with the token behind it, the last one with the end token."""
    read = [*ids, end_id]
    prefixes = [read[:length] for length in range(2, len(read) + 1)]
    return ScoreCall(context=(), texts=prefixes, deadline=deadline, add_end=False, want_state=True)


def states_bytes(num_tokens: int, state_bytes: int, num_tensors: int, units: int) -> int:
    """Return the most bytes of an answer while it is made: the whole states, then the numbers that it holds."""
    return num_tokens * (state_bytes + 4 * num_tokens + num_tensors * units * BYTES_PER_NUMBER)


def states_answer(model: str, ids: Sequence[int], vocabulary: Vocabulary, scoring: Scoring, units: int) -> StatesAnswer:
    """Return the states of an ended `scoring` of `states_call`, at most `units` numbers of each tensor."""
    states = [result.state for result in scoring.results if result.state is not None]
    tokens = token_texts(vocabulary, ids)
    names = list(states[0].rows) if states else []
    tensors = [_tensor(name, states, units) for name in names]
    return StatesAnswer(model, tokens, tensors, StatesUsage(scoring.computed_tokens))


def _tensor(name: str, states: Sequence[StateValue], units: int) -> StateTensorValues:
    rows = np.stack([state.rows[name].reshape(-1) for state in states])
    chosen = spread(rows.shape[1], units)
    values: list[list[float]] = np.round(rows[:, chosen].astype(np.float64), DECIMALS).tolist()
    return StateTensorValues(name, rows.shape[1], chosen.tolist(), values)


def spread(size: int, count: int) -> npt.NDArray[np.int64]:
    """Return at most `count` of `size` places, evenly spread, in ascending order."""
    count = min(size, count)
    return np.arange(count, dtype=np.int64) * size // count
