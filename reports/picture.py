"""A picture of a report's first screen, for a README: `python -m flashproof.reports.picture RUN OUT.png`.

Needs playwright (the `tests` dependency group) and a Chromium browser on the machine.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from . import load, render


def picture(runs: list[Path], out: Path, *, width: int = 1200, height: int = 900) -> None:
    """Render the runs' report and save what a reader sees first.

    Raises:
        RecordError: a folder is not a run.
        RuntimeError: there is no Chromium.
    """
    from playwright.sync_api import sync_playwright

    browser_path = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")
    if browser_path is None:
        raise RuntimeError("no Chromium browser found: install one (Debian: apt-get install chromium)")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as p:
        page_file = Path(folder) / "report.html"
        page_file.write_text(render([load(r) for r in runs]), encoding="utf-8")
        browser = p.chromium.launch(executable_path=browser_path, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": width, "height": height}, device_scale_factor=1.0)
        page.goto(page_file.as_uri())
        page.wait_for_load_state("networkidle")
        page.screenshot(path=str(out))
        browser.close()


if __name__ == "__main__":
    *folders, target = (Path(a) for a in sys.argv[1:])
    picture(folders, target)
