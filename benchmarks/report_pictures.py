"""Pictures of a report's page for docs/reports.md, taken in Debian's chromium (with the extra `browser`):

graftline report icd10@1 --measure --out page.html
python -m benchmarks.report_pictures page.html
"""

from __future__ import annotations

import argparse
from contextlib import closing
from pathlib import Path

from benchmarks.console_pictures import IMAGES, chromium, save

WIDTH, MARGIN = 1000, 20  # pixels
PARTS = {"report-verdict": "header", "report-kept": "#retention"}  # pictures by what of the page they show


def take(file: Path) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright, closing(chromium(playwright)) as browser:
        page = browser.new_page(viewport={"width": WIDTH, "height": 900}, color_scheme="light")
        page.goto(file.absolute().as_uri())
        for name, selector in PARTS.items():
            box = page.locator(selector).bounding_box()
            assert box is not None  # a part of every page
            around = {"x": 0, "y": box["y"] - MARGIN, "width": WIDTH, "height": box["height"] + 2 * MARGIN}
            save(page.screenshot(full_page=True, clip=around), IMAGES / f"{name}.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path)
    take(parser.parse_args().page)
