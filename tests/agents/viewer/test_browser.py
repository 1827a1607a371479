"""The page in headless Chromium: it opens, steps, stays inert and readable, and asks for nothing.

Skips where selenium, a Chromium or its driver is missing (Debian: ``apt-get install chromium chromium-driver``).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mempo_env.actions import Answer

from .conftest import GOALS, HOSTILE, faulty_episode, hostile_episode, make_episode, make_turn, plain_episode

webdriver: Any = pytest.importorskip("selenium.webdriver", reason="needs selenium (the extra 'test')")
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.wait import WebDriverWait  # noqa: E402

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver on the PATH")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]
CONTRASTS = """
const channels = (colour) => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  canvas.canvas.width = canvas.canvas.height = 1;
  canvas.fillStyle = colour;
  canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data];
};
const over = (top, under) => top.map((c, i) => i < 3 ? c * top[3] / 255 + under[i] * (1 - top[3] / 255) : 255);
const ground = (node) => {
  if (!node) return [255, 255, 255, 255];
  const colour = channels(getComputedStyle(node).backgroundColor);
  return colour[3] === 255 ? colour : over(colour, ground(node.parentElement));
};
const light = (rgb) => {
  const linear = (c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const [r, g, b] = rgb.slice(0, 3).map((c) => linear(c / 255));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const found = [];
const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (texts.nextNode()) {
  const node = texts.currentNode.parentElement;
  const skip = node.closest("script, noscript, :disabled, .hidden, .skip, option") || !node.getClientRects().length;
  if (skip || !texts.currentNode.data.trim()) continue;
  const style = getComputedStyle(node);
  const [a, b] = [channels(node.closest("svg") ? style.fill : style.color), ground(node)].map(light);
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  found.push([ratio, `${node.tagName}.${node.getAttribute("class")} ${texts.currentNode.data.trim().slice(0, 30)}`]);
}
return found;
"""


class Browser:
    """A page in a browser, and what it complains about."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, page: Path, link: str = "", *, width: int = 1440, height: int = 900, scheme: str = "light") -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        self.driver.get("about:blank")
        for log in ("browser", "performance"):
            self.driver.get_log(log)
        self.driver.get(f"{page.as_uri()}{link}")
        WebDriverWait(self.driver, 60).until(lambda _: self.js("return document.documentElement.dataset.ready"))

    def js(self, script: str) -> Any:
        return self.driver.execute_script(script)

    def press(self, *keys: str) -> None:
        for key in keys:
            ActionChains(self.driver).send_keys(key).perform()

    def wait(self, condition: str, wanted: Any) -> None:
        """Until a value is what it should be; the failure names both."""
        try:
            WebDriverWait(self.driver, 20, 0.02).until(lambda _: self.js(f"return {condition}") == wanted)
        except Exception:
            assert self.js(f"return {condition}") == wanted

    def at(self, link: str) -> None:
        self.wait("decodeURI(location.hash)", link)
        shown = link[1:].rpartition("/")
        self.wait("document.getElementById('live').textContent.split(' of ')[0]", f"{shown[0]}, turn {shown[2]}")

    def text(self, selector: str) -> str:
        return str(self.js(f"return document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    def count(self, selector: str) -> int:
        return int(self.js(f"return document.querySelectorAll({json.dumps(selector)}).length"))

    def complaints(self) -> list[str]:
        """What stands in the console, and every request but the page's own."""
        console = [entry["message"] for entry in self.driver.get_log("browser")]
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        assert asked, "the page itself must be among the requests, or the log is not the network's"
        return console + [url for url in asked if not url.startswith(("file:", "data:,"))] + asked[2:]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    running = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield running
    running.quit()


@pytest.fixture
def browser(driver: Any) -> Iterator[Browser]:
    """A browser that must have nothing to complain about at the end."""
    opened = Browser(driver)
    yield opened
    assert opened.complaints() == []


def test_stepping_by_keys(browser: Browser, page: Callable[..., Path]) -> None:
    browser.open(page(before=[plain_episode(0), plain_episode(1)], after=[plain_episode(0), faulty_episode(1)]))
    browser.at("#before/1/1")
    browser.press(Keys.ARROW_RIGHT)
    browser.at("#before/1/2")
    assert browser.text(".panel[aria-label=Memory] .note") == "3 added \u00b7 Q(m) 0.400"
    browser.press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    browser.at("#before/1/3")
    browser.press(Keys.HOME)
    browser.at("#before/1/1")
    browser.press(Keys.END)
    browser.at("#before/1/3")
    browser.press(Keys.ARROW_DOWN)
    browser.at("#before/2/1")
    browser.press(Keys.ARROW_UP, Keys.ARROW_UP)
    browser.at("#before/1/1")
    browser.press(Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.ARROW_DOWN)
    browser.at("#after/2/1")
    assert "no turns" in browser.text("#turn")
    assert "</script> lost" in browser.text("#episode .alert")


def test_what_a_turn_shows(browser: Browser, page: Callable[..., Path]) -> None:
    browser.open(page(after=[plain_episode(7)]), "#after/1/3")
    notes = browser.js("return [...document.querySelectorAll('.notes li')].slice(0, 4).map((li) => [li.className, "
                       "li.querySelector('.text').innerText])")  # fmt: skip
    assert notes == [
        ["kept", "Mira plays chess"],
        ["changed", "Otto trusts Ida and Bo"],
        ["added", "Ida owns dog"],
        ["dropped", "Kim is old"],
    ]
    assert browser.js("return [...document.querySelectorAll('.changed ins')].map((n) => n.innerText)")[0] == " and Bo"
    assert (
        browser.js("return getComputedStyle(document.querySelector('.dropped del')).textDecorationLine")
        == "line-through"
    )
    assert "cut" in browser.text(".panel[aria-label=Memory] .alert")
    rows = browser.js("return [...document.querySelectorAll('.goals tbody tr')].map((r) => [r.className, r.innerText])")
    assert [name for name, _ in rows] == ["right", "wrong"]
    assert "dog 7" in rows[1][1]
    assert "0.25" in rows[1][1]
    assert browser.text(".parts tbody") == "outcome\t0.50\nformat\t\u22120.10"
    assert "4 tool calls, 7 turns left" in browser.text(".panel[aria-label=Given]")
    said = browser.js("return [...document.querySelectorAll('.chart svg, .spark svg')].map((s) => s.ariaLabel)")
    assert said == [
        "Q by turn: turn 1 0.10, turn 2 0.90, turn 3 0.95",
        "Q by turn: turn 1 0.10, turn 2 0.20, turn 3 0.25",
        "Memory quality by turn: turn 1 0.10, turn 2 0.40, turn 3 0.50",
        "Tokens by turn: turn 1 70, turn 2 70, turn 3 70",
    ]
    browser.driver.find_elements(By.CSS_SELECTOR, ".chart .hit")[0].click()
    browser.at("#after/1/1")
    browser.press(Keys.END)
    assert browser.js("return [...document.querySelectorAll('mark.gold')].map((m) => m.innerText)")[0] == "chess"


def test_tokens_are_coloured_by_their_advantage(browser: Browser, page: Callable[..., Path]) -> None:
    info = {"tokens": ["<mem>", "a", "</mem>", "<answer>x</answer>"], "advantages": [1.0, 0.5, -1.0, 0.0]}
    turn = make_turn("a", info=info, output_ids=(1, 2, 3, 4), segments=(1, 1, 1, 4))
    browser.open(page(after=[make_episode([turn], GOALS)]))
    tokens = browser.js(
        "return [...document.querySelectorAll('.run .token')].map((t) => [t.className, t.title, t.innerText, "
        "t.style.getPropertyValue('--a'), getComputedStyle(t).borderBottomStyle])"
    )
    assert tokens == [
        ["token plus", "A = +1.000", "<mem>", "1.000", "solid"],
        ["token plus", "A = +0.500", "a", "0.500", "solid"],
        ["token minus", "A = \u22121.000", "</mem>", "1.000", "dotted"],
        ["token zero", "A = 0.000", "<answer>x</answer>", "0.000", "solid"],
    ]
    assert browser.text(".run.s1 .run-name") == "memory 3 tokens, mean A +0.17"


def test_hostile_text_is_inert(browser: Browser, page: Callable[..., Path]) -> None:
    browser.open(page("</title><b>x", evil=[hostile_episode()]))
    for turn in (1, 2, 3):
        browser.at(f"#evil/1/{turn}")
        assert browser.count("main :is(img, iframe, a, script, link, object, embed, form, style, b b)") == 0
        assert browser.js("return document.title").startswith(f"evil/1, turn {turn} ")
        assert browser.js("return document.body.innerText.length") < 100_000, "a megabyte must wait to be asked for"
        assert browser.js("return document.documentElement.scrollWidth <= innerWidth")
        browser.press(Keys.ARROW_RIGHT)
    for text in HOSTILE[:7]:
        assert text in browser.text(".goals"), text
    assert "U+202E" in browser.text(".goals")
    assert "U+0000" in browser.text(".goals")
    assert browser.count(".code") > 0
    browser.js("location.hash = '#evil/1/2'")
    browser.at("#evil/1/2")
    before = len(browser.text(".panel[aria-label=Given]"))
    browser.driver.find_element(By.CSS_SELECTOR, ".panel[aria-label=Given] .more").click()
    assert len(browser.text(".panel[aria-label=Given]")) > before + 40_000


def test_a_thousand_episodes(browser: Browser, page: Callable[..., Path]) -> None:
    episodes = [plain_episode(n) for n in range(1000)]
    browser.open(page(after=episodes), "#after/1000/2")
    browser.at("#after/1000/2")
    assert browser.text("#count") == "1,000 episodes, mean F1 50.0"
    assert browser.count("#rows [role=option]") < 60
    assert browser.text("#rows [aria-selected=true]").startswith("Mira plays what?")
    browser.press("/", "dog after/78")
    browser.wait("document.getElementById('count').textContent.split(' ')[0]", "11")  # 78 and 780 to 789
    browser.press(Keys.ESCAPE, Keys.ARROW_DOWN)
    browser.at("#after/78/1")
    browser.js("document.getElementById('list').scrollTop = 1e9")
    assert browser.count("#rows [role=option]") == 11
    browser.js("location.hash = '#after/500/3'")  # a link to what the filter hides
    browser.at("#after/500/3")
    assert browser.text("#count").startswith("1,000 episodes")


def test_filters_sorting_and_the_same_task_elsewhere(browser: Browser, page: Callable[..., Path]) -> None:
    right = make_turn(action=Answer(("chess", "cat")))
    best = make_episode([right], GOALS, 5, scores={"em": 1.0, "f1": 1.0})
    browser.open(page(before=[plain_episode(5)], after=[plain_episode(4), best, faulty_episode(6)]))

    def choose(field: str, value: str) -> None:
        browser.js(
            f"const s = document.getElementById('{field}'); s.value = '{value}'; s.dispatchEvent(new Event('input'))"
        )

    def names() -> list[str]:
        return list(
            browser.js(
                "return [...document.querySelectorAll('.row-facts > span:nth-child(2)')].map((s) => s.innerText)"
            )
        )

    choose("sort", "best")
    assert names() == ["after/2", "before/1", "after/1", "after/3"]
    choose("result", "fault")
    assert names() == ["after/3"]
    choose("result", "right")
    assert names() == ["after/2"]
    choose("result", "")
    choose("source", "0")
    assert names() == ["before/1"]
    chips = browser.js("return [...document.querySelectorAll('.chip')].map((c) => c.innerText)")
    assert chips == ["before 50", "after 100"]
    browser.driver.find_elements(By.CSS_SELECTOR, ".chip")[1].click()
    browser.at("#after/2/1")
    choose("search", "nothing has this")
    assert browser.text("#rows") == "No episode fits these filters."


def test_help_theme_and_focus(browser: Browser, page: Callable[..., Path]) -> None:
    browser.open(page(after=[plain_episode()]))
    browser.press("?")
    assert browser.js("return document.getElementById('help').open")
    browser.press(Keys.ARROW_RIGHT)
    browser.press(Keys.ESCAPE)
    assert not browser.js("return document.getElementById('help').open")
    browser.at("#after/1/1")
    grounds = []
    for theme in ("light", "dark", "auto"):
        browser.press("t")
        assert browser.js("return document.documentElement.dataset.theme") == theme
        grounds.append(browser.js("return getComputedStyle(document.body).backgroundColor"))
    assert grounds[0] == grounds[2] != grounds[1]
    browser.driver.find_element(By.CSS_SELECTOR, ".arrow[aria-label='Next turn']").click()
    browser.at("#after/1/2")
    assert browser.js("return document.activeElement.getAttribute('aria-label')") == "Next turn"
    browser.press(Keys.TAB)
    assert browser.js("return getComputedStyle(document.activeElement).outlineStyle") != "none"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(browser: Browser, page: Callable[..., Path], scheme: str) -> None:
    info = {"tokens": ["<mem>", "</mem>", "x"], "advantages": [1.0, -1.0, 0.0]}
    tokens = make_turn("a", info=info, output_ids=(1, 2, 3), segments=(1, 2, 4))
    error = hostile_episode().turns[1]
    episodes = [plain_episode(), make_episode([tokens, error], GOALS, terminated=False), faulty_episode()]
    out = page(after=episodes)
    for link in ("#after/1/3", "#after/2/1", "#after/2/2", "#after/3/1"):
        browser.open(out, link, scheme=scheme)
        browser.at(link)
        found = browser.js(CONTRASTS)
        assert len(found) > 30
        assert [what for ratio, what in found if ratio < 4.5] == []
    browser.js("document.getElementById('help').showModal()")
    assert [what for ratio, what in browser.js(CONTRASTS) if ratio < 4.5] == []


def test_a_phone(browser: Browser, page: Callable[..., Path]) -> None:
    out = page(after=[plain_episode(0), hostile_episode(1)])
    for link in ("#after/1/3", "#after/2/1", "#after/2/2", "#after/2/3"):
        browser.open(out, link, width=360, height=740)
        browser.at(link)
        assert browser.js("return [document.documentElement.scrollWidth, document.body.scrollWidth]") == [360, 360]
    assert not browser.js("return document.getElementById('side').checkVisibility()")
    browser.driver.find_element(By.ID, "menu").click()
    assert browser.js("return document.getElementById('side').checkVisibility()")
    browser.driver.find_elements(By.CSS_SELECTOR, "#rows [role=option]")[0].click()
    browser.at("#after/1/1")
    assert not browser.js("return document.getElementById('side').checkVisibility()")
    browser.driver.find_element(By.CSS_SELECTOR, ".arrow[aria-label='Next turn']").click()
    browser.at("#after/1/2")


@pytest.mark.parametrize("link", ["#no/such/link", "#after/9/1", "#%E0%A4%A", "#after/1/99", "#after/1/x", "#after/1"])
def test_any_link_shows_something(browser: Browser, page: Callable[..., Path], link: str) -> None:
    browser.open(page(after=[plain_episode()]), link)
    browser.at("#after/1/3" if link.endswith("99") else "#after/1/1")
