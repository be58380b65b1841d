"""The engine: sequences of forced and sampled tokens → tokens and log-probabilities.

What enters: calls that hold token ids (`GenerateCall`, `ScoreCall`). What leaves: handles that fill while the loop
runs (`Generation`, `Scoring`). The engine knows nothing of HTTP, JSON, text or tokenizers.

    calls.py      what a caller asks for and the handle it gets back
    together.py   the handles of several calls as one
    sequence.py   one row of work: tokens to force, tokens to sample, where it forks
    prefixes.py   the texts of one call as sequences that run what they share once
    scheduler.py  who waits to be admitted
    live.py       who has been accepted and not ended yet, and when each must end
    lanes.py      which sequences run together, and whose turn it is
    batch.py      the recurrent states of the sequences of a lane, one row each
    reading.py    a turn of forced tokens: prompts, texts to score
    writing.py    a turn of sampled tokens
    beaming.py    a turn of the hypotheses of beams.py, the search itself
    outcome.py    what came of a turn
    sampling.py   a distribution → the next token of one sample
    draws.py      the samplers of the rows of a run together
    ranking.py    the likeliest tokens of some rows
    cache.py      states by prefix
    runs.py       what a run of a graph is asked for, and what comes of it
    runner.py     onnxruntime: the graphs that read and write
    gaps.py       the time from one token to the next
    isolation.py  whether rows influence one another on this CPU
    loop.py       the thread: admit → run a turn → settle
"""

from meari.runtime.engine.calls import (
    Awaited,
    EngineLimits,
    EngineStats,
    Finish,
    GenerateCall,
    Generation,
    News,
    Sample,
    Sampling,
    ScoreCall,
    Scoring,
    StateValue,
    TextScore,
)
from meari.runtime.engine.loop import Engine
from meari.runtime.engine.scheduler import Reservation
from meari.runtime.engine.together import Backlog, Together

__all__ = [
    "Awaited",
    "Backlog",
    "Engine",
    "EngineLimits",
    "EngineStats",
    "Finish",
    "GenerateCall",
    "Generation",
    "News",
    "Reservation",
    "Sample",
    "Sampling",
    "ScoreCall",
    "Scoring",
    "StateValue",
    "TextScore",
    "Together",
]
