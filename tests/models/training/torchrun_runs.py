"""Train in two real processes started by `torchrun`, and compare run folders."""

import dataclasses
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from safetensors.torch import load_file

from meari.cli.main import main
from meari.models.config import Config
from meari.models.training.history import StepRecord, read_history
from tests.patience import PATIENCE
from tests.service.running import free_port

ROOT = Path(__file__).parents[3]
LOG = "log"
forkserver = multiprocessing.get_context("forkserver")
forkserver.set_forkserver_preload([__name__, "meari.cli.train", "meari.models.training.run"])  # torch is loaded once


def write_toml(config: Config, path: Path) -> Path:
    """Write the config as a TOML file."""
    tables = config.to_tables()
    lines = [f"{key} = {_toml(value)}" for key, value in tables.items() if not isinstance(value, dict)]
    for name, table in tables.items():
        if isinstance(table, dict):
            lines += [f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in table.items())]
    path.write_text("\n".join(lines) + "\n")
    return path


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    return str(value)


def trained_on_hosts(
    config: Config, folders: Sequence[Path], *options: str, prepare: Callable[[], None] | None = None
) -> list[tuple[int, str]]:
    """Train in a process for each folder, its working folder, over TCP; return exit codes and outputs.

    The processes have the environment that torchrun would give to one of each host. `prepare` is called in each, in
    its working folder, before the command.
    """
    settings = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(len(folders))}
    processes = []
    for rank, folder in enumerate(folders):
        path = write_toml(config, folder / "tiny.toml")
        own = settings | {"RANK": str(rank), "LOCAL_RANK": "0"}
        process = forkserver.Process(target=_train, args=(folder, own, [path.name, *options], prepare))
        process.start()
        processes.append(process)
    for process in processes:
        process.join(PATIENCE)
        process.kill()
        process.join()
    return [
        (process.exitcode or 0, (folder / LOG).read_text("utf-8"))
        for process, folder in zip(processes, folders, strict=True)
    ]


def _train(folder: Path, settings: dict[str, str], words: list[str], prepare: Callable[[], None] | None) -> None:
    os.chdir(folder)
    log = os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(settings)
    sys.argv = ["meari", "train", *words]
    if prepare is not None:
        prepare()
    main()


def started(config: Config, run: Path, *options: str) -> subprocess.Popen[str]:
    """Start `meari train` in two processes of one thread each."""
    path = write_toml(config, run.with_suffix(".toml"))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--"]
    command = [sys.executable, "-u", *launcher, "meari.cli.main", "train", str(path), "--run", str(run), *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def ended(process: subprocess.Popen[str], number: signal.Signals | None = None) -> tuple[int, str]:
    """Send the signal, if any; return the exit code and the output of the process."""
    try:
        if number is not None:
            process.send_signal(number)
        shown, _ = process.communicate()
    finally:
        process.terminate()  # torchrun ends its processes on SIGTERM but not on SIGKILL
        process.wait()
    return process.returncode, shown


def trained(config: Config, run: Path, *options: str) -> str:
    """Train to the end; return the output."""
    code, shown = ended(started(config, run, *options))
    assert code == 0, shown
    return shown


def interrupted(config: Config, run: Path, number: signal.Signals) -> str:
    """Train until the first checkpoint exists, then send a signal; return the output."""
    process = started(config, run)
    while not (run / "last" / "progress.json").exists():
        assert process.poll() is None, ended(process)[1]
        time.sleep(0.02)
    code, shown = ended(process, number)
    assert code != 0
    return shown


def assert_same_run(run: Path, other: Path, tolerance: float = 1e-4) -> None:
    """Assert the same files, the same losses within `tolerance` nats, and the same tensor names and shapes."""
    assert {path.relative_to(run) for path in run.rglob("*")} == {path.relative_to(other) for path in other.rglob("*")}
    for record, expected in zip(*(read_history(folder / "history.jsonl") for folder in (run, other)), strict=True):
        assert type(record) is type(expected)
        kept = dataclasses.asdict(record) | {"seconds": 0.0}
        assert kept == pytest.approx(dataclasses.asdict(expected) | {"seconds": 0.0}, abs=tolerance, rel=tolerance)
    for path in run.rglob("*.safetensors"):
        tensors, others = load_file(path), load_file(other / path.relative_to(run))
        shapes = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
        assert shapes == {name: (tensor.shape, tensor.dtype) for name, tensor in others.items()}


def losses(run: Path) -> list[float]:
    """Return the loss of every step, in order."""
    return [record.loss for record in read_history(run / "history.jsonl") if isinstance(record, StepRecord)]
