"""The flowchart of docs/choosing.md can be read: on a telephone, in the dark, and by those who do not see it."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from helpers.blocks import browser
from helpers.pages import ROOT

CHART = ROOT / "docs/images/choosing.svg"
SVG = "{http://www.w3.org/2000/svg}"
PAGE = ROOT / "docs/choosing.md"

PHONE = 358
"""Pixels in width that a page of the site has for it on a screen of 390."""

LOOK = """
[...document.querySelectorAll("text")].map(text => {
  const box = text.getBoundingClientRect();
  const behind = text.parentElement.querySelector("rect");
  const shape = behind.getBoundingClientRect();
  return {
    text: text.textContent,
    size: box.height,
    inside: box.left >= shape.left && box.right <= shape.right && box.top >= shape.top && box.bottom <= shape.bottom,
    colors: [getComputedStyle(text).fill, getComputedStyle(behind).fill],
  };
})
"""


def luminance(color: str) -> float:
    """Return the relative luminance of a color, as WCAG defines it."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """Return the contrast of two colors: 4.5 is AA for text."""
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_can_be_read_on_a_telephone(dark: bool, tmp_path: Path) -> None:
    """Every text lies in its box, is large enough at 390 pixels, and stands out in both color schemes."""

    async def look() -> list[dict[str, Any]]:
        chart = CHART.read_text().replace('width="380" height="500"', "", 1)  # as wide as there is room
        (tmp_path / "page.html").write_text(f"<body style='margin: 0; width: {PHONE}px'>{chart}")
        async with browser() as page:
            await page.resize(390, 800, dark=dark)
            await page.go((tmp_path / "page.html").as_uri())
            texts: list[dict[str, Any]] = await page.evaluate(LOOK)
            return texts

    texts = asyncio.run(look())
    assert len(texts) > 10
    for text in texts:
        assert text["inside"], text
        assert text["size"] >= 15, text
        assert contrast(*text["colors"]) >= 4.5, text


def test_flowchart_says_what_the_table_says() -> None:
    """The answers of the picture are those of the first table, in the same order; its description has them as well."""
    root = ElementTree.parse(CHART).getroot()
    assert root.get("role") == "img"
    named = {child.get("id"): child.text or "" for child in root if child.tag in (f"{SVG}title", f"{SVG}desc")}
    assert set((root.get("aria-labelledby") or "").split()) == set(named)
    answers = [
        " ".join(text.text or "" for text in group.iter(f"{SVG}text"))
        for group in root.iter(f"{SVG}g")
        if group.get("class") == "answer"
    ]
    assert answers == ["Hub and a relay", "Hub", "Channel", "broadcast()"]
    rows = re.findall(r"^\| (?:Are|May|None).*?\| (.*?) \|", PAGE.read_text(), re.MULTILINE)
    plain = [re.sub(r"\]\([^)]*\)|[`\[]", "", row) for row in rows]
    assert plain == answers
    for answer in answers:
        assert answer in named["desc"].replace("a Hub and", "Hub and")
