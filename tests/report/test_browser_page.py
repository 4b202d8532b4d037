"""The report in headless Chromium: every control is used, by mouse and by keyboard, in files and served."""

import json
import shutil
import threading
import time
from pathlib import Path

import pytest
from PIL import Image

from browser import CHROMIUM, Browser
from builders import structured
from commandline import mimkit
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
    common = f"pretrain mae_mini_28 --data {place / 'data'} $TINY --machine.evals 2 --encoder.depth 2"
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


@pytest.fixture(scope="module")
def four(runs, browser) -> Path:
    """A page of four runs with long names."""
    folders = []
    for number in range(4):
        folders.append(runs[0].parent / f"a_run_whose_name_nobody_can_break_anywhere_{number}")
        shutil.copytree(runs[number % 2], folders[-1])
    file = runs[0].parent / "four.html"
    file.write_text(report(folders, pictures=4)[0])
    return file


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
    for by in range(50):  # a mouse moves more than once, and a busy browser loses single moves
        page.call("Input.dispatchMouseEvent", type="mouseMoved", x=x + by, y=y)
        if shown := page.run("!document.querySelector('#tip').hidden"):
            break
        time.sleep(0.1)
    assert shown
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


KNOWN = (  # where each control is used: a new one is added here when a test clicks it
    ".skip, nav a",  # goes to its part
    ".legend button, #axis, #more summary, svg[tabindex]",  # legend, curves, details
    ".film input, .film button, .scroll[tabindex]",  # film, arrow keys scroll
    ".choice input, #seed, #depth, #layer, #head, #query, .heads button, .pick",  # masks, attention, clusters
    "#run summary",  # details
)


def test_every_control_is_known(page):
    every = "a, button, input, select, textarea, summary, [tabindex], .pick, [onclick]"
    strange = f"[...document.querySelectorAll('{every}')].filter((c) => !c.matches('{', '.join(KNOWN)}'))"
    assert page.run(f"{strange}.map((c) => c.outerHTML.slice(0, 200)).join()") == ""


def test_links_go_to_their_parts(page):
    parts = page.run("[...document.querySelectorAll('nav a, .skip')].map((a) => a.hash)")
    assert len(parts) == 11
    page.run("document.documentElement.style.scrollBehavior = 'auto'")
    for place, part in enumerate(parts):
        page.run(f"document.querySelectorAll('nav a, .skip')[{0 if part == '#run' else place}].click()")
        top = page.run(f"document.querySelector('{part}').getBoundingClientRect().top")
        assert -1 <= top < 900 and page.run("location.hash") == part


def test_details_open(page):
    assert page.run("document.querySelectorAll('details').length") == 4  # settings of two runs, differences, curves
    for place in range(4):
        summary = f"document.querySelectorAll('summary')[{place}]"
        before = page.run(f"{summary}.parentElement.open")
        page.run(f"{summary}.click()")
        assert page.run(f"{summary}.parentElement.open") != before
        if page.run(f"{summary}.parentElement.id === 'more'"):
            page.wait("document.querySelector('#more-charts svg').viewBox.baseVal.width > 300")  # drawn for its place
        page.run(f"{summary}.parentElement.open = {json.dumps(before)}")


def test_attention_has_its_own_choice_of_pictures(page):
    shown = "document.querySelector('[data-panels=attention] canvas').ariaLabel"
    before = page.run(shown)
    page.run("document.querySelector('[data-choice=attention] input:not(:checked)').click()")
    assert page.run(shown) != before
    assert page.run(
        "document.querySelector('[data-choice=masks] input:checked').value"
        " === document.querySelector('[data-choice=attention] input:checked').value"
    )


def test_similarities_of_layers_answer_to_the_pointer(page):
    page.run("document.querySelector('#cka rect').dispatchEvent(new PointerEvent('pointermove', {clientX: 9}))")
    assert page.run("document.querySelector('#tip').innerText").startswith("layers 1 and 1")
    page.run("document.querySelector('#cka rect').dispatchEvent(new PointerEvent('pointerleave'))")
    assert page.run("document.querySelector('#tip').hidden")


def test_curves_share_their_end_and_layers_are_whole(page):
    page.run("{ const a = document.querySelector('#axis'); a.value = 'step'; a.dispatchEvent(new Event('change')) }")
    for holder in ("[data-metric=attention_distance]", "[data-metric=exploitation_masked]"):
        words = page.run(
            f"[...document.querySelectorAll('{holder} text[text-anchor=middle]')].map((t) => t.textContent)"
        )
        assert words[:-1] == [str(layer + 1) for layer in range(len(words) - 1)], words  # no layer that there is not
    ends = (
        "[...document.querySelectorAll('#charts figure')].map((f) => Math.max(...[...f.querySelectorAll({})].map({})))"
    )
    lines = page.run(ends.format("'path'", "(p) => p.getBBox().x + p.getBBox().width"))
    widths = page.run("[...document.querySelectorAll('#charts svg')].map((s) => s.viewBox.baseVal.width - 10)")
    assert all(line <= width + 1 for line, width in zip(lines, widths, strict=True))
    assert abs(max(lines) - widths[0]) < 1


