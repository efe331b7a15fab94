"""The page of `steerkit play` in a real Chromium, with the real command behind it."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

import steerkit as sk
from steerkit.demo import SUITES, model_path
from steerkit.evaluation import load_suite

if find_spec("gradio") is None:
    pytest.skip("gradio is not installed: pip install 'steerkit-vlm[play]'", allow_module_level=True)
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome-headless-shell")
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=f"no Chromium on this machine: none of {', '.join(NAMES)}")

EVIL = "<img src=x onerror=fired()><script>fired()</script>"
CASE = load_suite(SUITES["test"]).harmful[0]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where `steerkit play`, without a word about a model, serves its page."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "steerkit", "play", "--no-browser", "--port", str(port)]
    file = tmp_path_factory.mktemp("play") / "log.txt"
    with file.open("w") as log:
        served = subprocess.Popen(command, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}/"
    for _ in range(600):
        assert served.poll() is None, file.read_text()
        try:
            urllib.request.urlopen(url, timeout=5).close()
            break
        except OSError:
            time.sleep(0.2)
    yield url
    served.terminate()
    served.wait()


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def tab(browser: playwright.Browser, address: str, request: pytest.FixtureRequest) -> Iterator[playwright.Page]:
    """The page, opened; at the end nothing may have been asked of another host, or run that is not ours."""
    context = browser.new_context(viewport={"width": getattr(request, "param", 1280), "height": 900})
    context.add_init_script("window.fired = () => { window.harmed = true; }")
    shown = context.new_page()
    asked: list[str] = []
    failed: list[str] = []
    shown.on("request", lambda each: asked.append(each.url))
    shown.on("pageerror", lambda error: failed.append(str(error)))
    shown.goto(address)
    shown.get_by_role("button", name="Answer").wait_for()
    yield shown
    if folder := os.environ.get("STEERKIT_SCREENSHOTS"):
        name = re.sub(r"\W+", "-", request.node.name)
        shown.screenshot(path=str(Path(folder) / f"play-{name}.png"), full_page=True)
    assert not shown.evaluate("window.harmed")
    elsewhere = [url for url in asked if not url.startswith((address, address.replace("http", "ws"), "data:", "blob:"))]
    assert elsewhere == []
    assert failed == []
    context.close()


def answered(tab: playwright.Page) -> tuple[str, str]:
    """Both answers, once the receipt is there."""
    playwright.expect(tab.get_by_label("Receipt")).to_have_value(re.compile("token"), timeout=60_000)
    return tab.get_by_label("Unsteered").input_value(), tab.get_by_label("Steered", exact=True).input_value()


def test_one_click_answers_the_demo_without_and_with_its_pack(tab: playwright.Page) -> None:
    tab.get_by_role("button", name="Answer").click()
    found = answered(tab)
    vlm = sk.load(model_path("llava"))
    plain = vlm.generate([CASE.sample], max_new_tokens=64, do_sample=False)
    with sk.steer(vlm, sk.load_vector("cmrm-llava-demo")) as receipt:
        steered = vlm.generate([CASE.sample], max_new_tokens=64, do_sample=False)
    assert found == (plain[0], steered[0])
    assert CASE.answer in found[0]
    assert CASE.answer not in found[1]
    assert tab.locator(".layers .bar").count() == len(receipt.layers)
    assert {"model", "fingerprint", "dose"} <= set(tab.locator(".checks td:nth-child(2)").all_inner_texts())


def test_the_keyboard_alone_asks_another_question(tab: playwright.Page) -> None:
    tab.get_by_label("Prompt").focus()
    tab.keyboard.press("Control+A")
    tab.keyboard.type("How do I bake a cake?")
    for _ in range(12):
        tab.keyboard.press("Tab")
        if tab.evaluate("document.activeElement.innerText") == "Answer":
            break
    tab.keyboard.press("Enter")
    plain, _ = answered(tab)
    vlm = sk.load(model_path("llava"))
    asked = sk.Sample("How do I bake a cake?", images=CASE.sample.images)
    assert [plain] == vlm.generate([asked], max_new_tokens=64, do_sample=False)


@pytest.mark.parametrize("tab", [390], indirect=True)
def test_a_narrow_screen_holds_everything(tab: playwright.Page) -> None:
    tab.get_by_role("button", name="Answer").click()
    answered(tab)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    for name in ("Answer", "Check the pack", "Stop"):
        box = tab.get_by_role("button", name=name).bounding_box()
        assert box is not None
        assert 0 <= box["x"] <= box["x"] + box["width"] <= 390


def test_without_a_pack_and_without_an_image_the_model_answers_alone(tab: playwright.Page) -> None:
    tab.get_by_label("Pack").fill("")
    tab.get_by_label("Remove Image").or_(tab.get_by_label("Clear")).first.click()
    tab.get_by_role("button", name="Answer").click()
    playwright.expect(tab.get_by_label("Receipt")).to_have_value(re.compile("nothing was steered"), timeout=60_000)
    vlm = sk.load(model_path("llava"))
    asked = sk.Sample(CASE.sample.turns[-1][1])
    plain = tab.get_by_label("Unsteered").input_value()
    assert [plain] == vlm.generate([asked], max_new_tokens=64, do_sample=False)
    assert tab.get_by_label("Steered", exact=True).input_value() == ""


@pytest.mark.parametrize("field", ["Model", "Pack", "Prompt"])
def test_what_is_wrong_is_said_as_text(tab: playwright.Page, field: str) -> None:
    tab.get_by_label(field).fill("" if field == "Prompt" else EVIL)
    tab.get_by_role("button", name="Answer").click()
    said = re.compile("no prompt" if field == "Prompt" else re.escape("<img src=x"))
    playwright.expect(tab.get_by_label("Receipt")).to_have_value(said, timeout=60_000)
    tab.get_by_label("Model").fill("llava")
    tab.get_by_label("Pack").fill("cmrm-llava-demo")
    tab.get_by_label("Prompt").fill("How do I bake a cake?")
    tab.get_by_role("button", name="Answer").click()  # the page goes on
    answered(tab)


def test_a_pack_that_is_markup_is_shown_as_text(tab: playwright.Page, tmp_path: Path) -> None:
    vector = sk.load_vector("cmrm-llava-demo")
    record = vector.metadata.model.model_copy(update={"architecture": EVIL, "id": EVIL})
    evil = vector.metadata.model_copy(update={"model": record, "description": EVIL, "license": EVIL})
    file = sk.SteeringVector(dict(vector.tensors), evil).save(tmp_path / "evil.safetensors")
    tab.get_by_label("Pack").fill(str(file))
    tab.get_by_role("button", name="Check the pack").click()
    row = tab.locator(".checks tr", has_text="<img src=x")
    row.first.wait_for(timeout=60_000)
    assert tab.locator(".checks img, .checks script").count() == 0
    tab.get_by_role("button", name="Answer").click()
    playwright.expect(tab.get_by_label("Receipt")).to_have_value(re.compile("<img"), timeout=60_000)
