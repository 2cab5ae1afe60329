import dataclasses
import shutil

import numpy as np
import pytest

from jaxcxr.evaluation.comparison import Row
from jaxcxr.evaluation.metrics import BETTER
from jaxcxr.evaluation.page import Classified, Page, render
from jaxcxr.evaluation.pictures import Picture
from jaxcxr.phantoms.prompts import EFFUSIONS, asked_effusion
from jaxcxr.phantoms.truth import CLASSES
from tests.evaluation.test_page import reported
from tests.phantoms.classifiers import untrained

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(not BROWSER, reason="there is no Chromium here")

SETS = ("ours", "another_model_with_quite_a_long_name_of_its_folder-2026-03-14", "baseline")
SIZES = {"phone": (360, 740), "desk": (1440, 900)}
EXTRACTORS = ("efficientnet-lite0", "densenet121-res224-all/antialiased")


def _row(of, metric, extractor, group, draw):
    value, floor = draw.uniform(0.2, 0.9), draw.uniform(0.6, 0.95)
    interval = (value - 0.05, value + 0.06, floor, floor - 0.03, floor + 0.02)
    return Row(of, metric, extractor, group, value, *interval, int(draw.integers(20, 2000)))


def _rows():
    draw = np.random.default_rng(0)
    groups = ("", "label=effusion", "label=no finding", "label=pleural thickening", "view=AP", "view=PA")
    metrics = ("fd", "precision", "recall", "density", "coverage", "authenticity", "vendi")
    assert set(metrics) <= set(BETTER)
    rows = [
        _row(of, metric, extractor, group, draw)
        for group in groups
        for extractor in EXTRACTORS
        for of in SETS
        for metric in metrics
    ]
    for of in SETS:
        rows += [_row(of, "sensitivity", "phantom-classifier/first", f"finding={name}", draw) for name in CLASSES]
        rows.append(_row(of, "shows_what_was_asked", "phantom-classifier/first", "", draw))
        alike = dataclasses.replace(_row(of, "ssim_within", "", "", draw), floor=None, floor_low=None, floor_high=None)
        rows.append(alike)
    distances = [number for number, row in enumerate(rows) if row.metric == "fd" and not row.group]
    for number, value in zip(distances, (9.75, 1234.5, None), strict=False):
        ends = (value, value and 0.9 * value, value and 1.1 * value)
        rows[number] = dataclasses.replace(rows[number], **dict(zip(("value", "low", "high"), ends, strict=True)))
    return rows


def _picture(number, text, effusion):
    pixels = np.random.default_rng(number).integers(0, 255, (64, 64), np.uint8)
    return Picture(pixels, text, asked_effusion(effusion))


def full_page(text="Asked: {} effusion, seen at the left base; heart and mediastinum are as they should be."):
    """A page that has every part, of three sets."""
    asked = [side for side in EFFUSIONS for _ in range(2)]
    sets = {
        name: [_picture(100 * place + number, text.format(side), side) for number, side in enumerate(asked)]
        for place, name in enumerate(SETS)
    }
    real = [_picture(1000 + number, text.format("small left"), side) for number, side in enumerate(EFFUSIONS)]
    saw = Classified(untrained(), 64, reported(sets["ours"], ["left", *asked[1:]]), reported(real, EFFUSIONS))
    return Page(
        title="Three models of chest radiographs",
        generated=sets,
        real=real,
        real_name="real images",
        rows=_rows(),
        left_out=[f"{name}: fd_infinity of label=effusion needs 40 images of each set; there are 12" for name in SETS],
        counts={"ours": {"images": 8, "unreadable": 2, "equal to a real image": 1}, "baseline": {"images": 8}},
        classified={"ours": saw, SETS[1]: saw},
        runs=[],
        settings={"Config": "{" + '"a_long_key": "a value", ' * 40 + "}"},
        neighbours=[(sets["ours"][number], real[number], 0.5 - number / 10) for number in range(4)],
    )


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    file = tmp_path_factory.mktemp("page") / "index.html"
    file.write_text(render(full_page()), "utf-8")
    return file


