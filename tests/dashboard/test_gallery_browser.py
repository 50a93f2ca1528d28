"""The gallery in a real browser, opened from disk.

`SAE_LENS_MAIRA_CHROMIUM` names the browser; otherwise chromium, chromium-browser or google-chrome on the PATH is taken.
Without one these tests are skipped on a person's machine, and fail in CI: that a hostile report runs no script must not
go untested there.
"""

import os
import re
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright import sync_api as playwright

from sae_lens_maira.activations.live import LiveActivations
from sae_lens_maira.dashboard.data_files import put, read
from sae_lens_maira.dashboard.standard import pages
from sae_lens_maira.features.recording import record
from tests.dashboard.small_gallery import ALWAYS, ATTACK, DEAD, EMPTY_STUDY, HOOK, HOSTILE_STUDY


def find_browser() -> str | None:
    names = ["chromium", "chromium-browser", "google-chrome"]
    return os.environ.get("SAE_LENS_MAIRA_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


@pytest.fixture(scope="module")
def browser():
    path = find_browser()
    if path is None:
        absent = (
            "There is no Chromium: apt-get install chromium, or playwright install chromium and name it in "
            "SAE_LENS_MAIRA_CHROMIUM."
        )
        pytest.fail(absent) if os.environ.get("CI") else pytest.skip(absent)
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


@contextmanager
def opened(browser, address, **settings):
    """A page that must not complain, ask for anything that fails or lies elsewhere, or run a hostile script."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, **settings)
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: message.type in ("error", "warning") and complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("requestfailed", lambda request: complaints.append(f"failed: {request.url}"))
    page.on("request", lambda request: request.url.startswith("http") and complaints.append(request.url))
    page.on("dialog", lambda dialog: complaints.append(dialog.message))
    page.goto(address)
    yield page
    assert complaints == []
    assert page.evaluate("window.hacked") is None
    assert page.locator("img[src=x]").count() == 0
    context.close()


@pytest.fixture
def index(made):
    return (made.path / "index.html").as_uri()


def wait_until_loaded(image):
    """Not `wait_for_function`, which evaluates text again and again; the page's own policy forbids that."""
    playwright.expect(image).not_to_have_js_property("naturalWidth", 0)
    playwright.expect(image).to_have_js_property("complete", True)


def rows(page):
    return [int(text) for text in page.locator(".rows .cell.feature a").all_inner_texts()]


def test_search_sort_and_filter(made, browser, index):
    with opened(browser, index) as page:
        page.wait_for_selector(".rows .row")
        assert "96 of 96 features" in page.inner_text(".result")
        largest = read(made.path / "data" / "index.js")["largest"]
        assert rows(page)[0] == max(range(96), key=lambda feature: largest[feature])
        page.click("text=Density >> visible=true")
        page.click(".head [data-sort=density] button")
        assert page.get_attribute(".head [data-sort=density]", "aria-sort") == "descending"
        assert rows(page)[0] == ALWAYS
        page.click(".head [data-sort=density] button")
        assert rows(page)[0] == DEAD
        page.fill("#search", "tubes")
        assert rows(page) == [7]
        page.fill("#search", "no such thing")
        assert page.inner_text(".result") == "No feature matches."
        page.fill("#search", "")
        page.select_option("#filter-density", "always")
        assert ALWAYS in rows(page)
        assert DEAD not in rows(page)
        page.select_option("#filter-density", "dead")
        assert DEAD in rows(page)
        page.select_option("#filter-density", "")
        page.select_option("#filter-group", "0")
        assert "16 of 96" in page.inner_text(".result")
        page.select_option("#filter-having", "page")
        assert set(rows(page)) == {ALWAYS, DEAD, 5}


def test_the_keyboard_moves_through_the_table_and_opens_a_feature(browser, index):
    with opened(browser, index) as page:
        page.wait_for_selector(".rows .row")
        page.keyboard.press("/")
        assert page.evaluate("document.activeElement.id") == "search"
        page.focus(".body")
        for _ in range(30):
            page.keyboard.press("ArrowDown")
        chosen = page.get_attribute(".body", "aria-activedescendant")
        page.wait_for_selector(f"#{chosen}")  # only the rows in sight are in the page, and they follow
        box, body = page.locator(f"#{chosen}").bounding_box(), page.locator(".body").bounding_box()
        assert body["y"] <= box["y"] <= body["y"] + body["height"] - box["height"] + 1
        page.keyboard.press("Enter")
        page.wait_for_selector("h2")
        assert page.inner_text("h2").startswith(f"Feature {chosen.removeprefix('row-')}")
        page.keyboard.press("ArrowRight")
        playwright.expect(page.locator("h2").first).not_to_have_text(re.compile(f"^Feature {chosen[4:]}\\b"))


def test_a_feature_shows_its_images_and_leads_to_sae_dashboards_page(made, browser, index):
    with opened(browser, f"{index}#feature=5") as page:
        page.wait_for_selector(".example")
        assert page.inner_text(".meaning").startswith("Fluid <img src=x")
        image = page.locator(".example img").first
        image.scroll_into_view_if_needed()
        wait_until_loaded(image)
        strongest = page.locator(".example .token.strongest").first.get_attribute("title")
        assert float(strongest) == pytest.approx(read(made.path / "data" / "index.js")["largest"][5], rel=1e-3)
        page.locator(".example .picture").first.click()
        assert page.locator("#viewer").is_visible()
        page.keyboard.press("Escape")
        assert not page.locator("#viewer").is_visible()
        with page.context.expect_page() as new:
            page.click("a.standard")
        standard = new.value
        complaints: list[str] = []
        standard.on("console", lambda message: message.type == "error" and complaints.append(message.text))
        standard.reload()
        standard.wait_for_selector(".token")
        assert "DENSITY" in standard.inner_text("body")
        assert complaints == []
        page.click("text=Show here")
        frame = page.frame_locator("iframe")
        frame.locator(".token").first.wait_for()


@pytest.mark.parametrize("feature", [ALWAYS, DEAD, 5, 30])
def test_standard_pages_run_no_hostile_script(made, browser, feature):
    with opened(browser, (made.path / "pages" / f"feature_{feature}.html").as_uri()) as page:
        page.wait_for_selector(".token")
        page.wait_for_selector(".js-plotly-plot")
        hostile = page.locator(".seq .token", has_text="window.hacked")
        assert hostile.count() > 0 or feature in (ALWAYS, DEAD)
        for token in [*hostile.all()[:3], page.locator(".seq .token").nth(5)]:
            token.hover(force=True)
        assert page.locator("body").inner_text().count("\u2039") > 0


def test_the_attack_works_on_a_page_of_sae_dashboard_as_it_is(made, browser, tmp_path):
    """So that the tests above can fail: without our care the same tokens do run a script."""
    monkey = pytest.MonkeyPatch()
    monkey.setattr(pages, "inert", lambda text: text)
    monkey.setattr(pages, "secure_page", lambda page, title, banner: page)
    recording = record(LiveActivations(made.model, [HOOK], context_size=96), HOOK, tmp_path / "recording")
    subject = pages.Subject(made.sae, made.model, recording)
    (path,) = pages.write_pages(subject, [5], tmp_path / "pages", show_progress=False)
    monkey.undo()
    page = browser.new_page()
    vendor = made.path / "vendor"
    page.route("**/d3.v6.min.js", lambda route: route.fulfill(path=vendor / "d3.min.js"))
    page.route("**/plotly-latest.min.js", lambda route: route.fulfill(path=vendor / "plotly-basic.min.js"))
    page.goto(path.as_uri())
    page.wait_for_function("window.hacked === 'yes'", timeout=10_000)
    page.close()


def test_a_hostile_study_is_only_text(browser, index):
    with opened(browser, f"{index}#study={HOSTILE_STUDY}") as page:
        page.wait_for_selector("button.token")
        assert ATTACK in page.inner_text("h2")
        report = page.inner_text(".report")
        assert "<img src=x" in report
        assert "\\u003c" in report
        assert "&lt;b&gt;" in report
        page.locator("button.token").nth(20).hover()
        page.wait_for_selector(".panel.pointed .features li")
        page.keyboard.press("Tab")
        page.locator("button.token").first.focus()
        page.keyboard.press("ArrowRight")
        assert page.evaluate("document.activeElement.textContent") == page.locator("button.token").nth(1).text_content()
        page.click(".panel a.feature >> nth=0")
        page.wait_for_selector(".histogram, .empty")
        assert page.inner_text("h2").startswith("Feature")


def test_a_study_without_lateral_and_prior_says_so(browser, index):
    with opened(browser, f"{index}#study=1") as page:
        page.wait_for_selector("figure")
        assert page.locator("figcaption").all_inner_texts() == ["frontal", "no lateral", "no prior frontal"]


def test_an_empty_report_says_so(browser, index):
    with opened(browser, f"{index}#study={EMPTY_STUDY}") as page:
        page.wait_for_selector("button.token")
        findings = page.locator(".report section", has=page.locator("h4", has_text="findings"))
        assert findings.locator("p").all_inner_texts() == ["The report is empty."]
        assert findings.locator(".token").count() == 0
        wait_until_loaded(page.locator("figure img").first)


def test_lines_of_a_report_start_with_words(made, browser, index):
    """A token's own space stands before it, so that it is no blank button at the start of a line."""
    with opened(browser, f"{index}#study=0") as page:
        page.wait_for_selector("button.token")
        texts = page.locator("button.token").all_text_contents()
        assert all(text == text.lstrip() or not text.strip() for text in texts)
        study = read(made.path / "data" / "studies" / "0.js")
        shown = page.locator(".report section").last.locator("p").inner_text()
        first = study["kinds"].index(study["kinds"][-1])
        assert shown.split() == "".join(study["tokens"][first:]).split()


def test_dead_and_always_on_features_read_sensibly(browser, index):
    with opened(browser, f"{index}#feature={DEAD}") as page:
        page.wait_for_selector("h2")
        text = page.inner_text("main")
        assert "dead" in page.inner_text("h2")
        assert "never fires here" in text
        assert "It fires in none of the studies." in text
        assert "NaN" not in text
        assert "undefined" not in text
    with opened(browser, f"{index}#feature={ALWAYS}") as page:
        page.wait_for_selector(".example")
        assert "always on" in page.inner_text("h2")
        assert "100% (every token)" in page.inner_text("main")


def test_hierarchy_studies_and_addresses_that_lead_nowhere(made, browser, index):
    with opened(browser, f"{index}#hierarchy") as page:
        page.wait_for_selector("#group")
        parents = read(made.path / "data" / "hierarchy.js")
        groups = read(made.path / "data" / "index.js")["group"]
        for group in (0, 1):
            page.select_option("#group", str(group))
            own = [feature for feature, _ in parents if groups[feature] == group]
            assert page.locator(".tree > details").count() == len(own)
        page.goto(f"{index}#studies")
        page.wait_for_selector(".studies li")
        assert page.locator(".studies li").count() == 14
        page.goto(f"{index}#feature=96")
        page.wait_for_selector("text=There is no feature 96")
        page.goto(f"{index}#study=99")
        page.wait_for_selector("text=This study is not in the gallery.")


def test_a_feature_without_a_page_says_how_to_get_one(browser, index):
    with opened(browser, f"{index}#feature=6") as page:
        page.wait_for_selector("code:has-text('sae-lens-maira view')")
        assert page.locator("a.standard").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_a_phone(browser, index, scheme):
    for address in ("", "#feature=5", "#study=0", "#hierarchy", "#studies"):
        with opened(browser, index + address, color_scheme=scheme) as page:
            page.set_viewport_size({"width": 360, "height": 740})
            page.wait_for_selector("main > *")
            page.wait_for_timeout(200)
            assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_many_thousands_of_rows_stay_a_few_elements(made, browser, tmp_path):
    folder = Path(shutil.copytree(made.path, tmp_path / "gallery"))
    columns = read(folder / "data" / "index.js")
    n, many = columns["nFeatures"], 16_384
    for name, value in columns.items():
        if isinstance(value, list) and len(value) == n:
            columns[name] = [value[k % n] for k in range(many)]
    columns["nFeatures"] = many
    put(folder / "data" / "index.js", "index", columns)
    with opened(browser, (folder / "index.html").as_uri()) as page:
        page.wait_for_selector(".rows .row")
        assert "16,384 of 16,384" in page.inner_text(".result")
        for place in (0, 200_000, 650_000):
            page.evaluate("top => { document.querySelector('.body').scrollTop = top }", place)
            page.wait_for_timeout(100)
            assert 10 < page.locator(".rows .row").count() < 60
        page.focus(".body")
        page.keyboard.press("End")
        page.wait_for_timeout(100)
        assert page.get_attribute(".row[aria-selected=true]", "aria-rowindex") == "16385"


def test_a_banner_stands_on_every_view(made, browser, tmp_path):
    folder = Path(shutil.copytree(made.path, tmp_path / "gallery"))
    columns = read(folder / "data" / "index.js")
    put(folder / "data" / "index.js", "index", {**columns, "banner": "Private: 3 studies"})
    for address in ("", "#feature=5", "#study=0", "#hierarchy", "#studies"):
        with opened(browser, (folder / "index.html").as_uri() + address) as page:
            page.wait_for_selector("main > *")
            assert page.inner_text("#banner") == "Private: 3 studies"
