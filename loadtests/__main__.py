"""Run Locust headless against HOST:PORT: `python -m loadtests`.

Input: environment variables (see `locustfile.py`). Output: files in loadtests/results/ and Locust's exit code. A worker
writes no files: its master does.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from loadtests.settings import LoadSettings, Role, SettingsError, check_target, read_settings

FOLDER = Path(__file__).parent
RESULTS = Path(os.environ.get("MEARI_LOAD_RESULTS") or FOLDER / "results")


def locust_arguments(settings: LoadSettings, url: str, results: Path) -> list[str]:
    """Return the command line of a headless run."""
    locust = [sys.executable, "-m", "locust", "--locustfile", str(FOLDER / "locustfile.py")]
    if settings.role is Role.WORKER:
        return [*locust, "--worker", "--master-host", settings.master_host, "--master-port", str(settings.master_port)]
    if settings.role is Role.MASTER:
        locust += ["--master", "--expect-workers", str(settings.num_workers)]
        locust += ["--master-bind-port", str(settings.master_port), "--expect-workers-max-wait", "300"]
    if not settings.shapes:
        locust += ["--users", str(settings.users), "--spawn-rate", str(settings.spawn_rate)]
        locust += ["--run-time", f"{settings.seconds}s"]
    return [
        *(*locust, "--headless", "--host", url, "--stop-timeout", "10", "--only-summary"),
        *("--csv", str(results / "meari"), "--html", str(results / "meari.html")),
    ]


def target(environment: Mapping[str, str]) -> str:
    """Return the URL of HOST and PORT."""
    host, port = environment.get("HOST") or "127.0.0.1", environment.get("PORT") or "8000"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def main() -> None:
    """Check settings and target, then replace this process by Locust."""
    url = target(os.environ)
    try:
        settings = read_settings(os.environ)
        check_target(url, settings)
    except SettingsError as error:
        sys.exit(f"loadtests: {error}")
    if settings.role is not Role.WORKER:
        RESULTS.mkdir(parents=True, exist_ok=True)
    arguments = locust_arguments(settings, url, RESULTS)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(FOLDER.parent), os.environ.get("PYTHONPATH")]))
    os.execv(arguments[0], arguments)  # noqa: S606 (Locust takes the place of this process)


if __name__ == "__main__":
    main()