@pytest.fixture
def opened(browser, place):
    """Opens the page; what goes wrong in it fails the test."""
    contexts, wrong = [], []

    def opened(size="desk", file=place, **how):
        width, height = SIZES[size]
        contexts.append(browser.new_context(viewport={"width": width, "height": height}, **how))
        page = contexts[-1].new_page()
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("requestfailed", lambda request: wrong.append(request.url[:80]))
        page.on("request", lambda request: request.url.startswith(("file:", "data:")) or wrong.append(request.url))
        page.goto(file.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not wrong


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_the_page_fits_a_phone_and_a_desk_in_light_and_dark(opened, size, scheme):
    page = opened(size, color_scheme=scheme)
    for details in page.locator("details").all():
        details.evaluate("each => each.open = true")
    width = SIZES[size][0]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    wide = "each => [...each.querySelectorAll('*')].filter(one => one.getBoundingClientRect().right > innerWidth + 1"
    wide += " && !one.closest('.scroll, pre, svg')).map(one => one.outerHTML.slice(0, 80))"
    assert page.locator("body").evaluate(wide) == []
    pictures = page.locator("img")
    assert pictures.count() == 4 * 3 + 4 + 8
    assert pictures.evaluate_all("all => all.every(one => one.complete && one.naturalWidth === 64)")
    paper, ink = (page.evaluate(f"getComputedStyle(document.body).{name}") for name in ("backgroundColor", "color"))
    assert (_lightness(paper) > _lightness(ink)) == (scheme == "light")
    assert abs(_lightness(paper) - _lightness(ink)) > 150


def _lightness(colour):
    return sum(map(int, colour.removeprefix("rgb(").removesuffix(")").split(","))) / 3


def _column(table, head):
    names = [name.strip() for name in table.locator("thead th, thead td").all_inner_texts()]
    return names.index(head)


def _values(table, head):
    """The numbers of a column in the order of the rows, None where there are none."""
    column = _column(table, head)
    read = "(rows, column) => rows.map(row => row.cells[column].dataset.value)"
    return [float(value) if value else None for value in table.locator("tbody tr").evaluate_all(read, column)]


def test_tables_are_sorted_with_the_keyboard(opened):
    page = opened()
    table = page.get_by_role("region", name="Numbers of all images").locator("table")
    expected = [row.value for row in _rows() if not row.group]
    assert _values(table, "value")[:3] == [9.75, 1234.5, None], "the sets stand one below the other"
    page.get_by_role("searchbox", name="Filter: Numbers of all images").focus()
    head = table.get_by_role("columnheader", name="value")
    for _ in range(10):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent") == "value":
            break
    assert head.locator("button").evaluate("one => one === document.activeElement")
    assert head.locator("button").evaluate("one => getComputedStyle(one).outlineStyle") == "solid", "focus is seen"
    known = sorted(value for value in expected if value is not None)
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert _values(table, "value") == [*known, None], "9.75 before 1234.5, and what is missing last"
    page.keyboard.press("Space")
    assert head.get_attribute("aria-sort") == "descending"
    assert _values(table, "value") == [*reversed(known), None]
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    assert [one.get_attribute("aria-sort") for one in table.locator("th[aria-sort]").all()] == ["ascending"]
    assert head.get_attribute("aria-sort") is None
    metrics = [text.split()[0] for text in table.locator("td.metric").all_inner_texts()]
    assert metrics == sorted(metrics)
    assert metrics[0] == "authenticity"


def test_typing_leaves_the_rows_that_have_every_word(opened):
    page = opened("phone")
    table = page.get_by_role("region", name="Numbers of all images").locator("table")
    rows = [row for row in _rows() if not row.group]
    assert table.locator("tbody tr:visible").count() == len(rows)
    page.get_by_role("searchbox", name="Filter: Numbers of all images").focus()
    page.keyboard.type("Lite0  BASE")
    left = table.locator("tbody tr:visible").all_inner_texts()
    assert len(left) == sum(row.set == "baseline" and "lite0" in row.extractor for row in rows) == 7
    assert all("baseline" in text and "lite0" in text for text in left)
    assert page.get_by_text(f"7 of {len(rows)} rows").is_visible()
    page.keyboard.press("Escape")
    assert table.locator("tbody tr:visible").count() == len(rows)


def test_without_scripts_the_page_is_there_and_has_no_controls_that_do_nothing(opened):
    page = opened(java_script_enabled=False)
    assert page.get_by_role("heading", name="Numbers", exact=True).is_visible()
    assert page.locator("button, input").count() == 0
    assert page.get_by_text("another_model").first.is_visible()


def test_no_other_script_can_run(opened, tmp_path):
    nasty = "<img src=x onerror=document.title='ran'><script>document.title='ran'</script>"
    page = dataclasses.replace(full_page(nasty), title=nasty, left_out=[nasty], settings={nasty: nasty})
    rows = [dataclasses.replace(row, extractor=nasty, group=row.group and f"label={nasty}") for row in page.rows]
    (tmp_path / "index.html").write_text(render(dataclasses.replace(page, rows=rows)), "utf-8")
    assert opened(file=tmp_path / "index.html").title() == nasty


def test_a_page_without_texts_shows_none(opened, tmp_path):
    planted = "PLANTED report of a patient"
    assert planted in render(full_page(planted))
    page = full_page(planted)
    silent = {name: [dataclasses.replace(one, text="") for one in some] for name, some in page.generated.items()}
    page = dataclasses.replace(page, generated=silent, real=[], neighbours=())
    (tmp_path / "index.html").write_text(render(page), "utf-8")
    shown = opened(file=tmp_path / "index.html")
    assert "PLANTED" not in shown.content()
    assert "are of patients" not in shown.locator("body").inner_text()
    assert shown.locator("img").count() == 3 * 8
