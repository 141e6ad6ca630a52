"""The page in a real Chromium: drawn, quiet, offline, and doing what its buttons say.

Debian's chromium and chromium-driver; skipped without them. Screenshots go to GPTOSS_TEST_ARTEFACTS
where that is set, else to pytest's temporary folder.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import time
from pathlib import Path

import pytest
from large_lab import large_runs
from report_lab import small_run, write_json, write_lines

from gptoss_tools.report.page import write_report

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--hide-scrollbars",
)
# Read here, because every test runs without variables of ours.
ARTEFACTS = os.environ.get("GPTOSS_TEST_ARTEFACTS")
PROBE = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1><!--<script>"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER), reason="no chromium and chromedriver: make browser"
    ),
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    return large_runs(tmp_path_factory.mktemp("large"))


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory) -> Path:
    return write_report(runs, tmp_path_factory.mktemp("page") / "two.html")


def show(browser, page: Path, *, width: int = 1400, dark: bool = False) -> int:
    """Open a page and wait until all is drawn; return the number of figures that were."""
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    still = {"name": "prefers-reduced-motion", "value": "reduce"}  # clicks wait for no scrolling
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme, still]})
    for kind in ("browser", "performance"):
        browser.get_log(kind)  # forget the last page's
    browser.get(page.as_uri())
    browser.execute_script("localStorage.clear()")
    deadline = time.monotonic() + 60
    while not (drawn := browser.execute_script("return document.documentElement.dataset.drawn")):
        assert time.monotonic() < deadline, "the figures were not drawn in a minute"
        time.sleep(0.1)
    return int(drawn)


def picture(browser, name: str, folder: Path) -> bytes:
    folder = Path(ARTEFACTS) if ARTEFACTS else folder
    folder.mkdir(parents=True, exist_ok=True)
    shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
    data = base64.b64decode(shot["data"])
    (folder / f"{name}.png").write_bytes(data)
    return data


def figures(browser) -> dict[str, int]:
    """How many marks each figure drew: lines, points, bars, areas, images of heat maps."""
    marks = ".scatterlayer path, .barlayer path, .heatmaplayer image, .fills path"
    return browser.execute_script(
        "const found = {};"
        "for (const plot of document.querySelectorAll('.plot')) found[plot.id] ="
        "  plot.querySelector('.main-svg') ? plot.querySelectorAll(arguments[0]).length : -1;"
        "return found;",
        marks,
    )


def test_every_figure_is_drawn_without_a_complaint_and_without_a_request(browser, page, tmp_path):
    drawn = show(browser, page)
    found = figures(browser)
    assert drawn == len(found) == 25
    runs = (0, 1)
    expected = {"policies", "held-out", "loop", "reward", "curve-entropy", "curve-grad_norm"}
    for kind in ("invalid", "actions", "map-chosen", "map-best", "map-regret"):
        expected |= {f"{kind}-{run}" for run in runs}
    expected |= {f"{k}-{run}" for k in ("confusion", "stakes", "calibration") for run in runs}
    assert {f"fig-{name}" for name in expected} <= set(found)
    assert all(marks > 0 for marks in found.values()), found
    complaints = [e for e in browser.get_log("browser") if e["level"] == "SEVERE"]
    assert complaints == []
    requests = [
        event["params"]["request"]["url"]
        for entry in browser.get_log("performance")
        if (event := json.loads(entry["message"])["message"])["method"]
        == "Network.requestWillBeSent"
    ]
    assert page.as_uri() in requests
    assert all(url.startswith(("file:", "data:", "blob:")) for url in requests), requests
    assert len(picture(browser, "light", tmp_path)) > 50_000


@pytest.mark.parametrize(("width", "dark"), [(390, False), (390, True), (1400, True)])
def test_nothing_is_wider_than_the_window(browser, page, tmp_path, width, dark):
    show(browser, page, width=width, dark=dark)
    wide = browser.execute_script("return document.documentElement.scrollWidth")
    assert wide <= width
    spilled = browser.execute_script(
        "return [...document.querySelectorAll('.plot')].filter("
        "p => p.querySelector('.main-svg').getBoundingClientRect().right > innerWidth)"
        ".map(p => p.id)"
    )
    assert spilled == []
    picture(browser, f"{'dark' if dark else 'light'}-{width}", tmp_path)


def colours(browser) -> tuple[str, str]:
    """The page's background and the colour of the first run's curve."""
    return browser.execute_script(
        "return [getComputedStyle(document.body).backgroundColor,"
        " document.querySelector('#fig-reward .scatterlayer .js-line').style.stroke]"
    )


def test_the_theme_follows_the_system_and_the_button(browser, page):
    show(browser, page, dark=True)
    dark = colours(browser)
    show(browser, page)
    light = colours(browser)
    assert light[0] == "rgb(253, 252, 250)" and dark[0] == "rgb(21, 23, 26)"
    assert light[1] != dark[1]
    button = browser.find_element("id", "theme")
    button.click()
    wait(browser, lambda: tuple(colours(browser)) == tuple(dark))
    button.click()
    wait(browser, lambda: tuple(colours(browser)) == tuple(light))


def wait(browser, condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in 20 seconds"
        time.sleep(0.1)


def test_the_legend_switches_a_run_everywhere(browser, page):
    show(browser, page)
    chip = browser.find_element("css selector", ".chips [data-group='run:1']")
    count = "return document.querySelectorAll('#fig-held-out .scatterlayer .trace').length"
    panels = "'#panel-invalid-1, #panel-map-best-1'"
    shown = f"return [...document.querySelectorAll({panels})].map(e => e.hidden)"
    both = browser.execute_script(count)
    chip.click()
    wait(browser, lambda: browser.execute_script(count) == both / 2)
    assert browser.execute_script(shown) == [True, True]
    assert rows(browser) == {"0": 20} and chip.get_attribute("aria-pressed") == "false"
    chip.click()
    wait(browser, lambda: browser.execute_script(count) == both)
    assert browser.execute_script(shown) == [False, False]
    assert rows(browser) == {"0": 20, "1": 20}


def rows(browser) -> dict[str, int]:
    """Visible decisions by run."""
    found = browser.execute_script(
        "return [...document.querySelectorAll('.decision')].filter(r => !r.hidden)"
        ".map(r => r.dataset.run)"
    )
    return {run: found.count(run) for run in sorted(set(found))}


def test_a_rule_of_the_closed_loop_can_be_switched_on_and_the_series_chosen(browser, page):
    show(browser, page)
    count = "return document.querySelectorAll('#fig-loop .scatterlayer .trace').length"
    before = browser.execute_script(count)
    key = browser.find_element("css selector", "[data-group='loop/greedy']")
    assert key.get_attribute("aria-pressed") == "false"
    key.click()
    wait(browser, lambda: browser.execute_script(count) > before)
    path = "return document.querySelector('#fig-loop .scatterlayer .js-line').getAttribute('d')"
    first = browser.execute_script(path)
    names = browser.execute_script(
        "const c = document.querySelector('[data-choose=loop]'); c.value = '2';"
        "c.dispatchEvent(new Event('change')); return [...c.options].map(o => o.text)"
    )
    assert names == ["duck-77", "noon-77", "peak-77"]
    wait(browser, lambda: browser.execute_script(path) != first)


def visible(browser, column: str) -> list[str]:
    return browser.execute_script(
        "return [...document.querySelectorAll('.decision')].filter(r => !r.hidden)"
        ".map(r => r.querySelector('td.' + arguments[0]).textContent)",
        column,
    )


def test_decisions_are_filtered_sorted_and_unfolded(browser, tmp_path):
    run = small_run(tmp_path / "run")
    show(browser, write_report([run]))
    assert visible(browser, "regret") == ["2.00", "1.00"]
    search = browser.find_element("id", "filter")
    search.send_keys("SO LONG")  # what only the truncated answer said
    assert visible(browser, "row") == ["3"]
    assert browser.find_element("id", "shown").text == "1 of 2"
    search.clear()
    search.send_keys(" \b")
    pick = "const s = document.querySelector('[data-filter={}]'); s.value = {!r};"
    fire = "s.dispatchEvent(new Event('change'))"
    browser.execute_script(pick.format("reason", "answered") + fire)
    assert visible(browser, "row") == ["2"]
    browser.execute_script(pick.format("reason", "") + fire)
    browser.execute_script(pick.format("phase", "dusk") + fire)
    assert visible(browser, "row") == ["3"]
    browser.execute_script(pick.format("phase", "") + fire)
    browser.execute_script(pick.format("hour", "10") + fire)
    assert visible(browser, "row") == ["2"]
    browser.execute_script(pick.format("hour", "") + fire)
    browser.find_element("css selector", "[data-sort=row]").click()
    assert visible(browser, "row") == ["3", "2"]
    browser.find_element("css selector", "[data-sort=row]").click()
    assert visible(browser, "row") == ["2", "3"]
    detail = browser.find_element("css selector", ".decision .detail")
    assert not detail.is_displayed()
    browser.find_element("css selector", ".decision .more").click()
    assert detail.is_displayed() and "Hm." in detail.text


def test_a_long_completion_is_clipped_until_asked_for(browser, tmp_path):
    run = small_run(tmp_path / "run")
    row = {"row": 1, "regret": 1.0, "reason": "ok", "prompt": "p", "completion": "word " * 2000}
    write_lines(run / "evaluation" / "decisions.jsonl", [row])
    show(browser, write_report([run]))
    browser.find_element("css selector", ".more").click()
    text = browser.find_element("css selector", ".detail pre")
    assert text.size["height"] <= 190
    more = browser.find_element("css selector", ".detail button.all")
    assert more.text == "show all 10000 characters"
    browser.execute_script("arguments[0].click()", more)
    assert text.size["height"] > 190


def test_nothing_that_a_run_says_is_carried_out(browser, tmp_path):
    run = small_run(tmp_path / "<img src=x onerror=window.hacked=1>", model=PROBE, run_name=PROBE)
    said = ("prompt", "reason", "episode", "phase", "where")
    row = {"row": 1, "q": [0.0, 1.0], "optimal_action": 1, "action": 0, "regret": 1.0}
    row |= {name: PROBE for name in said} | {"timestamp": "2026-06-01T08:00:00"}
    row |= {"completion": f"<|channel|>{PROBE}<|message|>{PROBE}", "names": [PROBE, "b"]}
    write_lines(run / "evaluation" / "decisions.jsonl", [row])
    path = run / "evaluation" / "evaluation.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content |= {"action_names": [PROBE, PROBE], "by_phase": {PROBE: {"n_rows": 1}}}
    content["policies"].append({"name": PROBE, "regret": 3.0})
    write_json(path, content)
    loop = run / "evaluation" / "closed_loop.jsonl"
    hours = [json.loads(line) for line in loop.read_text(encoding="utf-8").splitlines()]
    write_lines(loop, [{**hour, "series": PROBE} for hour in hours])
    assert show(browser, write_report([run], tmp_path / "probe.html")) == len(figures(browser)) > 10
    assert all(marks > 0 for marks in figures(browser).values())
    for button in browser.find_elements("css selector", ".more"):
        button.click()
    assert browser.execute_script("return window.hacked") is None
    assert browser.execute_script("return document.querySelectorAll('img').length") == 0
    assert [e for e in browser.get_log("browser") if e["level"] == "SEVERE"] == []
    # what it says is shown as it is
    assert PROBE in browser.find_element("css selector", ".decision .detail").text
    ticks = browser.find_element("id", "fig-confusion-0").get_attribute("textContent")
    assert "onerror=window.hacked" in ticks


def test_on_paper_figures_are_light_and_as_wide_as_the_page(browser, page, tmp_path):
    show(browser, page, dark=True)
    browser.execute_script("dispatchEvent(new Event('beforeprint'))")
    widths = browser.execute_script(
        "return ['held-out', 'invalid-0', 'map-best-0'].map(id => "
        "document.querySelector('#fig-' + id + ' .main-svg').getBoundingClientRect().width)"
    )
    # 680 px of paper in one column, in two with a gap of 24, in three with two gaps
    assert widths == [680, 328, 210]
    stroke = colours(browser)[1]
    browser.execute_script("dispatchEvent(new Event('afterprint'))")
    wait(browser, lambda: colours(browser)[1] != stroke)
    paper = browser.execute_cdp_cmd("Page.printToPDF", {"paperWidth": 8.27, "paperHeight": 11.69})
    data = base64.b64decode(paper["data"])
    (Path(ARTEFACTS) if ARTEFACTS else tmp_path).joinpath("paper.pdf").write_bytes(data)
    assert (
        data.startswith(b"%PDF") and data.count(b"/Type /Page\n") + data.count(b"/Type /Page ") > 5
    )


def test_a_page_without_anything_is_quiet_too(browser, tmp_path):
    run = tmp_path / "bare"
    write_json(run / "config.json", {"settings": {"model": "tiny"}})
    path = write_report([run])
    browser.get(path.as_uri())
    assert [e for e in browser.get_log("browser") if e["level"] == "SEVERE"] == []
    text = browser.find_element("tag name", "main").text
    assert "no evaluation yet: gptoss evaluate" in text
    assert "no steps logged yet: gptoss resume" in text
