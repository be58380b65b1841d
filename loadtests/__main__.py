"""Run Locust headless against HOST:PORT: `python -m loadtests`.

Input: environment variables (see `locustfile.py`). Output: files in loadtests/results/ and Locust's exit code.
"""

import os
import sys
from pathlib import Path

from loadtests.settings import LoadSettings, SettingsError, check_target, read_settings

FOLDER = Path(__file__).parent
RESULTS = Path(os.environ.get("MEARI_LOAD_RESULTS") or FOLDER / "results")


def locust_arguments(settings: LoadSettings, url: str, results: Path) -> list[str]:
    """Return the command line of a headless run."""
    return [
        *(sys.executable, "-m", "locust", "--locustfile", str(FOLDER / "locustfile.py"), "--headless"),
        *("--host", url, "--users", str(settings.users), "--spawn-rate", str(settings.spawn_rate)),
        *("--run-time", f"{settings.seconds}s", "--stop-timeout", "10", "--only-summary"),
        *("--csv", str(results / "meari"), "--html", str(results / "meari.html")),
    ]


def main() -> None:
    """Check settings and target, then replace this process by Locust."""
    host, port = os.environ.get("HOST") or "127.0.0.1", os.environ.get("PORT") or "8000"
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    try:
        settings = read_settings(os.environ)
        check_target(url, settings)
    except SettingsError as error:
        sys.exit(f"loadtests: {error}")
    RESULTS.mkdir(parents=True, exist_ok=True)
    arguments = locust_arguments(settings, url, RESULTS)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(FOLDER.parent), os.environ.get("PYTHONPATH")]))
    os.execv(arguments[0], arguments)  # noqa: S606 (Locust takes the place of this process)


if __name__ == "__main__":
    main()
