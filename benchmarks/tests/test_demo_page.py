"""The page of the demo in a real browser: it tells its story, by keyboard, on a phone and a desktop, light and dark.

With WSFAST_DEMO_SCREENSHOTS, the name of a folder, it runs with a thousand clients and takes pictures of each state
there. `demo.png` and `demo-dark.png`, the stalled state on a desktop, are those in docs/images.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from helpers.chromium import REQUIRED, Page, find_chromium, open_page
from helpers.peers import TIMEOUT, until
from wsfast_bench.demo.server import serve_page
from wsfast_bench.demo.show import Settings, Show
from wsfast_bench.demo.story import LANES

CHROMIUM = find_chromium()
LOOP = "uvloop" if importlib.util.find_spec("uvloop") else "asyncio"

FOLDER = os.environ.get("WSFAST_DEMO_SCREENSHOTS")

SIZES = {1400: 830, 390: 844}

pytestmark = pytest.mark.skipif(CHROMIUM is None and not REQUIRED, reason="no Chromium; see WSFAST_REQUIRE_CHROMIUM")

POOR = """
(() => {
  const channels = color => (color.match(/[\\d.]+/g) || []).map(Number);
  const luminance = rgb => rgb.slice(0, 3).map(value => value / 255)
    .map(value => value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
    .reduce((sum, value, index) => sum + value * [0.2126, 0.7152, 0.0722][index], 0);
  const ground = node => {
    for (; node; node = node.parentElement) {
      const color = channels(getComputedStyle(node).backgroundColor);
      if (color.length === 3 || color[3] === 1) return color;
    }
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement, style = getComputedStyle(node);
    if (!walker.currentNode.textContent.trim() || node.closest("script, noscript") || !node.offsetParent) continue;
    const [one, other] = [luminance(channels(style.color)), luminance(ground(node))].sort((a, b) => b - a);
    const ratio = (one + 0.05) / (other + 0.05);
    if (ratio < 4.5) found.push(`${node.tagName} ${node.textContent.slice(0, 40)}: ${ratio.toFixed(2)}`);
  }
  return found;
})()
"""
"""Texts whose contrast is less than WCAG's level AA asks for."""

OUTSIDE = """
[...document.querySelectorAll("body *")].filter(node => node.getBoundingClientRect().right > innerWidth + 0.5)
  .map(node => `${node.tagName} ${node.className}`)
"""
"""Elements that reach beyond the right edge."""


def number(lane: str, key: str) -> str:
    """Return an expression for a number that a lane shows, in thousands separated by commas."""
    return f"parseFloat(document.querySelector('#lane-{lane} .{key} b').textContent.replaceAll(',', ''))"


def says(lane: str, text: str) -> str:
    """Return an expression: whether a lane says something."""
    return f"document.querySelector('#lane-{lane} .says').textContent.includes({text!r})"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have our own clients go to this machine directly."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def browse(work: Callable[[Page, Show, str], Awaitable[None]], clients: int) -> None:
    """Do something with the page of a show."""
    assert CHROMIUM is not None, "WSFAST_REQUIRE_CHROMIUM is set, and there is none; apt-get install chromium"
    chromium = CHROMIUM

    async def run() -> None:
        show = Show(Settings(clients=clients, loop=LOOP))
        async with open_page(chromium) as page, serve_page(show) as url:
            await page.resize(1400, SIZES[1400])
            await page.go(url)
            await page.until("document.getElementById('status').textContent === 'The clients are connecting'")
            assert await page.evaluate("document.getElementById('tunnel').disabled")
            async with show.open():
                await work(page, show, url)
            own = (url, url.replace("http", "ws"), "data:")
            assert [request for request in page.requests if not request.startswith(own)] == []
            assert page.complaints == []

    asyncio.run(asyncio.wait_for(run(), 4 * TIMEOUT))


async def look(page: Page, name: str) -> None:
    """Check that the page fits and can be read, on a phone and a desktop, light and dark; take pictures of it."""
    for width, height in SIZES.items():
        for dark in (False, True):
            await page.resize(width, height, dark=dark)
            features = {"prefers-color-scheme": "dark" if dark else "light", "prefers-reduced-motion": "reduce"}
            await page.call(
                "Emulation.setEmulatedMedia", features=[{"name": k, "value": v} for k, v in features.items()]
            )
            await page.until("document.getAnimations().length === 0")  # those that had begun end, and no other begins
            assert await page.evaluate("document.documentElement.scrollWidth") <= width
            assert await page.evaluate(OUTSIDE) == []
            assert await page.evaluate(POOR) == [], (name, width, dark)
            if FOLDER:
                picture = "demo" if (name, width) == ("stalled", 1400) else f"{name}-{width}"
                await page.screenshot(Path(FOLDER) / f"{picture}{'-dark' if dark else ''}.png")
    await page.resize(1400, SIZES[1400])


async def press(page: Page, show: Show, key: str, code: int, text: str) -> None:
    """Press the button with the keyboard, and wait until the server knows."""
    before = show.stalled_at is None
    await page.press(key, code, text)
    await until(lambda: (show.stalled_at is None) is not before, "the command")


def test_page_tells_the_story() -> None:
    """The button stalls one client of each lane: the loop stops, websockets' memory grows, the Channel goes on."""
    clients = 333 if FOLDER else 20

    async def work(page: Page, show: Show, _: str) -> None:
        await page.until("document.getElementById('status').textContent === 'Live'")
        for lane in LANES:
            for key in ("delivered", "lag", "memory"):
                await page.until(f"{number(lane, key)} > 0")
            await page.until(says(lane, "Every client gets every message."))
        await look(page, "start")
        if FOLDER:
            await until(lambda: show.samples[-1]["time"] > show.samples[0]["time"] + 10)
            await look(page, "10s")
        await page.press("Tab", 9)
        assert await page.evaluate("document.activeElement.id") == "tunnel"
        assert await page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        kept = show.samples[-1]["lanes"]["broadcast"]["kept"]
        await press(page, show, " ", 32, " ")
        await page.until(f"{number('loop', 'delivered')} === 0")
        await page.until(says("loop", "The loop waits for one client: nobody gets anything."))
        await page.until(says("broadcast", "for the stalled client, and more every second."))
        await page.until(says("channel", "messages of the stalled client. The others notice nothing."))
        await until(lambda: show.samples[-1]["lanes"]["broadcast"]["kept"] > kept + (1 << 20), "the queue")
        assert await page.evaluate(f"{number('broadcast', 'delivered')} > 0 && {number('channel', 'delivered')} > 0")
        assert await page.evaluate("document.getElementById('tunnel').textContent") == "It comes out of the tunnel"
        if FOLDER:
            await until(lambda: (show.samples[-1]["stalled"] or 0) > 10, "ten seconds")
        await page.evaluate("document.activeElement.blur()")
        await look(page, "stalled")
        await page.evaluate("document.getElementById('tunnel').focus()")
        await press(page, show, "Enter", 13, "\r")
        await page.until(f"{number('loop', 'delivered')} > 0")
        for lane in LANES:
            await page.until(says(lane, "Every client gets every message."))

    browse(work, clients)


def test_page_controls() -> None:
    """Policy and rate are chosen on the page, every control has a label, and the page comes back after a loss."""

    async def work(page: Page, show: Show, url: str) -> None:
        await page.until("document.getElementById('status').textContent === 'Live'")
        await page.until("document.querySelector('input[value=DropOldest]').checked")
        await page.evaluate("document.querySelector('input[value=DropOldest]').focus()")
        await page.press("ArrowRight", 39)
        await until(lambda: show.settings.policy == "DropNewest", "the policy")
        await page.click("input[value=Conflate]")
        await until(lambda: show.settings.policy == "Conflate", "the policy")
        await page.until("document.getElementById('policy').textContent.includes('8 keys')")
        await page.click("input[name=rate][value='40']")
        await until(lambda: show.settings.rate == 40, "the rate")
        await page.until("document.getElementById('rate').textContent === '40'")
        await page.click("#tunnel")
        await page.until(says("channel", "The Channel replaced "))
        unlabelled = "[...document.querySelectorAll('input')].filter(one => !one.labels.length).length"
        assert await page.evaluate(unlabelled) == 0
        assert await page.evaluate("document.querySelectorAll('.says[aria-live=polite]').length") == 3
        # A number that changes all the time is not read aloud.
        assert await page.evaluate("document.querySelector('#lane-channel .says b').ariaLive") == "off"
        await page.evaluate("socket.close()")
        await page.until("document.getElementById('tunnel').disabled")
        await page.until("document.getElementById('status').textContent === 'Live'")
        assert not await page.evaluate("document.getElementById('tunnel').disabled")

    browse(work, 5)
