"""How verbs share options: several together become one value; `--json` is the same everywhere."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from typing import Any

import click

from meari.errors import did_you_mean

__all__ = ["Choice", "Decorator", "echo_json", "echo_json_line", "json_option", "packed"]

Decorator = Callable[[Callable[..., None]], Callable[..., None]]

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output, all else beside it.")


def packed(name: str, kind: type[Any], *options: Decorator) -> Decorator:
    """Adds the options to a command, which gets what they say as one `kind`, a dataclass, in its parameter `name`."""
    names = [field.name for field in dataclasses.fields(kind)]

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def decorated(**values: Any) -> None:
            own = {each: values.pop(each) for each in names if each in values}
            function(**values, **{name: kind(**own)})

        command: Callable[..., None] = decorated
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


class Choice(click.Choice[str]):
    """As click's, with the nearest choice for one that is none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """As click does. Raises BadParameter."""
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            message = error.message + did_you_mean(str(value), self.choices)
            raise click.BadParameter(message, ctx=ctx, param=param) from None


def echo_json(document: object) -> None:
    """One document on standard output."""
    click.echo(json.dumps(document, ensure_ascii=False, indent=2, allow_nan=False))


def echo_json_line(document: object) -> None:
    """One document on one line of standard output."""
    from meari.runtime.text.json_lines import escape_line_ends

    click.echo(escape_line_ends(json.dumps(document, ensure_ascii=False).encode("utf-8", "surrogateescape")))
