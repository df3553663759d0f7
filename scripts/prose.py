"""Lint the English of the project, by the rules of prose.toml and by those of proselint that fit.

It reads Markdown, docstrings and comments, without the code in them. --all also reads what is not yet rewritten.
"""

from __future__ import annotations

import argparse
import io
import re
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt
from proselint.checks import __register__
from proselint.config import DEFAULT, Config
from proselint.registry import CheckRegistry
from proselint.tools import LintFile

ROOT = Path(__file__).parents[1]
CODE = "`_`"
"""Stands for a piece of code in a sentence."""
SENTENCE_BEGINS = r"(?:^|(?<=[.!?:]\s))"
PART = re.compile(r"\w[\w-]|[\w-]\w")
"""Two characters in the middle of a word."""
C_COMMENT = re.compile(r"/\*(.*?)\*/|//([^\n]*)", re.DOTALL)


class Rule(NamedTuple):
    """A pattern that no paragraph may contain."""

    pattern: re.Pattern[str]
    instead: str


def load(path: Path, *, every: bool) -> tuple[list[Rule], Config, list[str]]:
    """Return the rules of a file, the configuration of proselint, and the patterns of the files to read."""
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    rules = []
    for rule in table["rules"]:
        begins = rule.get("begins", False)
        pattern = rule["pattern"].replace(" ", r"\s")
        pattern = f"{SENTENCE_BEGINS}(?:{pattern})" if begins else rf"(?<![\w-])(?:{pattern})(?![\w-])"
        compiled = re.compile(pattern, re.NOFLAG if begins else re.IGNORECASE)
        if compiled.search(rule["wrong"]) is None:
            raise ValueError(f"a rule of {path.name} does not find {rule['wrong']!r}")
        rules.append(Rule(compiled, rule["instead"]))
    checks = {**DEFAULT["checks"], **dict.fromkeys(table["proselint"]["off"], False)}
    later = [] if every else [f":!{name}" for name in table["later"]]
    return rules, {**DEFAULT, "checks": checks}, [*table["files"], *later]


def of_markdown(source: str, line: int = 1) -> Iterator[tuple[int, str]]:
    """Yield each paragraph, heading and cell, without code, with the line that it begins in."""
    for token in MarkdownIt().enable("table").parse(source):
        if token.type == "inline" and token.map is not None:
            texts: dict[str, str] = {"softbreak": "\n", "hardbreak": "\n", "code_inline": CODE}
            yield line + token.map[0], "".join(texts.get(part.type, part.content) for part in token.children or ())


def of_block(block: str, line: int) -> Iterator[tuple[int, str]]:
    """Yield the paragraphs of a docstring or comment, whose indentation Markdown would take for code."""
    return of_markdown("\n".join(part.strip() for part in block.split("\n")), line)


def of_python(source: str) -> Iterator[tuple[int, str]]:
    """Yield the paragraphs of docstrings and comments, in Python or Cython."""
    comments: list[str] = []
    first, begins = 0, True
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        line = token.start[0]
        if comments and line != first + len(comments) and (token.type != tokenize.NL or line > first + len(comments)):
            yield from of_block("\n".join(comments), first)
            comments = []
        if token.type == tokenize.COMMENT:
            first = first if comments else line
            comments.append(token.string.lstrip("#!: "))
        elif token.type == tokenize.STRING and begins and token.string.lstrip("rR").startswith('"""'):
            yield from of_block(token.string.lstrip("rR").strip('"'), line)
        if token.type not in (tokenize.COMMENT, tokenize.NL):
            begins = token.type in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)


def of_c(source: str) -> Iterator[tuple[int, str]]:
    """Yield the paragraphs of comments in C."""
    for match in C_COMMENT.finditer(source):
        block = "\n".join(part.strip().lstrip("* ") for part in (match[1] or match[2]).split("\n"))
        yield from of_block(block, source.count("\n", 0, match.start()) + 1)


PYTHON = (".py", ".pyi", ".pyx", ".pxd", ".pxi")
READERS = {".md": of_markdown, ".c": of_c, ".h": of_c, **dict.fromkeys(PYTHON, of_python)}


def check(path: str, rules: list[Rule], config: Config) -> Iterator[tuple[int, str]]:
    """Yield what breaks a rule in a file, with its line."""
    lines: dict[int, str] = {}
    for first, text in READERS[Path(path).suffix]((ROOT / path).read_text(encoding="utf-8")):
        for rule in rules:
            for match in rule.pattern.finditer(text):
                found = " ".join(match[0].split())
                yield first + text.count("\n", 0, match.start()), f'"{found}": {rule.instead}'
        for number, line in enumerate(text.split("\n"), first):
            lines[number] = f"{lines[number]} | {line}" if number in lines else line
    file = LintFile(path, "\n".join(lines.get(number, "") for number in range(1, max(lines, default=0) + 1)) or "\n")
    for result in file.lint(config):
        start, end = result.check_result.span
        before, after = file.content[start - 1 : start + 1], file.content[end - 1 : end + 1]
        if not PART.fullmatch(before) and not PART.fullmatch(after):  # it finds "for ever" in "for every"
            yield result.pos[0], f"{result.check_result.check_path}: {result.check_result.message}"


def main() -> int:
    """Print each place that breaks a rule."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", help="instead of those that prose.toml names")
    parser.add_argument("--all", action="store_true", help="also read what is not yet rewritten")
    arguments = parser.parse_args()
    rules, config, patterns = load(Path(__file__).with_suffix(".toml"), every=arguments.all)
    CheckRegistry().register_many(__register__)
    paths = arguments.files
    if not paths:
        listing = subprocess.check_output(["git", "ls-files", "--", *patterns], cwd=ROOT, text=True)
        paths = [path for path in listing.splitlines() if (ROOT / path).exists()]
    findings = [f"{path}:{line}: {text}" for path in paths for line, text in sorted(check(path, rules, config))]
    print(*findings, f"{len(paths)} files, {len(findings)} places to rewrite", sep="\n")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
