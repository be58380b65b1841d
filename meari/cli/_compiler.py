"""A stand-in for torch's compiler, so that a training starts without it.

Input: nothing. Output: `torch._dynamo` in `sys.modules`. Must not know: torch, which may not be installed.

Every optimizer of `torch.optim` imports `torch._dynamo` when it is made, only to mark functions that a compiler shall
leave alone: 2.2 s of CPU, as much as all the rest of a small training. Nothing here is compiled.
"""

import importlib
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any, Final

__all__ = ["leave_compiler_out"]

NAME: Final = "torch._dynamo"


class _StandIn(ModuleType):
    """What `torch.optim` and `torch.distributed` call; whoever asks for anything else gets the compiler itself."""

    trace_rules = SimpleNamespace(clear_lru_cache=lambda: None)

    @staticmethod
    def disable(function: Callable[..., Any], *_options: Any, **_named: Any) -> Callable[..., Any]:
        return function

    @staticmethod
    def graph_break(*_options: Any, **_named: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__path__":  # asked of every module by `inspect`; a path by `import`
            raise AttributeError(name)
        if sys.modules.get(NAME) is self:
            del sys.modules[NAME]
        return getattr(importlib.import_module(NAME), name)


def leave_compiler_out() -> None:
    """Put the stand-in where torch finds it. For a process of the command line: a notebook may want to compile."""
    sys.modules.setdefault(NAME, _StandIn(NAME))
