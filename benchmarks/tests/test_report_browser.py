"""The report of `wsfast bench` in a real Chromium: phone and desktop, light and dark."""

from __future__ import annotations

import asyncio
import base64
import copy
import json
from pathlib import Path
from typing import Any

import pytest

from helpers.chromium import REQUIRED, Page, find_chromium, open_page
from helpers.pages import ROOT
from wsfast_bench.page import render

CHROMIUM = find_chromium()

RUNS = ("broadcast", "cold-1000-deflate", "memory", "stalled", "cores")
"""Runs of docs/measurements that make a report with every kind of part."""

CONTRAST = """
(() => {
  const luminance = rgb => rgb.map(value => value / 255)
    .map(value => value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
    .reduce((sum, value, index) => sum + value * [0.2126, 0.7152, 0.0722][index], 0);
  const parse = color => color.match(/[\\d.]+/g).map(Number);
  const behind = element => {
    for (; element; element = element.parentElement) {
      const color = parse(getComputedStyle(element).backgroundColor);
      if (color.length < 4 || color[3] > 0) return color.slice(0, 3);
    }
    return [255, 255, 255];
  };
  const ratio = (one, other) => {
    const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const poor = [];
  for (const element of document.querySelectorAll("body *")) {
    const style = getComputedStyle(element), inSvg = element instanceof SVGElement;
    const written = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
    const shown = element.getClientRects().length > 0;
    if (inSvg && element.tagName === "rect" && ratio(parse(style.fill), behind(element)) < 3)
      poor.push(`bar ${element.className.baseVal}`);
    if (!written || !shown) continue;
    const color = parse(inSvg ? style.fill : style.color).slice(0, 3);
    if (ratio(color, behind(element)) < 4.5) poor.push(`${element.tagName}: ${element.textContent.slice(0, 40)}`);
  }
  return poor;
})()
"""
"""Elements whose contrast is below that of WCAG's level AA: 4.5 for text, 3 for bars."""

WIDER = """
[...document.querySelectorAll("body *")]
  .filter(element => !element.closest(".wide table") && element.getBoundingClientRect().right > innerWidth + 0.5)
  .map(element => `${element.tagName} ${element.textContent.slice(0, 40)}`)
"""
"""Elements that reach beyond the right edge of the window, except for tables in their boxes."""


def report() -> str:
    """Return a report of runs that are kept in the repository, with a warning and a long command."""
    content: dict[str, Any] = {"cases": [], "memory": [], "scenarios": []}
    for name in RUNS:
        run = json.loads((ROOT / "docs" / "measurements" / f"{name}.json").read_text())
        content |= {key: run[key] for key in ("machine", "versions", "processors")}
        for kind in ("cases", "memory", "scenarios"):
            content[kind] += copy.deepcopy(run.get(kind, []))
    content["cases"][0]["warnings"].append("WARNING: something else runs there")
    return render(content, None, command="wsfast bench " + "--scenario=" + "x" * 200, when="2026-11-27 06:00 +0000")


async def whole(page: Page, path: Path) -> None:
    """Write what the whole page looks like to a file."""
    size = (await page.call("Page.getLayoutMetrics"))["cssContentSize"]
    clip = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], 4000), "scale": 1}
    taken = await page.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
    path.write_bytes(base64.b64decode(taken["data"]))


@pytest.mark.skipif(CHROMIUM is None and not REQUIRED, reason="there is no Chromium")
def test_report_in_a_browser(tmp_path: Path) -> None:
    """It fits a phone and a desktop, can be read in light and dark, and asks for nothing."""
    assert CHROMIUM is not None, "WSFAST_REQUIRE_CHROMIUM is set, and there is none; apt-get install chromium"
    chromium, path = CHROMIUM, tmp_path / "report.html"
    path.write_text(report())

    async def look() -> None:
        async with open_page(chromium) as page:
            await page.go(path.as_uri())
            for width, height in ((390, 844), (1400, 900)):
                for dark in (False, True):
                    await page.resize(width, height, dark=dark)
                    await whole(page, tmp_path / f"report-{width}-{'dark' if dark else 'light'}.png")
                    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
                    assert await page.evaluate(WIDER) == []
                    assert await page.evaluate(CONTRAST) == []
                    shade = await page.evaluate("getComputedStyle(document.body).backgroundColor")
                    assert shade == ("rgb(25, 25, 24)" if dark else "rgb(252, 252, 250)")
                if width == 390:
                    # A table that is too wide for a phone can be moved in its box, by keys as well.
                    assert await page.evaluate(
                        "(box => { box.focus(); box.scrollLeft = 50; "
                        "return box.scrollLeft === 50 && document.activeElement === box; })"
                        "(document.querySelector('.wide'))"
                    )
            texts = "[...document.querySelectorAll('svg')].map(svg => [svg.getAttribute('role'), svg.ariaLabel])"
            charts = await page.evaluate(texts)
            assert len(charts) > 4
            assert all(role == "img" and ": " in label for role, label in charts)
            tops = "[...document.querySelectorAll('h2')].slice(0, 4).map(head => head.textContent)"
            assert await page.evaluate(tops) == [
                "How much faster is it?",
                "How much faster is it with compression?",
                "How far is it from the kernel?",
                "What does a slow client do to the others?",
            ]
            first = "document.querySelector('figure').getBoundingClientRect().top + scrollY"
            await page.resize(390, 844)
            assert await page.evaluate(first) < 844, "the first chart is not on the first screen of a phone"
            assert page.requests == [path.as_uri()]
            assert page.complaints == []

    asyncio.run(asyncio.wait_for(look(), 110))
