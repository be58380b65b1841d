"""Texts → a trained run → a bundle: `meari train TEXT` as a function.

Input: files, options. Output: a run, from which a bundle is exported. Must not know: the command line, which plans,
trains and exports by the same functions of `models` and `export`. These, and with them torch, are imported when they
are called.
"""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from meari.bundle_format.names import Family
from meari.errors import InvalidRequest, MeariError, Problem
from meari.paths import expand_home

if TYPE_CHECKING:
    from meari.models.planning.run import TextRun
    from meari.models.training.display import Display

__all__ = ["TrainingRun", "train"]

MAX_BAD: Final = 1_000  # with `skip_bad`, as of the command
BUNDLES: Final = Path("bundles")
ARGUMENTS: Final = {
    "--overwrite": "overwrite=True",
    "--resume": "resume=True",
    "--run": "folder=…",
    "--set": "settings",
    "--max-bad": "max_bad",
}
INSTALL: Final = "training needs torch and onnx, which are not installed here: `pip install 'meari[train]'`"


@dataclass(frozen=True)
class TrainingRun:
    """A finished training, made by `meari.train`.

    name     of the run, and of its bundle unless `export` gives another
    folder   the run's: checkpoints, figures, the corpus as tokens
    config   all settings, as the tables of a TOML file; `folder / "config.toml"` has those that were chosen
    figures  of the best weights on held-out text, and of the training: as `folder / "figures.json"` has them
    """

    name: str
    folder: Path
    config: Mapping[str, Any] = field(repr=False)
    figures: Mapping[str, Any] = field(repr=False)

    @property
    def held_out(self) -> Mapping[str, float]:
        """Figures on text that was held out: `nats_per_token`, `perplexity`, `bits_per_char` and others."""
        found: Mapping[str, float] = self.figures["validation"]
        return found

    @property
    def samples(self) -> tuple[str, ...]:
        """Texts that the network writes in float32, without n-grams; always the same ones.

        Raises `meari.errors.MeariError` for a run that was removed or damaged meanwhile.
        """
        from meari.export.bundle import samples_of

        with _Translated():
            return tuple(samples_of(self.folder))

    def export(
        self,
        folder: str | os.PathLike[str] | None = None,
        *,
        name: str | None = None,
        overwrite: bool = False,
        progress: bool = True,
    ) -> Path:
        """Write the bundle and return its folder, which `meari.load` takes.

        int8 where that passes its checks, and with n-grams of the text where they take at least 2 % off its nats.

        folder     of the bundle; its last part is the model's name
        name       of the bundle, in `bundles/`, in place of a folder; by default the run's
        overwrite  replace a bundle that is there
        progress   print a line before each stage

        Raises `meari.InvalidRequest` for a folder beside a name, and `meari.MeariError` for a folder that cannot be
        used and for a bundle that does not pass its checks; then nothing is written.
        """
        if folder is not None and name is not None:
            raise InvalidRequest(Problem("name", repr(name), "none beside a folder"))
        from meari.export.bundle import export_smallest
        from meari.models.config import Config
        from meari.models.file_uses import Use, check_apart, config_uses

        place = BUNDLES / (name or self.name) if folder is None else Path(expand_home(folder))
        texts = config_uses(None, Config.from_json(json.dumps(self.config)))
        with _Translated():
            check_apart([Use("the run", self.folder), *texts], [Use("folder", place)])
            export_smallest(self.folder, place, overwrite=overwrite, tell=_display(progress).note)
        return place

    def __repr__(self) -> str:
        return f"<meari.TrainingRun {self.name}: perplexity {self.held_out['perplexity']:.4g}, {self.folder}>"


