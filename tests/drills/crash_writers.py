"""Writers of everything that must survive a crash: each writes into a folder, continues there, and is judged.

Input: a folder in whatever state a crash left it. Output: the finished work, or an AssertionError that says what was
lost. Must not know: how the crash came.
"""

from __future__ import annotations

import contextlib
import mmap
import shutil
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from meari.bulk import run as bulk_run
from meari.bulk.frames import Done
from meari.bulk.lines import Chunk
from meari.bulk.output import Output
from meari.bulk.plan import RunPlan
from meari.bulk.worker_pool import Result
from meari.bundle_format.folders import find_bundles
from meari.bundle_format.names import Family, Precision
from meari.export import bundle as export
from meari.export.bundle import Run
from meari.models.checkpoint import load_checkpoint
from meari.models.config import RecurrentConfig
from meari.models.errors import CheckpointError
from meari.models.search.journal import Journal, Trial
from meari.models.text.tokens import prepare
from meari.models.training.run_folder import Start
from meari.service.requests.keys import change_keys, make_key, read_keys
from tests.export.tiny_models import make_run
from tests.models.training.tiny_runs import chain_text, contents, run_training, tiny_config

__all__ = ["WRITERS", "Writer"]

NUM_LINES: Final = 40
NUM_TRIALS: Final = 6
NUM_KEYS: Final = 6


