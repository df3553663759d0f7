"""docs/how-to/testing.md: the tests that it shows pass, and fail where they should."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import wsfast
from helpers.blocks import PORT, background, copy, dialled, play, receive, runs
from helpers.pages import Block, blocks_of
from helpers.ports import free_port
from helpers.processes import run

PAGE = "docs/how-to/testing.md"


async def pytest_passes(directory: Path, file: str, tests: int) -> None:
    """Run pytest as a reader does; so many tests pass."""
    command = sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", directory, directory / file
    done = await asyncio.to_thread(run, *command, cwd=directory)
    assert done.returncode == 0, done
    assert f"{tests} passed" in done.stdout, done


@runs(PAGE, "server")
async def server(block: Block, _: Path) -> None:
    """The server that is tested also runs as a program."""
    port = free_port()
    names = play(block, at=port)
    async with background(names["main"]()), dialled(port, "", "") as (ann, bob):
        await ann.send("hello")
        assert await receive(ann) == ["hello"]
        await bob.send("hi")
        assert await receive(ann) == ["hi"]


@runs(PAGE, "test")
async def test(block: Block, directory: Path) -> None:
    """The first test passes as it is copied."""
    copy(PAGE, directory, PORT)
    assert sorted(path.name for path in directory.iterdir()) == ["chat.py", "test_chat.py", "test_client.py"]
    await pytest_passes(directory, "test_chat.py", 1)


async def passes_with_the_first(block: Block, directory: Path) -> None:
    copy(PAGE, directory, PORT)
    path = directory / "test_chat.py"
    path.write_text(path.read_text() + "\n\n" + block.code)
    await pytest_passes(directory, "test_chat.py", 2)


@runs(PAGE, "counts")
async def counts(block: Block, directory: Path) -> None:
    """A test of counts passes, appended to the first one."""
    await passes_with_the_first(block, directory)


@runs(PAGE, "slow")
async def slow(block: Block, directory: Path) -> None:
    """A test with a slow client passes, appended to the first one."""
    await passes_with_the_first(block, directory)


@runs(PAGE, "stream")
async def stream(block: Block, _: Path) -> None:
    """A stream of a channel gives what is published."""

    def publish_prices(prices: wsfast.Channel) -> None:
        prices.publish("VOD 71.2", key="VOD")

    names = play(block, asyncio=asyncio, wsfast=wsfast, publish_prices=publish_prices)
    await asyncio.to_thread(names["test_prices_are_published"])  # which has an event loop of its own


@runs(PAGE, "testclient")
async def testclient(block: Block, directory: Path) -> None:
    """The test passes beside the chat of the other page."""
    (chat,) = (one for one in blocks_of("docs/how-to/connections.md") if one.name == "fastapi")
    (directory / "chat.py").write_text(chat.code)
    (directory / "test_client.py").write_text(block.code)
    await pytest_passes(directory, "test_client.py", 1)


@runs(PAGE, "fastapi")
async def with_fastapi(block: Block, directory: Path) -> None:
    """Under uvicorn the test passes, twice in one process."""
    path = directory / "test_app.py"
    path.write_text(block.code + block.code[block.code.index("\n\ndef test_chat") :].replace("test_chat", "test_again"))
    await pytest_passes(directory, "test_app.py", 2)
