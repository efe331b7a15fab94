"""The report of a study in a real Chromium: what an answer holds stays text, and a reader finds what he looks for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import browsing
import pytest
import torch
from browsing import MARKUP, playwright

import steerkit as sk
from steerkit.demo import SUITES, anchors, model_path
from steerkit.evaluation import Case, Judgement, PhraseJudge, load_suite

EVIL = MARKUP + " \x1b]0;taken\x07\u202egnp.exe\x00\u2028\x85 \u05d0\u05d1 \u0430" + "\u0301" * 40
HUGE = "so " * 200_000 + "x" * 400_000
browser, pytestmark = browsing.browser, browsing.needed


@dataclass(frozen=True)
class Hostile:
    """A judge that says what nobody should run."""

    name: str = EVIL
    identity: str = EVIL

    def judge(self, case: Case, answer: str) -> Judgement:
        return Judgement(refused="cannot" not in answer, harmful=False, garbled=False, raw=EVIL)


def _more(answer: sk.evaluation.Answer) -> str:
    return HUGE if (answer.kind, answer.condition) == ("utility", "image") else EVIL


class _Tampering:
    """Workers that put something hostile behind each answer."""

    def __init__(self, vlm: sk.VLM) -> None:
        self.vlm = vlm

    def holds(self, vlm: sk.VLM) -> bool:
        return True

    def fit(self, method: sk.SteeringMethod, anchors: Any, **options: Any) -> sk.SteeringVector:
        return method.fit(self.vlm, anchors, batch_size=options["batch_size"])

    def answer(self, *work: Any) -> Iterator[list[sk.evaluation.Answer]]:
        for batch in sk.evaluation.answered(*work):
            yield [each.model_copy(update={"answer": f"{each.answer} {_more(each)}"}) for each in batch]


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

    options = {"alphas": (1.0,), "layers": {}, "judges": [PhraseJudge(), Hostile()]}
    sk.evaluation.study(vlm, [test], [anchors(2)], [dev], folder=folder, cluster=_Tampering(vlm), **options)  # type: ignore[arg-type]
    return folder / "report.html"


@pytest.fixture
def shown(browser: playwright.Browser, report: Path) -> Iterator[playwright.Page]:
    """The page, opened."""
    with browsing.opened(browser, report.as_uri()) as tab:
        yield tab


def test_what_was_said_is_text(shown: playwright.Page) -> None:
    assert shown.locator("img").count() == 0
    assert shown.locator("script").count() == 1
    text = shown.locator("body").evaluate("body => body.textContent")
    assert "<img src=x onerror=fired()>" in text
    assert "\\u202egnp.exe" in text
    assert "\\x1b]0;taken\\x07" in text
    assert "x" * 400_000 in text
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
    assert "unjudged" not in " ".join(shown.locator("#safety svg").all_text_contents())
    assert shown.locator("svg").count() > 8
    assert re.search("[0-9a-f]{64}", shown.locator("#choice code").inner_text())


def test_what_no_judge_tells_and_how_judges_differ_is_said_first(shown: playwright.Page) -> None:
    """Phrases judge first, and tell refusals alone; the other judge says the opposite of them."""
    said = shown.get_by_role("note").inner_text()
    assert "No judge here tells whether an answer is harmful" in said
    assert "NOT RELIABLE: kappa is below 0.8 for refused, all" in said
    place = [shown.locator(where).bounding_box() for where in ("#notes", "#choice")]
    assert place[0] is not None
    assert place[1] is not None
    assert place[0]["y"] < place[1]["y"]


def test_no_text_of_a_figure_is_cut(shown: playwright.Page) -> None:
    outside = """all => all.filter(each => {
      const box = each.getBBox(), edge = each.ownerSVGElement.viewBox.baseVal;
      return box.x < -1 || box.x + box.width > edge.width + 1 || box.y + box.height > edge.height + 1;
    }).map(each => each.textContent)"""
    assert shown.locator("figure svg text").count() > 100
    assert shown.locator("figure svg text").evaluate_all(outside) == []


@pytest.mark.parametrize(("name", "width", "scheme"), [("wide", 1200, "light"), ("narrow", 360, "dark")])
def test_it_fits_the_screen(browser: playwright.Browser, report: Path, name: str, width: int, scheme: str) -> None:
    options = {"viewport": {"width": width, "height": 800}, "color_scheme": scheme}
    with browsing.opened(browser, report.as_uri(), **options) as tab:
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        browsing.photographed(tab, f"study-{name}")
