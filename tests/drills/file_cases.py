"""Mutated files, each read as the program reads it: `python -m tests.drills.file_cases SEED FOLDER KIND=COUNT …`.

Input: a seed, and numbers of cases. Output: JSON with what came of each kind; FOLDER/case has the case under way. A
case is refused by an error of the tree that belongs to the file, or read; anything else is a problem.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import gzip
import hashlib
import io
import json
import random
import shutil
import sys
import time
import zipfile
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import msgspec
import torch
from safetensors.torch import save_file

from meari.bulk.errors import BulkError
from meari.bulk.output import Checkpoint, Journal, check_journal, is_interrupted, read_run
from meari.bundle_format.names import Family
from meari.bundle_format.store import add_zip
from meari.errors import BundleError, MeariError
from meari.export.errors import Unimportable
from meari.importer.bundle import read_foreign
from meari.importer.source import Source
from meari.models.checkpoint import fill_checkpoint, load_checkpoint
from meari.models.config import RecurrentConfig, load_config
from meari.models.errors import ModelsError
from meari.models.families import build_model
from meari.models.text.tokenizer import train_tokenizer
from meari.models.text.tokens import prepare
from meari.runtime.bundle import open_bundle
from meari.runtime.machine import resident_bytes
from meari.service.requests.keys import KeyFile, make_key, read_keys
from meari.service.settings import SettingsError, load_settings
from tests.drills.inside import shown_inside
from tests.drills.mutations import mutated_bytes, mutated_tree
from tests.importer.foreign_models import WORDS, WordLanguageModel, randomised
from tests.models.training.tiny_runs import tiny_config
from tests.runtime.spelling_bundle import byte_tokenizer, write_spelling_bundle
from tests.runtime.tiny_bundle import write_tiny_bundle
from tests.service.running import ROOT

__all__ = ["KINDS", "Outcome"]

NUM_WARM: Final = 5
SLOW_SECONDS: Final = 1.0
TEXT: Final = "Zwei Wörter.\nthe sea, e\u0301cho 😀 한글\r\n\n\tlast\n" * 8
TOML_VALUES: Final = (
    "1", "-1", "0", "1e400", "nan", "inf", "true", '""', '"a"', "[]", "[1]", '["a"]', "{}", "{a=1}", "1979-05-27",
    "9" * 40, "0x1F", "'''", '"\\ud800"', "[[", "1_000", "'chars'", '"../x"', "0.5", "1.5", "100000000000",
)  # fmt: skip


@dataclass
class Outcome:
    """What came of the cases of one kind; `problems` has the first few."""

    num_cases: int = 0
    num_read: int = 0
    refusals: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    slowest_case: int = 0
    grown_mb: float = 0.0
    problems: list[str] = field(default_factory=list)


class Kind(ABC):
    """A kind of file: makes a case from a generator, and reads it."""

    refusals: tuple[type[Exception], ...]
    shows_paths = True  # its messages are for the person at the command line, who named the file
    known = "\0"  # a word that its messages may have

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @abstractmethod
    def read(self, rng: random.Random) -> None:
        """Make the case and read it. Raises an error of `refusals` if it is refused."""


class Bundles(Kind):
    """Bundles: one file is changed, every other time with its hash in the manifest mended."""

    refusals = (BundleError,)
    shows_paths = False

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        write_tiny_bundle(folder / "letters")
        chain = byte_tokenizer().encode("é😀한!").ids
        write_spelling_bundle(folder / "bytes", byte_tokenizer(), "bpe", chain)
        self._bundles = [_contents(folder / name) for name in ("letters", "bytes")]

    def changed(self, rng: random.Random) -> dict[str, bytes]:
        """Return the files of a bundle of which one is changed."""
        files = dict(rng.choice(self._bundles))
        name = rng.choice([*sorted(files), "tokenizer.json"])
        files[name] = _mutated_file(name, files[name], rng)
        is_mended = rng.random() < 0.6
        if name != "manifest.json" and is_mended:
            manifest = json.loads(files["manifest.json"])
            manifest["files"][name] = {"sha256": hashlib.sha256(files[name]).hexdigest(), "bytes": len(files[name])}
            files["manifest.json"] = json.dumps(manifest).encode()
        return files

    def read(self, rng: random.Random) -> None:
        """Make the case and read it."""
        bundle = open_bundle(_written(self.folder / "case-bundle", self.changed(rng)), max_slots=4)
        bundle.tokenizer.encode("abc é😀")


class Archives(Bundles):
    """Zip files of such bundles, every other time changed themselves, as `meari bundles add` unpacks them."""

    def read(self, rng: random.Random) -> None:
        """Make the case and read it."""
        data = _zipped(self.changed(rng), rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))
        file = self.folder / "bundle.zip"
        file.write_bytes(mutated_bytes(data, rng) if rng.random() < 0.5 else data)
        shutil.rmtree(self.folder / "added", ignore_errors=True)
        add_zip(file, self.folder / "added", name="letters")


class Imports(Kind):
    """Weights and vocabularies of others, as `meari import` reads them."""

    refusals = (Unimportable,)
    known = "torch"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        state = randomised(WordLanguageModel("LSTM", len(WORDS), 4, 4, 1)).state_dict()
        (folder / "whole").mkdir()
        torch.save(state, folder / "whole" / "model.pt")
        save_file(state, folder / "whole" / "model.safetensors")
        (folder / "whole" / "vocabulary.json").write_text(json.dumps(WORDS), "utf-8")
        (folder / "whole" / "vocabulary.txt").write_text("\n".join(WORDS), "utf-8")
        self._files = _contents(folder / "whole")

    def read(self, rng: random.Random) -> None:
        """Make the case and read it."""
        weights, vocabulary = f"model.{rng.choice(('pt', 'safetensors'))}", f"vocabulary.{rng.choice(('json', 'txt'))}"
        name = rng.choice((weights, weights, vocabulary))
        place = _written(self.folder / "case", self._files | {name: _mutated_file(name, self._files[name], rng)})
        read_foreign(Source(place / weights, place / vocabulary), "model")


class Checkpoints(Kind):
    """Checkpoints of a training."""

    refusals = (ModelsError,)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        config = replace(tiny_config(folder), model=RecurrentConfig(Family.LSTM, 4, 4, tied=True))
        tokenizer = train_tokenizer(["abc"], config.tokenizer)
        tokenizer.save(folder / "tokenizer.json")
        model = build_model(config.model, tokenizer.vocabulary_size, seed=9)
        (folder / "whole").mkdir()
        fill_checkpoint(folder / "whole", model, folder / "tokenizer.json", config, step=7, figures={})
        self._files = _contents(folder / "whole")

    def read(self, rng: random.Random) -> None:
        """Make the case and read it."""
        name = rng.choice(sorted(self._files))
        files = self._files | {name: _mutated_file(name, self._files[name], rng)}
        load_checkpoint(_written(self.folder / "case-checkpoint", files))


class Corpora(Kind):
    """Text files of a corpus, and the files that an earlier preparation left."""

    refusals = (ModelsError,)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._config = tiny_config(folder)
        prepare(self._config, folder / "prepared")
        self._tokens = _contents(folder / "prepared" / "tokens")

    def read(self, rng: random.Random) -> None:
        """Make the case and read it."""
        place = self.folder / "case-corpus"
        shutil.rmtree(place, ignore_errors=True)
        if rng.random() < 0.4:
            name = rng.choice(sorted(self._tokens))
            files = self._tokens | {name: _mutated_file(name, self._tokens[name], rng)}
            place.mkdir()
            _written(place / "tokens", files)
            prepare(self._config, place)
            return
        data = mutated_bytes(TEXT.encode(rng.choice(("utf-8",) * 6 + ("utf-16", "utf-32"))), rng)
        packed = rng.random() < 0.3
        if packed:
            data = gzip.compress(data, 1)
            data = mutated_bytes(data, rng) if rng.random() < 0.7 else data
        file = self.folder / ("text.txt.gz" if packed else "text.txt")
        file.write_bytes(data)
        corpus = dataclasses.replace(self._config.corpus, train=(str(file),))
        prepare(dataclasses.replace(self._config, corpus=corpus), place)


class Configs(Kind):
    """TOML of trainings."""

    refusals = (ModelsError,)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._texts = [path.read_bytes() for path in sorted((ROOT / "models" / "configs").glob("*.toml"))]

    def read(self, rng: random.Random) -> None:
        """Make the case and read it."""
        data = rng.choice(self._texts)
        if rng.random() < 0.5:
            lines = data.decode().splitlines()
            number = rng.randrange(len(lines))
            lines[number] = f"{lines[number].partition('=')[0]}= {rng.choice(TOML_VALUES)}"
            data = "\n".join(lines).encode()
        if rng.random() < 0.6:
            data = mutated_bytes(data, rng)
        file = self.folder / "config.toml"
        file.write_bytes(data)
        load_config(file).to_json()


class Journals(Kind):
    """Journals of bulk runs."""

    refusals = (BulkError,)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        (folder / "out").write_bytes(b"12345678")
        journal = Journal.begin(folder / "out", {"seed": 1})
        for size in (2, 5, 8):
            journal.note(Checkpoint(line=size, output_bytes=size, output_crc=0, totals={"num_texts": size}))
        journal.close()
        self._data = (folder / "out.progress").read_bytes()

    def read(self, rng: random.Random) -> None:
        """Make the case and read it."""
        output, path = self.folder / "out", self.folder / "out.progress"
        lines = self._data.splitlines(keepends=True)
        if rng.random() < 0.5:
            number = rng.randrange(len(lines))
            lines[number] = json.dumps(mutated_tree(json.loads(lines[number]), rng)).encode() + b"\n"
            path.write_bytes(b"".join(lines))
        else:
            path.write_bytes(mutated_bytes(self._data, rng))
        check_journal(output)
        is_interrupted(output)
        read_run(output)
        journal, _ = Journal.resume(output, {"seed": 1})
        journal.close()


class Keys(Kind):
    """Files of keys."""

    refusals = (MeariError,)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        entries = [make_key("one", admin=True)[1], make_key("two", models=["letters"], tokens_per_minute=9)[1]]
        self._data = msgspec.json.encode(KeyFile(entries))

    def read(self, rng: random.Random) -> None:
        """Make the case and read it."""
        file = self.folder / "keys.json"
        file.write_bytes(_mutated_file(file.name, self._data, rng))
        read_keys(file)


class Environments(Kind):
    """Settings of the service."""

    refusals = (SettingsError,)

    def read(self, rng: random.Random) -> None:
        """Make the case and read it."""
        names = [field.name for field in dataclasses.fields(load_settings({}))]
        chosen = {f"MEARI_{rng.choice(names).upper()}": rng.choice(TOML_VALUES) for _ in range(3)}
        name = rng.choice(sorted(chosen))
        chosen[name] = mutated_bytes(chosen[name].encode(), rng).replace(b"\0", b"").decode("utf-8", "surrogateescape")
        load_settings(chosen)


KINDS: Final[dict[str, type[Kind]]] = {
    "bundles": Bundles,
    "archives": Archives,
    "imports": Imports,
    "checkpoints": Checkpoints,
    "corpora": Corpora,
    "configs": Configs,
    "journals": Journals,
    "keys": Keys,
    "environments": Environments,
}


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _written(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def _mutated_file(name: str, data: bytes, rng: random.Random) -> bytes:
    if name.endswith(".json") and rng.random() < 0.7:
        return json.dumps(mutated_tree(json.loads(data), rng)).encode()
    if name.endswith((".npz", ".pt")) and rng.random() < 0.7:
        return _mutated_archive(data, rng)
    return mutated_bytes(data, rng)


def _mutated_archive(data: bytes, rng: random.Random) -> bytes:
    """Return an archive with one member changed, and its checksums right."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = rng.choice(sorted(members))
    members[name] = mutated_bytes(members[name], rng)
    return _zipped(members)


