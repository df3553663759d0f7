"""Build the documentation as a site, site/index.html.

Pages link to files of the repository by their paths, as GitHub shows them. First, this script writes build/docs, a
plain tree of pages for which a builder of static sites needs no hook:

- all of docs/,
- a page for each file outside of docs/ to which a page links: Markdown and pictures as they are, other files as code,
- the help of each command, on the page of the command line,
- a light and a dark variant of each diagram, so that diagrams follow the switch of the site as well as the system.

Then a builder makes the site of this tree, by mkdocs.yml. At the end, the script makes sure that the site loads nothing
from elsewhere.

Two builders were tried with the same tree and the same mkdocs.yml, zensical 0.0.73 and mkdocs-material 9.8. Both
render mkdocstrings, search from disk, have a dark mode and copy buttons, and stop at links to pages, headings and names
that do not exist. zensical makes the site, because mkdocs-material is maintained only until May 2027 and zensical is
its successor, by the same authors; it also shows the line of a broken link, and text around the words that a search has
found. Only mkdocs reports missing images and pages outside of the navigation. It takes a few seconds, so `make docs`
runs both, while there are both.
"""

from __future__ import annotations

import argparse
import os
import posixpath
import re
import shutil
import subprocess
import sys
from pathlib import Path

import wsfast

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
TREE = ROOT / "build" / "docs"
SITE = ROOT / "site"
REPOSITORY = "https://github.com/wsfast/wsfast"

BUILDERS = {
    "zensical": ["zensical", "build", "--clean", "--strict"],
    "mkdocs": ["mkdocs", "build", "--strict"],
}

COMMANDS = "<!-- command line -->"
LANGUAGES = {".c": "c", ".h": "c", ".html": "html", ".py": "python", ".pyx": "cython", ".toml": "toml"}
IMAGES = ROOT / "docs" / "images"
PICTURES = {".gif", ".jpg", ".png", ".svg"}

LINK = re.compile(r"\]\((?!#)([^)\s#]+)(#[^)\s]*)?\)")
OURS = re.compile(rf"{REPOSITORY}/(?:blob|raw|tree)/main/|https://raw\.githubusercontent\.com/wsfast/wsfast/main/")
FENCED = re.compile(r"(^`{3,}.*?^`{3,}$)", re.MULTILINE | re.DOTALL)
DIAGRAM = re.compile(r"!\[([^\]]*)\]\(([^)\s]+)(\.svg|\.png)\)")
DARK = "@media (prefers-color-scheme: dark)"
LOADED = re.compile(
    r"""<(?:script|img|iframe|source|video|audio)\b[^>]*\bsrc=["']?(?:https?:)?//|"""
    r"""<link\b(?![^>]*rel=["']?(?:canonical|next|prev))[^>]*\bhref=["']?(?:https?:)?//|"""
    r"""@import\s|url\(["']?(?:https?:)?//""",
    re.IGNORECASE,
)


