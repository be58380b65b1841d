"""`meari keys`: the file of keys of a service → the same with a key more or less, or a list of its keys."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from meari.cli._options import PathType, echo_json, json_option
from meari.cli._tables import Table, show

if TYPE_CHECKING:
    from meari.service.requests.keys import StoredKey

EXAMPLES = """\b
Examples:
  meari keys add alice --file keys.json
  meari keys add bob --file keys.json --models shakespeare-gru --tokens-per-minute 60000 --requests-at-once 4
  meari keys list --file keys.json
  meari keys revoke bob --file keys.json
"""
NUMBERS = frozenset({"tokens/minute", "at once"})


@click.command("keys", epilog=EXAMPLES, short_help="Add, list and revoke keys of a service.")
@click.argument("action", type=click.Choice(["add", "list", "revoke"]))
@click.argument("name", required=False)
@click.option(
    "--file", "path", type=PathType(path_type=Path), envvar="MEARI_KEYS_FILE", help="File of keys (MEARI_KEYS_FILE)."
)
@click.option("--models", help="With add: models that the key is for, separated by commas; all without it.")
@click.option(
    "--tokens-per-minute", type=click.IntRange(min=1), help="With add: tokens a minute; any number without it."
)
@click.option(
    "--requests-at-once", type=click.IntRange(min=1), help="With add: requests at once; any number without it."
)
@click.option("--admin", is_flag=True, help="With add: the key may also load and unload models.")
@json_option
def command(
    action: str,
    name: str | None,
    path: Path | None,
    models: str | None,
    tokens_per_minute: int | None,
    requests_at_once: int | None,
    admin: bool,
    as_json: bool,
) -> None:
    """Add a key, list the keys, or revoke one by its NAME or its id.

    A new key is shown once: the file has only a salted hash of it. Services that use the file (MEARI_KEYS_FILE) take
    over a change within seconds, without a restart.
    """
    if path is None:
        raise click.UsageError("say which file has the keys: --file or MEARI_KEYS_FILE")
    if (name is None) != (action == "list"):
        raise click.UsageError("list takes no name" if action == "list" else f"say whose key: meari keys {action} NAME")
    if action != "add" and (models or tokens_per_minute or requests_at_once or admin):
        raise click.UsageError(f"limits and rights are for add, not for {action}")
    if action == "list":
        _list(path, as_json=as_json)
    elif action == "revoke":
        _revoke(path, str(name), as_json=as_json)
    else:
        from meari.service.requests.keys import make_key

        key, entry = make_key(
            _checked_name(str(name)),
            admin=admin,
            models=_names(models),
            tokens_per_minute=tokens_per_minute,
            requests_at_once=requests_at_once,
            created=time.strftime("%Y-%m-%d", time.gmtime()),
        )
        _add(path, key, entry, as_json=as_json)


def _names(models: str | None) -> list[str] | None:
    if models is None:
        return None
    names = [name.strip() for name in models.split(",")]
    if not all(names):
        raise click.BadParameter(f"got {models!r}, expected names separated by commas", param_hint="--models")
    return names


def _checked_name(name: str) -> str:
    from meari.service.requests.keys import is_name

    if not is_name(name):
        expected = "1 to 64 letters, digits and . _ @ -, the first a letter or a digit"
        raise click.BadParameter(f"got {name!r}, expected {expected}", param_hint="NAME")
    return name


def _add(path: Path, key: str, entry: StoredKey, *, as_json: bool) -> None:
    from meari.service.requests.keys import change_keys

    def change(keys: list[StoredKey]) -> list[StoredKey]:
        if any(each.name == entry.name for each in keys):
            raise click.ClickException(f"{path}: there is a key {entry.name} already; revoke it, or take another name")
        _show_key(key, entry, as_json=as_json)  # before it is kept: a key that nobody saw would stay valid
        return [*keys, entry]

    try:
        change_keys(path, change)
    except OSError as error:
        raise click.ClickException(f"{error.filename or path}: {error.strerror or error}; no key was added") from None


def _show_key(key: str, entry: StoredKey, *, as_json: bool) -> None:
    """Print a new key. Raises ClickException where standard output does not take it."""
    try:
        if as_json:
            echo_json({"key": key, **_described(entry)})
        else:
            click.echo(f"Key of {entry.name}, shown this once:", err=True)
            click.echo(key)
    except OSError as error:
        place = f"standard output: {error.strerror or error}, expected a place to show the key"
        raise click.ClickException(f"{place}; no key was added") from None


def _revoke(path: Path, name: str, *, as_json: bool) -> None:
    from meari.service.requests.keys import change_keys

    revoked: list[StoredKey] = []

    def change(keys: list[StoredKey]) -> list[StoredKey]:
        from meari.errors import did_you_mean

        revoked.extend(each for each in keys if name in (each.name, each.id))
        if not revoked:
            hint = did_you_mean(name, [each.name for each in keys])
            raise click.ClickException(f"{path}: there is no key {name}{hint}")
        return [each for each in keys if each not in revoked]

    path.stat()  # nothing is made here
    change_keys(path, change)
    if as_json:
        echo_json({"revoked": [_described(each) for each in revoked]})
    else:
        click.echo(f"revoked the key of {revoked[0].name}", err=True)


def _list(path: Path, *, as_json: bool) -> None:
    from meari.service.requests.keys import read_keys

    keys = read_keys(path)
    if as_json:
        echo_json({"keys": [_described(each) for each in keys]})
        return
    columns = ("name", "id", "models", "tokens/minute", "at once", "admin", "created")
    show(Table("", columns, [_row(each) for each in keys], NUMBERS))


def _described(key: StoredKey) -> dict[str, object]:
    """Return an entry without its hash."""
    return {
        "name": key.name,
        "id": key.id,
        "models": key.models,
        "tokens_per_minute": key.tokens_per_minute,
        "requests_at_once": key.requests_at_once,
        "admin": key.admin,
        "created": key.created,
    }


def _row(key: StoredKey) -> tuple[str, ...]:
    limits = ("any" if limit is None else f"{limit:,}" for limit in (key.tokens_per_minute, key.requests_at_once))
    models = "all" if key.models is None else ", ".join(key.models)
    return (key.name, key.id, models, *limits, "yes" if key.admin else "no", key.created)
