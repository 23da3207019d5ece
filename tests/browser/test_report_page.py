"""The report in a browser: headless Chromium, by Playwright."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from ..made_report import HOSTILE, MadeReport

NAMES = ("chromium", "chromium-browser", "google-chrome", "chromium-headless-shell")
MAC = Path("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome")

# Three classes of four videos. At 4 frames TSM is right on 3, 2 and 0 of the four, FFN on 4, 2 and 3.
LABELS = [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
REPORT = MadeReport(
    labels=LABELS,
    predicted={
        ("tsm", 4): [[0, 0, 0, 1, 1, 1, 0, 0, 1, 1, 0, 0]],
        ("tsm", 16): [LABELS],
        ("ffn", 4): [[0, 0, 0, 0, 1, 1, 0, 0, 2, 2, 2, 0]],
        ("ffn", 16): [LABELS],
    },
    classes=["Pushing [something] so that it falls off the table", HOSTILE, "Folding"],
    epochs=20,
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = next(filter(None, map(shutil.which, NAMES)), None) or (str(MAC) if MAC.exists() else None)
    if program is None:
        if os.environ.get("CI") or os.environ.get("FFNREPRO_REQUIRE_CHROMIUM"):
            pytest.fail("there is no Chromium: apt-get install chromium")
        pytest.skip("there is no Chromium (apt-get install chromium)")
    with sync_playwright() as playwright:
        # Chromium's sandbox does not work for root, nor in many containers.
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (folder / "report.html").write_text(REPORT.page(), encoding="utf-8")
    return (folder / "report.html").as_uri()


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """The page with all its charts; at the end of each test, it has written no warning and asked for nothing else."""
    page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="light")
    problems: list[str] = []
    page.on("console", lambda message: problems.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("dialog", lambda dialog: problems.append(f"dialog: {dialog.message}"))
    page.on("request", lambda request: problems.append(request.url) if request.url != address else None)
    page.goto(address)
    page.wait_for_selector("html[data-ready]")
    yield page
    page.close()
    assert problems == []


def column(page: Page, heading: str, head: str) -> list[str]:
    """Click on a column's head; the texts of the column."""
    table = page.locator("table", has_text=heading).first
    table.get_by_role("button", name=head, exact=True).click()
    number = [text.strip() for text in table.locator("thead th").all_inner_texts()].index(head)
    return [row.locator("th, td").nth(number).inner_text() for row in table.locator("tbody tr").all()]


def test_every_chart_is_drawn(page: Page) -> None:
    plots = page.locator(".plot")
    # Two of accuracy, three of each of two trainings, one of the classes, two of the data.
    assert plots.count() == 11
    assert page.locator(".plot svg").count() == 11
    assert "NaN" not in page.locator("main").inner_html()
    assert "undefined" not in page.locator("main").inner_text()


def test_tables_sort_by_number_and_by_text(page: Page) -> None:
    assert column(page, "gain at 4 frames", "TSM, 4 frames") == ["75.0", "50.0", "0.0"]
    assert column(page, "gain at 4 frames", "TSM, 4 frames") == ["0.0", "50.0", "75.0"]
    assert column(page, "gain at 4 frames", "gain at 4 frames") == ["+75.0", "+25.0", "0.0"]
    assert [name[:7] for name in column(page, "gain at 4 frames", "class")] == [
        HOSTILE[:7],
        "Folding",
        "Pushing",
    ]


def test_hovering_shows_the_values_and_no_name_becomes_html(page: Page) -> None:
    tip = page.locator("#vg-tooltip-element")
    loss = page.locator("figure", has_text="Loss by term").nth(1).locator("svg")
    loss.hover()
    # The loss of epoch n is 1.2345678 / n.
    lines = tip.inner_text().split()
    assert lines[0] == "epoch"
    assert float(lines[lines.index("sum") + 1]) == pytest.approx(1.2345678 / int(lines[1]), rel=1e-3)
    # The second class: both networks are right on half of its videos.
    page.locator("#classes svg path[aria-label*=onerror]").hover()
    assert HOSTILE in tip.inner_text()
    assert page.locator("img[src=x]").count() == 0


def test_a_dark_screen_gets_a_dark_page_and_other_colours_in_the_charts(page: Page) -> None:
    def colours() -> tuple[str, str]:
        style = "element => getComputedStyle(element)"
        line = page.locator("#tables svg path[stroke='var(--c1)']").first
        background = page.locator("body").evaluate(
            f"{style.removesuffix('(element)')}(element).backgroundColor"
        )
        return background, line.evaluate(f"{style}.stroke")

    light = colours()
    page.emulate_media(color_scheme="dark")
    dark = colours()
    assert light[0] == "rgb(246, 247, 249)"
    assert dark[0] == "rgb(17, 21, 27)"
    assert light[1] != dark[1]
    # Paper is white, whatever the screen is.
    page.emulate_media(color_scheme="dark", media="print")
    assert colours()[1] == light[1]


@pytest.mark.parametrize("width", [360, 390, 768])
def test_a_narrow_page_is_as_wide_as_the_screen(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    page.wait_for_function(
        "[...document.querySelectorAll('.plot')].every(plot => plot.scrollWidth <= plot.clientWidth)"
    )
    assert page.evaluate("document.documentElement.scrollWidth") == width
    # Wide tables scroll inside themselves.
    wide = page.locator("#provenance .scroll").first
    assert wide.evaluate("element => element.scrollWidth > element.clientWidth")
