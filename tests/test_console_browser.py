"""The console in a real browser: Debian's chromium, driven by Playwright (`make test-browser`)."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from live_service import Live, live, small
from small_studies import PROTECTED, knowing_home
from shelves import recipe_of, write_task
from small_releases import promote
from stores import store_at

from adapters.backbone import TESTBED, Backbone
from engine.profile import Profile
from evaluation.tasks import task_named
from registry.ledger import Ledger
from registry.release import publish
from registry.tracking import Tracking
from service.keys import KeyStore, Quota
from tuning.ground import new_adapters
from tuning.manifest import complete
from tuning.methods import METHODS
from tuning.plan import training_examples

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page, Request

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright drives the browser: run `make test-browser`")
pytestmark = [pytest.mark.slow, pytest.mark.browser]

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PICTURES = Path(__file__).parent.parent / "docs" / "images"
QUESTION = "Element: K B T. Apply rot 3, then mirror, then shift. What comes out?"
OTHER = "Start from D W H. In turn do reverse; rot 5; mirror. What is left?"
HOSTILE = "<img src=x onerror=window.hurt=1><script>window.hurt=1</script>"
RECIPE = """name = "{name}"
domain = "icd10-chapter"
protected = ["arithmetic", "ordering"]
search = ["method.learning_rate"]
[adapter.lora]
rank = 4
[method]
steps = 2
batch_size = 2
num_examples = 20
[study]
trials = 2
scales = [1.0]
[evaluation]
domain_items = 8
chain_items = 4
generated_items = 1
margins = {{ arithmetic = 50.0, ordering = 50.0 }}
"""


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory, testbed: Backbone) -> Tracking:
    """shelves 1 (champion by an override) and 2, each fitted by a seed of its own, so that a gate really passes."""
    home = knowing_home(testbed, tmp_path_factory.mktemp("home"))
    tracking = store_at(home)
    began = time.time()
    toml = write_task(home / "task")
    for seed in (0, 1):
        recipe = recipe_of(testbed, toml, **{"method.seed": seed})
        adapters, examples = new_adapters(recipe, testbed), training_examples(recipe, task_named(recipe.domain))
        METHODS[recipe.method.name](recipe.method).fit(testbed, adapters, examples, task=task_named(recipe.domain))
        complete(home / f"fit-{seed}", recipe, testbed, Profile(adapters), 1.0, examples)
        publish(tracking, "shelves", home / f"fit-{seed}")
    promote(tracking, "shelves", 1)
    (home / "recipes").mkdir()
    (home / "recipes" / "small.toml").write_text(RECIPE.format(name="small"))
    print("made in", time.time() - began)
    return tracking


@pytest.fixture(scope="module")
def server(tracking: Tracking) -> Iterator[Live]:
    home = tracking.cache.parent
    with live(small(TESTBED, home, recipes=home / "recipes")) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    assert CHROMIUM, "the target finds Debian's chromium, or says how to install it"
    with sync_api.sync_playwright() as playwright:
        with playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"]) as browser:
            yield browser


@pytest.fixture
def page(browser: Browser, server: Live) -> Iterator[Page]:
    """Whatever else a test looks at: no error in the browser's console, no failed request, nobody else is asked."""
    page = browser.new_page(viewport={"width": 1180, "height": 860})
    page.set_default_timeout(20_000)
    wrong: list[str] = []
    page.on("console", lambda told: wrong.append(told.text) if told.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda asked: None if asked.url.startswith(server.url) else wrong.append(asked.url))
    page.on("requestfailed", lambda asked: wrong.append(f"{asked.url} {asked.failure}"))
    yield page
    page.close()
    assert not wrong


def picture(page: Page, name: str) -> None:
    PICTURES.mkdir(exist_ok=True)
    page.screenshot(path=PICTURES / f"console-{name}.png")


def test_models_answer_side_by_side_and_an_answer_is_looked_into(page: Page, server: Live) -> None:
    page.goto(server.url)
    page.get_by_label("Prompt").fill(QUESTION)
    page.get_by_role("button", name="Ask all").click()
    cards = page.locator("#compare-replies .card")
    cards.first.get_by_role("button", name="X-ray this answer").wait_for()
    page.wait_for_function("() => ![...document.querySelectorAll('#compare-replies [aria-busy=true]')].length")
    picture(page, "compare")
    cards.first.get_by_role("button", name="X-ray this answer").click()
    page.locator("#xray-chain li").nth(1).wait_for()
    picture(page, "xray")
    page.get_by_label("fill up with dots").check()
    page.wait_for_function("() => document.querySelector('#xray').getAttribute('aria-busy') === 'false'")
    picture(page, "filled")


def test_a_sweep_is_begun_and_watched(page: Page, server: Live) -> None:
    page.goto(f"{server.url}/console/#sweeps")
    page.get_by_role("button", name="Start sweep").click()
    page.get_by_text("succeeded").first.wait_for(timeout=240_000)
    picture(page, "sweep")


def test_promote_and_roll_back(page: Page, server: Live) -> None:
    page.goto(f"{server.url}/console/#releases")
    page.get_by_role("button", name="Promote shelves@2").click()
    picture(page, "ask")
    page.get_by_role("button", name="Run the gate").click()
    page.get_by_text("is the champion.").first.wait_for(timeout=240_000)
    page.get_by_text("Gate of shelves@2").click()
    picture(page, "releases")
