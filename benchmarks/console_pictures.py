"""Pictures of the console for docs/console.md, taken in Debian's chromium from a server that runs (with the extra `browser`):

    graftline serve
    python -m benchmarks.console_pictures http://127.0.0.1:3000 icd10@1    # the release whose gate is shown

tests/test_console_browser.py takes its own of every flow, on the tiny test-bed: browser-*.png beside these.
"""

from __future__ import annotations

import argparse
import io
import shutil
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from adapters.whole_file import written_whole

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Playwright

IMAGES = Path(__file__).parent.parent / "docs" / "images"
MAX_BYTES = 150_000
SETTLED = "() => !document.querySelector('section:not([hidden]) [aria-busy=true], section[aria-busy=true]')"
_WAIT_MS, _COLOURS = 240_000, 128
_DESK, _PHONE = (1180, 860), (360, 740)


def save(png: bytes, file: Path) -> None:
    """With few colours; ValueError where it is too large for the documents, and then nothing is written."""
    with Image.open(io.BytesIO(png)) as taken, written_whole(file) as part:
        taken.convert("RGB").quantize(colors=_COLOURS).save(part, "PNG", optimize=True)
        if (size := part.stat().st_size) >= MAX_BYTES:
            raise ValueError(f"A picture has fewer than {MAX_BYTES} bytes, but {file} would have {size}. Show less of the page.")


def chromium(playwright: Playwright) -> Browser:
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        raise FileNotFoundError("The pictures are taken in chromium, which is not here: apt-get install chromium")
    return playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])


def take(page: Page, name: str) -> None:
    page.wait_for_function(SETTLED, timeout=_WAIT_MS)
    save(page.screenshot(full_page=True), IMAGES / f"console-{name}.png")


def ask_and_look(page: Page, url: str, names: tuple[str | None, str]) -> None:
    """Every model that is ticked answers, and the first one's answer is taken apart."""
    compared, apart = names
    page.goto(url)
    page.get_by_role("button", name="Ask all").click()
    page.wait_for_function(SETTLED, timeout=_WAIT_MS)
    if compared:
        take(page, compared)
    page.get_by_role("button", name="X-ray this answer").first.click()
    page.locator("#xray-chain li:not(.head)").nth(1).wait_for(timeout=_WAIT_MS)
    take(page, apart)


def take_all(url: str, release: str) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright, closing(chromium(playwright)) as browser:
        for (width, height), names in ((_DESK, ("compare", "xray")), (_PHONE, (None, "phone"))):
            page = browser.new_page(viewport={"width": width, "height": height}, locale="en-GB", color_scheme="light")
            ask_and_look(page, url, names)
        page = browser.new_page(viewport={"width": _DESK[0], "height": _DESK[1]}, locale="en-GB", color_scheme="light")
        page.goto(f"{url}/console/#releases")
        page.get_by_text(f"Gate of {release}").click()
        page.get_by_role("cell").first.wait_for()
        take(page, "releases")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("release")
    asked = parser.parse_args()
    take_all(asked.url.rstrip("/"), asked.release)
