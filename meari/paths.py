"""Paths as users write them.

Input: a path of an option, a config, a setting or a call. Output: the path to open. Must not know: what is there.
"""

from __future__ import annotations

import os

__all__ = ["expand_home"]


def expand_home(path: str | os.PathLike[str]) -> str:
    """Return the path with the home folder in place of `~` at its beginning, and nothing else changed.

    A shell does so only at the beginning of a word, not in --option=~/FILE. `~name` stays: where it means a user's home
    the shell has expanded it, and a pattern such as * gives the names of files that begin so.
    """
    text = os.fspath(path)
    return os.path.expanduser(text) if text == "~" or text.startswith("~/") else text  # noqa: PTH111 (a URL stays)
