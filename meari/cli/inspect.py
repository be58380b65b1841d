"""`meari inspect`: a bundle, or a model of a running service → sizes, operators, figures, self-test."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import click

from meari.cli._options import complete_bundle, echo_json, json_option, packed
from meari.cli._tables import Table, facts, show
from meari.cli._target import TARGET_OPTIONS, Target, signing_keys

EXAMPLES = """\b
Examples:
  meari inspect shakespeare-lstm
  meari inspect bundles/nsmc-lstm --json
  meari inspect shakespeare-gru --server http://localhost:8000
"""


@click.command("inspect", short_help="Show and test a bundle.", epilog=EXAMPLES)
@click.argument("model", metavar="[BUNDLE]", required=False, shell_complete=complete_bundle)
@packed("target", Target, *TARGET_OPTIONS)
@json_option
def command(target: Target, as_json: bool) -> None:
    """Show sizes, operators, held-out figures and files of BUNDLE, a name or a path, and run its self-test.

    The self-test is the one at the start of a server: every file against its hash, golden log-probabilities and states
    on this CPU, rows bit for bit in batches of many sizes. Where it fails, the exit code is 1. With --server: what
    GET /models/NAME says, its self-test that of the service's CPU.
    """
    service = target.service()
    problem = ""
    if service is None:
        from meari.runtime.inspection import inspect_bundle

        inspection = inspect_bundle(target.folder(), signing_keys())
        described, problem = inspection.description, inspection.problem
    else:
        from meari.client.service import find_model

        described = find_model(service, target.model)
    if as_json:
        echo_json(described)
    else:
        show(*_tables(described))
    if problem:
        click.echo(f"meari: {described['name']}: {problem}", err=True)
        sys.exit(1)


def _tables(described: dict[str, Any]) -> list[Table]:
    return [
        facts(described["name"], _facts(described)),
        _operators(described["graphs"]),
        _figures(described["figures"]),
        *([_files(described)] if "files" in described else []),
        *([facts("limits", list(described["limits"].items()))] if "limits" in described else []),
        facts("self-test", _self_test(described["self_test"])),
    ]


def _facts(described: dict[str, Any]) -> list[tuple[str, object]]:
    tokenizer, corpus = described["tokenizer"], described["corpus"]
    state = ", ".join(f"{each['name']} {'×'.join(map(str, each['shape']))}" for each in described["state"])
    sizes = [(name.replace("_", " "), f"{size:,}") for name, size in described["sizes"].items()]
    return [
        ("family", described["family"]),
        ("precision", described["precision"]),
        *sizes,
        ("tokenizer", f"{tokenizer['kind']}, {tokenizer['normalization']}, boundary {tokenizer['boundary']['token']}"),
        ("state", f"{state} (float32)"),
        ("state bytes", described.get("state_bytes")),
        ("corpus", ", ".join(str(corpus[name]) for name in ("name", "licence") if corpus.get(name))),
        ("source", corpus.get("source")),
        ("bundle hash", described["hashes"]["bundle"]),
        *([("signed by", _signer(described))] if "folder" in described else []),
        ("folder", described.get("folder")),
    ]


def _signer(described: dict[str, Any]) -> str:
    """Return who has signed the bundle, in words."""
    signature = described.get("signature")
    if signature is None:
        return "nobody" if "signature" in described else "not known: see the self-test"
    trusted = "one of MEARI_SIGNING_KEYS" if signature["trusted"] else "compare it with the maker's"
    return f"key {signature['key_id']} ({trusted})"


def _operators(graphs: dict[str, Any]) -> Table:
    rows = []
    for name, graph in graphs.items():
        operators = graph.get("operators", {})
        counts = ", ".join(f"{operator} {count}" for operator, count in operators.items())
        size = f"{graph['bytes']:,}" if "bytes" in graph else "–"
        rows.append((graph.get("file", name), size, str(sum(operators.values())), counts))
    return Table("graphs", ("file", "bytes", "nodes", "operators"), rows, frozenset({"bytes", "nodes"}))


def _figures(figures: dict[str, Any]) -> Table:
    """A row a figure; those of a part of the corpus under its name."""
    return facts("figures", list(_figure_rows("", figures)))


def _figure_rows(before: str, figures: dict[str, Any]) -> Iterator[tuple[str, object]]:
    for name, figure in figures.items():
        called = before + name.replace("_", " ")
        if isinstance(figure, dict):
            yield from _figure_rows(f"{called}: ", figure)
        else:
            yield called, _shown(figure)


def _files(described: dict[str, Any]) -> Table:
    hashes = described["hashes"]["files"]
    rows = [(name, f"{size:,}", hashes[name][:16] + "…") for name, size in described["files"].items()]
    return Table("files", ("file", "bytes", "SHA-256"), rows, frozenset({"bytes"}))


def _self_test(found: dict[str, Any]) -> list[tuple[str, object]]:
    if "problem" in found:
        return [("result", "FAILED"), ("problem", found["problem"])]
    tolerance = f" of {found['golden_tolerance']:g} allowed" if "golden_tolerance" in found else ""
    rows = "bit for bit the same" if found["rows_isolated"] else "differ, so each is run alone"
    return [
        ("result", "passed"),
        ("golden figures", f"within {found['golden_max_difference']:.2g} nats{tolerance}"),
        ("rows in batches", f"{rows} (batches of {', '.join(map(str, found['batch_sizes']))})"),
        ("CPU", found.get("cpu")),
        ("onnxruntime", found.get("onnxruntime")),
        ("seconds", found.get("seconds")),
    ]


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.6g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
