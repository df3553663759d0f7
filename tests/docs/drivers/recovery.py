"""docs/how-to/recovery.md: clients lose their connections, and get what they missed."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

import wsfast
from helpers.blocks import background, copy, dialled, play, program, receive, runs, serving_app
from helpers.brokers import measured_broker
from helpers.pages import Block, blocks_of
from helpers.peers import TIMEOUT, until
from helpers.ports import free_port

PAGE = "docs/how-to/recovery.md"


@contextlib.asynccontextmanager
async def asking(port: int, text: str) -> AsyncIterator[Any]:
    """Connect a client that says where it was."""
    async with dialled(port, "") as (client,):
        await client.send(text)
        yield client


def names_of(name: str) -> dict[str, Any]:
    """Run another block of the page; return its names."""
    (block,) = (block for block in blocks_of(PAGE) if block.name == name)
    return play(block)


@runs(PAGE, "short")
async def short(block: Block, _: Path) -> None:
    """A client comes back, and gets what it missed."""
    names = play(block, wsfast=wsfast)
    hub = names["hub"]

    async def handler(connection: Any) -> None:
        text = await connection.recv()
        recovered = names["come_back"](connection, wsfast.Position.parse(text))
        hub.publish("news", f"{recovered}")
        await connection.wait_closed()

    async with wsfast.serve(handler, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        position = hub.position("news")
        hub.publish("news", "missed")
        async with asking(port, str(position)) as client:
            assert await receive(client, client) == ["missed", "True"]
        async with asking(port, f"{'0' * 16}-0") as client:
            assert await receive(client, client, client) == ["missed", "True", "False"]


@runs(PAGE, "server")
async def server(block: Block, directory: Path) -> None:
    """A client gets both topics; one that comes back gets what comes next; a topic that does not exist ends it."""
    port = free_port()
    copy(PAGE, directory, port)
    async with program(directory, "python server.py"):
        async with asking(port, '{"news": null, "prices": null}') as client:
            while isinstance(message := json.loads((await receive(client))[0]), list):
                pass
            assert message["recovered"] == []
            positions = message["positions"]
            for _ in range(4):
                topic, offset, payload = json.loads((await receive(client))[0])
                assert offset == positions[topic][1] + 1
                assert payload == f"{topic.removesuffix('s' if topic == 'prices' else '')} {offset - 1}"
                positions[topic][1] = offset
        async with asking(port, json.dumps(positions)) as client, asking(port, '{"secrets": null}') as bad:
            while isinstance(message := json.loads((await receive(client))[0]), list):
                topic, offset, _ = message
                assert offset == positions[topic][1] + 1
                positions[topic][1] = offset
            assert message == {"positions": positions, "recovered": ["news", "prices"]}
            async with asyncio.timeout(TIMEOUT):
                await bad.wait_closed()
            assert bad.close_code == 1008


@runs(PAGE, "client")
async def client(block: Block, _: Path) -> None:
    """A client that is cut off gets each message once, and is told about a gap after the server was started anew."""
    names, port = play(block), free_port()
    got: list[str] = []
    gaps: list[str] = []
    async with asyncio.timeout(TIMEOUT):
        task: Any = None
        for run in range(2):
            example = names_of("server")
            hub = example["hub"]
            async with wsfast.serve(example["handler"], "127.0.0.1", port):
                if task is None:
                    url = f"ws://127.0.0.1:{port}"
                    task = asyncio.create_task(
                        names["listen"](url, lambda _, payload: got.append(payload), gaps.append)
                    )
                for number in range(5):
                    await until(lambda hub=hub: hub.count("news") == 1)  # type: ignore[misc]
                    hub.publish("news", f"{run} {number} seen")
                    await until(lambda run=run, number=number: f"{run} {number} seen" in got)  # type: ignore[misc]
                    hub.subscribers("news")[0].transport.abort()
                    hub.publish("news", f"{run} {number} missed")
                await until(lambda run=run: f"{run} 4 missed" in got)  # type: ignore[misc]
                assert gaps == ["news", "prices"][: 2 * run]
        assert got == [
            f"{run} {number} {what}" for run in range(2) for number in range(5) for what in ("seen", "missed")
        ]
        task.cancel()


@runs(PAGE, "counting")
async def counting(block: Block, _: Path) -> None:
    """A client that counts comes back to where it was."""
    hub = wsfast.Hub(history=10)
    names = play(block, wsfast=wsfast, hub=hub)
    async with wsfast.serve(names["handler"], "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with asking(port, "") as client:
            assert await receive(client) == [f"at {hub.position('news')}"]
            position = hub.position("news")
            hub.publish("news", "1")
            hub.publish("news", "2")
            assert await receive(client) == ["1"]
        async with asking(port, f"{position.epoch}-1") as client:
            assert await receive(client, client) == ["2", f"at {position.epoch}-2"]


@runs(PAGE, "sse")
async def sse(block: Block, _: Path) -> None:
    """A client gets what it missed by the id of its last event, and is told if that is not known."""
    names = play(block)
    hub = names["hub"]

    async def read(port: int, last: str | None, count: int) -> list[str]:
        headers = {} if last is None else {"Last-Event-ID": last}
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(TIMEOUT)) as session,
            session.get(f"http://127.0.0.1:{port}/news", headers=headers) as response,
        ):
            events = [(await response.content.readuntil(b"\n\n")).decode() for _ in range(count + 1)]
            return events[1:]

    async with serving_app(names["app"]) as port:
        (new,) = await read(port, None, 1)
        last = new.removeprefix("id: ").strip()
        hub.publish("news.a", "1")
        hub.publish("news.b", "2")
        epoch = last.partition("-")[0]
        numbered = [f"id: {epoch}-1\ndata: 1\n\n", f"id: {epoch}-2\ndata: 2\n\n", f"id: {epoch}-2\n\n"]
        assert await read(port, last, 3) == numbered
        assert await read(port, f"{epoch}-1", 2) == numbered[1:]
        assert sorted(await read(port, "7", 4)) == sorted([*numbered, "event: reload\ndata: \n\n"])


@runs(PAGE, "bounds")
async def bounds(block: Block, _: Path) -> None:
    """The bounds are those of the hub."""
    assert play(block, wsfast=wsfast)["hub"].history == wsfast.History(1000, 1_000_000, 60)


@runs(PAGE, "redis")
async def redis(block: Block, _: Path) -> None:
    """A client comes back to another process, and has missed nothing."""
    port = free_port()
    with measured_broker("redis") as url:
        code = block.code.replace("redis://localhost", url)

        def process() -> Any:
            return background(play(dataclasses.replace(block, code=code), at=port)["main"]())

        async with process(), asking(port, '{"news": null}') as client:
            positions = json.loads((await receive(client))[0])["positions"]
            await client.send("hello")
            assert json.loads((await receive(client))[0]) == ["news", 1, "hello"]
            await client.send("missed")
            assert json.loads((await receive(client))[0]) == ["news", 2, "missed"]
        positions["news"][1] = 1
        async with process(), asking(port, json.dumps(positions)) as client:
            assert json.loads((await receive(client))[0]) == ["news", 2, "missed"]
            answer = json.loads((await receive(client))[0])
            assert answer == {"positions": {"news": [positions["news"][0], 2]}, "recovered": ["news"]}
