"""Three replicas of the service behind HAProxy: as processes of this machine, or as containers of a real engine.

Input: a folder of bundles. Output: an address to ask, replicas to stop, kill and start, and what HAProxy logged. The
proxy runs with deploy/haproxy/haproxy.cfg; only the addresses in it are replaced.
"""

from __future__ import annotations

import contextlib
import csv
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import httpx

from tests.container.conftest import LIMITS
from tests.container.docker import Docker
from tests.drills.processes import exact_cpu_seconds, workers_of
from tests.patience import until
from tests.service.running import ROOT, clean_environment, free_port

__all__ = ["HAPROXY", "MISSING", "Container", "Fleet", "Process", "Replica", "running_containers", "running_processes"]

HAPROXY: Final = os.environ.get("HAPROXY") or shutil.which("haproxy")
MISSING: Final = "HAProxy was not found: install Debian's haproxy, or set HAPROXY to its program"
CONFIG: Final = ROOT / "deploy" / "haproxy" / "haproxy.cfg"
NUM_REPLICAS: Final = 3
STATE_KEY: Final = "drill-" + "k" * 40
LINE: Final = re.compile(
    r"(?P<client>\S+):\d+ \[[^]]+\] \S+ (?P<backend>[\w-]+)/(?P<server>\S+) \S+ (?P<status>-?\d+) \d+ - - "
    r"(?P<end>\S+) \S+ \S+ \{(?P<id>[^}]*)\}"
)


@dataclass(frozen=True)
class Passed:
    """A request as HAProxy logged it: its id, its replica, and the status and manner of its end."""

    id: str
    server: str
    status: int
    end: str


class Replica(Protocol):
    """One replica, which keeps its address when it is replaced."""

    address: tuple[str, int]

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def kill(self) -> None: ...
    def cpu_seconds(self) -> float: ...
    def check(self) -> None: ...


def service_cpu_seconds(master: int) -> float:
    """Return the CPU time of a service's threads so far, to the microsecond."""
    return sum(map(exact_cpu_seconds, [master, *workers_of(master)]))


class Process:
    """A replica as `meari serve` on a port of its own."""

    def __init__(self, folder: Path, settings: dict[str, object]) -> None:
        self.address = ("127.0.0.1", free_port())
        self._log = folder / f"replica-{self.address[1]}.log"
        self._environment = clean_environment(**settings, port=self.address[1])
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; it is not ready yet."""
        command = [str(Path(sys.executable).with_name("meari")), "serve"]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=ROOT, env=self._environment, stdout=log, stderr=log, start_new_session=True
            )

    def stop(self) -> None:
        """Let it finish its requests and end."""
        self._end(signal.SIGTERM, expected=0)

    def kill(self) -> None:
        """End the master and all workers at once, as when a machine dies."""
        self._end(signal.SIGKILL, expected=-signal.SIGKILL)

    def cpu_seconds(self) -> float:
        """Return the CPU time of master and workers."""
        assert self._process is not None
        return service_cpu_seconds(self._process.pid)

    def check(self) -> None:
        """Raise AssertionError with its log if it has ended by itself."""
        assert self._process is None or self._process.poll() is None, self._log.read_text("utf-8")[-2000:]

    def _end(self, number: signal.Signals, expected: int) -> None:
        if self._process is None:
            return
        if number is signal.SIGKILL:
            os.killpg(self._process.pid, number)
        else:
            self._process.send_signal(number)
        assert self._process.wait(90) == expected, self._log.read_text("utf-8")[-2000:]
        self._process = None


class Container:
    """A replica as a container with an address of its own in a network of the engine."""

    def __init__(self, docker: Docker, image: str, place: tuple[str, str], settings: dict[str, object]) -> None:
        """place: a network of the engine, and the address in it."""
        network, host = place
        self.address = (host, 8000)
        self._docker = docker
        own = {**settings, "bundles": "/bundles"}
        variables = [f"--env=MEARI_{name.upper()}={value}" for name, value in own.items()]
        bundles = f"--volume={settings['bundles']}:/bundles:ro"
        self._run = ["run", "--detach", *LIMITS, f"--network={network}", f"--ip={host}", bundles, *variables, image]
        self._name = ""
        self._master = 0  # its process

    def start(self) -> None:
        """Start it; it is not ready yet."""
        self._name = self._docker.run(*self._run)
        self._master = self._docker.inspect(self._name)["State"]["Pid"]

    def stop(self) -> None:
        """Let it finish its requests and end, as `docker stop` does, and remove it."""
        if self._name:
            self._docker.run("stop", "--time", "90", self._name, timeout=120)
            assert self._docker.inspect(self._name)["State"]["ExitCode"] == 0, self._docker.run("logs", self._name)
            self._remove()

    def kill(self) -> None:
        """End all of its processes at once, and remove it."""
        if self._name:
            self._docker.run("kill", self._name)
            self._remove()

    def cpu_seconds(self) -> float:
        """Return the CPU time of master and workers, without that of the engine's health checks beside them."""
        return service_cpu_seconds(self._master)

    def check(self) -> None:
        """Raise AssertionError with its log if it has ended by itself."""
        is_well = not self._name or self._docker.inspect(self._name)["State"]["Running"]
        assert is_well, self._docker.run("logs", self._name)

    def _remove(self) -> None:
        self._docker.run("rm", "--force", self._name)
        self._name = ""


