"""Test trainings on two hosts over TCP: two processes, each with its own working folder, corpus and run folder."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from meari.models.config import Config
from meari.models.text.tokens import PreparedCorpus
from meari.models.training import run as run_module
from meari.models.training.run import train
from meari.models.training.run_folder import Start, open_run
from tests.models.training.tiny_runs import Clock, StopAt, chain_text, contents, read_json, run_training, tiny_config
from tests.models.training.torchrun_runs import ROOT, assert_same_run, trained_on_hosts, write_toml
from tests.patience import PATIENCE
from tests.service.running import free_port

RUN = Path("runs") / "tiny"
PREPARED = "prepared.log"


@dataclass(frozen=True)
class Host:
    """One host: its working folder, and the launcher that runs there."""

    folder: Path
    launcher: subprocess.Popen[str]

    def ended(self) -> tuple[int, str]:
        """Wait for the end; return the exit code and the output."""
        try:
            shown, _ = self.launcher.communicate(timeout=PATIENCE)
        finally:
            self.launcher.terminate()  # it ends its processes on SIGTERM but not on SIGKILL
            self.launcher.wait()
        return self.launcher.returncode, shown

    def trainers(self) -> list[int]:
        """Return the numbers of the launcher's processes."""
        path = Path(f"/proc/{self.launcher.pid}/task/{self.launcher.pid}/children")
        return [int(word) for word in path.read_text().split()]


def with_relative_corpus(config: Config) -> Config:
    return replace(config, corpus=replace(config.corpus, train=("chain.txt",)))


def with_corpus(folders: Sequence[Path]) -> Sequence[Path]:
    """Make the folders that are not there, each with a copy of the corpus."""
    for folder in folders:
        folder.mkdir(exist_ok=True)
        if not (folder / "chain.txt").exists():
            (folder / "chain.txt").write_text(chain_text(6000))
    return folders


