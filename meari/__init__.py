"""meari: small recurrent language models, trained on your own text, exported to ONNX and served on ordinary CPUs.

>>> import meari
>>> lm = meari.load("shakespeare-lstm")  # a name, a folder, or the URL of a running service
>>> round(lm.score("To be, or not to be"), 1)
-25.8

Everything below is imported when it is first used: `import meari` alone takes a millisecond.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as in `typing`, whose import would take longer than all else here

if TYPE_CHECKING:
    from meari import errors
    from meari.api.language_model import LanguageModel
    from meari.api.opening import load
    from meari.api.surprisal import Surprisal, SurprisalRow
    from meari.api.training import TrainingRun, train
    from meari.client.answers import (
        Alternative,
        Choice,
        CompleteUsage,
        Completions,
        GeneratedToken,
        Generation,
        ScoreAnswer,
        ScoredToken,
        ScoredWord,
        ScoreResult,
        ScoreUsage,
        TextCompletion,
        Token,
        Usage,
    )
    from meari.client.async_client import AsyncClient, AsyncStream
    from meari.client.client import Client
    from meari.client.errors import RemoteError
    from meari.client.fields import CompleteFields, GenerateFields, ScoreFields, State
    from meari.client.streams import Stream
    from meari.errors import BundleError, InvalidRequest, MeariError, UnknownModel

__all__ = [
    "Alternative",
    "AsyncClient",
    "AsyncStream",
    "BundleError",
    "Choice",
    "Client",
    "CompleteFields",
    "CompleteUsage",
    "Completions",
    "GenerateFields",
    "GeneratedToken",
    "Generation",
    "InvalidRequest",
    "LanguageModel",
    "MeariError",
    "RemoteError",
    "ScoreAnswer",
    "ScoreFields",
    "ScoreResult",
    "ScoreUsage",
    "ScoredToken",
    "ScoredWord",
    "State",
    "Stream",
    "Surprisal",
    "SurprisalRow",
    "TextCompletion",
    "Token",
    "TrainingRun",
    "UnknownModel",
    "Usage",
    "errors",
    "load",
    "train",
]

_PLACES = {
    "api.language_model": ("LanguageModel",),
    "api.opening": ("load",),
    "api.surprisal": ("Surprisal", "SurprisalRow"),
    "api.training": ("TrainingRun", "train"),
    "client.answers": (
        "Alternative",
        "Choice",
        "CompleteUsage",
        "Completions",
        "GeneratedToken",
        "Generation",
        "ScoreAnswer",
        "ScoreResult",
        "ScoreUsage",
        "ScoredToken",
        "ScoredWord",
        "TextCompletion",
        "Token",
        "Usage",
    ),
    "client.async_client": ("AsyncClient", "AsyncStream"),
    "client.client": ("Client",),
    "client.errors": ("RemoteError",),
    "client.fields": ("CompleteFields", "GenerateFields", "ScoreFields", "State"),
    "client.streams": ("Stream",),
    "errors": ("BundleError", "InvalidRequest", "MeariError", "UnknownModel"),
}
_MODULES = {name: module for module, names in _PLACES.items() for name in names}


def __getattr__(name: str) -> object:
    import importlib

    if name == "errors":
        return importlib.import_module("meari.errors")
    if name not in _MODULES:
        raise AttributeError(f"module 'meari' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"meari.{_MODULES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
