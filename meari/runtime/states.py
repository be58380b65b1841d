"""The recurrent state after each token of a short text, and the gates → numbers for a picture.

Input: the token ids of a text, and its scoring by the engine. Output: `StatesAnswer`. Must not know: HTTP.

The engine has no call of its own for this: a text's state is its value before its last token, so the prefixes of one
text, scored as one list that runs shared prefixes once, have all the states of the text, and every token is run once.
Gates are no part of a state: the cell alone runs once more for them, all tokens as one batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from meari.bundle_format.names import NGRAM_STATE
from meari.runtime.answers import StatesAnswer, StatesUsage, StateTensorValues, token_texts
from meari.runtime.bundle import Bundle, read_gates
from meari.runtime.engine import ScoreCall, Scoring, StateValue

__all__ = ["MAX_CHARS", "MAX_TOKENS", "states_answer", "states_bytes", "states_call"]

MAX_TOKENS: Final = 256
MAX_CHARS: Final = 4096
DECIMALS: Final = 4
BYTES_PER_NUMBER: Final = 64  # as a Python number, then as text
MAX_GATES: Final = 4  # a state tensor has
FILE_COPIES: Final = 4  # of a bundle's files, while its cell is opened again


def states_call(ids: Sequence[int], end_id: int, deadline: float) -> ScoreCall:
    """Return the call of the engine: every prefix with the token behind it, the last one with the end token."""
    read = [*ids, end_id]
    prefixes = [read[:length] for length in range(1, len(read) + 1)] if ids else []
    return ScoreCall(context=(), texts=prefixes, deadline=deadline, add_end=False, want_state=True)


def states_bytes(num_tokens: int, bundle: Bundle, units: int, *, with_gates: bool) -> int:
    """Return the most bytes of an answer while it is made: the whole states, then the numbers that it holds.

    with_gates  the cell's file too, as bytes, as a message and as a session, and at most four gates a state tensor
    """
    num_tensors, state_bytes = len(bundle.manifest.state), bundle.runner.state_bytes
    size = num_tokens * (state_bytes + 4 * num_tokens + num_tensors * units * BYTES_PER_NUMBER)
    if not with_gates:
        return size
    gates = num_tokens * MAX_GATES * (state_bytes + num_tensors * units * BYTES_PER_NUMBER)
    return size + gates + FILE_COPIES * sum(entry.bytes for entry in bundle.manifest.files.values())


def states_answer(
    model: str, bundle: Bundle, ids: Sequence[int], scoring: Scoring, units: int, *, with_gates: bool
) -> StatesAnswer:
    """Return the states of an ended `scoring` of `states_call`, at most `units` numbers of each tensor and gate.

    The last tokens, which n-grams look back at, are a part of the state, but no numbers for a picture: left out.

    Raises NotReady if gates are asked for and the bundle has changed.
    """
    states = [result.state for result in scoring.results if result.state is not None]
    rows = {name: _over_time(name, states) for name in (states[0].rows if states else ())}
    answer = StatesAnswer(
        model,
        token_texts(bundle.tokenizer.vocabulary, ids),
        [_told(name, values[1:], units) for name, values in rows.items() if name != NGRAM_STATE],
        StatesUsage(scoring.computed_tokens),
    )
    if with_gates:
        gates = read_gates(bundle, ids, {name: values[:-1] for name, values in rows.items()})
        answer.gates = [_told(name, values, units) for name, values in gates.items()]
    return answer


def _over_time(name: str, states: Sequence[StateValue]) -> npt.NDArray[np.float32]:
    return np.stack([state.rows[name] for state in states])


def _told(name: str, values: npt.NDArray[np.float32], units: int) -> StateTensorValues:
    flat = values.reshape(len(values), -1)
    chosen = spread(flat.shape[1], units)
    told: list[list[float]] = np.round(flat[:, chosen].astype(np.float64), DECIMALS).tolist()
    return StateTensorValues(name, flat.shape[1], chosen.tolist(), told)


def spread(size: int, count: int) -> npt.NDArray[np.int64]:
    """Return at most `count` of `size` places, evenly spread, in ascending order."""
    count = min(size, count)
    return np.arange(count, dtype=np.int64) * size // count