class Counter:
    """A number that a killed process leaves behind: what it had been told is durable."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 8)

    def set(self, value: int) -> None:
        self._memory[:8] = struct.pack("<q", value)

    def get(self) -> int:
        return int(struct.unpack("<q", self._memory[:8])[0])


class Writer(ABC):
    """One kind of work. `source` holds what it is made from and never changes."""

    def __init__(self, source: Path) -> None:
        self.source = source
        self.acknowledged = Counter()

    def begin(self, place: Path) -> None:
        """Make the state before the work."""
        place.mkdir(parents=True)

    @abstractmethod
    def write(self, place: Path) -> None:
        """Do the work, or what is left of it, to its end."""

    @abstractmethod
    def check(self, place: Path) -> None:
        """Assert what must hold at any moment."""

    @abstractmethod
    def check_finished(self, place: Path) -> None:
        """Assert what must hold at the end: the work is whole, and nothing else is left behind."""


class Training(Writer):
    """A run with a checkpoint after every step; resumed, it ends in the very bytes of a run that nobody disturbed."""

    def __init__(self, source: Path) -> None:
        super().__init__(source)
        model = RecurrentConfig(Family.LSTM, 5, 7, dropout=0.2)
        self._config = tiny_config(source, model=model, steps=6, evaluate_every=1)
        run_training(self._config, source / "whole")
        self._whole = contents(source / "whole")

    def begin(self, place: Path) -> None:
        """Make the state before the work."""
        super().begin(place)
        self.acknowledged.set(-1)

    def write(self, place: Path) -> None:
        """Do the work."""
        folder = place / "run"
        run_training(self._config, folder, Start.RESUME if (folder / "config.json").exists() else Start.FRESH)

    def check(self, place: Path) -> None:
        """Assert what must hold at any moment: the steps of the checkpoint never go back."""
        if not place.joinpath("run").is_dir():
            assert self.acknowledged.get() < 0, "the run is gone"
            return
        try:
            step = load_checkpoint(place / "run").step
        except CheckpointError as error:
            if "nothing saved yet" not in str(error):
                raise
            step = -1
        assert step >= self.acknowledged.get(), f"the checkpoint of step {self.acknowledged.get()} is gone: {step}"
        self.acknowledged.set(step)

    def check_finished(self, place: Path) -> None:
        """Assert what must hold at the end."""
        found = contents(place / "run")
        assert sorted(found) == sorted(self._whole), f"{sorted(found)}"
        other = [name for name in found if found[name] != self._whole[name]]
        assert not other, f"{other} differ"


class Export(Writer):
    """A bundle that is replaced by another one: what is there is the one or the other, whole, and can be served."""

    def __init__(self, source: Path) -> None:
        super().__init__(source)
        runs = [make_run(source / f"run-{seed}", RecurrentConfig(Family.RNN, 4, 6), seed=seed) for seed in (1, 2)]
        self._made = [self._built(folder) for folder in runs]
        self._whole = []
        for number, (run, checked, description) in enumerate(self._made):
            place = source / f"whole-{number}"
            export._write(place / "bundle", run, checked.graphs, description)
            self._whole.append(contents(place / "bundle"))

    @staticmethod
    def _built(folder: Path) -> tuple[Run, Any, Any]:
        run = export.read_run(folder)
        checked = export._build(run, Precision.FP32, None, lambda _: None)
        return run, checked, export._describe("bundle", run, checked)

    def begin(self, place: Path) -> None:
        """Make the state before the work: the first bundle."""
        shutil.copytree(self.source / "whole-0", place)

    def write(self, place: Path) -> None:
        """Do the work."""
        run, checked, description = self._made[1]
        export._write(place / "bundle", run, checked.graphs, description)

    def check(self, place: Path) -> None:
        """Assert what must hold at any moment."""
        assert list(find_bundles(place).folders) == ["bundle"], sorted(path.name for path in place.iterdir())
        assert contents(place / "bundle") in self._whole, "the bundle is neither the old one nor the new one"

    def check_finished(self, place: Path) -> None:
        """Assert what must hold at the end."""
        assert sorted(path.name for path in place.iterdir()) == ["bundle"]
        assert contents(place / "bundle") == self._whole[1]


class Tokens(Writer):
    """The tokens of a corpus that has changed: read again, they are those of the new text."""

    def __init__(self, source: Path) -> None:
        super().__init__(source)
        self._configs = []
        for number in (0, 1):
            (source / str(number)).mkdir()
            (source / str(number) / "chain.txt").write_text(chain_text(3000, seed=number))
            self._configs.append(tiny_config(source / str(number)))
        self._ids = [
            prepare(config, source / f"whole-{n}").train.ids.tolist() for n, config in enumerate(self._configs)
        ]
        self._whole = contents(source / "whole-1")

    def begin(self, place: Path) -> None:
        """Make the state before the work: the tokens of the first text."""
        shutil.copytree(self.source / "whole-0", place)

    def write(self, place: Path) -> None:
        """Do the work."""
        prepare(self._configs[1], place)

    def check(self, place: Path) -> None:
        """Assert what must hold at any moment, read in a copy."""
        copy = self.source / "copy"
        for number in (0, 1):
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(place, copy)
            assert prepare(self._configs[number], copy).train.ids.tolist() == self._ids[number]

    def check_finished(self, place: Path) -> None:
        """Assert what must hold at the end."""
        found = contents(place)
        assert found == self._whole, f"{[name for name in found if found[name] != self._whole.get(name)]} differ"


class Lines:
    """Numbered lines, as a source of a bulk run."""

    num_bytes: int | None = NUM_LINES
    at = 0

    def skip(self, file: int, offset: int, line: int, digest: str) -> None:
        """Go on after these bytes: a byte a line."""
        self.at = offset

    def name(self, number: int) -> str:
        """Return the name in messages."""
        return "lines"

    label = name

    def bytes_before(self, number: int) -> int:
        """Return the bytes of all files before one of them."""
        return 0

    def identity(self) -> dict[str, object]:
        """Return what tells this input from others."""
        return {}

    def results(self) -> Iterator[Result]:
        """Yield a record of some length for every line."""
        for number in range(self.at + 1, NUM_LINES + 1):
            chunk = Chunk(b"", number, 1, number)
            yield Result(chunk, data=f"{number}:{'x' * (number * 37 % 301)}\n".encode())
            yield Result(chunk, done=Done('{"num_texts": 1}'))


class Bulk(Writer):
    """The output of a bulk run with a checkpoint after every line; resumed, it has every line once."""

    whole = b"".join(result.data for result in Lines().results())

    def write(self, place: Path) -> None:
        """Do the work."""
        bulk_run.CHECKPOINT_SECONDS = 0.0  # type: ignore[misc]  # a checkpoint a line, so that kills meet them
        source, output = Lines(), Output(place / "out")
        with contextlib.closing(output):
            run = bulk_run._resume(source, output, {}) if (place / "out.progress").exists() else None  # type: ignore[arg-type]
            run = run or bulk_run._begin(output, {}, b"")
            plan = RunPlan(place / "out", 1, resume=True)
            if not run.at.complete:
                run = bulk_run._work(source.results(), source, run, plan)
            assert (run.at.totals or {})["num_texts"] == NUM_LINES

    def check(self, place: Path) -> None:
        """Assert what must hold at any moment."""
        out = place / "out"
        assert self.whole.startswith(out.read_bytes().rstrip(b"\0") if out.exists() else b"")

    def check_finished(self, place: Path) -> None:
        """Assert what must hold at the end."""
        assert (place / "out").read_bytes() == self.whole
        assert sorted(path.name for path in place.iterdir()) == ["out", "out.progress"]


class Keys(Writer):
    """The file of keys: a key that was shown to its owner is there for good."""

    def begin(self, place: Path) -> None:
        """Make the state before the work: one key."""
        super().begin(place)
        _, entry = make_key("first")
        change_keys(place / "keys.json", lambda keys: [*keys, entry])
        self.acknowledged.set(1)

    def write(self, place: Path) -> None:
        """Do the work."""
        path = place / "keys.json"
        for number in range(len(read_keys(path)), NUM_KEYS):
            _, entry = make_key(f"key-{number}")
            change_keys(path, lambda keys, entry=entry: [*keys, entry])  # type: ignore[misc]
            self.acknowledged.set(number + 1)

    def check(self, place: Path) -> None:
        """Assert what must hold at any moment."""
        assert len(read_keys(place / "keys.json")) >= self.acknowledged.get()

    def check_finished(self, place: Path) -> None:
        """Assert what must hold at the end."""
        assert len(read_keys(place / "keys.json")) == NUM_KEYS
        assert sorted(path.name for path in place.iterdir()) == [".keys.json.lock", "keys.json"]


class Search(Writer):
    """The journal of a search: a trial that ended is there for good, also while the search is resumed."""

    def begin(self, place: Path) -> None:
        """Make the state before the work."""
        super().begin(place)
        self.acknowledged.set(0)

    def write(self, place: Path) -> None:
        """Do the work."""
        journal = Journal(place)
        trials: list[Trial] = []
        if journal.path.exists():
            trials = journal.resume({"name": "x"})
        else:
            journal.begin({"name": "x"})
        for number in range(len(trials) + 1, NUM_TRIALS + 1):
            journal.add(Trial(number, {"model.hidden_size": 8}, 1.5, 1.5, 10, "finished", "", 1.0))
            self.acknowledged.set(number)

    def check(self, place: Path) -> None:
        """Assert what must hold at any moment."""
        journal = Journal(place)
        trials = journal.read()[1] if journal.path.exists() else []
        assert len(trials) >= self.acknowledged.get(), (
            f"{self.acknowledged.get()} trials had ended, {len(trials)} are left"
        )

    def check_finished(self, place: Path) -> None:
        """Assert what must hold at the end."""
        assert [trial.number for trial in Journal(place).read()[1]] == list(range(1, NUM_TRIALS + 1))
        assert [path.name for path in place.iterdir()] == ["search.jsonl"]


WRITERS: Final[dict[str, type[Writer]]] = {
    "training": Training,
    "export": Export,
    "tokens": Tokens,
    "bulk": Bulk,
    "keys": Keys,
    "search": Search,
}
