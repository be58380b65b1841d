"""The engine: sequences of forced and sampled tokens → tokens and log-probabilities.

Input: calls that hold token ids (`GenerateCall`, `ScoreCall`). Output: handles that fill while the loop runs
(`Generation`, `Scoring`). Must not know: HTTP, JSON, text, tokenizers.

The life of a request:

    1  the caller reserves a place in the queue, then makes a call and submits it       calls, handles
    2  the call becomes a request and its sequences, which share what they can          sequences, prefixes, beams
    3  the queue admits it once there is room for it                                    scheduler
    4  its longest known prefix is taken from the cache                                 prefixes, cache
    5  a reading lane feeds the forced tokens, a writing lane the sampled ones          reading, writing
    6  a turn is one run of a graph, and gives tokens and log-probabilities             batch, runner, sampling
    7  the loop settles the turn: handles grow, sequences fork, join and end            loop
    8  the handle ends, once                                                            handles, stats

Threads. The engine's thread, started by `Engine.start`, owns runner, lanes, sequences, cache and statistics, and alone
fills and ends handles. Any other thread may reserve, submit, read a handle, wait for it and cancel it, and may read
`Engine.stats`. A lock guards the queue, the requests that have not ended, and the room that caches share; nothing else
is shared.
"""

from meari.runtime.engine.calls import (
    EngineLimits,
    Event,
    Finish,
    GenerateCall,
    Reservation,
    Sample,
    Sampling,
    ScoreCall,
    StateValue,
    TextScore,
    TokenSearch,
)
from meari.runtime.engine.handles import Backlog, Generation, Handle, HandleGroup, Scoring, Searching, Waitable
from meari.runtime.engine.loop import Engine
from meari.runtime.engine.stats import EngineStats

__all__ = [
    "Backlog",
    "Engine",
    "EngineLimits",
    "EngineStats",
    "Event",
    "Finish",
    "GenerateCall",
    "Generation",
    "Handle",
    "HandleGroup",
    "Reservation",
    "Sample",
    "Sampling",
    "ScoreCall",
    "Scoring",
    "Searching",
    "StateValue",
    "TextScore",
    "TokenSearch",
    "Waitable",
]
