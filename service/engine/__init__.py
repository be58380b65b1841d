"""The engine: sequences of forced and sampled tokens → tokens and log-probabilities.

What enters: calls that hold token ids (`GenerateCall`, `ScoreCall`). What leaves: handles that fill while the loop
runs (`Generation`, `Scoring`). The engine knows nothing of HTTP, JSON, text or tokenizers.

    calls.py      what a caller asks for and the handle it gets back
    sequence.py   one row of work: tokens to force, tokens to sample, where it forks
    prefixes.py   the texts of one call as sequences that run what they share once
    scheduler.py  who waits, who runs next: requests take turns
    batch.py      the recurrent states of the running sequences, one row each
    sampling.py   log-probabilities → the next token
    runner.py     onnxruntime: one step of the cell, the output layer of some rows
    loop.py       the thread: admit → step → advance
"""

from service.engine.calls import (
    EngineLimits,
    EngineStats,
    Finish,
    GenerateCall,
    Generation,
    Sample,
    Sampling,
    ScoreCall,
    Scoring,
    StateValue,
    TextScore,
)
from service.engine.loop import Engine
from service.engine.scheduler import Reservation

__all__ = [
    "Engine",
    "EngineLimits",
    "EngineStats",
    "Finish",
    "GenerateCall",
    "Generation",
    "Reservation",
    "Sample",
    "Sampling",
    "ScoreCall",
    "Scoring",
    "StateValue",
    "TextScore",
]