def test_charts_are_drawn_for_their_places(page):
    page.open(page.run("location.href.split('#')[0]"))
    shown = (
        "[...document.querySelectorAll('#charts svg, .chart svg')].map((s) => s.clientWidth / s.viewBox.baseVal.width)"
    )
    assert all(abs(scale - 1) < 0.01 for scale in page.run(shown))  # letters of another size otherwise


def test_four_runs_stand_in_two_columns_on_paper(page, four):
    page.resize(1280, 900)
    page.open(four.as_uri())
    columns = "getComputedStyle(document.querySelector('[data-panels=clusters]')).gridTemplateColumns.split(' ').length"
    page.call("Emulation.setEmulatedMedia", media="print")
    page.call("Emulation.setDeviceMetricsOverride", width=718, height=1000, deviceScaleFactor=1, mobile=False)
    found = page.run(columns), page.run("document.documentElement.scrollWidth")
    page.call("Emulation.setEmulatedMedia", media="")
    page.resize(1280, 900)
    page.open(four.with_name("page.html").as_uri())
    assert found[0] == 2 and found[1] <= 718


def test_paper_keeps_the_legend_and_draws_charts_for_its_width(page):
    media = lambda kind: page.call("Emulation.setEmulatedMedia", media=kind)  # noqa: E731
    media("print")
    page.run("dispatchEvent(new Event('beforeprint'))")
    seen = "[...document.querySelectorAll('{}')].filter((e) => e.getClientRects().length).length"
    assert page.run(seen.format(".legend button")) == 4 and page.run(seen.format("select, input, nav, .choice")) == 0
    assert page.run("document.querySelector('#charts svg').viewBox.baseVal.width") == 340
    assert page.run("document.querySelector('#more').open")
    page.run("dispatchEvent(new Event('afterprint'))")
    media("")
    assert page.run("document.querySelector('#charts svg').viewBox.baseVal.width") > 340
    page.run("document.querySelector('#more').open = false")


# The lowest contrast of what is written on the page, and where, as WCAG 2 counts it.
CONTRAST = """(() => {
  const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = (color) => numbers(color).slice(0, 3).map((c) => c / 255)
    .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const solid = (color) => (numbers(color)[3] ?? 1) > 0;
  let worst = [99, ""];
  for (const one of document.querySelectorAll("body, body *")) {
    if (!one.getClientRects().length || ![...one.childNodes].some((n) => n.nodeType === 3 && n.data.trim())) continue;
    let under = one;
    while (!solid(getComputedStyle(under).backgroundColor)) under = under.parentElement;
    const style = getComputedStyle(one), written = one.closest("svg") ? style.fill : style.color;
    const [a, b] = [written, getComputedStyle(under).backgroundColor].map(light);
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < worst[0]) worst = [ratio, one.outerHTML.slice(0, 120)];
  }
  return worst;
})()"""


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("count", ["two", "four"])
def test_nothing_is_wider_than_the_window_and_all_is_legible(page, four, count, width, dark):
    page.resize(width, 844, dark=dark)
    page.open((four if count == "four" else four.with_name("page.html")).as_uri())
    assert page.run("runs.length") == {"two": 2, "four": 4}[count]
    for opened in (False, True):
        page.run(f"for (const one of document.querySelectorAll('details')) one.open = {json.dumps(opened)}")
        assert page.run("document.documentElement.scrollWidth") <= width
    paper = page.run("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, paper.removeprefix("rgb(").rstrip(")").split(","))) < 200) == dark
    ratio, where = page.run(CONTRAST)
    assert 4.5 <= ratio < 99, where


@pytest.mark.parametrize("dark", [False, True])
def test_one_run_fits_a_phone_and_opens_with_networking_off(runs, browser, dark):
    file = runs[0].parent / "alone.html"
    file.write_text(report(runs[:1], pictures=4)[0])
    browser.resize(390, 844, dark=dark)
    browser.call("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0, uploadThroughput=0)
    browser.open(file.as_uri())
    browser.run("for (const one of document.querySelectorAll('details')) one.open = true")
    browser.run("for (const one of document.querySelectorAll('button, #seed, #depth, .choice input')) one.click()")
    browser.wait("[...document.images].every((one) => one.complete && one.naturalWidth > 0)")
    browser.call(
        "Network.emulateNetworkConditions", offline=False, latency=0, downloadThroughput=-1, uploadThroughput=-1
    )
    assert not browser.asked and not browser.said
    assert browser.run("document.documentElement.scrollWidth") <= 390
    assert browser.run(CONTRAST)[0] >= 4.5
    assert browser.run("document.querySelectorAll('.legend button').length") == 0  # one run needs no key


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
