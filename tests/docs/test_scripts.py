"""The scripts that check the project: its English, its changelog, and README.md as a reader pastes it."""

from __future__ import annotations

import os
import re
import sys
import sysconfig
import textwrap
from pathlib import Path

import pytest

from helpers.pages import ROOT
from helpers.ports import free_port
from helpers.processes import run

SCRIPTS = ROOT / "scripts"


def git(directory: Path, *arguments: str) -> None:
    """Run git as somebody."""
    somebody = ("-c", "user.name=Ann", "-c", "user.email=ann@example.org", "-c", "init.defaultBranch=main")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    run("git", *somebody, *arguments, cwd=directory, check=True, env=environment)


def commit(directory: Path, message: str, *changed: str) -> None:
    """Change files and commit them."""
    for name in changed:
        (directory / name).parent.mkdir(exist_ok=True)
        with open(directory / name, "a") as file:
            file.write("something\n")
    git(directory, "add", "--all")
    git(directory, "commit", "--quiet", "--message", message)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Have a repository whose main branch has a library and a changelog, and be on another branch."""
    git(tmp_path, "init", "--quiet")
    commit(tmp_path, "Begin", "src/wsfast.py", "CHANGELOG.md", "README.md")
    git(tmp_path, "switch", "--quiet", "--create", "change")
    return tmp_path


@pytest.mark.parametrize(
    ("message", "changed", "status"),
    [
        ("Change the documentation", ["README.md"], 0),
        ("Change the library and tell so", ["src/wsfast.py", "CHANGELOG.md"], 0),
        ("Change the library", ["src/wsfast.py"], 1),
        ("Change the C code", ["csrc/frame.c"], 1),
        ("Rename a variable\n\nChangelog: none", ["src/wsfast.py"], 0),
        ("Speak of Changelog: none", ["src/wsfast.py"], 1),
    ],
)
def test_changelog(repository: Path, message: str, changed: list[str], status: int) -> None:
    """A change of the library needs one of the changelog, unless a line of a commit says that no user sees it."""
    commit(repository, message, *changed)
    commit(repository, "Change something else", "README.md")
    git(repository, "switch", "--quiet", "main")
    commit(repository, "Go on elsewhere", "src/other.py")
    git(repository, "switch", "--quiet", "change")
    result = run(str(SCRIPTS / "changelog"), "main", cwd=repository)
    assert result.returncode == status
    assert ("CHANGELOG.md has not" in result.stdout) is (status == 1)


def prose(directory: Path, name: str, text: str) -> list[tuple[int, str]]:
    """Lint a file; return what is found, as lines and the text there or the rule of proselint."""
    path = directory / name
    path.write_text(textwrap.dedent(text))
    result = run(sys.executable, str(SCRIPTS / "prose.py"), str(path))
    *findings, _ = result.stdout.splitlines()
    assert result.returncode == (1 if findings else 0), result.stderr
    matches = [re.fullmatch(rf"{re.escape(str(path))}:(\d+): \"?([^\":]+).*", finding) for finding in findings]
    return [(int(match[1]), match[2]) for match in matches if match is not None]


def test_prose_of_markdown(tmp_path: Path) -> None:
    """Text, headings, lists and tables are read, and code is not. A sentence may go on in the next line."""
    page = """\
        # Except but for headings

        A client reads. What it
        reads is text. `but for` is code.

        - Each, but
          for one

        | a | but for |
        |---|---|
        | for ever | b |

        ```python
        x = "but for"
        ```

        What is it?
        """
    assert prose(tmp_path, "page.md", page) == [
        (1, "but for"),
        (3, "What it reads is text."),
        (6, "but for"),
        (9, "but for"),
        (11, "archaism"),
    ]


def test_prose_of_python(tmp_path: Path) -> None:
    """Docstrings and comments are read, and other strings are not."""
    source = """\
        \"\"\"Whoever reads it.\"\"\"

        x = "but for"  # All but for one


        def f(x):
            \"\"\"Return it.

            Args:
                x: What to return.
            \"\"\"
            # A comment, all but
            # for one line of which would do.
            return x
        """
    assert prose(tmp_path, "module.py", source) == [
        (1, "Whoever"),
        (3, "but for"),
        (10, "What to return."),
        (12, "but for"),
    ]


def test_prose_of_c(tmp_path: Path) -> None:
    """Comments are read."""
    source = """\
        /* A comment,
         * but for one. */
        int x; // the same, but for another
        """
    assert prose(tmp_path, "frame.c", source) == [(2, "but for"), (3, "but for")]


def test_step(tmp_path: Path) -> None:
    """A command is told, and what it prints only if it fails."""
    step = str(SCRIPTS / "step")
    result = run(step, "Creating a file", "sh", "-c", "echo noise; touch file", cwd=tmp_path)
    assert (tmp_path / "file").exists()
    assert re.fullmatch(r"Creating a file \.* \d s\n", result.stdout)
    result = run(step, "Failing", "sh", "-c", "echo why; exit 3", cwd=tmp_path)
    assert result.returncode == 3
    assert re.fullmatch(r"Failing \.* failed:\nwhy\n", result.stdout)


README = """\
```console
$ mkdir folder
$ export Y=2 PYTHONPATH="%s"
```

Save this as `server.py`:

```python
import asyncio

import websockets


async def handler(connection):
    await connection.send(await connection.recv())


async def main():
    async with websockets.serve(handler, "127.0.0.1", 8765):
        await asyncio.Future()


if __name__ == "__main__":
    asyncio.run(main())
```

```console
$ cd folder  # remembered by the next commands
$ test "$Y" = 2 && test "${PWD##*/}" = folder
$ %s
```
"""


@pytest.mark.parametrize(("command", "status"), [("cd ..", 0), ("make test", 0), ("false", 1)])
def test_readme(tmp_path: Path, command: str, status: int) -> None:
    """A page is pasted from first to last; its server is seen by a client; a command that fails ends it."""
    page = tmp_path / "page.md"
    page.write_text(README % (sysconfig.get_path("purelib"), command))
    options = ["--page", str(page), "--only", "venv", "--skip", "make test", "--port", str(free_port())]
    result = run(sys.executable, str(SCRIPTS / "readme.py"), *options)
    assert result.returncode == status, result.stdout + result.stderr
    assert "a client received 'hello'" in result.stdout
    assert ("false: exit status 1" in result.stdout) is (status == 1)
