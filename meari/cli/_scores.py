"""Scored texts → tables: a row a text, then where they were asked for a row a word or a token, which add up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from meari.cli._tables import Table, show, shown

__all__ = ["show_scores"]


def show_scores(records: list[dict[str, Any]], log_base: str) -> None:
    """Records as the JSONL output has them."""
    logprob = "ln P" if log_base == "e" else f"log{log_base} P"
    tables = [_texts(records, logprob)]
    for record in records:
        if "words" in record:
            tables.append(_parts(record, "word", logprob))
        if "tokens" in record:
            tables.append(_parts(record, "token", logprob))
    show(*tables)


def _texts(records: list[dict[str, Any]], logprob: str) -> Table:
    figures = ("logprob", "perplexity", "bits_per_char")
    numbers = (logprob, "perplexity", "bits/char", "tokens", "unknown")
    rows = [
        (
            _quoted(record["text"]),
            *(shown(record[name]) for name in figures),
            str(record["num_tokens"]),
            str(record["num_unknown"]),
        )
        for record in records
    ]
    return Table("", ("text", *numbers), rows, frozenset(numbers))


def _parts(record: dict[str, Any], name: str, logprob: str) -> Table:
    """Words or tokens, and their total; a token has a rank, and alternatives where they were asked for."""
    parts: list[dict[str, Any]] = record[f"{name}s"]
    more: dict[str, Callable[[dict[str, Any]], str]] = {
        "rank": lambda part: str(part["rank"]),
        "likeliest": lambda part: "  ".join(f"{_token(x)} {shown(x['logprob'])}" for x in part["top"]),
        "unknown": lambda part: "yes" if part["unknown"] else "",
    }
    wanted = [
        column
        for column, is_wanted in (
            ("rank", any("rank" in part for part in parts)),
            ("likeliest", any(part.get("top") for part in parts)),
            ("unknown", any(part["unknown"] for part in parts)),
        )
        if is_wanted
    ]
    rows = [(_name(part), *_both(part["logprob"]), *(more[column](part) for column in wanted)) for part in parts]
    rows.append(("total", *_both(record["logprob"]), *("" for _ in wanted)))
    title = f"{name}s of {_quoted(record['text'])}"
    return Table(title, (name, logprob, "surprisal", *wanted), rows, frozenset({logprob, "surprisal", "rank"}))


def _both(logprob: float) -> tuple[str, str]:
    """A log-probability and its surprisal."""
    return shown(logprob), shown(0.0 - logprob)


def _name(part: dict[str, Any]) -> str:
    """In quotation marks, but for the end of the text, which has no length."""
    return str(part["text"]) if part["start"] == part["end"] else _token(part)


def _token(part: dict[str, Any]) -> str:
    """In quotation marks; a part of a character as its bytes."""
    if "bytes" in part:
        return '"' + "".join(f"\\x{byte:02x}" for byte in part["bytes"]) + '"'
    return _quoted(part["text"])


def _quoted(text: str) -> str:
    """On one line, its white space to be seen."""
    return '"' + text.replace("\\", r"\\").replace("\n", r"\n").replace("\t", r"\t").replace("\r", r"\r") + '"'
