"""Take the screenshots in docs/playground/: `python -m tests.service.web.screenshots [FOLDER]`."""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from tests.service.running import ROOT, running_server
from tests.service.web.conftest import CHROMIUM, Visit
from tests.service.web.test_access import fill

COLOURS = 128  # enough for a screenshot, and a third of the size
NARROW = {"width": 360, "height": 740}
WIDE = {"width": 1200, "height": 900}
TALL = {"width": 1200, "height": 1500}
PICTURES = {  # name: pane, language, colour scheme, size
    "write-light": ("write", "en-GB", "light", WIDE),
    "write-dark-narrow-korean": ("write", "ko-KR", "dark", NARROW),
    "type-light": ("type", "en-GB", "light", WIDE),
    "score-light": ("score", "en-GB", "light", WIDE),
    "score-dark-korean": ("score", "ko-KR", "dark", WIDE),
    "compare-dark": ("compare", "en-GB", "dark", WIDE),
    "compare-echo-light": ("compare", "en-GB", "light", WIDE),
    "learn-light-korean": ("learn", "ko-KR", "light", TALL),
}


def main(folder: Path) -> None:
    """Take all screenshots with the released bundles."""
    folder.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as logs,
        running_server(Path(logs), bundles=ROOT / "bundles") as server,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        for name, (pane, language, scheme, size) in PICTURES.items():
            url = f"http://127.0.0.1:{server.port}/"
            visit = Visit(browser, url, locale=language, color_scheme=scheme, viewport=size, reduced_motion="reduce")
            visit.page.locator("#write-seed").evaluate("input => { input.value = 7 }")
            fill(visit, pane, 120)
            if "echo" in name:
                show_echo(visit)
            data = visit.page.screenshot(full_page=pane in ("score", "compare"))
            picture = Image.open(io.BytesIO(data)).convert("RGB").quantize(COLOURS)
            picture.save(folder / f"{name}.png", optimize=True)
            visit.context.close()
        browser.close()


def show_echo(visit: Visit) -> None:
    """Show the echo of the thirteenth token."""
    visit.page.wait_for_selector("#compare-go:enabled")
    visit.page.locator("#compare-at").focus()
    for _ in range(12):
        visit.page.keyboard.press("ArrowRight")
    visit.page.click("#compare-echo")
    visit.page.wait_for_selector("#compare-back:visible")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "playground")
