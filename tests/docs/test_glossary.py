"""The glossary is in alphabetical order, and short."""

from __future__ import annotations

import re

from helpers.pages import ROOT

ROWS = re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", (ROOT / "docs/glossary.md").read_text(), re.MULTILINE)[1:]


def test_words_are_in_alphabetical_order() -> None:
    """Each word is there once, and where one looks for it."""
    words = [word for word, _ in ROWS]
    assert len(words) > 40
    assert words == sorted(set(words), key=str.casefold)


def test_explanations_are_short() -> None:
    """No explanation has more than three sentences, and each ends with a full stop."""
    for word, explanation in ROWS:
        assert explanation.endswith("."), word
        assert len(re.findall(r"[.:](?: |$)", explanation)) <= 4, word
