"""The documentation's site in a browser, opened from disk. `make docs` builds it first.

WSFAST_SCREENSHOTS names a folder for screenshots.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

import wsfast
from helpers.blocks import browser
from helpers.chromium import Page
from helpers.pages import ROOT, blocks_of
from helpers.peers import TIMEOUT

SITE = ROOT / "site"
AXE = Path(sys.prefix) / "npm" / "node_modules" / "axe-core" / "axe.min.js"
SCREENSHOTS = os.environ.get("WSFAST_SCREENSHOTS")

PAGES = (
    "index.html",
    "tutorial/price-feed.html",
    "how-to/slow-clients.html",
    "reference/channels.html",
    "explanation/three-phases.html",
    "explanation/measurements.html",
    "repository/index.html",
    "repository/examples/game.py.html",
)

AXE_OPTIONS = {
    "runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"],
    # The theme has the keyboard reach wide blocks of code where there is a mouse; a browser without screen has none.
    "rules": {"scrollable-region-focusable": {"enabled": False}},
    "preload": False,  # it would fetch style sheets, which is not allowed from disk
}


def browse(see: Callable[[Page], Coroutine[Any, Any, None]]) -> None:
    """Run a function with a page of a browser. Fail if there was an error, or a request to elsewhere."""

    async def main() -> None:
        async with browser() as page:
            await see(page)
            assert page.complaints == []
            assert [url for url in page.requests if not url.startswith(("file:", "data:"))] == []

    asyncio.run(asyncio.wait_for(main(), 2 * TIMEOUT))


async def show(page: Page, path: str, width: int = 1400, *, dark: bool = False) -> None:
    """Go to a page of the site."""
    assert (SITE / path).exists()
    await page.resize(width, 900, dark=dark)
    await page.go((SITE / path).as_uri())


@pytest.mark.parametrize("path", PAGES)
def test_page(path: str) -> None:
    """A page is readable on a desktop and on a phone, light and dark."""

    async def see(page: Page) -> None:
        for width in (1400, 390):
            for dark in (False, True):
                await show(page, path, width, dark=dark)
                assert await page.evaluate("document.body.dataset.mdColorScheme") == ("slate" if dark else "default")
                if SCREENSHOTS:
                    name = f"{path.removesuffix('.html').replace('/', '-')}-{width}-{'dark' if dark else 'light'}.png"
                    await page.screenshot(Path(SCREENSHOTS) / name)
                assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth"), width
                await page.evaluate(AXE.read_text() + ";0")
                violations = await page.evaluate(
                    f"axe.run({json.dumps(AXE_OPTIONS)}).then(results => results.violations.map("
                    "rule => [rule.id, rule.nodes.map(node => [node.html, node.failureSummary])]))"
                )
                assert violations == [], (width, dark)

    browse(see)


def test_diagrams_follow_the_color_scheme() -> None:
    """Exactly one variant of each diagram is shown: that of the system's color scheme, or of the site's switch."""
    diagrams = "[...document.querySelectorAll('article img')].filter(image => image.src.includes('.svg'))"
    shown = f"{diagrams}.filter(image => image.offsetWidth && image.naturalWidth)"

    async def see(page: Page) -> None:
        for path in ("architecture", "compression", "slow-consumers", "three-phases"):
            for dark in (False, True):
                await show(page, f"explanation/{path}.html", dark=dark)
                (source,) = await page.evaluate(f"{shown}.map(image => image.src)")
                assert f".{'dark' if dark else 'light'}.svg" in source
        await show(page, "index.html", dark=True)
        await page.click("label[for=__palette_1]")
        await page.until(f"{shown}.every(image => image.src.includes('.light.svg'))")

    browse(see)


def test_search_from_disk() -> None:
    """Search finds a word without a server."""
    found = (
        "[...document.querySelectorAll('*')].flatMap(element => [...(element.shadowRoot?.querySelectorAll('a') ?? [])])"
        ".map(link => link.href)"
    )

    async def see(page: Page) -> None:
        await show(page, "index.html")
        await page.click(".md-search__button")
        await page.until(
            "[...document.querySelectorAll('*')].some(element => element.shadowRoot?.activeElement?.matches('input'))"
        )
        await page.call("Input.insertText", text="conflate")
        await page.until(f"{found}.some(link => link.includes('/reference/channels.html'))")
        if SCREENSHOTS:
            await page.screenshot(Path(SCREENSHOTS) / "search.png")

    browse(see)


def test_copied_commands_have_no_prompts() -> None:
    """The copy button of a block copies commands that can be pasted into a shell: no prompts, no output."""

    async def see(page: Page) -> None:
        await show(page, "repository/index.html")
        await page.evaluate(
            "window.copied = []; addEventListener('copy', event => copied.push(event.target.value), true); 0"
        )
        blocks = "[...document.querySelectorAll('.highlight pre')].filter(block => block.querySelector('.gp'))"
        count = await page.evaluate(f"{blocks}.length")
        assert count > 1
        for number in range(count):
            await page.evaluate(f"{blocks}[{number}].querySelector('button').id = 'copy-{number}'")
            await page.click(f"#copy-{number}")
            await page.until(f"copied.length === {number + 1}")
        copied = await page.evaluate("copied.flatMap(text => text.split('\\n')).filter(line => line)")
        lines = [
            line for block in blocks_of("README.md") if block.language == "console" for line in block.code.splitlines()
        ]
        assert copied == [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]

    browse(see)


def test_links_around_a_page() -> None:
    """Each page links to the repository, the previous and the next page, and shows the version."""

    async def see(page: Page) -> None:
        await show(page, "how-to/topics.html")
        assert await page.evaluate("document.querySelector('.md-header .md-source').href") == (
            "https://github.com/wsfast/wsfast"
        )
        assert await page.evaluate("document.querySelector('.md-source__fact--version').textContent") == (
            wsfast.__version__
        )
        for relation, target in (("prev", "slow-clients.html"), ("next", "processes.html")):
            href = await page.evaluate(f"document.querySelector('.md-footer__link--{relation}').href")
            assert href == (SITE / "how-to" / target).as_uri()

    browse(see)
