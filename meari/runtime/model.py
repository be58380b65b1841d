"""A bundle that is ready to be asked.

Input: a bundle's folder and the limits of its engine. Output: a `LoadedModel` whose engine is running. Must not know:
HTTP, settings.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from meari.bundle_format.folders import MANIFEST, bundle_name
from meari.bundle_format.reader import naming_folder
from meari.bundle_format.signatures import PublicKey
from meari.errors import BundleError
from meari.runtime.bundle import Bundle, open_bundle
from meari.runtime.engine import Engine, EngineLimits
from meari.runtime.text.tokenizer import TextTokenizer

__all__ = ["LoadedModel", "load_model", "open_for_engine", "start_model"]

MAX_REQUEST_ROWS: Final = 16  # `n` and `num_beams` go so far, however few slots there are


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """An opened bundle with its running engine.

    name        name of the bundle's folder, by which the model is called
    created     seconds since 1970: the day the training ended, or when the bundle was written if it does not say
    """

    name: str
    bundle: Bundle
    tokenizer: TextTokenizer
    engine: Engine
    created: int


def load_model(folder: Path, limits: EngineLimits, signing_keys: Sequence[PublicKey] = ()) -> LoadedModel:
    """Open a bundle, signed by one of the keys if there are any, and start its engine. Raises BundleError."""
    with naming_folder(folder):
        bundle = open_for_engine(folder, limits, signing_keys)
    return start_model(bundle, limits)


def open_for_engine(folder: Path, limits: EngineLimits, signing_keys: Sequence[PublicKey] = ()) -> Bundle:
    """Open a bundle for an engine of these limits, which has a thread and is not started. Raises BundleError."""
    return open_bundle(folder, max_slots=max(limits.max_slots, MAX_REQUEST_ROWS), signing_keys=signing_keys)


def start_model(bundle: Bundle, limits: EngineLimits) -> LoadedModel:
    """Start the engine of an opened bundle, which no other may have. Raises BundleError if its folder is gone."""
    created = _created(bundle)
    engine = Engine(bundle.runner, limits)
    engine.start()
    return LoadedModel(bundle_name(bundle.folder), bundle, bundle.tokenizer, engine, created)


def _created(bundle: Bundle) -> int:
    ended = bundle.manifest.training_ended
    if ended is not None:
        return int(dt.datetime.combine(ended, dt.time(), dt.UTC).timestamp())
    try:
        return int((bundle.folder / MANIFEST).stat().st_mtime)
    except OSError as error:
        raise BundleError(f"manifest.json: cannot be read: {error.strerror}") from error
