"""A real Chromium for the tests of pages, and what no page of ours may do in it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome-headless-shell")
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
needed = pytest.mark.skipif(CHROMIUM is None, reason=f"no Chromium on this machine: none of {', '.join(NAMES)}")

MARKUP = "</pre></script></title><img src=x onerror=fired()><script>fired()</script>\"' onload='fired()"
"""What runs if anything takes it for markup."""


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    """To be named in each module that uses it."""
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(
    browser: playwright.Browser, address: str, *, ours: tuple[str, ...] = (), silent: bool = True, **options: Any
) -> Iterator[playwright.Page]:
    """A page; at the end nothing may have been asked of anybody else, reported, or run that is not ours.

    Args:
        browser: The browser.
        address: Of the page.
        ours: How addresses begin that it may ask for besides.
        silent: Whether it may say nothing to the console.
        **options: Of the context.
    """
    context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **options})
    context.add_init_script("window.fired = () => { window.harmed = true; }")
    tab = context.new_page()
    asked: list[str] = []
    said: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("dialog", lambda dialog: said.append(dialog.message))
    if silent:
        tab.on("console", lambda message: said.append(message.text))
    tab.goto(address)
    yield tab
    assert tab.evaluate("window.harmed") is None
    assert [url for url in asked if url != address and not url.startswith((*ours, "data:", "blob:"))] == []
    assert said == []
    context.close()


def photographed(tab: playwright.Page, name: str) -> None:
    """Keep a picture of the page where the environment names a folder for it."""
    if folder := os.environ.get("STEERKIT_SCREENSHOTS"):
        tab.screenshot(path=Path(folder) / f"{name}.png", full_page=True)
