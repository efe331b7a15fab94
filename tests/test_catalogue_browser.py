"""The catalogue page in a real Chromium, driven by the clicks and keys of a reader."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import browsing
import pytest
from browsing import playwright
from hub_support import vector

from steerkit_vectors_hub.catalogue import page
from steerkit_vectors_hub.index import Entry, entry_of, make_index
from steerkit_vectors_hub.resolve import resolve

EVIL = browsing.MARKUP
browser, pytestmark = browsing.browser, browsing.needed


@pytest.fixture(scope="module")
def entries(tmp_path_factory: pytest.TempPathFactory) -> list[Entry]:
    """Three packs; of one, every text that it may choose is hostile."""
    folder = tmp_path_factory.mktemp("packs")
    plain = entry_of(resolve(str(vector().save(folder / "cmrm-things.safetensors"))))
    series = plain.norms[0]
    deep = series.model_copy(
        update={"layers": tuple(range(32)), "norms": tuple(1 + (layer / 9) ** 2 for layer in range(32))}
    )
    other = plain.model_copy(
        update={
            "name": "owner/refusal-llava-7b",
            "method": "refusal_direction",
            "metrics": plain.metrics[:1],
            "norms": (deep,),
            "model": plain.model.model_copy(update={"id": "owner/other"}),
        }
    )
    evil = plain.model_copy(
        update={
            **dict.fromkeys(("name", "method", "description", "license", "created", "paper"), EVIL),
            "authors": (EVIL,),
            "model": plain.model.model_copy(update={"id": EVIL, "revision": EVIL}),
            "metrics": (plain.metrics[0].model_copy(update={"name": EVIL, "judge": EVIL}),),
        }
    )
    return [plain, other, evil]


@pytest.fixture
def shown(browser: playwright.Browser, entries: list[Entry], tmp_path: Path) -> Iterator[playwright.Page]:
    """The page, opened."""
    file = tmp_path / "catalogue.html"
    file.write_text(page(make_index(entries, title="Packs", dated=False)), encoding="utf-8")
    with browsing.opened(browser, file.as_uri()) as tab:
        yield tab


def names(tab: playwright.Page) -> list[str]:
    return tab.locator("article:visible h2").all_inner_texts()


def test_filters_narrow_the_list(shown: playwright.Page) -> None:
    first, other = "cmrm-things", "owner/refusal-llava-7b"
    assert len(names(shown)) == 3
    count = shown.get_by_role("status")
    shown.locator("select[name=model]").select_option("owner/other")
    assert names(shown) == [other]
    assert count.inner_text() == "1 of 3 packs"
    shown.get_by_role("button", name="Show all").click()
    playwright.expect(count).to_have_text("3 of 3 packs")
    shown.locator("select[name=method]").select_option("cmrm")
    assert names(shown) == [first]
    shown.locator("select[name=method]").select_option("")
    shown.locator("select[name=metric]").select_option("over_refusal")
    assert names(shown) == [first]
    shown.locator("select[name=metric]").select_option("unsafe_rate")
    assert names(shown) == [first, other]
    shown.get_by_label("Words").press_sequentially("REFUSAL-llava")
    assert names(shown) == [other]
    shown.get_by_label("Words").press("Enter")
    assert names(shown) == [other]
    shown.get_by_label("Words").fill("nothing has this")
    assert names(shown) == []
    assert count.inner_text() == "0 of 3 packs"


def test_it_is_used_without_a_mouse(shown: playwright.Page) -> None:
    reached = []
    for _ in range(5):
        shown.keyboard.press("Tab")
        reached.append(shown.evaluate("document.activeElement.name || document.activeElement.type"))
        outline = shown.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid", "the focus can't be seen"
    assert reached == ["text", "model", "method", "metric", "reset"]
    shown.keyboard.press("Shift+Tab")
    shown.keyboard.type("over_refusal")
    assert names(shown) == ["cmrm-things"]
    shown.keyboard.press("Tab")
    shown.keyboard.press("Enter")
    playwright.expect(shown.get_by_role("status")).to_have_text("3 of 3 packs")


def test_charts_are_drawn_to_scale(shown: playwright.Page, entries: list[Entry]) -> None:
    for entry in entries[:2]:
        article = shown.locator("article", has=shown.get_by_role("heading", name=entry.name))
        bars = article.locator("svg rect")
        boxes = [box for bar in bars.all() if (box := bar.bounding_box())]
        norms = entry.norms[0].norms
        assert len(boxes) == len(norms)
        tallest = max(box["height"] for box in boxes)
        assert tallest > 50
        for box, norm in zip(boxes, norms, strict=True):
            assert box["height"] / tallest == pytest.approx(norm / max(norms), abs=0.02)
        bottoms = {round(box["y"] + box["height"]) for box in boxes}
        assert max(bottoms) - min(bottoms) <= 1
        assert re.fullmatch(r"layer 0: [\d.]+", bars.first.locator("title").text_content() or "")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 720, 360])
def test_it_fits_and_can_be_read(shown: playwright.Page, scheme: str, width: int) -> None:
    shown.emulate_media(color_scheme=scheme)
    shown.set_viewport_size({"width": width, "height": 900})
    assert shown.evaluate("document.documentElement.scrollWidth") <= width
    colours = shown.evaluate(_COLOURS)
    for what, (ink, ground) in colours.items():
        assert contrast(ink, ground) >= 4.5, f"{what} is {ink} on {ground}"
    assert (luminance(colours["text"][1]) < 0.5) is (scheme == "dark")
    browsing.photographed(shown, f"catalogue-{scheme}-{width}")


_COLOURS = """() => {
  const ink = (query) => getComputedStyle(document.querySelector(query)).color;
  const card = getComputedStyle(document.querySelector("article")).backgroundColor;
  const ground = getComputedStyle(document.body).backgroundColor;
  return { text: [ink("h2"), card], term: [ink("dt"), card], count: [ink("#count"), ground],
    head: [ink("th"), card], code: [ink("code"), getComputedStyle(document.querySelector("code")).backgroundColor],
    label: [ink("label"), card], chart: [getComputedStyle(document.querySelector("svg text")).fill, card],
    bar: [getComputedStyle(document.querySelector("svg rect")).fill, card] };
}"""


def luminance(colour: str) -> float:
    """Relative luminance of `rgb(...)`, as WCAG defines it."""
    red, green, blue = (int(part) / 255 for part in re.findall(r"\d+", colour)[:3])
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in (red, green, blue)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    dark, light = sorted((luminance(first), luminance(second)))
    return (light + 0.05) / (dark + 0.05)


def test_a_hostile_pack_is_text(shown: playwright.Page) -> None:
    assert EVIL in names(shown)
    assert shown.title() == "Packs"
    assert shown.locator("img, iframe, object").count() == 0
    assert shown.locator("script").count() == 1
    shown.locator("select[name=method]").select_option(EVIL)
    shown.locator("select[name=metric]").select_option(EVIL)
    assert names(shown) == [EVIL]


def test_without_scripts_the_whole_list_is_there(
    browser: playwright.Browser, entries: list[Entry], tmp_path: Path
) -> None:
    file = tmp_path / "catalogue.html"
    file.write_text(page(make_index(entries, dated=False)), encoding="utf-8")
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(file.as_uri())
    assert len(names(tab)) == 3
    assert not tab.locator("form").is_visible()
    context.close()
