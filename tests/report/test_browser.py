"""The page in a real browser: phone and desk, light and dark, with and without JavaScript."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from evomerge.report.html import write_html
from tests.report.pages import full, small

PROGRAM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no chromium is installed")
PAGES = {
    "small": small(),
    "full": full(),
    "two tasks": full(("first", "second")),
    "wide": full(("a_task_with_a_long_name_of_one_word",), layers=80),
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=PROGRAM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("pages")
    for name, parts in PAGES.items():
        write_html(found / f"{name}.html", "the study", *parts)
    return found


def opened(browser: Any, file: Path, width: int = 360, **options: Any) -> tuple[Any, list[str]]:
    page = browser.new_page(viewport={"width": width, "height": 800}, **options)
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: problems.append(request.url))
    page.goto(file.as_uri())
    problems.remove(file.as_uri())
    return page, problems


@pytest.mark.parametrize(
    ("name", "width", "scheme"),
    [
        ("full", 360, "light"),
        ("full", 360, "dark"),
        ("full", 1200, "light"),
        ("two tasks", 1200, "dark"),
        ("wide", 360, "dark"),
        ("wide", 1200, "light"),
        ("small", 360, "light"),
    ],
)
def test_everybody_can_read_it(
    browser: Any, folder: Path, name: str, width: int, scheme: str
) -> None:
    checker = pytest.importorskip("axe_playwright_python.sync_playwright")
    page, problems = opened(browser, folder / f"{name}.html", width, color_scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    faults = checker.Axe().run(page).response["violations"]
    assert [(one["id"], one["nodes"][0]["html"]) for one in faults] == []
    assert problems == []
    page.close()


@pytest.mark.parametrize("javascript", [True, False])
def test_every_drawing_is_seen(browser: Any, folder: Path, javascript: bool) -> None:
    page, problems = opened(browser, folder / "full.html", java_script_enabled=javascript)
    drawings = page.locator(".plot > svg, .lanes svg")
    boxes = [one.bounding_box() for one in drawings.all()]
    assert len(boxes) == 6 + 9 + 12 + 2  # models, bars of tasks, holes, plots
    assert all(box["width"] >= 10 and box["height"] >= 8 for box in boxes)
    plots = page.locator(".plot > svg")
    assert plots.count() == 2
    assert page.locator(".heat td").first.is_visible()
    assert page.get_by_role("button").count() == (4 if javascript else 0)
    assert problems == []
    page.close()


def test_marks_stand_where_the_scale_says(browser: Any, folder: Path) -> None:
    page, _ = opened(browser, folder / "full.html", 900)
    track = page.locator("#heldout .lanes svg").first.bounding_box()
    mark = page.locator("#heldout .lanes circle").first.bounding_box()
    label = page.locator("#heldout .axis .x span", has_text="1.0").bounding_box()
    one = page.locator("#heldout .lanes .one").first.bounding_box()
    assert label["x"] + label["width"] / 2 == pytest.approx(one["x"] + one["width"] / 2, abs=1)
    shown = float(page.locator("#heldout .lanes circle").first.get_attribute("cx").rstrip("%"))
    middle = mark["x"] + mark["width"] / 2
    assert middle == pytest.approx(track["x"] + track["width"] * shown / 100, abs=1)
    page.close()


def test_the_button_copies_the_recipe(browser: Any, folder: Path) -> None:
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.goto((folder / "full.html").as_uri())
    block = page.locator(".code").nth(1)
    block.get_by_role("button").click()
    block.get_by_text("Copied").wait_for()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.strip() == PAGES["full"][1]["recipe"].strip()
    context.close()


def test_the_pointer_names_the_nearest_trial(browser: Any, folder: Path) -> None:
    page, problems = opened(browser, folder / "full.html")
    mark = page.locator("#search .dot.chosen").first
    mark.scroll_into_view_if_needed()
    box = mark.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tip = page.locator("#tip")
    assert tip.inner_text().startswith("trial 7: 0.5")
    assert tip.bounding_box()["x"] + tip.bounding_box()["width"] <= 360
    assert problems == []
    page.close()