def started(config: Config, folders: Sequence[Path]) -> list[Host]:
    """Start a launcher for each folder, all of one run."""
    port = free_port()
    place = ["--nnodes", str(len(folders)), "--nproc-per-node", "1", "--monitor-interval", "0.1", "--max-restarts", "3"]
    place += ["--rdzv-backend", "c10d", "--rdzv-id", "drill", "--rdzv-endpoint", f"127.0.0.1:{port}"]
    hosts = []
    for number, folder in enumerate(with_corpus(folders)):
        path = write_toml(with_relative_corpus(config), folder / "tiny.toml")
        own = ["--rdzv-conf", f"is_host={int(number == 0)}", "--local-addr", "127.0.0.1", "-m", "--"]
        command = [sys.executable, "-u", "-m", "torch.distributed.run", *place, *own, "meari.cli.main", "train"]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        launcher = subprocess.Popen(
            [*command, path.name],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        hosts.append(Host(folder, launcher))
    return hosts


def output_of(ends: Sequence[tuple[int, str]]) -> str:
    """Return the output of runs that have succeeded."""
    assert [code for code, _ in ends] == [0] * len(ends), "\n".join(shown for _, shown in ends)
    return "".join(shown for _, shown in ends)


def written(folders: Sequence[Path]) -> Path:
    """Return the run folder of the host whose process was the first."""
    [run] = [folder / RUN for folder in folders if (folder / RUN / "figures.json").exists()]
    return run


def weights(run: Path) -> dict[str, bytes]:
    return {name: data for name, data in contents(run).items() if name.endswith("model.safetensors")}


def await_snapshot(hosts: Sequence[Host]) -> Path:
    """Wait for the first snapshot; return the folder of the host that has it."""
    until = time.monotonic() + PATIENCE
    while True:
        for host in hosts:
            assert host.launcher.poll() is None, [each.ended()[1] for each in hosts]
            if (host.folder / RUN / "last" / "progress.json").exists():
                return host.folder
        assert time.monotonic() < until
        time.sleep(0.02)


@dataclass(frozen=True)
class Calm:
    """An undisturbed run on two hosts: its config, the working folders, the outputs."""

    config: Config
    folders: Sequence[Path]
    outputs: Sequence[str]


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Calm:
    """Train on two hosts that note in PREPARED when they prepare the corpus."""
    folder = tmp_path_factory.mktemp("calm")
    config = tiny_config(folder, steps=300, evaluate_every=30)
    folders = with_corpus([folder / "a", folder / "b"])
    ends = trained_on_hosts(with_relative_corpus(config), folders, prepare=note_preparations)
    output_of(ends)
    return Calm(config, folders, [shown for _, shown in ends])


def note_preparations() -> None:
    """Note the beginning and the end of this host's preparation; give the others half a second to begin theirs."""
    module = vars(run_module)
    real, number, noted = module["prepare"], os.environ["RANK"], Path.cwd().parent / PREPARED

    def note(what: str) -> None:
        with noted.open("a") as file:
            file.write(f"{number} {what}\n")

    def prepare(config: Config, folder: Path) -> PreparedCorpus:
        note("begins")
        until = time.monotonic() + 0.5
        while noted.read_text().count("begins") < 2 and time.monotonic() < until:
            time.sleep(0.01)
        prepared: PreparedCorpus = real(config, folder)
        note("ends")
        return prepared

    module["prepare"] = prepare


def test_hosts_with_their_own_folders_encode_one_after_the_other(calm: Calm) -> None:
    noted = (calm.folders[0].parent / PREPARED).read_text().splitlines()
    assert noted == ["0 begins", "0 ends", "1 begins", "1 ends"]
    tokens = [contents(folder / RUN / "tokens") for folder in calm.folders]
    assert tokens[0]
    assert tokens[0] == tokens[1]


def test_figures_stay_on_the_host_of_the_first_process_and_the_other_one_says_where(calm: Calm) -> None:
    first, other = calm.outputs
    assert first.count("Preparing the corpus") == 1
    assert "Training finished after step 300; run folder runs/tiny" in first
    assert "validation: " in first
    assert other == (
        f"process 1 of 2 writes best/, last/ and the history to {RUN} as well; figures and report are on "
        f"{platform.node()}, the host of the first process\n"
    )
    there = [{path.name for path in (folder / RUN).iterdir()} for folder in calm.folders]
    assert there[0] - there[1] == {"figures.json", "report.png"}
    assert there[1] >= {"best", "last", "history.jsonl", "tokens"}
    assert weights(calm.folders[0] / RUN) == weights(calm.folders[1] / RUN)
    histories = [(folder / RUN / "history.jsonl").read_text().splitlines() for folder in calm.folders]
    assert [len(history) for history in histories] == [300 + 10] * 2


def test_killed_process_is_started_again_and_the_run_ends_with_the_bits_of_an_undisturbed_one(
    calm: Calm, tmp_path: Path
) -> None:
    config = calm.config
    run_training(config, tmp_path / "one", clock=Clock(1e-3))
    assert_same_run(written(calm.folders), tmp_path / "one")

    disturbed = started(config, [tmp_path / "c", tmp_path / "d"])
    writer = await_snapshot(disturbed)
    [other] = [host for host in disturbed if host.folder != writer]
    [trainer] = other.trainers()
    os.kill(trainer, signal.SIGKILL)
    shown = output_of([host.ended() for host in disturbed])
    assert shown.count("Preparing the corpus") >= 2, "started again"
    run = written([host.folder for host in disturbed])
    assert weights(run) == weights(written(calm.folders))
    assert len((run / "history.jsonl").read_text().splitlines()) == 300 + 10


def test_snapshot_travels_to_a_host_that_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = with_relative_corpus(tiny_config(tmp_path, steps=20, evaluate_every=10))
    run_training(tiny_config(tmp_path, steps=20, evaluate_every=10), tmp_path / "whole")
    kept = tmp_path / "kept"
    kept.mkdir()
    shutil.copy(tmp_path / "chain.txt", kept)
    monkeypatch.chdir(kept)
    interrupting = StopAt(13, lambda: os.kill(os.getpid(), signal.SIGINT))
    train(config, open_run(RUN, config, Start.FRESH), resume=False, display=interrupting, clock=Clock())
    assert read_json(RUN / "last" / "progress.json")["step"] == 13
    folders = with_corpus([tmp_path / "new", kept])
    output_of(trained_on_hosts(config, folders, "--continue"))
    assert_same_run(written(folders), tmp_path / "whole")
    assert weights(tmp_path / "new" / RUN) == weights(kept / RUN)
    assert [len((folder / RUN / "history.jsonl").read_text().splitlines()) for folder in folders] == [22, 22]


def test_hosts_with_different_corpora_are_refused(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "chain.txt").write_text(chain_text(6000, seed=1))
    folders = with_corpus([tmp_path / "a", tmp_path / "b"])
    ends = trained_on_hosts(with_relative_corpus(tiny_config(tmp_path)), folders)
    assert all(code != 0 for code, _ in ends)
    assert "got another corpus or tokenizer than the others" in "".join(shown for _, shown in ends)
