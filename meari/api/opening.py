"""A name, a path or a URL → a language model.

Input: where the model is. Output: a `LanguageModel` that answers. Must not know: what it will be asked.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from meari.api.arguments import checked_text, shown_value
from meari.api.language_model import LanguageModel, Model
from meari.bundle_format.signatures import PublicKey
from meari.errors import InvalidRequest, Problem
from meari.paths import expand_home

__all__ = ["load"]

LOCAL_STATE_KEY: Final = "states of bundles on this machine, no secret"  # so every process can read kept states
MAX_ENGINES: Final = 8  # of one process: they share its interpreter
_URLS: Final = ("http://", "https://")


def load(
    source: str | os.PathLike[str] | None = None,
    *,
    model: str | None = None,
    key: str = "",
    state_key: str | None = None,
    num_engines: int | None = None,
) -> LanguageModel:
    """Open a language model; returns a `meari.LanguageModel`.

    source       name of a bundle in `MEARI_BUNDLES` (or `bundles/`), the folder of a bundle, a folder of bundles, or
                 the URL of a running service; None is the default bundle
    model        a model of that service or folder; None is its default
    key          API key of a service
    state_key    the service's MEARI_STATE_KEY, to exchange states with it; None: states of this machine's bundles can
                 be read by every process with the same bundle, and by no service
    num_engines  engines for long lists, a CPU each; None: one for each CPU of the process, at most 8

    Raises `meari.BundleError` if there is no such bundle or it is damaged, `meari.RemoteError` if the service does not
    answer, and `meari.UnknownModel` if it has no such model.

    >>> with meari.load("shakespeare-lstm") as lm:
    ...     lm.name
    'shakespeare-lstm'
    """
    if not isinstance(source, str | os.PathLike | None):
        raise InvalidRequest(Problem("source", shown_value(source), "a name, a path or a URL"))
    model = None if model is None else checked_text(model, "model")
    state_key = None if state_key is None else checked_text(state_key, "state_key")
    key = checked_text(key, "key")
    if isinstance(source, str) and source.lower().startswith(_URLS):
        return LanguageModel(_at_service(checked_text(source, "source"), model, key))
    if key:
        raise InvalidRequest(Problem("key", "a key", "none for a bundle of this machine", "it is for a service"))
    folder, signing_keys = _find(source, model)
    return LanguageModel(_in_process(folder, signing_keys, state_key, num_engines))


def _at_service(url: str, model: str | None, key: str) -> Model:
    from meari.api.remote import RemoteModel
    from meari.client.client import Client

    if not (key.isascii() and key.isprintable()):
        raise InvalidRequest(Problem("key", "other characters", "printable ASCII characters, which a header can have"))
    try:
        client = Client(url, key=key)
    except ValueError as problem:
        raise InvalidRequest(Problem("source", reason=str(problem))) from None
    try:
        return RemoteModel(client, model)
    except BaseException:
        client.close()
        raise


def _in_process(
    folder: Path, signing_keys: tuple[PublicKey, ...], state_key: str | None, num_engines: int | None
) -> Model:
    from meari.api.local import LocalModel
    from meari.runtime.machine import granted_cpus

    if num_engines is not None and (type(num_engines) is not int or num_engines < 1):
        raise InvalidRequest(Problem("num_engines", shown_value(num_engines), "a count, 1 or more"))
    count = num_engines or min(granted_cpus(), MAX_ENGINES)
    return LocalModel(folder, signing_keys, (state_key or LOCAL_STATE_KEY,), count)


def _find(source: str | os.PathLike[str] | None, model: str | None) -> tuple[Path, tuple[PublicKey, ...]]:
    """Return the folder of the bundle, and the keys of which one has signed it. Raises BundleError."""
    from meari.bundle_format.folders import holds_bundle
    from meari.bundle_format.lookup import find_bundle
    from meari.service.settings import SETTINGS, load_settings

    names = ("bundles", "default_model", "signing_keys")
    variables = [SETTINGS[name].variable for name in names]
    settings = load_settings({each: os.environ[each] for each in variables if each in os.environ})
    keys, bundles = settings.signing_keys, settings.bundles
    if source is None:
        return find_bundle(bundles, model or settings.default_model, keys), keys
    path = Path(expand_home(source))
    if path.is_dir() and (model is not None or not holds_bundle(path)):
        return find_bundle(path, model, keys), keys
    if model is not None:
        raise InvalidRequest(Problem("model", repr(model), "none beside the name of a bundle"))
    return find_bundle(bundles, os.fspath(source), keys), keys