class Proxy:
    """HAProxy in front of replicas."""

    def __init__(self, folder: Path, addresses: list[tuple[str, int]]) -> None:
        self.port, self._status_port = free_port(), free_port()
        self._folder = folder
        self._log = folder / "haproxy.log"
        config = CONFIG.read_text("utf-8").replace("/run/haproxy/admin.sock", str(folder / "admin.sock"))
        config = config.replace("bind :8080", f"bind 127.0.0.1:{self.port}").replace(":8404", f":{self._status_port}")
        for number, (host, port) in enumerate(addresses, 1):
            config = config.replace(f"127.0.0.1:800{number}", f"{host}:{port}")
        (folder / "haproxy.cfg").write_text(config, "utf-8")

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Run it until the block ends."""
        assert HAPROXY is not None
        with self._log.open("wb") as log:
            command = [HAPROXY, "-db", "-f", str(self._folder / "haproxy.cfg")]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            yield
        finally:
            self._process.terminate()
            self._process.wait(60)

    def states(self) -> dict[str, str]:
        """Return the state of each replica, as UP or DOWN, by its name; nothing while HAProxy starts."""
        assert self._process.poll() is None, self._log.read_text("utf-8", "replace")[-2000:]
        try:
            return {name: row["status"] for name, row in self._rows().items()}
        except httpx.TransportError:
            return {}

    def errors(self) -> dict[str, int]:
        """Return the number of requests that each replica refused or lost, by its name."""
        columns = ("eresp", "srv_abrt", "hrsp_5xx")
        return {name: sum(int(row[column]) for column in columns) for name, row in self._rows().items()}

    def _rows(self) -> dict[str, dict[str, str]]:
        table = httpx.get(f"http://127.0.0.1:{self._status_port}/;csv", trust_env=False).text
        rows = csv.DictReader(table.removeprefix("# ").splitlines())
        return {row["svname"]: row for row in rows if row["pxname"] == "replicas" and "replica" in row["svname"]}

    def command(self, text: str) -> None:
        """Send a command to the administration's socket."""
        with socket.socket(socket.AF_UNIX) as admin:
            admin.connect(str(self._folder / "admin.sock"))
            admin.sendall(f"{text}\n".encode())
            assert not admin.recv(4096).strip()

    def log(self) -> dict[str, Passed]:
        """Return the requests so far, by id."""
        found = [match.groupdict() for match in LINE.finditer(self._log.read_text("utf-8", "replace"))]
        return {row["id"]: Passed(row["id"], row["server"], int(row["status"]), row["end"]) for row in found}

    def cpu_seconds(self) -> float:
        """Return the CPU time of HAProxy."""
        return exact_cpu_seconds(self._process.pid)


@dataclass
class Fleet:
    """Running replicas and the proxy in front of them. `bundles` is the folder that they serve."""

    kind: str
    replicas: list[Replica]
    proxy: Proxy
    bundles: Path

    @property
    def url(self) -> str:
        """Where clients ask."""
        return f"http://127.0.0.1:{self.proxy.port}"

    def urls(self) -> list[str]:
        """Return where each replica can be asked past the proxy."""
        return ["http://{}:{}".format(*replica.address) for replica in self.replicas]

    def await_up(self) -> None:
        """Wait until HAProxy sends requests to every replica."""
        names = {f"replica{number}" for number in range(1, len(self.replicas) + 1)}

        def all_up() -> bool:
            for replica in self.replicas:
                replica.check()
            return {name for name, state in self.proxy.states().items() if state == "UP"} == names

        until(all_up)

    def pick(self, num_replicas: int) -> None:
        """Let HAProxy use the first replicas alone."""
        for number in range(1, len(self.replicas) + 1):
            state = "ready" if number <= num_replicas else "maint"
            self.proxy.command(f"set server replicas/replica{number} state {state}")
        until(lambda: list(self.proxy.states().values()).count("UP") == num_replicas)


@contextlib.contextmanager
def running_processes(folder: Path, bundles: Path, **settings: object) -> Iterator[Fleet]:
    """Run three replicas as processes, and HAProxy."""
    common = {"bundles": bundles, "state_key": STATE_KEY, "trusted_hops": 1, **settings}
    with _running(
        "processes", folder, bundles, lambda: [Process(folder, common) for _ in range(NUM_REPLICAS)]
    ) as fleet:
        yield fleet


@contextlib.contextmanager
def running_containers(folder: Path, bundles: Path, docker: Docker, image: str, **settings: object) -> Iterator[Fleet]:
    """Run three replicas as containers, and HAProxy."""
    common: dict[str, Any] = {"bundles": bundles, "state_key": STATE_KEY, "trusted_hops": 1, **settings}
    network = f"meari-drill-{os.getpid()}"
    docker.run("network", "create", "--subnet", "10.213.7.0/24", network)
    places = [(network, f"10.213.7.{number}") for number in range(11, 11 + NUM_REPLICAS)]
    try:
        replicas = lambda: [Container(docker, image, place, common) for place in places]  # noqa: E731
        with _running("containers", folder, bundles, replicas) as fleet:
            yield fleet
    finally:
        docker.run("network", "rm", network)


@contextlib.contextmanager
def _running(kind: str, folder: Path, bundles: Path, make: Callable[[], list[Any]]) -> Iterator[Fleet]:
    replicas: list[Replica] = make()
    fleet = Fleet(kind, replicas, Proxy(folder, [replica.address for replica in replicas]), bundles)
    try:
        with fleet.proxy.running():
            for replica in replicas:
                replica.start()
            fleet.await_up()
            yield fleet
    finally:
        threads = [threading.Thread(target=replica.kill) for replica in replicas]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
