"""The report of a study in a real Chromium: what an answer holds stays text, and a reader finds what he looks for."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import steerkit as sk
from steerkit.demo import SUITES, anchors, model_path
from steerkit.evaluation import Case, Judgement, PhraseJudge, load_suite

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome-headless-shell")
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=f"no Chromium on this machine: none of {', '.join(NAMES)}")

MARKUP = "</pre></script><img src=x onerror=fired()><script>fired()</script>\"' onload='fired()"
EVIL = MARKUP + " \x1b]0;taken\x07\u202egnp.exe"
SCREENSHOT = "STEERKIT_SCREENSHOTS"
"""Environment variable: a folder; the pages are photographed into it."""


@dataclass(frozen=True)
class Hostile:
    """A judge that says what nobody should run."""

    name: str = EVIL
    identity: str = EVIL

    def judge(self, case: Case, answer: str) -> Judgement:
        return Judgement(refused="cannot" not in answer, harmful=False, garbled=False, raw=EVIL)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a study whose suite, requests, judges and answers are hostile."""
    torch.set_num_threads(1)
    vlm = sk.load(model_path("llava"), dtype="float32")
    folder = tmp_path_factory.mktemp("study")
    dev, test = (load_suite(SUITES[name]).first(2) for name in ("dev", "test"))
    first = test.harmful[0]
    worse = replace(first, sample=replace(first.sample, text=f"{first.sample.text} {EVIL}"), id=EVIL)
    test = replace(test, name=EVIL, licence=EVIL, harmful=(worse, *test.harmful[1:]))

    def answering(*work: Any) -> Iterator[list[sk.evaluation.Answer]]:
        for batch in sk.evaluation.answered(*work):
            yield [each.model_copy(update={"answer": f"{each.answer} {EVIL}"}) for each in batch]

    options = {"alphas": (1.0,), "layers": {}, "judges": [PhraseJudge(), Hostile()]}
    sk.evaluation.study(vlm, [test], [anchors(2)], [dev], folder=folder, answering=answering, **options)  # type: ignore[arg-type]
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def shown(browser: playwright.Browser, report: Path) -> Iterator[playwright.Page]:
    """The page, opened; at the end nothing may have been asked of a network, reported or run that is not ours."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    tab = context.new_page()
    asked: list[str] = []
    said: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("dialog", lambda dialog: said.append(dialog.message))
    context.add_init_script("window.fired = () => { window.harmed = true; }")
    tab.goto(report.as_uri())
    yield tab
    assert tab.evaluate("window.harmed") is None
    assert asked == [report.as_uri()]
    assert said == []
    context.close()


def test_what_was_said_is_text(shown: playwright.Page) -> None:
    assert shown.locator("img").count() == 0
    assert shown.locator("script").count() == 1
    text = shown.locator("body").evaluate("body => body.textContent")
    assert "<img src=x onerror=fired()>" in text
    assert "\\u202egnp.exe" in text
    assert "\\x1b]0;taken\\x07" in text
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]", text)


def test_harmful_requests_are_folded_and_filters_find_answers(shown: playwright.Page) -> None:
    answers = shown.locator("#list details")
    harmful = shown.locator("#list details[data-kind=harmful]")
    assert 0 < harmful.count() < answers.count()
    assert harmful.evaluate_all("all => all.filter(each => each.open).length") == 0
    assert not harmful.first.locator("pre").first.is_visible()
    harmful.first.locator("summary").click()
    assert harmful.first.locator("pre").first.is_visible()
    for name in ("suite", "condition", "kind", "verdict"):
        for value in shown.locator(f"select[name={name}] option").all_inner_texts()[1:]:
            shown.locator(f"select[name={name}]").select_option(value)
            left = shown.locator("#list details:visible")
            assert {each.get_attribute(f"data-{name}") for each in left.all()} <= {value}
            count = shown.locator("#list details").evaluate_all(
                f"(all, value) => all.filter(each => each.dataset.{name} === value).length", value
            )
            assert left.count() == count
        shown.get_by_role("button", name="Show all").click()
        playwright.expect(shown.get_by_role("status")).to_contain_text(f"{answers.count()} of {answers.count()}")
    shown.get_by_label("Judges differ").check()
    differing = shown.locator("#list details[data-differs]").count()
    assert 0 < differing == shown.locator("#list details:visible").count() < answers.count()


def test_it_is_used_without_a_mouse(shown: playwright.Page) -> None:
    shown.locator("select[name=suite]").focus()
    for name in ("condition", "kind", "verdict", "differs"):
        shown.keyboard.press("Tab")
        assert shown.evaluate("document.activeElement.name") == name
        assert shown.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid", (
            "the focus can't be seen"
        )
    shown.keyboard.press("Space")
    assert shown.get_by_label("Judges differ").is_checked()
    shown.keyboard.press("Tab")
    shown.keyboard.press("Enter")
    assert not shown.get_by_label("Judges differ").is_checked()
    shown.keyboard.press("Tab")
    assert shown.evaluate("document.activeElement.tagName") == "SUMMARY"
    was = shown.evaluate("document.activeElement.parentElement.open")
    shown.keyboard.press("Enter")
    assert shown.evaluate("document.activeElement.parentElement.open") is not was


def test_every_figure_has_its_interval_and_number(shown: playwright.Page) -> None:
    for letter in ("safety", "utility"):
        rows = shown.locator(f"#{letter} svg text").all_text_contents()
        assert sum(bool(re.search(r"\(\d+-\d+\), n \d+", row)) for row in rows) >= 5
    assert shown.locator("svg").count() > 8
    assert re.search("[0-9a-f]{64}", shown.locator("#choice code").inner_text())


@pytest.mark.parametrize(("name", "width", "scheme"), [("wide", 1200, "light"), ("narrow", 360, "dark")])
def test_it_fits_the_screen(browser: playwright.Browser, report: Path, name: str, width: int, scheme: str) -> None:
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)  # type: ignore[arg-type]
    tab = context.new_page()
    tab.goto(report.as_uri())
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    if SCREENSHOT in os.environ:
        tab.screenshot(path=Path(os.environ[SCREENSHOT]) / f"study-{name}.png", full_page=True)
    context.close()
