"""What a mistyped name may have meant. Enters: a name and those that there are. Leaves: a hint, or nothing."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["did_you_mean"]


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """` (did you mean NAME?)`, or an empty text where none is near; case does not count."""
    spelled = {each.lower(): each for each in names}
    near = difflib.get_close_matches(name[:100].lower(), spelled, n=1)
    return f" (did you mean {spelled[near[0]]}?)" if near else ""