def place_of(path: str) -> str:
    """Return where a file of the repository, or the page made of it, is in the tree."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"repository/{path}" if Path(path).suffix in {".md", *PICTURES} else f"repository/{path}.md"


def target_of(link: str, path: str) -> str | None:
    """Return the file of the repository to which a link in another one leads; None if it leads elsewhere."""
    target, count = OURS.subn("", link)
    if not count:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), link))
    elif not (ROOT / target).exists():
        sys.exit(f"{path}: there is no {target}, to which {link} leads")
    return target if (ROOT / target).is_file() else None


def translate(text: str, path: str) -> tuple[str, set[str]]:
    """Have the links of a page lead to places in the tree. Return the page, and the files to which it links."""
    targets = set()

    def replace(match: re.Match[str]) -> str:
        target = target_of(match[1], path)
        if target is None:
            return match[0]
        targets.add(target)
        place = posixpath.relpath(place_of(target), posixpath.dirname(place_of(path)) or ".")
        return f"]({place}{match[2] or ''})"

    parts = FENCED.split(text)
    parts[::2] = [DIAGRAM.sub(both_variants, LINK.sub(replace, part)) for part in parts[::2]]
    return "".join(parts), targets


def both_variants(match: re.Match[str]) -> str:
    """Show a picture twice, if it has a dark variant. The theme hides the one that does not fit its colors."""
    alternative, path, suffix = match.groups()
    if suffix != ".svg" and not dark_variant(IMAGES / f"{Path(path).name}{suffix}").exists():
        return match[0]
    return "\n".join(f"![{alternative}]({path}.{scheme}{suffix}#only-{scheme})" for scheme in ("light", "dark"))


def dark_variant(picture: Path) -> Path:
    """Return where the dark variant of a picture is, if it is not drawn from the same file."""
    return picture.with_stem(f"{picture.stem}-dark")


def page_of(path: str) -> str:
    """Return the Markdown of a file of the repository."""
    text = (ROOT / path).read_text()
    if path.endswith(".md"):
        return text.replace(COMMANDS, "\n".join(map(section, commands()))) if COMMANDS in text else text
    language = LANGUAGES.get(Path(path).suffix, "text")
    return f"---\nsearch:\n  exclude: true\n---\n# {path}\n\n````{language}\n{text}\n````\n"


def help_of(*arguments: str) -> str:
    """Return the help of a command."""
    environment = {**os.environ, "COLUMNS": "82", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "wsfast", *arguments, "--help"]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout


def commands() -> list[str]:
    """Return the names of all commands."""
    return re.findall(r"^    (\w+) ", help_of(), re.MULTILINE)


def section(command: str) -> str:
    """Return the section about a command."""
    return f"## wsfast {command}\n\n```text\n{help_of(command)}```\n"


def write(path: str) -> set[str]:
    """Write a file of the repository into the tree. Return the files to which it links."""
    source, place, targets = ROOT / path, TREE / place_of(path), set[str]()
    place.parent.mkdir(parents=True, exist_ok=True)
    if source.suffix == ".svg":
        for scheme, media in (("light", "@media not all"), ("dark", "@media all")):
            place.with_suffix(f".{scheme}.svg").write_text(source.read_text().replace(DARK, media))
    elif source.suffix in PICTURES:
        shutil.copy(source, place)
        if dark_variant(source).exists():
            shutil.copy(source, place.with_suffix(f".light{source.suffix}"))
            shutil.copy(dark_variant(source), place.with_suffix(f".dark{source.suffix}"))
    else:
        text, targets = translate(page_of(path), path) if path.endswith(".md") else (page_of(path), set())
        place.write_text(text)
    return targets


def write_tree() -> None:
    """Write all pages, and the files to which they link."""
    shutil.rmtree(TREE, ignore_errors=True)
    waiting = {str(path.relative_to(ROOT)) for path in DOCS.rglob("*.md")}
    written = set[str]()
    while waiting:
        path = waiting.pop()
        written.add(path)
        waiting |= write(path) - written


def external_loads() -> list[str]:
    """Return the places where the site loads something from elsewhere."""
    pages = [path for path in sorted(SITE.rglob("*")) if path.suffix in {".css", ".html", ".svg"}]
    found = [(path, match[0]) for path in pages for match in LOADED.finditer(path.read_text())]
    return [f"{path.relative_to(ROOT)}: {what}" for path, what in found]


def build(builder: str) -> bool:
    """Build the site. Return whether that succeeded and the site loads nothing from elsewhere."""
    shutil.rmtree(SITE, ignore_errors=True)
    environment = {**os.environ, "WSFAST_VERSION": wsfast.__version__, "NO_MKDOCS_2_WARNING": "1"}
    status = subprocess.run([sys.executable, "-m", *BUILDERS[builder]], cwd=ROOT, env=environment).returncode
    loads = external_loads()
    for line in loads:
        print(f"loaded from elsewhere: {line}", file=sys.stderr)
    return not status and not loads


def main() -> int:
    """Write the tree, and build the site."""
    parser = argparse.ArgumentParser(description="Build the documentation as a site.")
    parser.add_argument("builder", nargs="+", choices=BUILDERS, help="the site of the last one stays")
    builders = parser.parse_args().builder
    write_tree()
    return 0 if all(map(build, builders)) else 1


if __name__ == "__main__":
    sys.exit(main())
