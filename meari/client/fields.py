"""Fields of requests, as typed keyword arguments, and the bodies made of them.

Input: keyword arguments. Output: bodies as dictionaries. Must not know: any other module of the project; whether a
value is in its range is for the service to say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

__all__ = ["CompleteFields", "GenerateFields", "ScoreFields", "State", "body_of"]


@dataclass(frozen=True, slots=True)
class State:
    """State of a model after a text: a value to score and continue from, to keep, and to send.

    token  the state as text of ASCII characters, signed, and bound to one bundle

    `str(state)` and `bytes(state)` are the token; `State(token)` takes either back. Wherever a state is expected, the
    token itself will do. Whoever has a state can read the model's numbers in it, but not the text.
    """

    token: str

    def __init__(self, token: State | str | bytes) -> None:
        object.__setattr__(self, "token", token.decode("ascii") if isinstance(token, bytes) else str(token))

    def __str__(self) -> str:
        return self.token

    def __bytes__(self) -> bytes:
        return self.token.encode("ascii")

    def __repr__(self) -> str:
        return f"State({self.token[:12]}…, {len(self.token):,} characters)"


class GenerateFields(TypedDict, total=False):
    """Keyword arguments of `generate` and `stream`: the fields of POST /generate. None stands for the default.

    max_tokens          new tokens at most, from 1 on; 64
    min_tokens          no end and no stop before so many; 0
    temperature         0 … 10; 0 is greedy; 1.0
    top_k               keep the k likeliest tokens; 0, off
    top_p               nucleus, 0 < p ≤ 1; 1.0
    min_p               keep tokens with at least this share of the likeliest one's probability, 0 ≤ p < 1; 0.0
    repetition_penalty  as in the CTRL paper, 0 < r ≤ 10; 1.0
    frequency_penalty   −2 … 2, over the generated tokens; 0.0
    presence_penalty    −2 … 2, over the generated tokens; 0.0
    logit_bias          token id → −100 … 100, added to the logits before anything else
    seed                0 … 2⁶³ − 1; the same seed gives the same text; random, and returned
    stop                text, or at most 8, before which the text is cut
    n                   samples, 1 … 16; 1
    num_beams           over 1: beam search, which returns the likeliest `n`; 1
    logprobs            0 … 20: log-probability of each token, and so many alternatives
    return_state        give the state after the text; False
    state               continue after this state; the prompt is appended to it
    timeout_seconds     then the text so far, with `finish_reason` "timeout"
    """

    max_tokens: int | None
    min_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    frequency_penalty: float | None
    presence_penalty: float | None
    logit_bias: Mapping[int, float] | None
    seed: int | None
    stop: str | Sequence[str] | None
    n: int | None
    num_beams: int | None
    logprobs: int | None
    return_state: bool | None
    state: State | str | bytes | None
    timeout_seconds: float | None


class ScoreFields(TypedDict, total=False):
    """Keyword arguments of `Client.score`: the fields of POST /score. None stands for the default.

    context       text before every text, which is not scored itself
    state         score after this state, in place of `context`
    add_end       count the probability that the text ends there; as the model's training text had ends
    log_base      "e", "2" or "10"; "e"
    tokens        figures of every token; False
    words         figures of every word; "unicode" splits by ICU; False
    top           0 … 20 likeliest tokens at each place; 0
    return_state  give the state after each text; False
    """

    context: str | None
    state: State | str | bytes | None
    add_end: bool | None
    log_base: str | None
    tokens: bool | None
    words: bool | str | None
    top: int | None
    return_state: bool | None


class CompleteFields(TypedDict, total=False):
    """Keyword arguments of `Client.complete`: the fields of POST /complete. None stands for the default.

    n          completions, 1 … 20; 5
    max_words  words that a completion may have, the one that is being typed included, 1 … 8; 1
    composing  the last characters may still become another Korean syllable; False
    """

    n: int | None
    max_words: int | None
    composing: bool | None


def body_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a body without those that are None, with names as JSON has them."""
    body = {name: value for name, value in fields.items() if value is not None}
    if "state" in body:
        body["state"] = State(body["state"]).token
    if isinstance(body.get("logit_bias"), Mapping):
        body["logit_bias"] = {str(token): bias for token, bias in body["logit_bias"].items()}
    return body
