"""The order and the threads of the tests, and a browser for those of pages."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from flashproof.kernels.interpreter import installed, interpret

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

if "PYTEST_XDIST_WORKER" in os.environ:  # more threads than cores wait for each other: thirty times as long
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

CHROMIUM = Path("/usr/bin/chromium")
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long ones first: else one process would be left alone with them."""
    if installed():
        raise pytest.UsageError("a test module installs the interpreter when imported: then nothing runs on a GPU")
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture
def interpreted() -> Iterator[None]:
    """The interpreter is installed."""
    with interpret():
        yield


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"no browser at {CHROMIUM}")
    with playwright.sync_playwright() as engine:
        found = engine.chromium.launch(executable_path=str(CHROMIUM), args=list(QUIET))
        yield found
        found.close()


@pytest.fixture
def opened(browser: Browser, tmp_path: Path) -> Iterator[Callable[..., tuple[Page, list[str]]]]:
    """Opens a page's text, offline: the page, and everything that it asked for or complained about."""
    contexts = []

    def open_page(text: str, **options: Any) -> tuple[Page, list[str]]:
        path = tmp_path / "page.html"
        path.write_text(text, encoding="utf-8")
        contexts.append(browser.new_context(offline=True, **options))
        page = contexts[-1].new_page()
        trouble: list[str] = []
        page.on("request", lambda request: trouble.append(request.url) if request.url != path.as_uri() else None)
        page.on("console", lambda message: trouble.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.goto(path.as_uri())
        page.wait_for_timeout(300)
        return page, trouble

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture(scope="session")
def audited() -> Callable[[Page], list[str]]:
    """What axe-core finds wrong with a page for people who use a keyboard or a screen reader."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed").Axe()

    def audit(page: Page) -> list[str]:
        found = axe.run(page).response
        assert len(found["passes"]) > 10, "the audit did not run"
        return [f"{v['id']}: {v['nodes'][0]['html']}" for v in found["violations"]]

    return audit
