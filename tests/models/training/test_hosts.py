"""Test trainings on two hosts over TCP: two processes, each with its own working folder, corpus and run folder."""

from __future__ import annotations

import os
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
from meari.models.training.run import train
from meari.models.training.run_folder import Start, open_run
from tests.models.training.tiny_runs import Clock, StopAt, chain_text, contents, read_json, run_training, tiny_config
from tests.models.training.torchrun_runs import ROOT, assert_same_run, trained_on_hosts, write_toml
from tests.patience import PATIENCE
from tests.service.running import free_port

RUN = Path("runs") / "tiny"


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


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return tiny_config(tmp_path, steps=300, evaluate_every=30)


def test_killed_process_is_started_again_and_the_run_ends_with_the_bits_of_an_undisturbed_one(
    config: Config, tmp_path: Path
) -> None:
    calm = with_corpus([tmp_path / "a", tmp_path / "b"])
    shown = output_of(trained_on_hosts(with_relative_corpus(config), calm))
    assert shown.count("Preparing the corpus") == 1
    run_training(config, tmp_path / "one", clock=Clock(1e-3))
    assert_same_run(written(calm), tmp_path / "one")

    disturbed = started(config, [tmp_path / "c", tmp_path / "d"])
    writer = await_snapshot(disturbed)
    [other] = [host for host in disturbed if host.folder != writer]
    [trainer] = other.trainers()
    os.kill(trainer, signal.SIGKILL)
    shown = output_of([host.ended() for host in disturbed])
    assert shown.count("Preparing the corpus") >= 2, "started again"
    run = written([host.folder for host in disturbed])
    assert weights(run) == weights(written(calm))
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
