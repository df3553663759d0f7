"""What MkDocs is told while it builds the site: a hook, named in mkdocs.yml.

Pages link to files of the repository by their paths, as GitHub shows them. What lies outside of docs/ becomes a page of
the site when a page links to it: Markdown and pictures as they are, anything else as a block of code. The page of the
command line is made of what the commands themselves say. In the end, nothing in the site may be loaded from elsewhere.
"""

from __future__ import annotations

import os
import posixpath
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).parent.parent
COMMANDS = "<!-- command line -->"
LANGUAGES = {".c": "c", ".h": "c", ".html": "html", ".py": "python", ".pyx": "cython", ".toml": "toml"}

PICTURES = {".gif", ".jpg", ".png", ".svg"}

LINK = re.compile(r"\]\((?![a-z]+:|#)([^)\s#]+)(#[^)\s]*)?\)")
PUBLIC = re.compile(r"https://(?:github\.com/wsfast/wsfast/blob|raw\.githubusercontent\.com/wsfast/wsfast)/main/")
FENCED = re.compile(r"^(`{3,}).*?^\1`*$", re.MULTILINE | re.DOTALL)
LOADED = re.compile(
    r"""<(?:script|img|iframe|source|video|audio)\b[^>]*\bsrc=["']?(?:https?:)?//|"""
    r"""<link\b(?![^>]*rel=["']?(?:canonical|next|prev))[^>]*\bhref=["']?(?:https?:)?//|"""
    r"""@import\s|url\(["']?(?:https?:)?//""",
    re.IGNORECASE,
)


def in_site(path: str) -> str:
    """Return where a file of the repository, or the page made of it, stands in the site."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"repository/{path}" if Path(path).suffix in {".md", *PICTURES} else f"repository/{path}.md"


def links_of(markdown: str) -> list[str]:
    """Return the relative links of a page that are not in blocks of code."""
    return [match[1] for match in LINK.finditer(PUBLIC.sub("", FENCED.sub("", markdown)))]


def translate(markdown: str, path: str) -> str:
    """Have the links of a file of the repository lead to where their targets stand in the site.

    The links of the README are absolute, since PyPI shows it as well.
    """
    if path == "README.md":
        markdown = PUBLIC.sub("", markdown)

    def replace(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), match[1]))
        place = posixpath.relpath(in_site(target), posixpath.dirname(in_site(path)) or ".")
        return f"]({place}{match[2] or ''})"

    parts = re.split(r"(^`{3,}.*?^`{3,}$)", markdown, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if part.startswith("```") else LINK.sub(replace, part) for part in parts)


def content_of(path: str) -> str | bytes:
    """Return what a file outside of docs/ becomes in the site."""
    if Path(path).suffix in PICTURES:
        return (ROOT / path).read_bytes()
    text = (ROOT / path).read_text()
    if path.endswith(".md"):
        return text
    fence = "`" * 4
    language = LANGUAGES.get(Path(path).suffix, "text")
    return f"---\nsearch:\n  exclude: true\n---\n# {path}\n\n{fence}{language}\n{text}\n{fence}\n"


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """Add a page for each file outside of docs/ to which a page leads."""
    pages = [f"docs/{file.src_uri}" for file in files.documentation_pages()]
    seen = set(pages)
    while pages:
        page = pages.pop()
        if page.startswith("docs/") or page.endswith(".md"):
            for link in links_of((ROOT / page).read_text()):
                target = posixpath.normpath(posixpath.join(posixpath.dirname(page), link))
                if target not in seen and not target.startswith("docs/") and (ROOT / target).is_file():
                    seen.add(target)
                    pages.append(target)
                    file = File.generated(config, in_site(target), content=content_of(target))
                    file.inclusion = InclusionLevel.NOT_IN_NAV  # unless mkdocs.yml says otherwise
                    files.append(file)
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Translate links, and write down what the commands say."""
    if COMMANDS in markdown:
        markdown = markdown.replace(COMMANDS, "\n".join(section(command) for command in commands()))
    uri = page.file.src_uri
    return translate(markdown, uri.removeprefix("repository/") if uri.startswith("repository/") else f"docs/{uri}")


def say(*arguments: str) -> str:
    """Return what the command line says."""
    environment = {**os.environ, "COLUMNS": "82"}
    command = [sys.executable, "-m", "wsfast", *arguments, "--help"]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout


def commands() -> list[str]:
    """Return the commands that there are."""
    return re.findall(r"^    (\w+) ", say(), re.MULTILINE)


def section(command: str) -> str:
    """Return what the page tells about a command."""
    return f"## wsfast {command}\n\n```text\n{say(command)}```\n"


def on_post_build(config: Any, **_: Any) -> None:
    """Make sure that the site loads nothing from elsewhere.

    Raises:
        PluginError: If it does.
    """
    site = Path(config["site_dir"])
    for path in sorted(site.rglob("*")):
        if path.suffix in {".html", ".css"} and (match := LOADED.search(path.read_text())):
            raise PluginError(f"{path.relative_to(site)} loads something from elsewhere: {match[0]!r}")
