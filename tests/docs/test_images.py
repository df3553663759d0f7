"""The diagrams of the documentation serve readers who do not see them, and readers in the dark."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from helpers.pages import PAGES, ROOT, links_of

SVG = "{http://www.w3.org/2000/svg}"
DIAGRAMS = sorted((ROOT / "docs" / "images").glob("*.svg"))


@pytest.mark.parametrize("path", DIAGRAMS, ids=lambda path: path.name)
def test_diagram(path: Path) -> None:
    """A diagram has a title, a description, a size, and colors for dark mode; some page shows it."""
    root = ElementTree.fromstring(path.read_text())
    assert [element.tag for element in root[:2]] == [f"{SVG}title", f"{SVG}desc"]
    assert all((element.text or "").strip() for element in root[:2])
    assert root.get("aria-labelledby") == " ".join(element.attrib["id"] for element in root[:2])
    assert {"viewBox", "width", "height"} <= set(root.attrib)
    assert "@media (prefers-color-scheme: dark)" in path.read_text()  # scripts/build_site.py replaces it
    assert any(link.target.endswith(f"images/{path.name}") for page in PAGES for link in links_of(page))
