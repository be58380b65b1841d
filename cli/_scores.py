"""Scored texts → tables: a row a text, then where they were asked for a row a word or a token."""

from __future__ import annotations

from typing import Any

from cli._tables import Table, show, shown

__all__ = ["show_scores"]


def show_scores(records: list[dict[str, Any]], log_base: str) -> None:
    """Records as the JSONL output has them."""
    logprob = "ln P" if log_base == "e" else f"log{log_base} P"
    tables = [_texts(records, logprob)]
    for record in records:
        if "words" in record:
            tables.append(_parts(f"words of {_quoted(record['text'])}", "word", record["words"], logprob))
        if "tokens" in record:
            tables.append(_parts(f"tokens of {_quoted(record['text'])}", "token", record["tokens"], logprob))
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


def _parts(title: str, name: str, parts: list[dict[str, Any]], logprob: str) -> Table:
    """Words or tokens; a token has a rank, and alternatives where they were asked for."""
    has_rank = any("rank" in part for part in parts)
    has_top = any(part.get("top") for part in parts)
    columns = (name, logprob, "surprisal", *(("rank",) if has_rank else ()), *(("likeliest",) if has_top else ()))
    rows = []
    for part in parts:
        row = [_quoted(part["text"]), shown(part["logprob"]), shown(0.0 - part["logprob"])]
        row += [str(part["rank"])] if has_rank else []
        if has_top:
            row.append("  ".join(f"{_quoted(other['text'])} {shown(other['logprob'])}" for other in part["top"]))
        rows.append(tuple(row))
    return Table(title, columns, rows, frozenset({logprob, "surprisal", "rank"}))


def _quoted(text: str) -> str:
    """On one line, its white space to be seen."""
    return '"' + text.replace("\\", r"\\").replace("\n", r"\n").replace("\t", r"\t").replace("\r", r"\r") + '"'