def train(
    texts: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    minutes: float = 5.0,
    *,
    family: str | None = None,
    name: str | None = None,
    settings: Mapping[str, object] | None = None,
    folder: str | os.PathLike[str] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    tensorboard: str | os.PathLike[str] | None = None,
    skip_bad: bool = False,
    max_bad: int | None = None,
    progress: bool = True,
) -> TrainingRun:
    """Train a model on texts, with the config that `meari train TEXT` would choose; returns a `meari.TrainingRun`.

    texts        a text file, a folder of them, or several of these
    minutes      from here to the exported bundle, over 0
    family       "rnn", "gru", "lstm" or "esn"; None: by the time
    name         of the run and the bundle; None: the first text's
    settings     by name, such as {"training.learning_rate": 1e-3}: kept, and everything else is chosen around them
    folder       of the run; None: `runs/NAME`
    resume       continue the run in that folder
    overwrite    replace it
    tensorboard  folder for TensorBoard: losses, gradient norm, learning rate, tokens/s
    skip_bad     read lines that are not UTF-8 as blank lines
    max_bad      the same, for at most so many lines; 1,000 with `skip_bad`
    progress     show what was chosen, and a bar in a terminal or, elsewhere and in a notebook, a line every ten seconds

    Ctrl-C ends the training after the current step with KeyboardInterrupt, SIGTERM with SystemExit; `resume=True` goes
    on from there, bit for bit on a CPU. Both are caught in the main thread only.

    Raises `meari.InvalidRequest` for a wrong argument, `meari.MeariError` for texts, settings and folders that cannot
    be used, and ImportError if torch is not installed.
    """
    paths = _checked_paths(texts)
    _check(minutes, resume=resume, overwrite=overwrite)
    kind = _checked_family(family)
    from meari.models.planning.run import train_text
    from meari.models.training.run_folder import Start

    start = Start.RESUME if resume else Start.OVERWRITE if overwrite else Start.FRESH
    own = {**(settings or {}), **_bad_lines(skip_bad=skip_bad, max_bad=max_bad)}
    with _Translated():
        display = _display(progress)
        done = train_text(
            paths,
            minutes,
            name=name,
            family=kind,
            settings=own,
            folder=None if folder is None else Path(expand_home(folder)),
            start=start,
            events=None if tensorboard is None else Path(expand_home(tensorboard)),
            display=display,
            tell=display.note,
        )
    return _finished(done)


def _finished(done: TextRun) -> TrainingRun:
    """Return the run. Raises KeyboardInterrupt or SystemExit if a signal has ended it."""
    if done.result.figures is None:
        note = f"interrupted after step {done.result.step}; meari.train(…, resume=True) goes on in {done.folder.path}"
        if done.result.stop.signal is signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM)
        raise KeyboardInterrupt(note)
    config: dict[str, Any] = json.loads(done.config.to_json())
    return TrainingRun(done.config.name, done.folder.path, config, done.result.figures)


def _checked_paths(texts: object) -> list[str]:
    several = [texts] if isinstance(texts, str | os.PathLike) else texts
    if isinstance(several, bytes | Mapping) or not isinstance(several, Iterable):
        raise InvalidRequest(Problem("texts", repr(texts), "a file or folder, or several"))
    paths = list(several)
    for place, path in enumerate(paths):
        if not isinstance(path, str | os.PathLike):
            raise InvalidRequest(Problem(f"texts[{place}]", repr(path), "a file or folder"))
    if not paths:
        raise InvalidRequest(Problem("texts", "none", "a file or folder, or several"))
    return [expand_home(path) for path in paths]


def _check(minutes: object, *, resume: bool, overwrite: bool) -> None:
    is_number = isinstance(minutes, int | float) and not isinstance(minutes, bool)
    if not is_number or not 0 < minutes < float("inf"):  # type: ignore[operator]
        raise InvalidRequest(Problem("minutes", repr(minutes), "a number over 0"))
    if resume and overwrite:
        raise InvalidRequest(Problem("overwrite", "True", "False beside resume"))


def _checked_family(family: str | None) -> Family | None:
    names = ", ".join(each.value for each in Family)
    try:
        return None if family is None else Family(family)
    except ValueError:
        raise InvalidRequest(Problem("family", repr(family), f"one of {names}")) from None


def _bad_lines(*, skip_bad: bool, max_bad: int | None) -> dict[str, object]:
    limit = MAX_BAD if skip_bad and max_bad is None else max_bad
    return {} if limit is None else {"corpus.max_bad": limit}


def _display(progress: bool) -> Display:  # noqa: FBT001
    from rich.console import Console

    from meari.models.training.display import NullDisplay, make_display

    return make_display(Console(force_jupyter=False)) if progress else NullDisplay()  # plain text in a notebook


class _Translated:
    """Raises errors of training and export as `MeariError`, with arguments in place of the command's options, and says
    what to install where a package is missing.
    """

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        from meari.export.errors import ExportError
        from meari.models.errors import ModelsError

        if isinstance(error, ExportError | ModelsError):
            said = re.sub(r"(?<!\S)--[a-z-]+", lambda option: ARGUMENTS.get(option[0], option[0]), str(error))
            raise MeariError(said) from error
        if isinstance(error, ImportError):
            raise ImportError(INSTALL) from error  # noqa: TRY004 (the error stays one of an import)