def _zipped(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", compression) as archive:
        for each, content in members.items():
            archive.writestr(each, content)
    return packed.getvalue()


def try_case(kind: Kind, rng: random.Random, outcome: Outcome) -> str:
    """Read one case and count it; return its problem, "" if there is none."""
    try:
        kind.read(rng)
    except kind.refusals as error:
        outcome.refusals[type(error).__name__] += 1
        shown = shown_inside(str(error).replace(kind.known, "x"), paths=not kind.shows_paths)
        return f"the message shows {shown!r}: {error}" if shown else ""
    except BaseException as error:
        return f"{type(error).__module__}.{type(error).__name__}: {error}"
    outcome.num_read += 1
    return ""


def _timed(kind: Kind, seed: str, outcome: Outcome) -> tuple[float, str]:
    """Try a case; return its seconds and its problem."""
    started = time.monotonic()
    problem = try_case(kind, random.Random(seed), outcome)
    return time.monotonic() - started, problem


def run(name: str, seed: int, count: int, folder: Path) -> Outcome:
    """Try all cases of a kind."""
    kind, outcome, before = KINDS[name](folder), Outcome(), 0
    for number in range(NUM_WARM):  # imports, and what is made once
        try_case(kind, random.Random(number), Outcome())
    with (folder.parent / "case").open("wb", buffering=0) as progress:
        for number in range(count):
            progress.seek(0)
            progress.write(f"{name} {number}\n".encode())
            seconds, problem = _timed(kind, f"{seed}/{name}/{number}", outcome)
            if seconds > SLOW_SECONDS:  # a busy machine may have stopped it: a case that costs so much does so again
                seconds = min(seconds, *(_timed(kind, f"{seed}/{name}/{number}", Outcome())[0] for _ in range(2)))
            if problem and len(outcome.problems) < 5:
                outcome.problems.append(f"case {number} of seed {seed}: {problem[:500]}")
            if seconds > outcome.slowest:
                outcome.slowest, outcome.slowest_case = seconds, number
            outcome.num_cases += 1
            if number == count // 4:
                gc.collect()
                before = resident_bytes()
    gc.collect()
    outcome.grown_mb = (resident_bytes() - before) / 2**20
    return outcome


def run_all(seed: int, folder: Path, counts: dict[str, int]) -> dict[str, Any]:
    """Try the cases of several kinds, each in a folder of its own."""
    found = {}
    for name, count in counts.items():
        (folder / name).mkdir()
        found[name] = vars(run(name, seed, count, folder / name))
    return found


if __name__ == "__main__":
    pairs = (word.split("=") for word in sys.argv[3:])
    with contextlib.redirect_stdout(sys.stderr):
        everything = run_all(int(sys.argv[1]), Path(sys.argv[2]), {name: int(count) for name, count in pairs})
    sys.stdout.write(json.dumps(everything) + "\n")
