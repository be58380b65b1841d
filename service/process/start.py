"""The start of the service: checks of address and bundles, and the line that tells where to open it.

Input: settings in the master process, a registry in each worker. Output: a line on standard output, or StartError. Must
not know: requests. The workers report to the master by files in the folder that they share; workers that are replaced
later report nothing.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import signal
import socket
import ssl
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from meari.bundle_format.folders import DEFAULT, Roots, find_bundles, printable
from meari.bundle_format.reader import read_manifest
from meari.bundle_format.signatures import PublicKey
from meari.errors import BundleError, MeariError
from meari.service.host import metrics_folder, models_folder
from meari.service.process.tls import Certificate
from meari.service.requests.keys import read_keys
from meari.service.requests.limit_stores import RedisStore

if TYPE_CHECKING:
    from meari.service.service import Registry
    from meari.service.settings import Settings

__all__ = [
    "MEMORY",
    "NOTHING_STATUS",
    "StartError",
    "check_address",
    "check_reload",
    "check_start",
    "clear_start",
    "load_certificate",
    "make_runtime_folder",
    "page_address",
    "prepare_runtime_folder",
    "start_problem",
    "tell_start",
]

MEMORY: Final = Path("/dev/shm")  # noqa: S108 (only a folder made by mkdtemp is used there; writes stay in memory)
FOLDER_PREFIX: Final = "meari-"
LOCK: Final = "lock"  # in a runtime folder
NOTHING_STATUS: Final = 2
PROBLEM: Final = "nothing-to-serve"
ANNOUNCED: Final = "announced"
ANY_ADDRESS: Final = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 (the address to open instead)
TO_DO: Final = (
    "Train and export a model (docs/train-your-own.md), or say where bundles are: --bundles or MEARI_BUNDLES."
)
REASONS: Final = {
    errno.EADDRINUSE: "the port is taken; end what uses it, or choose another with --port or MEARI_PORT",
    errno.EACCES: "this user may not listen there; choose a port from 1024 on with --port or MEARI_PORT",
    errno.EADDRNOTAVAIL: "that is no address of this machine; choose another with --host or MEARI_HOST",
}


def make_runtime_folder() -> Path:
    """Make a new folder, in memory where the system offers such a place; remove those of services that were killed.

    The folder's lock is held by the master and by every worker, so it ends with the last of them, however they end.
    """
    root = MEMORY if _is_writable(MEMORY) else Path(tempfile.gettempdir())
    for lock in root.glob(f"{FOLDER_PREFIX}*/{LOCK}"):
        _remove_unused(lock)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX, dir=root))
        held = os.open(folder / LOCK, os.O_CREAT | os.O_RDWR, 0o600)  # open until the process ends
        fcntl.flock(held, fcntl.LOCK_EX)
        if (folder / LOCK).exists():  # otherwise another start has taken it for one of a killed service
            return folder
        os.close(held)


def _remove_unused(lock: Path) -> None:
    """Remove a runtime folder whose lock nobody holds."""
    with contextlib.suppress(OSError), lock.open("rb") as file:  # of another user, in use, or just removed
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if lock.parent.stat().st_uid == os.geteuid():
            shutil.rmtree(lock.parent, ignore_errors=True)


def prepare_runtime_folder(folder: Path) -> None:
    """Make missing folders, and remove the files of an earlier run; nothing else is touched."""
    metrics = metrics_folder(folder)
    metrics.mkdir(parents=True, exist_ok=True)
    for file in (*metrics.glob("*.db"), *models_folder(folder).glob("*.json")):
        file.unlink()


def _is_writable(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


class StartError(Exception):
    """The service cannot start: one or two lines with the reason and the remedy, and the exit status of the process."""

    def __init__(self, problem: str, status: int = 1) -> None:
        super().__init__(problem)
        self.status = status


def check_start(settings: Settings) -> None:
    """Check what can be checked before there are workers. Raises StartError."""
    _check_folder(settings.bundles)
    _check_keys(settings.keys_file)
    load_certificate(settings)
    _check_redis(settings.redis_url)
    if not {"GUNICORN_FD", "LISTEN_FDS"} & set(os.environ):  # otherwise the socket is inherited
        check_address(settings.host, settings.port)


def check_reload(settings: Settings) -> None:
    """Check what can be checked before workers with other settings are started. Raises StartError."""
    _check_folder(settings.bundles)
    _check_signatures(settings.bundles, settings.signing_keys)
    _check_keys(settings.keys_file)
    _check_redis(settings.redis_url)


def _check_folder(bundles: Roots) -> None:
    """Check that the folder has bundles; whether they can be served, the workers find out. Raises StartError."""
    try:
        found = find_bundles(bundles)
    except BundleError as error:
        raise StartError(f"{error}\n{TO_DO}", NOTHING_STATUS) from None
    if not found.folders:
        failed = "".join(f"\n{name}: {problem}" for name, problem in found.failed.items() if name != DEFAULT)
        raise StartError(f"there is no bundle in {printable(bundles)}{failed}\n{TO_DO}", NOTHING_STATUS)


def _check_signatures(bundles: Roots, keys: Sequence[PublicKey]) -> None:
    """Check that one of the keys has signed some bundle, if there are keys. Raises StartError.

    Without any, no new worker could serve, and the old ones would go on with bundles that nobody has signed.
    """
    problems = []
    for name, folder in find_bundles(bundles).folders.items() if keys else ():
        try:
            read_manifest(folder, keys)
        except BundleError as error:
            problems.append(f"\n{name}: {error}")
        else:
            return
    if keys:
        raise StartError(f"MEARI_SIGNING_KEYS: no bundle could be served{''.join(problems)}", NOTHING_STATUS)


def _check_keys(path: Path | None) -> None:
    """Check that the file of keys can be used. Raises StartError."""
    try:
        if path is not None:
            read_keys(path)
    except OSError as error:
        advice = "meari keys add NAME makes one"
        raise StartError(f"MEARI_KEYS_FILE: {path}: {error.strerror}; {advice}", NOTHING_STATUS) from None
    except MeariError as error:
        raise StartError(f"MEARI_KEYS_FILE: {error}", NOTHING_STATUS) from None


def _check_redis(url: str | None) -> None:
    """Check that Redis can be asked; whether it answers may change at any time. Raises StartError."""
    try:
        if url is not None:
            RedisStore(url)
    except ModuleNotFoundError:
        advice = "pip install 'meari[redis]'"
        raise StartError(f"MEARI_REDIS_URL needs a package that is not installed: {advice}", NOTHING_STATUS) from None
    except ValueError:  # its words may have a part of the password
        expected = "redis://USER:PASSWORD@HOST:PORT/DATABASE, with @, : and / of a password as %40, %3A and %2F"
        raise StartError(f"MEARI_REDIS_URL: got a URL that is not shown, expected {expected}", NOTHING_STATUS) from None


def load_certificate(settings: Settings) -> Certificate | None:
    """Return the certificate of new connections, None where none is set. Raises StartError."""
    certificate, key = settings.tls_certificate, settings.tls_key
    if certificate is None or key is None:
        return None
    try:
        return Certificate(certificate, key)
    except OSError as error:
        reason = f"{error.strerror or error}" if not isinstance(error, ssl.SSLError) else error.reason or str(error)
        problem = f"MEARI_TLS_CERTIFICATE {certificate}, MEARI_TLS_KEY {key}: {reason}"
        raise StartError(f"{problem}; expected a certificate and its own key, both in PEM", NOTHING_STATUS) from None


def check_address(host: str, port: int) -> None:
    """Bind as gunicorn will, which would retry a port in use for five seconds. Raises StartError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except socket.gaierror:
        raise StartError(f"host: got {host!r}, expected a name or an address of this machine") from None
    except (OSError, UnicodeError) as error:
        reason = REASONS.get(getattr(error, "errno", None) or 0) or str(error)
        raise StartError(f"cannot listen on {_joined(host, port)}: {reason}") from None


