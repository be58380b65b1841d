"""Limits of a request that the model sets, not the contract: its vocabulary. No Flask, no engine."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from meari.errors import InvalidRequest, TooLarge
from meari.explain import shown

__all__ = ["check_num_chars", "checked_ids", "checked_logit_bias", "effective_top_k"]

_TOKEN_ID: Final = re.compile(r"0|[1-9][0-9]{0,17}")


def effective_top_k(top_k: int, vocabulary_size: int, num_beams: int = 1) -> int:
    """0, which is off, where the limit keeps every token. Raises InvalidRequest for any other one of a beam search."""
    if not 0 < top_k < vocabulary_size:
        return 0
    if num_beams > 1:
        raise InvalidRequest(f"top_k: got {top_k} with num_beams {num_beams}, expected 0: nothing is sampled")
    return top_k


def checked_logit_bias(bias: dict[str, float] | None, vocabulary_size: int) -> tuple[tuple[int, float], ...]:
    """Token ids as numbers, in ascending order. Raises InvalidRequest, naming the first key that is no token id."""
    for key in bias or ():
        if not _TOKEN_ID.fullmatch(key) or int(key) >= vocabulary_size:
            raise InvalidRequest(
                f"logit_bias: got the key {shown(key.encode())!r}, expected a token id, 0 <= id < {vocabulary_size}"
            )
    return tuple(sorted((int(key), value) for key, value in (bias or {}).items()))


def checked_ids(ids: list[int], vocabulary_size: int, path: str = "tokens") -> list[int]:
    """Raises InvalidRequest, naming the place in `path`."""
    for place, token in enumerate(ids):
        if token >= vocabulary_size:
            raise InvalidRequest(f"{path}[{place}]: got {token}, expected a token id, 0 <= id < {vocabulary_size}")
    return ids


def check_num_chars(field: str, texts: Iterable[str | list[int]], max_chars: int) -> None:
    """Raises TooLarge where the texts have too many characters together; a token id counts as one."""
    count = sum(map(len, texts))
    if count > max_chars:
        raise TooLarge(f"{field}: got {count} characters, expected at most {max_chars}; send less at once")
