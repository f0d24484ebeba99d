"""Pictures of a report's page for the documents, taken in Debian's chromium: `graftline report icd10@1 --out page.html`, then
`python -m benchmarks.report_pictures page.html` (with the extra `browser`)."""

from __future__ import annotations

import argparse
import io
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Page

IMAGES = Path(__file__).parent.parent / "docs" / "images"
WIDTH = 1000
SECTIONS = {"report-head": "header", "report-gained": "#gained"}  # pictures by what of the page they show
_COLOURS = 64


def open_page(file: Path, pictures: dict[str, str]) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium") or shutil.which("chromium-browser"), args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": WIDTH, "height": 900}, color_scheme="light")
        page.goto(file.absolute().as_uri())
        for name, selector in pictures.items():
            take(page, selector, IMAGES / f"{name}.png")
        browser.close()


def take(page: Page, selector: str, file: Path) -> None:
    with Image.open(io.BytesIO(page.locator(selector).screenshot())) as taken:
        taken.convert("RGB").quantize(colors=_COLOURS).save(file, optimize=True)
    print(f"{file}: {file.stat().st_size} bytes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path)
    open_page(parser.parse_args().page, SECTIONS)
