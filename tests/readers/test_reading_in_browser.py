import csv
import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from jaxcxr.__main__ import main
from jaxcxr.readers import answers, scores
from tests.readers.studies import SIZE, make_study, study_data, write_images

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(not BROWSER, reason="there is no Chromium here")

TASKS = ("real", "realism", "match", "finding", "better")
SIZES = {"tablet": (820, 1180), "desk": (1440, 900), "phone": (390, 844), "tablet on its side": (1180, 820)}
OTHER = {"real": "synthetic", "synthetic": "real", "present": "absent", "absent": "present"}
KEYS = {"real": "f", "synthetic": "j", "absent": "f", "present": "j", "left": "f", "right": "j"}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    return make_study(folder, tasks=TASKS, count=6, repeats=2)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser):
    """Opens a study's page in a browser of its own, or in one that is given; what goes wrong in it fails the test."""
    contexts, wrong = [], []

    def opened(place, size="desk", context=None, **how):
        width, height = SIZES[size]
        if context is None:
            context = browser.new_context(viewport={"width": width, "height": height}, accept_downloads=True, **how)
            contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("requestfailed", lambda request: wrong.append(request.url[:80]))
        page.on(
            "request", lambda request: request.url.startswith(("file:", "data:", "blob:")) or wrong.append(request.url)
        )
        page.goto((place / "index.html").as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not wrong


def begin(page, code):
    """Types the code, and starts the part that comes."""
    assert page.evaluate("document.activeElement.id") == "code"
    page.keyboard.press("Control+A")
    page.keyboard.type(code.lower())
    page.keyboard.press("Enter")


def _until(page, true):
    """Waits; the page's policy keeps the browser's own way of waiting for an expression from working."""
    for _ in range(100):
        if page.evaluate(true):
            return
        page.wait_for_timeout(20)
    raise AssertionError(true)


def ready(page):
    """Starts a part where one begins, and waits for the image; the number of the item."""
    if page.locator("#intro").is_visible():
        page.keyboard.press("Enter")
    page.wait_for_selector("#choices button:enabled, #failed:not([hidden])")
    return int(page.locator("#count").inner_text().split()[0])


def give(page, truth, value, confidence=None):
    """Answers by keyboard."""
    if truth.task in ("realism", "match"):
        value = str(int(value) + (3 if truth.task == "match" else 0))
    page.keyboard.press(KEYS.get(value, value))
    if confidence:
        page.keyboard.press(str(confidence))
    page.keyboard.press("Enter")


def saved(page, folder, press="s"):
    """What the page exports."""
    with page.expect_download() as download:
        page.keyboard.press(press)
    file = folder / download.value.suggested_filename
    download.value.save_as(file)
    return file


def script(key, code):
    """A reader's answers: every fourth item that has a right answer is wrong."""
    said = {}
    for number, (item, truth) in enumerate(key.items.items()):
        if truth.expected:
            wrong = (number + (code == key.readers[0])) % 4 == 0
            said[item] = (OTHER[truth.expected] if wrong else truth.expected, 1 + number % 5)
        else:
            choices = {"realism": "12345", "match": ("-2", "-1", "0", "1", "2"), "better": ("left", "right")}[
                truth.task
            ]
            said[item] = (choices[number % len(choices)], None)
    return said


def accuracy(key, said, task):
    of = [item for item, truth in key.items.items() if truth.task == task and not truth.repeat_of]
    return np.mean([said[item][0] == key.items[item].expected for item in of])


def test_two_readers_read_by_keyboard_and_their_scores_are_known(study, opened, tmp_path):
    place, key = study
    orders, files = study_data(place)["orders"], []
    for code in key.readers:
        said = script(key, code)
        page = opened(place)
        begin(page, code)
        for number, item in enumerate(orders[code], 1):
            assert ready(page) == number
            if number == 20:  # in the middle of a part
                page.reload()
                assert page.get_by_text(f"19 of {len(key.items)} are answered").is_visible()
                page.keyboard.press("Enter")
                assert ready(page) == 20
            if number == 30:  # the tab is closed
                context = page.context
                page.close()
                page = opened(place, context=context)
                page.keyboard.press("Enter")
                assert ready(page) == 30
            give(page, key.items[item], *said[item])
        assert page.get_by_role("heading", name="All read").is_visible()
        files.append(saved(page, tmp_path))
        assert files[-1].name == f"readers-{key.study}-{code}.csv"
        with files[-1].open() as table:
            rows = list(csv.DictReader(table))
        assert [row["item"] for row in rows] == orders[code]
        given = {row["item"]: (row["answer"], int(row["confidence"]) if row["confidence"] else None) for row in rows}
        assert given == said
        assert all(0 < int(row["ms"]) < 60_000 for row in rows)
    read = answers.read(files, key)
    assert not read.left_out
    assert not read.missing
    found = scores.score(read, key, resamples=20)
    for code in key.readers:
        for task in ("real", "finding"):
            rows = [
                row for row in found.rows if (row.task, row.reader, row.measure, row.of) == (task, code, "accuracy", "")
            ]
            assert rows[0].value == accuracy(key, script(key, code), task)
    verb = ["readers", "score", "--key", str(place.with_name("study.key.json")), "--resamples", "20"]
    assert main([*verb, "--out", str(tmp_path / "scores"), *map(str, files)]) == 0
    assert json.loads((tmp_path / "scores" / "scores.json").read_text())["left_out"] == {}


def test_readers_do_not_see_each_others_answers(study, opened):
    place, key = study
    page = opened(place)
    first, second = key.readers
    begin(page, first)
    ready(page)
    give(page, key.items[study_data(place)["orders"][first][0]], "real", 3)
    assert ready(page) == 2
    page.keyboard.press("x")
    assert page.get_by_text(f"1 of {len(key.items)} are answered").is_visible()
    page.keyboard.press("Control+A")
    page.keyboard.type(second)
    assert page.locator("#progress-of-code").inner_text() == ""
    page.keyboard.press("Enter")
    assert ready(page) == 1
    assert page.locator("[aria-checked=true]").count() == 0


def test_an_answer_can_be_changed_and_half_an_answer_is_kept(study, opened, tmp_path):
    place, key = study
    code = key.readers[0]
    page = opened(place)
    begin(page, code)
    ready(page)
    page.keyboard.press("Enter")
    assert ready(page) == 1, "not without an answer"
    page.keyboard.press("f")
    page.keyboard.press("Enter")
    assert ready(page) == 1, "not without a confidence"
    page.reload()
    page.keyboard.press("Enter")
    ready(page)
    assert page.get_by_role("radio", name="Real").get_attribute("aria-checked") == "true"
    page.keyboard.press("2")
    page.keyboard.press("Enter")
    assert ready(page) == 2
    page.keyboard.press("Backspace")
    assert ready(page) == 1
    assert page.locator("[aria-checked=true]").all_inner_texts()[1] == "2"
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    page.keyboard.press("j")
    (row,) = csv.DictReader(saved(page, tmp_path).read_text().splitlines())
    assert (row["answer"], row["confidence"], row["position"]) == ("synthetic", "2", "1"), (
        "half an answer is not exported"
    )


def test_a_wrong_code_is_not_taken(study, opened):
    page = opened(study[0])
    for code in ("ZZZZ", "__PROTO__", ""):
        begin(page, code)
        assert page.get_by_text("no such reader code").is_visible()


def _shot(page, box):
    """What is on the screen in a box, gray."""
    png = page.screenshot(clip=dict(zip(("x", "y", "width", "height"), box, strict=True)))
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def _image_box(page):
    box = page.locator(".pane img").first.bounding_box()
    return box["x"], box["y"], box["width"], box["height"]


@pytest.mark.parametrize("dots", [1, 2])
def test_pixels_are_those_of_the_image_and_of_its_window(study, opened, dots):
    place, key = study
    page = opened(place, device_scale_factor=dots)
    begin(page, key.readers[0])
    ready(page)
    (name,) = key.items[study_data(place)["orders"][key.readers[0]][0]].images
    own = np.asarray(Image.open(place / "images" / f"{name}.png")).astype(int)
    page.keyboard.press("o")
    assert "100 %" in page.locator("#readout").inner_text()
    box = _image_box(page)
    assert box[2:] == (SIZE / dots, SIZE / dots)
    shown = _shot(page, box)
    np.testing.assert_array_equal(shown, np.repeat(own[..., None], 3, axis=2), "one to one")
    page.keyboard.press("i")
    np.testing.assert_array_equal(_shot(page, box)[..., 0], 255 - own)
    page.keyboard.press("i")
    page.keyboard.press("w")  # level 75, width 150
    assert "W 150  L 75" in page.locator("#readout").inner_text()
    assert np.abs(_shot(page, box)[..., 0] - np.clip(own * 255 / 150, 0, 255)).max() <= 1
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    expected = np.clip((own - (83 - 79)) * 255 / 158, 0, 255)
    assert np.abs(_shot(page, box)[..., 0] - expected).max() <= 1
    page.keyboard.press("0")
    assert "W 255  L 128" in page.locator("#readout").inner_text()
    page.keyboard.press("o")
    np.testing.assert_array_equal(_shot(page, box)[..., 0], own)


def test_drags_wheels_and_keys_change_the_view(study, opened):
    place, key = study
    page = opened(place)
    begin(page, key.readers[0])
    ready(page)
    stage = page.locator("#stage").bounding_box()
    middle = stage["x"] + stage["width"] / 2, stage["y"] + stage["height"] / 2
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(middle[0] - 100, middle[1] + 40, steps=4)
    page.mouse.up()
    view = page.evaluate("({ ...view })")
    assert (view["width"], view["level"]) == (205, 147.5)
    fit = _image_box(page)
    page.mouse.move(fit[0] + 100, fit[1] + 100)
    page.mouse.wheel(0, -400)
    _until(page, "view.zoom > 0")
    after = _image_box(page)
    factor = after[2] / fit[2]
    assert factor == pytest.approx(np.e, rel=0.01)
    assert after[0] + 100 * factor == pytest.approx(fit[0] + 100, abs=1), "the place under the pointer stays"
    before = _image_box(page)
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("Shift+ArrowDown")
    moved = _image_box(page)
    assert (moved[0] - before[0], moved[1] - before[1]) == pytest.approx((-40, -40), abs=1)
    page.keyboard.press("-")
    assert _image_box(page)[2] == pytest.approx(0.8 * moved[2], rel=1e-3)
    page.mouse.dblclick(*middle)
    assert _image_box(page) == fit
    for key_, preset in (("q", "Full"), ("w", "Lungs"), ("e", "Mediastinum"), ("r", "Steep")):
        page.keyboard.press(key_)
        assert page.locator("#presets [aria-pressed=true]").inner_text() == preset
    page.keyboard.press("h")
    assert page.get_by_role("dialog").is_visible()
    page.keyboard.press("Escape")
    assert not page.get_by_role("dialog").is_visible()


@pytest.mark.parametrize("size", SIZES)
def test_every_part_fits_a_display_and_is_read_by_touch(study, opened, size):
    place, key = study
    code = key.readers[0]
    page = opened(place, size, has_touch=True)
    begin(page, code)
    width, height = SIZES[size]
    order = study_data(place)["orders"][code]
    for task in TASKS:
        first = next(number for number, item in enumerate(order) if key.items[item].task == task)
        page.evaluate("index => { introduced = ''; open(index); }", first)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.locator("#go").tap()
        page.wait_for_selector("#choices button:enabled")
        whole = "[document.documentElement.scrollWidth, document.documentElement.scrollHeight]"
        assert page.evaluate(whole) == [width, height], "nothing scrolls"
        stage = page.locator("#stage").bounding_box()
        assert min(stage["width"], stage["height"]) >= 250
        for button in page.locator("#choices button, #levels button:visible, #next").all():
            box = button.bounding_box()
            assert box["height"] >= 44
            assert box["y"] + box["height"] <= height, "the answers are in sight"
        page.locator("#choices button").last.tap()
        if page.locator("#confidence").is_visible():
            page.locator("#levels button").nth(2).tap()
        page.locator("#next").tap()
        assert page.evaluate("([code, item]) => answersOf(code)[item].done", [code, order[first]])


def test_two_fingers_zoom_and_one_sets_the_window(study, opened):
    place, key = study
    page = opened(place, "tablet", has_touch=True)
    begin(page, key.readers[0])
    page.locator("#go").tap()
    page.wait_for_selector("#choices button:enabled")
    before = _image_box(page)
    touch = page.context.new_cdp_session(page)
    x, y = 400, 500

    def send(kind, *points):
        touch.send(
            "Input.dispatchTouchEvent",
            {"type": kind, "touchPoints": [{"x": a, "y": b, "id": n} for n, (a, b) in enumerate(points)]},
        )

    send("touchStart", (x - 50, y), (x + 50, y))
    for step in range(1, 6):
        send("touchMove", (x - 50 - 10 * step, y), (x + 50 + 10 * step, y))
    send("touchEnd")
    _until(page, "view.zoom > 0")
    assert _image_box(page)[2] == pytest.approx(2 * before[2], rel=0.02)
    assert page.evaluate("view.width") == 255
    send("touchStart", (x, y))
    send("touchMove", (x - 60, y))
    send("touchEnd")
    _until(page, "view.width < 255")


def test_a_browser_that_keeps_nothing_says_so_and_still_exports(study, opened, tmp_path):
    place, key = study
    page = opened(place)
    page.add_init_script("Object.defineProperty(window, 'localStorage', { get() { throw new Error('no'); } });")
    page.reload()
    assert page.get_by_role("alert").first.inner_text().startswith("This browser keeps nothing")
    begin(page, key.readers[0])
    ready(page)
    give(page, key.items[study_data(place)["orders"][key.readers[0]][0]], "real", 3)
    assert ready(page) == 2
    assert len(saved(page, tmp_path).read_text().splitlines()) == 2


def test_damaged_storage_is_left_out(study, opened):
    place, key = study
    page = opened(place)
    code = key.readers[0]
    for text in ("{", "null", '{"aaaa": {"done": true}, "bbbb": null}', '"text"', "[1]"):
        page.evaluate("([code, text]) => localStorage.setItem(place(code), text)", [code, text])
        page.reload()
        begin(page, code)
        assert ready(page) == 1


def test_an_image_that_is_gone_is_said_and_left_out(browser, tmp_path):
    place, key = make_study(tmp_path, count=4, repeats=0)
    code = key.readers[0]
    order = study_data(place)["orders"][code]
    (place / "images" / f"{key.items[order[0]].images[0]}.png").unlink()
    page = browser.new_page()
    page.goto((place / "index.html").as_uri())
    begin(page, code)
    assert ready(page) == 1
    assert page.get_by_text("cannot be loaded").is_visible()
    page.keyboard.press("f")
    page.keyboard.press("3")
    page.keyboard.press("Enter")
    for number, item in enumerate(order[1:], 2):
        assert ready(page) == number
        give(page, key.items[item], "real", 3)
    assert page.get_by_text("7 of 8 are answered").is_visible()
    rows = list(csv.DictReader(saved(page, tmp_path).read_text().splitlines()))
    assert [row["item"] for row in rows] == order[1:]
    page.close()


def test_no_text_runs_and_one_file_is_enough(opened, tmp_path):
    nasty = "</script><script>document.title='ran'</script><img src=x onerror=document.title='ran'>{finding}"
    real = write_images(tmp_path / "hospital", text=lambda number: nasty)
    more = {"tasks": ("match",), "count": 2, "repeats": 0, "title": nasty}
    place, key = make_study(tmp_path, real, one_file=True, **more)
    page = opened(place)
    assert page.title() == nasty
    begin(page, key.readers[0])
    ready(page)
    texts = set()
    for item in study_data(place)["orders"][key.readers[0]]:
        ready(page)
        texts.add(page.locator("#text").inner_text())
        give(page, key.items[item], "1")
    assert nasty in texts
    assert page.title() == nasty


def test_time_counts_only_while_the_page_is_in_sight(study, opened):
    place, key = study
    page = opened(place)
    page.clock.install()
    begin(page, key.readers[0])
    page.keyboard.press("Enter")
    page.wait_for_selector("#choices button:enabled")
    page.clock.fast_forward(3000)
    hide = """state => {
      Object.defineProperty(document, "visibilityState", { value: state, configurable: true });
      document.dispatchEvent(new Event("visibilitychange"));
    }"""
    page.evaluate(hide, "hidden")
    page.clock.fast_forward(60_000)
    page.evaluate(hide, "visible")
    page.clock.fast_forward(2000)
    page.keyboard.press("f")
    assert 5000 <= page.evaluate("current.ms") < 8000
