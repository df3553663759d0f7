"""The pages of the documentation as text: their blocks of code, their links, and the anchors that links may lead to."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

__all__ = [
    "PAGES",
    "ROOT",
    "Block",
    "Link",
    "anchors_of",
    "blocks_of",
    "digest_of",
    "in_repository",
    "inline_code_of",
    "links_of",
    "prose_of",
]

ROOT = Path(__file__).parents[2]
ELSEWHERE = {"build", "dist", "node_modules", "site"}

FENCE = re.compile(r"^( *)(`{3,}|~{3,}) *([\w-]*)")
NAME = re.compile(r"^<!-- test: ([\w-]+) -->$")
FILE = re.compile(r"`(\w+\.(?:py|html))`")
HEADING = re.compile(r"^#{1,6} +(.+?) *#*$")
LINK = re.compile(r"!?\[(?:[^\]\[]|\[[^\]]*\])*\]\(<?([^)\s>]+)>?(?: +\"[^\"]*\")?\)", re.DOTALL)
OURS = re.compile(r"https://(?:github\.com/wsfast/wsfast/blob|raw\.githubusercontent\.com/wsfast/wsfast)/main/(.+)")
CODE = re.compile(r"(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.DOTALL)


def _pages() -> list[str]:
    paths = (path.relative_to(ROOT) for path in ROOT.rglob("*.md"))
    ours = (
        path
        for path in paths
        if not any(part in ELSEWHERE or (part.startswith(".") and part != ".github") for part in path.parts[:-1])
    )
    return sorted(map(str, ours))


PAGES = _pages()
"""All pages in Markdown, as paths in the repository."""


@dataclass(frozen=True, slots=True)
class Block:
    """A block of code."""

    page: str
    line: int
    """The line of the page on which its first line is."""
    language: str
    name: str | None
    """What stands in a comment ahead of it, `<!-- test: name -->`."""
    file: str | None
    """The name of a file in the paragraph ahead of it."""
    code: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


class Link(NamedTuple):
    """A link, or an image."""

    page: str
    line: int
    target: str


def blocks_of(page: str) -> list[Block]:
    """Return the fenced blocks of code of a page."""
    blocks = []
    lines = (ROOT / page).read_text().splitlines()
    number = 0
    while number < len(lines):
        opening = FENCE.match(lines[number])
        number += 1
        if opening is None:
            continue
        indent, fence, language = opening.groups()
        before = NAME.match(lines[number - 2]) if number >= 2 else None
        end = number - (1 if before is None else 2)
        while end > 0 and not lines[end - 1].strip():
            end -= 1
        begin = end
        while begin > 0 and lines[begin - 1].strip():
            begin -= 1
        file = FILE.search("\n".join(lines[begin:end]))
        start = number
        while not lines[number].strip().startswith(fence):
            number += 1
        code = "".join(line.removeprefix(indent) + "\n" for line in lines[start:number])
        blocks.append(Block(page, start + 1, language, before and before[1], file and file[1], code))
        number += 1
    return blocks


def digest_of(code: str) -> str:
    """Return what tells a block that was tried by hand from one that was changed since."""
    return hashlib.sha256(code.encode()).hexdigest()[:16]


def prose_of(page: str) -> str:
    """Return a page with blank lines in the place of its blocks of code."""
    lines = (ROOT / page).read_text().splitlines()
    for block in blocks_of(page):
        for number in range(block.line - 2, block.line + block.code.count("\n")):
            lines[number] = ""
    return "\n".join(lines)


def links_of(page: str) -> Iterator[Link]:
    """Return the links of a page."""
    prose = CODE.sub(lambda match: re.sub(r"[^\n]", "x", match[0]), prose_of(page))
    for match in LINK.finditer(prose):
        yield Link(page, prose.count("\n", 0, match.start()) + 1, match[1])


def in_repository(target: str) -> str | None:
    """Return the path, with its anchor, of a link to the public copy of the repository; None if it leads elsewhere."""
    match = OURS.fullmatch(target)
    return match and match[1]


def inline_code_of(page: str) -> Iterator[str]:
    """Return what stands between backquotes in a page's text."""
    for match in CODE.finditer(prose_of(page)):
        yield " ".join(match[2].split())


def anchors_of(page: str) -> set[str]:
    """Return the anchors of the headings of a page, as GitHub makes them."""
    anchors: set[str] = set()
    for line in prose_of(page).splitlines():
        if heading := HEADING.match(line):
            text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[1]).replace("`", "").replace("*", "")
            slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            count = 1
            while (anchor := slug if count == 1 else f"{slug}-{count - 1}") in anchors:
                count += 1
            anchors.add(anchor)
    return anchors
