"""A report's page in a real browser: Debian's chromium, driven by Playwright (`make test-browser`)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from test_console_browser import CONTRAST, browser
from told_reports import whole

from service.report.page import Store, page

if TYPE_CHECKING:
    from playwright.sync_api import Browser

__all__ = ["browser"]
pytestmark = [pytest.mark.slow, pytest.mark.browser]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With every section."""
    file = tmp_path_factory.mktemp("report") / "page.html"
    file.write_text(page(whole(), Store({}, "mlflow ui")).html, encoding="utf-8")
    return file


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1000])
def test_it_loads_nothing_fits_and_is_readable(browser: Browser, file: Path, width: int, scheme: str) -> None:
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)  # type: ignore[arg-type]
    shown, wrong, asked = context.new_page(), list[str](), list[str]()
    shown.on("console", lambda told: wrong.append(told.text))
    shown.on("request", lambda request: asked.append(request.url))
    shown.goto(file.as_uri())
    assert shown.evaluate("document.documentElement.scrollWidth") <= width
    assert shown.evaluate(CONTRAST) == [] and wrong == [] and asked == [file.as_uri()]
    assert shown.locator("figure svg").count() > 5 and shown.locator("script").count() == 0
    context.close()
