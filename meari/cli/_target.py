"""The model that a verb asks: a bundle of this machine, or a model of a running service.

Input: options. Output: a folder or a service. Must not know: what the model is asked for.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import click

from meari.cli._options import complete_bundle

if TYPE_CHECKING:
    from meari.bundle_format.folders import Roots
    from meari.bundle_format.signatures import PublicKey
    from meari.client.service import RemoteService

__all__ = [
    "MODEL_OPTION",
    "TARGET_OPTIONS",
    "Target",
    "bundles_folder",
    "signing_keys",
]


def _url(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    from meari.client.service import checked_url

    try:
        return None if value is None else checked_url(value)
    except ValueError as problem:
        raise click.BadParameter(str(problem)) from None


def _roots(_context: click.Context, _parameter: click.Parameter, value: str | None) -> Roots | None:
    from meari.bundle_format.places import parse_roots

    return None if value is None else parse_roots(value)


MODEL_OPTION = click.option(
    "--model",
    metavar="NAME",
    help="Name or path of a bundle.  [as DEFAULT in the folder, or the service, says]",
    shell_complete=complete_bundle,
)
TARGET_OPTIONS = (
    click.option(
        "--bundles",
        metavar="DIR",
        type=click.Path(),
        callback=_roots,
        is_eager=True,
        help="Folder of bundles, or a bundle.  [MEARI_BUNDLES, or bundles and the user's data folder]",
    ),
    click.option(
        "--server", metavar="URL", callback=_url, help="Use a running service, such as http://localhost:8000."
    ),
    click.option(
        "--api-key", metavar="KEY", envvar="MEARI_CLIENT_API_KEY", help="API key for --server.  [MEARI_CLIENT_API_KEY]"
    ),
)


@dataclass(frozen=True)
class Target:
    """The values of the options. Raises UsageError if they contradict each other."""

    model: str | None = None
    bundles: Roots | None = None
    server: str | None = None
    api_key: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.server is not None and self.bundles is not None:
            raise click.UsageError("--bundles: got it with --server, expected one of the two")

    def service(self) -> RemoteService | None:
        """Return the service to ask, None for the bundles of this machine."""
        if self.server is None:
            return None
        from meari.client.service import RemoteService

        return RemoteService(self.server, self.api_key or "")

    def folder(self) -> Path:
        """Return the bundle's folder; without options that of `meari serve`. Raises BundleError."""
        from meari.bundle_format.lookup import find_bundle

        folder, default = bundles_folder(self.bundles)
        return find_bundle(folder, self.model or default, signing_keys())


def bundles_folder(bundles: Roots | None) -> tuple[Roots, str | None]:
    """Return the folders of bundles, and the default model if the settings name one."""
    from meari.service.settings import SettingsError, load_settings

    if bundles is not None:
        return bundles, None
    try:
        settings = load_settings(os.environ)
    except SettingsError as problems:
        raise click.UsageError(f"the settings are wrong:\n{problems}") from None
    return settings.bundles, settings.default_model


def signing_keys() -> tuple[PublicKey, ...]:
    """Return the keys of which one has signed every bundle that is used, as in a service; none: any bundle is used."""
    from meari.service.settings import SETTINGS, SettingsError, load_settings

    variable = SETTINGS["signing_keys"].variable
    try:
        return load_settings({variable: os.environ.get(variable, "")}).signing_keys
    except SettingsError as problems:
        raise click.UsageError(f"the settings are wrong:\n{problems}") from None
