"""The report in headless Chromium: every control is used, by mouse and by keyboard, in files and served."""

import json
import shutil
import threading
from pathlib import Path

import pytest
from PIL import Image

from browser import CHROMIUM, Browser
from commandline import mimkit
from conftest import structured
from mimkit.report.page import Depth, report
from mimkit.report.serve import Follower, Server

pytestmark = [
    pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium here"),
    pytest.mark.slow,
]
EVIL = "<img src=x onerror=alert(1)>"
PICTURE = "Array.from(document.querySelector('{}').getContext('2d').getImageData(0, 0, 4, 4).data).join()"


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    """Two tiny runs on pictures of two classes, one of them named as HTML."""
    place = tmp_path_factory.mktemp("pages")
    for number in range(24):
        folder = place / "data" / (EVIL if number % 2 else "a&b")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(structured(number, 28)).save(folder / f"{number}.png")
    common = f"pretrain mae_mini_28 --data {place / 'data'} $TINY --machine.looks 2 --encoder.depth 2"
    for name, seed in (("one", 0), ("two", 1)):
        said = mimkit(f"{common} --run {place / name} --seed {seed}")
        assert said.status == 0, said.err
    return [place / "one", place / "two"]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    made = Browser(tmp_path_factory.mktemp("profile"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def page(runs, browser) -> Browser:
    file = runs[0].parent / "page.html"
    file.write_text(report(runs, pictures=4)[0])
    browser.resize(1280, 900)
    browser.open(file.as_uri())
    return browser


def change(page: Browser, control: str, value: int) -> None:
    page.run(
        f"{{ const c = document.querySelector('{control}'); c.value = {value}; c.dispatchEvent(new Event('input')) }}"
    )


def test_the_page_runs_quietly_and_loads_nothing(page):
    assert not page.said and not page.asked
    assert page.run("document.querySelectorAll('#charts figure svg path').length") >= 4
    assert page.run("document.querySelectorAll('img:not([alt])').length") == 0
    assert page.run("[...document.querySelectorAll('canvas')].every((c) => c.ariaLabel || c.ariaHidden)")


def test_html_in_names_is_seen_as_text(page):
    assert page.run("document.querySelectorAll('[onerror], img[src=\"x\"]').length") == 0
    assert page.run(f"document.body.innerText.includes({json.dumps(EVIL)})")


def test_the_legend_hides_a_run_everywhere(page):
    paths = (
        "document.querySelectorAll('#charts path').length + 1000 * document.querySelectorAll('#metrics path').length"
    )
    before = page.run(paths)
    page.run("document.querySelector('#curves .legend button').click()")
    assert page.run(paths) * 2 == before
    assert page.run("[...document.querySelectorAll('.legend button')].map((b) => b.ariaPressed).join()") == (
        "false,true,false,true"
    )
    page.run("document.querySelector('#metrics .legend button').click()")
    assert page.run(paths) == before


def test_curves_answer_to_pointer_and_keys(page):
    page.run("document.querySelector('#charts svg').focus()")
    page.press("ArrowRight")
    assert "step" in page.run("document.querySelector('#tip').innerText") and page.run(
        "!document.querySelector('#tip').hidden"
    )
    first = page.run("document.querySelector('#tip').innerText")
    page.press("ArrowLeft")
    assert page.run("document.querySelector('#tip').innerText") != first
    page.run("document.querySelector('#charts svg').blur()")
    assert page.run("document.querySelector('#tip').hidden")
    page.run("document.querySelector('#charts svg').scrollIntoView({behavior: 'instant'})")
    box = page.run("document.querySelector('#charts svg').getBoundingClientRect().toJSON()")
    x, y = box["x"] + box["width"] / 2, box["y"] + 50
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    page.wait("!document.querySelector('#tip').hidden")
    page.run("{ const a = document.querySelector('#axis'); a.value = 'epoch'; a.dispatchEvent(new Event('change')) }")
    assert "epochs" in page.run("document.querySelector('#charts svg').textContent")


def test_the_film_turns(page):
    images = "document.querySelector('.film img').src"
    last = page.run(images)
    change(page, "[data-film]", 0)
    assert page.run(images) != last and "look 1 of" in page.run("document.querySelector('.film figcaption').innerText")
    page.run("document.querySelector('.film button').click()")
    page.wait(f"{images} === {json.dumps(last)}")


def test_seed_and_picture_change_the_masks(page):
    shown = PICTURE.format("[data-panels=masks] canvas")
    label = "document.querySelector('[data-panels=masks] canvas').ariaLabel"
    whole = "(() => { const c = document.querySelector('[data-panels=masks] canvas'); return c.toDataURL() })()"
    page.wait(f"{shown}.length > 20")
    first = page.run(whole)
    change(page, "#seed", 3)
    page.wait(f"{whole} !== {json.dumps(first)} && {label}.endsWith('seed 3')")
    name = page.run(label)
    page.run("document.querySelector('[data-choice=masks] input').focus()")
    page.press("ArrowRight")
    page.wait(f"{label} !== {json.dumps(name)}")
    assert page.run("document.querySelector('[data-choice=attention] input:checked').value") == "1"


def test_layers_heads_and_patches_change_attention(page):
    whole = "document.querySelectorAll('[data-panels=attention] canvas')[1].toDataURL()"
    page.run("document.querySelector('#attention').scrollIntoView()")
    seen = set()
    for control, value in (("#layer", 1), ("#layer", 2), ("#head", 2)):
        change(page, control, value)
        page.run("new Promise((done) => setTimeout(done, 300))")
        seen.add(page.run(whole))
    assert len(seen) == 3
    page.run("document.querySelector('.heads button').focus()")
    page.press("Enter")
    assert page.run("document.querySelector('#head-out').value + document.activeElement.ariaLabel") == "1head 1"
    page.run("document.querySelector('.pick').dispatchEvent(new MouseEvent('click', {clientX: 0, clientY: 0}))")
    assert "patch in row" in page.run("document.querySelector('[data-panels=attention] .heads + figcaption').innerText")
    page.run(
        "{ const q = document.querySelector('#query'); q.selectedIndex = 1; q.dispatchEvent(new Event('change')) }"
    )
    assert "mean of all patches" in page.run("document.querySelector('[data-panels=attention]').innerText")
    change(page, "#depth", 1)
    assert "Layer 1 of 2" in page.run("document.querySelector('[data-panels=clusters]').innerText")


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True])
def test_nothing_is_wider_than_the_window(page, width, dark):
    page.resize(width, 844, dark=dark)
    assert page.run("document.documentElement.scrollWidth") <= width
    paper = page.run("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, paper.removeprefix("rgb(").rstrip(")").split(","))) < 200) == dark


def test_a_served_page_follows_without_reload_and_looks_when_asked(runs, browser, tmp_path):
    live = tmp_path / "live"
    shutil.copytree(runs[0], live)
    with Server(Follower(live, Depth(pictures=4, metrics="none")), "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser.resize(1280, 900)
        browser.open(server.url)
        browser.run("window.same = true")
        with open(live / "metrics.jsonl", "a") as file:
            file.write('{"step": 999, "loss": 0.5, "seconds": 9.0}\n')
        shutil.copy(live / "pictures" / "reconstruction.png", live / "pictures" / "step-000000999.png")
        browser.wait("document.querySelector('.film img').src.endsWith('film/999')")
        browser.wait("document.querySelector('.film img').naturalWidth > 0 && runs[0].curves[0].step.at(-1) === 999")
        assert browser.run("window.same")
        assert "not looked at yet" in browser.run("document.querySelector('#masks').innerText")
        browser.run("document.querySelector('#refresh').click()")
        browser.wait("document.querySelectorAll('[data-panels=masks] canvas').length > 0")
        assert not browser.said and all(url.startswith(server.url) for url in browser.asked)
        server.shutdown()
