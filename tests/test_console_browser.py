"""The console in a real browser: Debian's chromium, driven by Playwright (`make test-browser`).

Whatever else a test looks at: the browser's console stays empty, no request fails unmeant, and no other host is asked.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from live_service import Live, live, small
from shelves import recipe_of, write_task
from small_releases import promote, random_lora, write_release
from small_studies import knowing_home
from stores import store_at

from adapters.backbone import TESTBED, Backbone
from benchmarks.console_pictures import IMAGES, save
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
    from playwright.sync_api import Browser, Page, Route

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright drives the browser: run `make test-browser`")
pytestmark = [pytest.mark.slow, pytest.mark.browser]

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
QUESTION = "Element: K B T. Apply rot 3, then mirror, then shift. What comes out?"
OTHER = "Start from D W H. In turn do reverse; rot 5; mirror. What is left?"
HOSTILE = "<img src=x onerror=window.hurt=1><script>window.hurt=1</script>"
RECIPE = """name = "parcels"
domain = "DOMAIN"
protected = ["arithmetic", "ordering"]
search = ["method.learning_rate"]
[[start]]
"method.learning_rate" = 1e-3
[adapter.lora]
rank = 8
alpha = 512
[method]
steps = 120
batch_size = 16
[ranges]
"method.learning_rate" = [2e-4, 1e-3]
[study]
trials = 4
scales = [1.0]
[study.stop]
checkpoints = []
[evaluation]
domain_items = 40
chain_items = 4
generated_items = 1
margins = { arithmetic = 1.0, ordering = 1.0 }
"""


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory, testbed: Backbone) -> Tracking:
    """shelves 1 (champion by an override) and 2, which a real gate passes."""
    home = knowing_home(testbed, tmp_path_factory.mktemp("home"))
    tracking = store_at(home)
    toml = write_task(home / "task", count=480)  # enough for the gate to be sure
    for seed in (0, 1):
        recipe = recipe_of(testbed, toml, **{"method.seed": seed, "gate.max_rounds": 8})
        domain, adapters = task_named(recipe.domain), new_adapters(recipe, testbed)
        examples = training_examples(recipe, domain)
        METHODS[recipe.method.name](recipe.method).fit(testbed, adapters, examples, task=domain)
        complete(home / f"fit-{seed}", recipe, testbed, Profile(adapters), 1.0, examples)
        publish(tracking, "shelves", home / f"fit-{seed}")
    promote(tracking, "shelves", 1)
    (home / "recipes").mkdir()
    (home / "recipes" / "parcels.toml").write_text(RECIPE.replace("DOMAIN", str(toml)))
    return tracking


@pytest.fixture(scope="module")
def server(tracking: Tracking) -> Iterator[Live]:
    home = tracking.cache.parent
    with live(small(TESTBED, home, recipes=home / "recipes")) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("chromium is not here: `apt-get install chromium`, as root")
    with sync_api.sync_playwright() as playwright:
        with playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"]) as browser:
            yield browser


@pytest.fixture
def wrong() -> list[str]:
    """What went wrong in the page. A test takes out what it meant to happen."""
    return []


@pytest.fixture(params=[{}], ids=[""])
def page(request: pytest.FixtureRequest, browser: Browser, wrong: list[str]) -> Iterator[Page]:
    context = browser.new_context(**{"viewport": {"width": 1180, "height": 860}, "locale": "en-GB", **request.param})
    page = context.new_page()
    page.set_default_timeout(10_000)
    page.on("console", lambda told: wrong.append(told.text) if told.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda asked: None if asked.url.startswith("http://127.0.0.1:") else wrong.append(asked.url))
    # What the page itself ends, since something else was asked for, is no failure.
    page.on(
        "requestfailed", lambda asked: None if "ABORTED" in str(asked.failure) else wrong.append(f"{asked.url} {asked.failure}")
    )
    yield page
    assert page.evaluate("window.hurt") is None
    context.close()
    assert not wrong


def settled(page: Page) -> None:
    page.wait_for_function("() => !document.querySelector('section:not([hidden]) [aria-busy=true], section[aria-busy=true]')")


def shoot(page: Page, flow: str) -> None:
    """For docs/console.md."""
    save(page.screenshot(full_page=True), IMAGES / f"browser-{flow}.png")


def ask_all(page: Page, server: Live) -> None:
    page.goto(server.url)
    page.get_by_label("Prompt").fill(QUESTION)
    page.get_by_label("Also").fill("shelves@2")
    page.get_by_role("button", name="Ask all").click()


def test_models_stream_side_by_side(page: Page, server: Live) -> None:
    ask_all(page, server)
    cards = page.locator("#compare-replies article")
    page.wait_for_function("() => [...document.querySelectorAll('#compare-replies .reply[aria-busy=true]')].length > 1")
    settled(page)
    assert cards.count() == 3
    first = cards.filter(has_text=Path(TESTBED).name).first
    assert "Answer:" in first.locator(".reply").last.inner_text() and "tokens" in first.locator(".facts").inner_text()
    assert "shelves@1" in cards.all_inner_texts()[1] + cards.all_inner_texts()[2]
    shoot(page, "compare")
    page.locator("#announcements", has_text="has answered.").wait_for(state="attached")


def test_an_answer_is_taken_apart(page: Page, server: Live) -> None:
    ask_all(page, server)
    settled(page)
    page.locator("#compare-replies article").first.get_by_role("button", name="X-ray this answer").click()
    steps = page.locator("#xray-chain li:not(.head)")
    steps.nth(3).wait_for()
    settled(page)
    assert steps.count() == 4 and "nats" in page.locator("#xray-summary").inner_text()
    assert "another answer" in steps.nth(0).inner_text() and "same answer" in steps.nth(3).inner_text()
    gains = [
        float(text.split()[-1].replace("\u2212", "-"))
        for text in page.locator("#xray-chain li:not(.head) .gain").all_inner_texts()
    ]
    assert len(gains) == 3 and sum(gains) > 1
    shoot(page, "xray")
    page.get_by_label("fill up with dots").check()
    settled(page)
    assert "the whole chain" in steps.nth(3).inner_text() and "another answer" in steps.nth(0).inner_text()
    page.get_by_label("go on as another chain").check()
    page.get_by_text("The other chain", exact=True).click()
    page.get_by_label("Another question").fill(OTHER)
    page.get_by_label("Another question").press("Tab")
    settled(page)
    assert "Answer:" in page.get_by_label("Its reply").input_value()


def test_an_xray_that_is_under_way_says_so_and_is_stopped(page: Page, server: Live) -> None:
    held: list[Route] = []
    page.route("**/v1/xray", lambda route: held.append(route))
    page.goto(f"{server.url}/console/#xray")
    page.get_by_label("Question", exact=True).fill(QUESTION)
    page.get_by_role("button", name="Take X-ray").click()
    stage = page.locator("#xray-stage")
    stage.filter(has_text="answers\u2026").wait_for()  # there was no reply: the reader writes one first
    stage.filter(has_text=re.compile(r"reads the chain.* [1-9]\d* s")).wait_for()
    assert "Answer:" in page.get_by_label("Reply").first.input_value() and len(held) == 1
    page.get_by_role("button", name="Stop").last.click()
    settled(page)
    assert not stage.is_visible() and page.locator("#xray-problem").inner_text() == ""
    assert page.locator("#xray-result").is_hidden()
    page.unroute("**/v1/xray")
    page.get_by_role("button", name="Take X-ray").click()
    page.locator("#xray-chain li:not(.head)").nth(3).wait_for()
    settled(page)
    page.route("**/v1/xray", lambda route: held.append(route))
    page.get_by_label("fill up with dots").check()
    stage.filter(has_text="behind every broken chain").wait_for()
    page.get_by_role("button", name="Stop").last.click()
    settled(page)
    assert page.get_by_label("cut it there").is_checked(), "the break that is shown"


def test_a_sweep_is_begun_watched_and_its_candidate_listed(page: Page, server: Live) -> None:
    page.goto(f"{server.url}/console/#sweeps")
    page.get_by_label("Release name").fill("watched")
    page.get_by_role("button", name="Start sweep").click()
    page.locator("#sweep-state", has_text="running").wait_for()
    page.locator("#sweep-state", has_text=re.compile("succeeded|failed")).wait_for(timeout=600_000)
    assert page.locator("#sweep-chart circle").count() == 4
    assert "watched@1" in page.locator("#sweep-state").inner_text()
    shoot(page, "sweep")
    page.get_by_role("link", name="Look at it among the releases").click()
    page.get_by_role("button", name="Promote watched@1…").wait_for()


def test_a_release_is_promoted_through_its_gate_and_rolled_back(page: Page, server: Live, tracking: Tracking) -> None:
    page.goto(f"{server.url}/console/#releases")
    page.get_by_role("button", name="Promote shelves@2…").click()
    page.get_by_role("button", name="Run the gate").click()
    page.locator("#releases-problem p").wait_for(timeout=900_000)
    assert "shelves@2 is the champion." in page.locator("#releases-problem").inner_text()
    assert Ledger(tracking, "shelves").champion_version() == 2
    page.get_by_text("Gate of shelves@2").click()
    page.get_by_role("cell", name="pass").first.wait_for()
    shoot(page, "promoted")
    page.get_by_role("button", name="Roll back…").first.click()
    page.get_by_role("button", name="Roll back", exact=True).click()
    assert page.locator("#act-dialog").is_visible(), "a rollback takes a reason"
    page.get_by_label("Reason").fill("a test")
    page.get_by_role("button", name="Roll back", exact=True).click()
    page.get_by_text("shelves@1 is the champion again.").first.wait_for()
    assert Ledger(tracking, "shelves").champion_version() == 1


def test_a_page_that_saw_another_champion_changes_nothing(page: Page, server: Live, tracking: Tracking, wrong: list[str]) -> None:
    page.goto(f"{server.url}/console/#releases")
    page.get_by_role("button", name="Promote shelves@2…").wait_for()
    promote(tracking, "shelves", 2)
    promote(tracking, "shelves", 1)
    before = Ledger(tracking, "shelves").head()
    page.get_by_role("button", name="Promote shelves@2…").click()
    page.get_by_role("button", name="Run the gate").click()
    page.get_by_role("alert").filter(has_text="builds on the champion that it saw").wait_for()
    assert Ledger(tracking, "shelves").head() == before
    assert all("409" in told for told in wrong) and wrong
    wrong.clear()


def test_what_a_key_may_not_do_is_said(page: Page, tracking: Tracking, tmp_path: Path, wrong: list[str]) -> None:
    store_at(tmp_path)
    secret = KeyStore(tmp_path).create("reader", ("complete",), Quota()).secret
    with live(small(TESTBED, tmp_path)) as closed:
        page.goto(closed.url)
        page.get_by_role("alert").filter(has_text="asks for a key").wait_for()
        page.get_by_role("button", name="Give a key").click()
        page.get_by_label("Key", exact=True).fill(secret)
        page.get_by_role("button", name="Use it").click()
        page.get_by_role("checkbox", name=Path(TESTBED).name).wait_for()
        for part, scope in (("Sweeps", "tune"), ("Releases", "promote")):
            page.get_by_role("link", name=part, exact=True).click()
            page.get_by_role("alert").filter(has_text=f"scope '{scope}'").wait_for()
        assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
        assert page.context.new_page().goto(closed.url)  # another tab has no key
        other = page.context.pages[-1]
        other.get_by_role("alert").filter(has_text="asks for a key").wait_for()
    assert all("401" in told or "403" in told for told in wrong) and wrong
    wrong.clear()


def test_what_a_model_writes_and_what_a_name_says_is_text(
    page: Page, server: Live, tracking: Tracking, testbed: Backbone, tmp_path: Path
) -> None:
    def says(route: Route) -> None:
        choice = {"index": 0, "delta": {"content": f"{HOSTILE}\nAnswer: {HOSTILE}"}, "finish_reason": "stop"}
        event = {"object": "chat.completion.chunk", "model": HOSTILE, "choices": [choice], "usage": None}
        route.fulfill(content_type="text/event-stream", body=f"data: {json.dumps(event)}\n\ndata: [DONE]\n\n")

    name = HOSTILE.replace("/", "")
    write_release(tmp_path / "files", testbed, random_lora(testbed, 1))
    publish(tracking, name, tmp_path / "files")
    page.route("**/v1/chat/completions", says)
    page.goto(server.url)
    page.get_by_role("checkbox", name=Path(TESTBED).name).wait_for()
    page.get_by_role("button", name="Ask all").click()
    settled(page)
    assert HOSTILE in page.locator("#compare-replies .reply").last.inner_text()
    page.get_by_role("link", name="Releases", exact=True).click()
    page.locator("#releases-names h2").first.wait_for()
    assert name in page.locator("#releases-names h2").all_inner_texts()
    page.get_by_role("link", name="X-ray", exact=True).click()
    page.get_by_label("Reply").first.fill(f"{HOSTILE}\nAnswer: {HOSTILE}")
    page.get_by_role("button", name="Take X-ray").click()
    page.locator("#xray-chain li:not(.head)").nth(1).wait_for()
    assert HOSTILE in page.locator("#xray-chain").inner_text()
    assert page.locator("main img, main script").count() == 0


def test_a_long_reply_is_stopped_and_its_row_freed(page: Page, server: Live) -> None:
    page.goto(server.url)
    page.get_by_label("Tokens at most").fill("100000")
    page.get_by_label("Temperature").fill("2")
    page.get_by_role("button", name="Ask all").click()
    page.get_by_role("button", name="Stop").click()
    settled(page)
    page.wait_for_timeout(500)
    assert server.parts.admission.seated == 0


@pytest.mark.parametrize("page", [{"viewport": {"width": 360, "height": 740}, "has_touch": True}], indirect=True, ids=["phone"])
def test_nothing_is_wider_than_a_phone(page: Page, server: Live) -> None:
    ask_all(page, server)
    settled(page)
    page.locator("#compare-replies article").first.get_by_role("button", name="X-ray this answer").click()
    page.locator("#xray-chain li:not(.head)").nth(1).wait_for()
    settled(page)
    shoot(page, "phone")
    for part in ("compare", "xray", "sweeps", "releases"):
        page.goto(f"{server.url}/console/#{part}")
        page.wait_for_load_state("networkidle")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, part


def test_it_works_by_keyboard_alone(page: Page, server: Live) -> None:
    def tab_to(name: str) -> None:
        for _ in range(60):
            page.keyboard.press("Tab")
            focused = page.evaluate("(document.activeElement.innerText || document.activeElement.id).trim()")
            if focused == name:
                return
        raise AssertionError(f"{name} is not reached")

    page.goto(server.url)
    page.get_by_role("checkbox", name=Path(TESTBED).name).wait_for()
    tab_to("Skip to the content")
    tab_to("compare-prompt")
    page.keyboard.press("Control+a")
    page.keyboard.type(QUESTION)
    page.keyboard.press("Control+Enter")
    page.locator("#compare-replies article").first.wait_for()
    settled(page)
    tab_to("X-ray this answer")
    page.keyboard.press("Enter")
    page.locator("#xray-chain li:not(.head)").nth(1).wait_for()
    settled(page)
    assert page.evaluate("document.activeElement.id") == "main"
    page.keyboard.press("Shift+Tab")
    tab_to("xray-question")
    page.goto(f"{server.url}/console/#releases")
    page.get_by_role("button", name="Promote shelves@2…").wait_for()
    tab_to("Promote shelves@2…")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "act-reason"
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.innerText") == "Promote shelves@2…"


CONTRAST = """() => {
  const rgb = (text) => { const c = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
    c.fillStyle = text; c.fillRect(0, 0, 1, 1); return [...c.getImageData(0, 0, 1, 1).data]; };
  const light = ([r, g, b]) => { const [x, y, z] = [r, g, b].map((v) => (v / 255 <= .03928 ? v / 255 / 12.92
    : ((v / 255 + .055) / 1.055) ** 2.4)); return .2126 * x + .7152 * y + .0722 * z; };
  const below = (e) => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor);
    if (c[3] > 250) return c; } return [255, 255, 255]; };
  const poor = [];
  for (const e of document.querySelectorAll('body *')) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.checkVisibility() || e.closest('svg, .hidden, .skip, :disabled')) continue;
    const [a, b] = [light(rgb(getComputedStyle(e).color)), light(below(e))].sort((x, y) => y - x);
    if ((a + .05) / (b + .05) < 4.5) poor.push(`${e.tagName}.${e.className} ${e.textContent.slice(0, 30)}`);
  }
  return poor;
}"""


@pytest.mark.parametrize("page", [{"color_scheme": "light"}, {"color_scheme": "dark"}], indirect=True, ids=["light", "dark"])
def test_texts_stand_out_from_what_is_behind_them(page: Page, server: Live) -> None:
    """WCAG's AA: 4.5 to 1."""
    ask_all(page, server)
    settled(page)
    assert page.evaluate(CONTRAST) == []
    page.locator("#compare-replies article").first.get_by_role("button", name="X-ray this answer").click()
    page.locator("#xray-chain li:not(.head)").nth(1).wait_for()
    settled(page)
    assert page.evaluate(CONTRAST) == []
    for part in ("Sweeps", "Releases"):
        page.get_by_role("link", name=part, exact=True).click()
        page.wait_for_load_state("networkidle")
        assert page.evaluate(CONTRAST) == [], part


def test_the_browser_refuses_other_hosts_and_markup_out_of_texts(page: Page, server: Live, wrong: list[str]) -> None:
    """The control for all of the above: what the policy forbids is not done, and is seen by what looks at the page."""
    page.goto(server.url)
    page.get_by_role("checkbox", name=Path(TESTBED).name).wait_for()
    assert page.evaluate("fetch('http://127.0.0.2:9/').then(() => 'asked', () => 'refused')") == "refused"
    assert len(wrong) >= 1 and "Content Security Policy" in wrong[0]
    wrong.clear()
    tried = f"(() => {{ try {{ document.body.innerHTML = {HOSTILE!r}; return 'set'; }} catch {{ return 'refused'; }} }})()"
    assert page.evaluate(tried) == "refused"
    assert any("Trusted" in told or "TrustedHTML" in told for told in wrong)
    wrong.clear()
