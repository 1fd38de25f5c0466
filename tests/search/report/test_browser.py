"""The page in a real browser: it asks for nothing, sorts, copies, fits, and can be read by all."""

import shutil

import pytest
from reporting import command, toy_run, toy_runs

from stepsearch.report.page import write_page
from stepsearch.report.sources import of_run

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
PROMPTS = ("a shoe", "a bag", "a photo of a person who wears a very long coat in the rain")
WIDTHS = (400, 1400)


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        own = shutil.which("chromium")
        try:  # no sandbox: in containers there is none, and the page is ours
            made = playwright.chromium.launch(executable_path=own, args=["--no-sandbox"])
        except sync_api.Error as error:
            pytest.skip(f"no browser: {str(error).splitlines()[0]}")
        yield made
        made.close()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    toy_run(folder / "run", prompts=PROMPTS)
    write_page(of_run(folder / "run"), folder / "report.html")
    return folder / "report.html"


@pytest.fixture(scope="module")
def front_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("front")
    assert command("front", *toy_runs(folder, PROMPTS), "-o", folder / "x.html").exit_code == 0
    return folder / "x.html"


@pytest.fixture
def opened(browser, page_file):
    """Opens the page; whatever goes wrong, or leaves it, is in `.said`."""
    contexts = []

    def open_page(width=1400, scheme="light", file=page_file):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.said = []
        page.on("console", lambda m: page.said.append(f"{m.type}: {m.text}"))
        page.on("pageerror", lambda error: page.said.append(str(error)))
        page.on("request", lambda r: page.said.append(r.url) if of_network(r.url) else None)
        page.goto(file.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()


def unfold(page):
    page.locator("details").evaluate_all("all => all.forEach(d => { d.open = true; })")


def of_network(url):
    return not url.startswith(("file:", "data:"))


@pytest.mark.parametrize("width", WIDTHS)
def test_it_fits_says_nothing_and_asks_for_nothing(opened, width):
    page = opened(width)
    unfold(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    pictures = page.locator("table.pictures img")
    assert all(pictures.evaluate_all("imgs => imgs.map(i => i.complete && i.naturalWidth > 0)"))
    assert pictures.count() == 9
    assert page.said == []


def test_on_a_phone_the_scores_are_seen_without_scrolling(opened):
    table = opened(360).locator("table.sortable")
    edges = table.evaluate(
        "t => [t.rows[0].cells[3], t.parentElement].map(e => e.getBoundingClientRect().right)"
    )
    assert table.locator("thead th").nth(3).inner_text().startswith("fd_toy4_400")
    assert edges[0] <= edges[1]


def test_the_policy_lets_no_request_out(opened):
    page = opened()
    page.evaluate("fetch('http://127.0.0.1:9/').catch(() => {})")
    assert any("Content Security Policy" in text for text in page.said)
    assert not any(text.startswith("http://") for text in page.said)


def column(page, place):
    cells = page.locator(f"table.sortable tbody tr > :nth-child({place})")
    return cells.evaluate_all("c => c.map(e => e.dataset.value ?? e.textContent.trim())")


def test_tables_sort_both_ways_by_mouse_and_keyboard(opened):
    page = opened()
    heads = page.locator("table.sortable thead button")
    before = [float(v) for v in column(page, 4)]
    heads.nth(3).click()
    assert [float(v) for v in column(page, 4)] == sorted(before)
    heads.nth(3).press("Enter")
    assert [float(v) for v in column(page, 4)] == sorted(before, reverse=True)
    heads.nth(4).click()  # the found one has no difference: it comes last, either way
    assert column(page, 5)[-1] == ""
    assert page.locator("th[aria-sort=ascending]").count() == 1
    heads.nth(0).click()
    names = column(page, 1)
    assert [name[0] for name in names] == sorted(name[0] for name in names)


def test_copying_gives_the_very_text(opened):
    page = opened()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    for name in ("as-markdown", "as-latex", "text-1"):
        page.locator(f"[data-copies={name}]").click()
        wanted = page.locator(f"#{name}").evaluate("e => e.textContent")
        assert len(wanted) > 50
        assert page.evaluate("navigator.clipboard.readText()") == wanted
    assert "Copied" in page.locator("[data-copies=text-1]").inner_text()


def pixel(page, selector):
    """Mean of what is seen of an element."""
    import io

    import numpy as np
    from PIL import Image

    shot = page.locator(selector).first.screenshot()
    return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB"), float)[8:-8, 8:-8].mean()


def test_pictures_show_their_difference_from_the_teacher_and_enlarge(opened):
    page = opened()
    cell = "tr[data-row='1'] .zoom"
    plain = pixel(page, cell)
    assert abs(plain - 127) < 12  # of noise
    page.locator("#difference").click()
    # of two independent ones the mean difference is a third of 255; it is shown 2.5 times as bright
    assert pixel(page, cell) > 150
    assert abs(pixel(page, "tr[data-row='2'] .zoom") - 127) < 12  # the teacher itself
    page.locator("#difference").click()
    assert pixel(page, cell) == pytest.approx(plain)
    page.locator(cell).first.press("Enter")
    dialog = page.locator("dialog")
    assert dialog.locator("img").count() == 3
    assert "a shoe" in page.locator("#large-title").inner_text()
    page.keyboard.press("ArrowRight")
    assert "a bag" in page.locator("#large-title").inner_text()
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    assert page.said == []


@pytest.mark.parametrize(("width", "scheme"), [(1400, "light"), (1400, "dark"), (400, "light")])
def test_axe_finds_no_serious_fault(opened, width, scheme):
    assert serious_faults(opened(width, scheme)) == []


@pytest.mark.parametrize(("width", "scheme"), [(1400, "dark"), (400, "light")])
def test_the_page_of_a_front_fits_and_has_no_serious_fault(opened, front_file, width, scheme):
    page = opened(width, scheme, front_file)
    assert serious_faults(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("#front svg").count() == 1
    assert page.locator("table.pictures img").count() == 9  # two runs and a teacher
    page.locator("table.sortable thead button").nth(3).click()
    values = [float(v) for v in column(page, 4)]
    assert values == sorted(values)


def serious_faults(page):
    """What axe-core finds of them, everything unfolded."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not there")
    unfold(page)
    # the page's own policy lets no other script in: through the debugger, which stands above it
    found = axe.Axe().run(page).response["violations"]
    return [
        f"{v['id']}: {v['nodes'][0]['html'][:200]}"
        for v in found
        if v["impact"] in ("serious", "critical")
    ]


def test_on_paper_nothing_is_cut_off(opened):
    page = opened()
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 718, "height": 1000})  # A4 less its margins
    assert page.evaluate("document.documentElement.scrollWidth") <= 718
    assert not page.locator("nav").is_visible()
    assert page.pdf(format="A4").startswith(b"%PDF")
