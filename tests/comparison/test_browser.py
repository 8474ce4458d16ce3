"""The page in a real browser, where playwright and Chromium are installed: ``pip install playwright``."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shortv_export.options import Placement
from shortv_export.pipeline import compare
from tests.comparison.test_page import QUESTION

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def url(package: Path) -> Iterator[str]:
    page = compare(str(package), placement=Placement(dtype="float32"))
    yield page.url
    page.close()


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [(1280, 900), (390, 844)], ids=["wide", "narrow"])
def test_in_a_browser(url: str, size: tuple[int, int], scheme: str, photos: dict[str, Any], tmp_path: Path) -> None:
    """Both answers appear; nothing is asked of other servers, nothing fails, and nothing is wider than the screen."""
    picture = tmp_path / "picture.png"
    photos["chelsea"].save(picture)
    errors: list[str] = []
    requests: list[str] = []
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(url)
        page.set_input_files("input[type=file]", picture)
        page.get_by_label("Question").fill(QUESTION)
        page.get_by_label("remove").or_(page.get_by_label("Clear")).first.wait_for()  # the picture has arrived
        page.get_by_role("button", name="Ask both").click()
        page.get_by_text(re.compile(r"^(The answers differ|Both answers are the same)")).wait_for()
        assert page.get_by_text(re.compile(r"skips [\d,]+ of [\d,]+ token updates")).is_visible()
        assert page.get_by_text("skips nothing").is_visible()
        assert len([text for text in page.locator(".answer .textfield").all_inner_texts() if text.strip()]) == 2
        assert page.evaluate("document.documentElement.scrollWidth") == size[0]
        browser.close()
    assert errors == []
    assert [each for each in requests if not each.startswith((url, "data:", "blob:"))] == []
