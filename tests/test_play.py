"""The page of `steerkit play` in a real Chromium, with the real command behind it."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import browsing
import pytest
from browsing import playwright

import steerkit as sk
from steerkit.demo import SUITES, model_path
from steerkit.evaluation import load_suite

if find_spec("gradio") is None:
    pytest.skip("gradio is not installed: pip install 'steerkit-vlm[play]'", allow_module_level=True)

EVIL = browsing.MARKUP
CASE = load_suite(SUITES["test"]).harmful[0]
browser, pytestmark = browsing.browser, browsing.needed


@contextmanager
def served(folder: Path, *options: str, **environment: str) -> Iterator[str]:
    """Where `steerkit play` serves its page."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "steerkit", "play", "--no-browser", "--port", str(port), *options]
    file = folder / "log.txt"
    with file.open("w") as log:
        running = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | environment)
    url = f"http://127.0.0.1:{port}/"
    for _ in range(600):
        assert running.poll() is None, file.read_text()
        try:
            urllib.request.urlopen(url, timeout=5).close()
            break
        except urllib.error.HTTPError:
            break
        except OSError:
            time.sleep(0.2)
    try:
        yield url
    finally:
        running.terminate()
        running.wait()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page of the command without a word about a model."""
    with served(tmp_path_factory.mktemp("play")) as url:
        yield url


@pytest.fixture
def tab(browser: playwright.Browser, address: str, request: pytest.FixtureRequest) -> Iterator[playwright.Page]:
    """The page, opened."""
    size = {"width": getattr(request, "param", 1280), "height": 900}
    ours = (address, address.replace("http", "ws"))
    with browsing.opened(browser, address, ours=ours, silent=False, viewport=size) as shown:
        shown.get_by_role("button", name="Answer").wait_for()
        yield shown
        browsing.photographed(shown, "play-" + re.sub(r"\W+", "-", request.node.name))


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


LONG = 512


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A pack that keeps the demo model from ever ending its answer, and what it answers in so many tokens."""
    vlm = sk.load(model_path("llava"))
    vector = sk.load_vector("cmrm-llava-demo")
    parts = [each.model_copy(update={"phase": "both", "tokens": "all"}).model_dump() for each in vector.interventions]
    for dose in (4.0, -4.0, 16.0, -16.0, 64.0):
        pack = vector.with_metadata(interventions=tuple(parts)) * dose
        with sk.steer(vlm, pack, strength=1, policy="off"):
            [answer] = vlm.answers([CASE.sample], max_new_tokens=LONG, do_sample=False)
        if not answer.ended:
            return pack.save(tmp_path_factory.mktemp("endless") / "endless.safetensors"), answer.text
    raise AssertionError("every dose ends")


def test_answers_stream_and_stop_when_told(
    browser: playwright.Browser, endless: tuple[Path, str], tmp_path: Path
) -> None:
    pack, whole = endless
    with served(tmp_path, "--vector", str(pack), "--policy", "off") as url:
        ours = (url, url.replace("http", "ws"))
        with browsing.opened(browser, url, ours=ours, silent=False) as tab:
            tab.get_by_label("Longest answer").first.fill(str(LONG))
            tab.get_by_label("Longest answer").first.press("Tab")
            steered = tab.get_by_label("Steered", exact=True)
            tab.get_by_role("button", name="Answer").click()
            playwright.expect(steered).not_to_have_value("", timeout=60_000)
            first = steered.input_value()
            tab.get_by_role("button", name="Stop").focus()
            tab.keyboard.press("Enter")
            playwright.expect(tab.get_by_label("Receipt")).to_have_value("Stopped.", timeout=60_000)
            tab.wait_for_timeout(1000)
            left = steered.input_value()
            tab.wait_for_timeout(1000)
            assert steered.input_value() == left
            assert left.startswith(first)
            assert whole.startswith(left)
            assert len(left) < len(whole)
            plain = tab.get_by_label("Unsteered").input_value()
            assert CASE.answer in plain
            tab.get_by_label("Pack").fill("cmrm-llava-demo")
            tab.get_by_role("button", name="Answer").click()  # the page goes on
            assert answered(tab)[0] == plain


def test_a_password_keeps_others_out(browser: playwright.Browser, tmp_path: Path) -> None:
    word = "köln <b>1</b>"
    with served(tmp_path, "--password", STEERKIT_PLAY_PASSWORD=word) as url:
        for path in ("config", "gradio_api/info", "gradio_api/queue/data?session_hash=x"):
            with pytest.raises(urllib.error.HTTPError, match="401"):
                urllib.request.urlopen(url + path, timeout=5)
        ours = (url, url.replace("http", "ws"))
        with browsing.opened(browser, url, ours=ours, silent=False) as tab:
            button = tab.get_by_role("button", name="Login")
            for given in ("wrong", word):
                assert tab.get_by_role("button", name="Answer").count() == 0
                tab.get_by_label("username").fill("steerkit")
                tab.get_by_label("password").fill(given)
                button.click()
                tab.wait_for_timeout(1000)
            tab.get_by_role("button", name="Answer").click()
            answered(tab)
    assert word not in (tmp_path / "log.txt").read_text()