def page_address(host: str, port: int, scheme: str = "http") -> str:
    """Return the URL at which a browser on this machine reaches the service."""
    return f"{scheme}://{_joined(ANY_ADDRESS.get(host, host), port)}"


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def clear_start(folder: Path) -> None:
    """Remove the files of an earlier run."""
    for name in (PROBLEM, ANNOUNCED):
        (folder / name).unlink(missing_ok=True)


def start_problem(folder: Path) -> str:
    """Return the reason why no worker has anything to serve; "" if one has."""
    try:
        return (folder / PROBLEM).read_text("utf-8")
    except FileNotFoundError:
        return ""


def tell_start(registry: Registry, folder: Path, address: str, *, aloud: bool) -> None:
    """Wait for the worker's bundles; then end a service without any, or announce once that all workers are ready.

    Runs in each worker.

    folder   shared by the workers
    aloud    whether to announce it on standard output
    """
    registry.wait_loaded()
    host = registry.readiness().host
    problem = registry.nothing_to_serve
    if problem:
        (folder / PROBLEM).write_text(f"{problem}\n{TO_DO}\n", "utf-8")
        os.kill(os.getppid(), signal.SIGQUIT)
    elif aloud and host.ready >= host.expected and _is_first(folder):
        sys.stdout.write(f"Ready: {address} (playground)\n")
        sys.stdout.flush()


def _is_first(folder: Path) -> bool:
    try:
        (folder / ANNOUNCED).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
