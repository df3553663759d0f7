"""What the documentation tells is true: its code runs, its commands exist, its links lead somewhere."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import datetime
import importlib
import inspect
import json
import os
import re
import shlex
import socket
import sys
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp.web
import gunicorn.config
import prometheus_client
import pytest
import uvicorn
import uvicorn_worker
from uvicorn.main import main as uvicorn_command
from websockets.asyncio.client import ClientConnection

import wsfast
import wsfast.cli
from docs import drivers
from helpers.blocks import (
    DRIVERS,
    PORT,
    address_in,
    background,
    browser,
    commands_of,
    copy,
    crowd,
    dialled,
    play,
    play_on,
    program,
    read_until,
    receive,
    runs,
    serving,
)
from helpers.brokers import measured_broker
from helpers.libraries import LIBRARIES
from helpers.pages import PAGES, ROOT, Block, anchors_of, blocks_of, in_repository, inline_code_of, links_of, prose_of
from helpers.peers import TIMEOUT, until
from helpers.ports import free_port
from helpers.processes import run, running
from unit.test_import_graph import LAYERS
from wsfast.connections.uvicorn import UvicornConnection

drivers.load()

BLOCKS = [block for page in PAGES for block in blocks_of(page)]


@pytest.mark.parametrize(
    "block", [block for block in BLOCKS if block.language not in ("console", "diff", "text")], ids=str
)
def test_block(block: Block, tmp_path: Path) -> None:
    """Every block of code runs, and does what its page says."""
    driver = DRIVERS.get((block.page, block.name or ""))
    assert driver is not None, f"nothing in tests/docs runs the block {block.name!r} at {block}"
    asyncio.run(asyncio.wait_for(driver(block, tmp_path), 3 * TIMEOUT))


@pytest.mark.parametrize("page", PAGES)
def test_all_code_is_fenced(page: str) -> None:
    """No code is hidden from these tests by being only indented."""
    assert not re.search(r"\n\n(?: {4}|\t)\S", prose_of(page))


def test_no_driver_is_left_over() -> None:
    """Whatever runs a block has one."""
    assert set(DRIVERS) == {(block.page, block.name) for block in BLOCKS if block.name}


# ---- README.md


async def is_time(client: ClientConnection) -> bool:
    """Whether a client gets the time, and a later one after it."""
    first, second = await receive(client, client)
    return datetime.datetime.fromisoformat(str(first)) < datetime.datetime.fromisoformat(str(second))


README_FILES = ["channel.py", "chat.py", "client.html", "hub.py", "server.py"]


@contextlib.asynccontextmanager
async def readme_program(directory: Path, command: str) -> AsyncIterator[int]:
    """Have a server of the README, and the port where it is; a reader has saved all blocks in one directory."""
    port = free_port()
    copy("README.md", directory, port)
    assert sorted(path.name for path in directory.iterdir()) == README_FILES
    async with program(directory, command):
        yield port


@runs("README.md", "server")
async def server(block: Block, directory: Path) -> None:
    """Clients of the first server get the time."""
    assert "python server.py" in commands_of(block.page)
    async with readme_program(directory, "python server.py") as port, dialled(port, "", "") as clients:
        assert all([await is_time(client) for client in clients])


@runs("README.md", "client")
async def client(block: Block, directory: Path) -> None:
    """The page in a browser shows the time, which changes."""
    async with browser() as page, readme_program(directory, "python server.py") as port:
        assert urlsplit(address_in(directory / block.file)).port == port  # type: ignore[operator]
        await page.go((directory / "client.html").as_uri())
        shown: set[datetime.datetime] = set()
        async with asyncio.timeout(TIMEOUT):
            while len(shown) < 3:
                text = await page.evaluate("document.getElementById('message').textContent")
                if text == "disconnected":  # the page was faster than the server
                    await page.go((directory / "client.html").as_uri())
                elif text != "connecting":
                    shown.add(datetime.datetime.fromisoformat(text))
                await asyncio.sleep(0.05)


@runs("README.md", "channel")
async def channel(_: Block, directory: Path) -> None:
    """A channel sends to all subscribers, and a newcomer gets the last ten messages at once."""
    async with readme_program(directory, "python channel.py") as port, dialled(port, "", "") as clients:
        streams = [[(await receive(client))[0] for _ in range(15)] for client in clients]
        assert all(re.fullmatch(r"(ABC|XYZ) \d+\.\d\d", str(text)) for stream in streams for text in stream)
        async with dialled(port, "") as newcomers:
            history = [(await receive(*newcomers))[0] for _ in range(10)]
            live = await receive(*newcomers)
            seen = streams[0]
            async with asyncio.timeout(TIMEOUT):
                while seen[-11:] != history + live:
                    seen += await receive(clients[0])


@runs("README.md", "hub")
async def hub(_: Block, directory: Path) -> None:
    """All get the topic; a user gets what is sent to the user."""
    async with readme_program(directory, "python hub.py") as port, dialled(port, "ann", "") as (ann, guest):
        texts = [[str((await receive(client))[0]) for _ in range(3)] for client in (ann, guest)]
        assert any(text.startswith("order ") for text in texts[0])
        assert all(text.startswith("ABC ") for text in texts[1])


@runs("README.md", "fastapi")
async def readme_fastapi(block: Block, directory: Path) -> None:
    """The chat runs by the command in the README; newcomers get its history."""
    (command,) = (command for command in commands_of(block.page) if command.startswith("uvicorn"))
    port = free_port()
    arguments = command.replace(str(PORT), str(port))
    async with readme_program(directory, f"python -m {arguments}"), dialled(port, "") as (ann,):
        await ann.send("hello")
        assert await receive(ann) == ["hello"]
        async with dialled(port, "") as (bob,):
            assert await receive(bob) == ["hello"]
            await bob.send("hi")
            assert await receive(ann, bob) == ["hi", "hi"]


# ---- docs/how-to/broadcasting.md


@runs("docs/how-to/broadcasting.md", "prepared")
async def prepared(block: Block, _: Path) -> None:
    """A prepared message goes to several sets of connections."""
    async with crowd(4) as (connections, clients):
        play(block)["send_heartbeat"](connections[:2], connections[2:])
        assert await receive(*clients) == ['{"type": "heartbeat"}'] * 4


@runs("docs/how-to/broadcasting.md", "factory")
async def factory(block: Block, _: Path) -> None:
    """Connections negotiate compression, and have no encoder."""
    seen: list[Any] = []

    async def handler(connection: Any) -> None:
        seen.append(connection)
        await connection.wait_closed()

    port = free_port()
    names = play(block, at=port)
    names["handler"].__globals__["handler"] = handler
    async with background(names["main"]()), dialled(port, "") as clients:
        await until(lambda: seen)
        (extension,) = seen[0].protocol.extensions
        assert wsfast.broadcast(seen, "0123456789" * 20).sent == 1
        assert await receive(*clients) == ["0123456789" * 20]
        assert extension.encoder.encoder is None


# ---- docs/how-to/connections.md


@runs("docs/how-to/connections.md", "fastapi")
async def fastapi(block: Block, _: Path) -> None:
    """A chat in FastAPI, which is run as the last line tells uvicorn."""
    told: list[Any] = []
    names = {"__name__": "__main__"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uvicorn, "run", lambda app, **options: told.append((app, options)))
        play_on(block, names)
    ((app, options),) = told
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, **options, lifespan="off", log_config=None))
        server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign, assignment]
        async with background(server.serve(sockets=[listener])):
            port = listener.getsockname()[1]
            async with dialled(port, "chat/ann") as (ann,):
                await ann.send("hello")
                assert await receive(ann) == ["ann: hello"]
                async with dialled(port, "chat/bob") as (bob,):
                    assert await receive(bob, bob, ann) == ["ann joined", "ann: hello", "bob joined"]
                    await bob.send("hi")
                    assert await receive(ann, bob) == ["bob: hi"] * 2
            server.should_exit = True


@runs("docs/how-to/connections.md", "aiohttp")
async def with_aiohttp(block: Block, _: Path) -> None:
    """Connections of aiohttp subscribe to a channel."""
    names = play(block)
    runner = aiohttp.web.AppRunner(names["app"])
    await runner.setup()
    try:
        site = aiohttp.web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        async with dialled(runner.addresses[0][1], "", "") as clients:
            await until(lambda: len(names["prices"]) == 2)
            names["prices"].publish("VOD 71.2", key="VOD")
            assert await receive(*clients) == ["VOD 71.2"] * 2
        await until(lambda: len(names["prices"]) == 0)
    finally:
        await runner.cleanup()


@runs("docs/how-to/connections.md", "sanic")
async def with_sanic(block: Block, directory: Path) -> None:
    """Its server runs as it is started; what one says goes to all."""
    port = free_port()
    (directory / "server.py").write_text(block.code.replace(str(PORT), str(port)))
    silent = asyncio.subprocess.DEVNULL
    async with (
        running(sys.executable, "server.py", cwd=directory, stdout=silent, stderr=silent),
        dialled(port, "prices", "prices") as clients,
    ):
        for number, client in enumerate(clients):
            await client.send(f"{number} is here")
            while await receive(client) != [f"{number} is here"]:
                pass
        await clients[0].send("VOD 71.2")
        for client in clients:
            while await receive(client) != ["VOD 71.2"]:
                pass


@runs("docs/how-to/connections.md", "picows")
async def with_picows(block: Block, _: Path) -> None:
    """The last message arrives before the close frame."""
    kick = play(block)["kick"]
    async with LIBRARIES["picows"].open(compress=False, small=False) as connect_client:
        transport, client = await connect_client()
        channel = wsfast.Channel()
        channel.subscribe(transport)
        kick(channel, transport)
        assert await receive(client) == ["you are out"]
        await client.wait_closed()
        assert client.close_code == 1000


@runs("docs/how-to/connections.md", "to-users")
async def to_users(block: Block, _: Path) -> None:
    """All users, one user, some users."""
    names = play(block)
    async with crowd(4) as (connections, clients):
        names["users"].update(ann=connections[:2], bob=connections[2:3], carl=connections[3:])
        names["to_all"]("all")
        names["to_one"]("ann", "one")
        names["to_one"]("nobody", "none")
        names["to_some"](["ann", "carl"], "some")
        names["to_all"]("end")
        ann, also_ann, bob, carl = clients
        for client in ann, also_ann:
            assert await receive(*[client] * 4) == ["all", "one", "some", "end"]
        assert await receive(bob, bob) == ["all", "end"]
        assert await receive(*[carl] * 3) == ["all", "some", "end"]


# ---- docs/how-to/slow-clients.md


@runs("docs/how-to/slow-clients.md", "feed")
async def feed(block: Block, _: Path) -> None:
    """A channel is fed, and its clients get everything while they keep up."""
    port = free_port()
    names = play(block, at=port)
    async with background(names["main"]()), dialled(port, "", "") as clients:
        await until(lambda: len(names["prices"]) == 2)
        names["prices"].publish("all are here")
        for client in clients:
            while await receive(client) != ["all are here"]:
                pass
        for one, other in [await receive(*clients) for _ in range(5)]:
            assert re.fullmatch(r"[A-Z]+ \d+\.\d\d", str(one))
            assert one == other


@runs("docs/how-to/slow-clients.md", "callbacks")
async def callbacks(block: Block, _: Path) -> None:
    """Channels call back, and their books reconcile."""
    async with crowd(1) as (connections, clients):
        subscription = wsfast.Channel().subscribe(connections[0])
        names = play(block, wsfast=wsfast, subscription=subscription)
        assert names["_"] == (0, 0, 0.0)
        for name in "on_drop", "on_disconnect", "on_recover":
            assert len(inspect.signature(getattr(names["channel"], name)).parameters) == 1 + (name == "on_drop")
        names["channel"].subscribe(connections[0])
        names["channel"].publish("hello")
        assert await receive(*clients) == ["hello"]
        stats = names["channel"].stats()
        assert stats.published == stats.sent + stats.dropped + stats.conflated + stats.queued == 1


@runs("docs/how-to/slow-clients.md", "prometheus")
async def prometheus(block: Block, _: Path) -> None:
    """Prometheus is told."""
    registry = prometheus_client.CollectorRegistry()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prometheus_client, "REGISTRY", registry)
        play(block, prices=wsfast.Channel("prices"))
    assert (
        'wsfast_channel_published_total{channel="prices"} 0.0' in prometheus_client.generate_latest(registry).decode()
    )


@runs("docs/how-to/slow-clients.md", "ended")
async def ended(block: Block, _: Path) -> None:
    """A handler is told why its subscription has ended."""
    prices = wsfast.Channel()
    said: list[str] = []
    names = play(block, wsfast=wsfast, prices=prices, print=said.append)
    async with crowd(2) as (connections, clients):
        tasks = [asyncio.create_task(names["handler"](connection)) for connection in connections]
        await until(lambda: len(prices) == 2)
        await clients[0].close()
        peer = connections[1]._wsfast_peer
        peer.dispatcher.disconnect(peer, 1013, "slow consumer")
        await asyncio.gather(*tasks)
    assert said == ["client was too slow"]


# ---- docs/how-to/topics.md


@runs("docs/how-to/topics.md", "hub")
async def topics(block: Block, _: Path) -> None:
    """Who is subscribed to a topic or to a pattern gets what is published, but for whom it came from."""
    names = play(block)
    async with serving(names["handler"], "", "", "") as clients:
        await until(lambda: names["hub"].count("news") == 3)
        await clients[0].send("hello")
        assert await receive(*clients[1:]) == ["hello"] * 2
        names["hub"].publish("orders.eu.42", "filled")
        assert await receive(*clients) == ["filled"] * 3


@runs("docs/how-to/topics.md", "newcomers")
async def newcomers(block: Block, _: Path) -> None:
    """Newcomers get history, or the last value of each key, and then the stream."""
    names = play(block, wsfast=wsfast)
    async with crowd(2) as (connections, clients):
        for number in range(25):
            names["chat"].publish("lobby", str(number))
        names["chat"].subscribe(connections[0], "lobby")
        assert await receive(*[clients[0]] * 20) == [str(number) for number in range(5, 25)]
        for symbol, price in ("VOD", 71.1), ("BP", 4.5), ("VOD", 71.2):
            names["on_tick"]("lse", symbol, price)
        names["prices"].subscribe(connections[1], "prices.lse")
        names["on_tick"]("lse", "BP", 4.6)
        assert await receive(*[clients[1]] * 3) == ["BP 4.5", "VOD 71.2", "BP 4.6"]
        assert names["prices"].last("prices.lse") == {"VOD": "VOD 71.2", "BP": "BP 4.6"}
        names["prices"].forget("prices.lse", key="VOD")
        assert names["prices"].last("prices.lse") == {"BP": "BP 4.6"}


@runs("docs/how-to/topics.md", "tags")
async def tags(block: Block, _: Path) -> None:
    """Each client gets the orders with one of the tags that it asks for, of the history as well."""
    names = play(block)
    names["on_order"]("1", "us", "gold")
    async with serving(names["handler"], "", "", "", "") as clients:
        for client, wanted in zip(clients, ('["eu"]', '["eu", "gold"]', "null", '"eu"'), strict=True):
            await client.send(wanted)
        await clients[3].wait_closed()
        assert clients[3].close_code == 1008
        await until(lambda: names["hub"].count("orders") == 3)
        names["on_order"]("2", "eu", "basic")
        names["on_order"]("3", "us", "basic")
        names["hub"].publish("orders", "end")
        received = []
        for client in clients[:3]:
            texts = [(await receive(client))[0]]
            while texts[-1] != "end":
                texts += await receive(client)
            received.append(texts)
    assert received == [["2", "end"], ["1", "2", "end"], ["1", "2", "3", "end"]]


@runs("docs/how-to/topics.md", "users")
async def users(block: Block, _: Path) -> None:
    """What is sent to a user goes to all connections of that one, and to nobody else."""

    async def authenticate(connection: Any) -> str:
        return str(connection.request.path).strip("/")

    hub = wsfast.Hub()
    names = play(block, hub=hub, authenticate=authenticate)
    async with serving(names["handler"], "ann", "ann", "bob") as clients:
        await until(lambda: hub.count("news") == 3)
        assert names["invite"]("ann") == 2
        assert names["invite"]("carl") == 0
        hub.publish("news", "to others", exclude_users=["ann"])
        hub.publish("news", "end")
        assert await receive(*clients) == ["you are invited", "you are invited", "to others"]
        assert await receive(*clients) == ["end"] * 3


@runs("docs/how-to/topics.md", "presence")
async def presence(block: Block, _: Path) -> None:
    """A hub tells who has come and who has left."""
    said: list[str] = []
    names = play(block, wsfast=wsfast, print=lambda *words: said.append(" ".join(words)))
    async with crowd(1) as (connections, _clients):
        hub = names["hub"]
        with hub.register(connections[0], "ann"), hub.subscribe(connections[0], "news"):
            assert hub.users() == hub.users("news") == ["ann"]
            assert hub.subscribers("news") == connections
        await until(lambda: len(said) == 4)
    assert said == ["ann is online", "ann is in news", "ann left news", "ann left the server"]


# ---- docs/how-to/secrets.md


@runs("docs/how-to/secrets.md", "compress")
async def compress(block: Block, _: Path) -> None:
    """The secret is sent to the user alone, and without compression; what it is about is published."""
    sent: list[Any] = []

    class Recorder(wsfast.Hub):
        def send(self, user: Any, message: Any, **options: Any) -> int:
            sent.append((user, message.data, message.compress))
            return super().send(user, message, **options)

    hub = Recorder()
    names = play(block)
    names["hub"] = hub

    async def handler(connection: Any) -> None:
        with hub.register(connection, "ann"), hub.subscribe(connection, "room"):
            await connection.wait_closed()

    async with serving(handler, "") as clients:
        await until(lambda: hub.count("room") == 1)
        names["invite"]("room", "ann", "s3cret" * 50)
        assert await receive(*clients * 2) == ["s3cret" * 50, "ann was invited"]
    assert sent == [("ann", b"s3cret" * 50, False)]


@runs("docs/how-to/secrets.md", "relay")
async def secrets_at_the_broker(block: Block, _: Path) -> None:
    """The relay signs what is published."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WSFAST_SECRET", "ab" * 32)
        patch.setenv("REDIS_URL", "rediss://app:password@localhost")
        relay = play(block)["relay_of"](wsfast.Hub())
    assert relay._outbound._keyring is not None
    assert "password" not in repr(relay)


# ---- docs/how-to/processes.md


@runs("docs/how-to/processes.md", "relay")
async def relay(block: Block, _: Path) -> None:
    """What is published in one process reaches the clients of another one."""
    with measured_broker("redis") as url:
        await relay_by(url, block)


async def relay_by(url: str, block: Block) -> None:
    ports = free_port(), free_port()
    processes = [
        play(dataclasses.replace(block, code=block.code.replace("redis://localhost", url)), at=port) for port in ports
    ]
    async with (
        background(processes[0]["main"]()),
        background(processes[1]["main"]()),
        dialled(ports[0], "") as (here,),
        dialled(ports[1], "") as (there,),
    ):

        async def say() -> None:  # until the other process has subscribed at the broker
            while True:
                await here.send("hello")
                await asyncio.sleep(0.05)

        async with background(say()):
            assert await receive(here, there) == ["hello"] * 2


# ---- docs/tutorial/price-feed.md

TUTORIAL = "docs/tutorial/price-feed.md"


async def is_fed(client: ClientConnection) -> bool:
    """Whether a client gets two prices of each symbol."""
    counts: dict[str, int] = {}
    async with asyncio.timeout(TIMEOUT):
        while len(counts) < 100 or min(counts.values()) < 2:
            tick = json.loads(await client.recv())
            assert tick["price"] > 0
            counts[tick["symbol"]] = counts.get(tick["symbol"], 0) + 1
    return True


@runs(TUTORIAL, "server")
async def tutorial(block: Block, directory: Path) -> None:
    """Step by step, a server that sends prices to whoever wants them."""
    port = free_port()
    copy(block.page, directory, port)
    assert sorted(path.name for path in directory.iterdir()) == ["index.html", "server.py", "stalled.py"]
    check, command, _ = commands_of(block.page)
    async with program(directory, check) as process:
        await read_until(process, re.escape(wsfast.__version__))
    async with program(directory, command) as process:
        await read_until(process, "^0 clients, 0 lagging, 0 sent, 0 queued, 0 conflated")
        assert urlsplit(address_in(directory / "index.html")).port == port
        async with dialled(port, "") as (client,), background(read_until(process, "^1 clients, 0 lagging")):
            assert await is_fed(client)


@runs(TUTORIAL, "stalled")
async def stalled(block: Block, directory: Path) -> None:
    """A client that does not read is owed one price of each symbol; another one gets all of them as before."""
    port = free_port()
    copy(block.page, directory, port)
    _, command, stall = commands_of(block.page)
    async with program(directory, command) as process, dialled(port, "") as (client,):
        assert await is_fed(client)

        async def read() -> None:
            async for _ in client:
                pass

        async with program(directory, stall), background(read()):
            await read_until(process, "does not keep up with <Channel 'prices'>, which conflates")
            for _ in range(2):
                await read_until(process, r"^2 clients, 1 lagging, \d+ sent, 100 queued, \d{3,} conflated")
        assert await is_fed(client)


@runs(TUTORIAL, "page")
async def tutorial_page(block: Block, directory: Path) -> None:
    """The page shows a hundred prices that move, and comes back when the server does."""
    copy(block.page, directory, free_port())
    async with browser() as page:
        await page.go((directory / "index.html").as_uri())
        for _ in range(2):
            async with program(directory, "python server.py"):
                shown: set[str] = set()
                async with asyncio.timeout(TIMEOUT):
                    while len(shown) < 3:
                        await asyncio.sleep(0.05)
                        cells = await page.evaluate(
                            "[...document.querySelectorAll('#prices td:last-child')].map(cell => cell.textContent)"
                        )
                        state = await page.evaluate("document.getElementById('state').textContent")
                        if len(cells) == 100 and state == "connected":
                            shown.add(" ".join(cells))


# ---- Commands


SHELL = {"git clone https://github.com/wsfast/wsfast", "cd wsfast", ". venv/bin/activate"}
"""What readers type that is not ours; scripts/readme runs it."""


class ParsedError(Exception):
    """That arguments are right."""


def check_command(command: str, page: str, directory: Path) -> None:
    """Make sure that a command that a reader types is there, and knows its options."""
    name, *arguments = shlex.split(command)
    if name == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert arguments
        assert set(arguments) <= set(targets)
    elif name == "wsfast":
        check_arguments(arguments)
    elif name == "uvicorn":
        (what,) = re.findall(r"(\w+):app", " ".join(arguments))
        copy(page, directory, PORT)
        options = uvicorn_command.make_context("uvicorn", arguments).params
        place = ROOT / options["app_dir"] if options["app_dir"] else directory
        assert (place / f"{what}.py").exists() or "uvicorn.run" in block_with(f"{what} = ", page)
        if options["ws"] == "auto":
            assert block_with("wsfast.uvicorn.install()", page)
        else:
            assert issubclass(look_up(options["ws"].replace(":", ".")), UvicornConnection)
    elif name == "gunicorn":
        parsed = gunicorn.config.Config().parser().parse_args(arguments)
        assert (ROOT / parsed.chdir / f"{parsed.args[0].partition(':')[0]}.py").exists()
        assert issubclass(look_up(parsed.worker_class), uvicorn_worker.UvicornWorker)
    elif name == "pip":
        kind, *what = arguments
        assert kind == "install"
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        for one in what:
            match = re.fullmatch(
                r"(?:\.|\./benchmarks|\./wsfast|wsfast|fastapi|h2|httpx2|quart|sanic|tornado|uvicorn|uvloop|wsproto)"
                r"(?:\[([\w,]+)\])?",
                one,
            )
            assert match is not None, one
            assert set((match[1] or "").split(",")) - {""} <= set(extras)
    elif name == "python" and arguments[0] == "-m":
        assert arguments[1] == "wsfast"
        check_arguments(arguments[2:] or ["--help"])
    elif name == "python" and arguments[0] == "-c":
        assert run(sys.executable, *arguments, check=True).stdout
    elif name in ("git", "cd", "."):
        assert command in SHELL
    elif name == "python3":
        assert arguments == ["-m", "venv", "venv"]
    elif name == "python":
        if not (ROOT / arguments[0]).is_file():
            copy(page, directory, PORT)
            assert (directory / arguments[0]).is_file()
    else:
        assert os.access(ROOT / name, os.X_OK), f"nobody knows {name!r}"


def block_with(text: str, page: str) -> str:
    """Return the block of a page that contains something."""
    (block,) = (block for block in blocks_of(page) if text in block.code)
    return block.code


def check_arguments(arguments: list[str]) -> None:
    """Make sure that the command line takes these arguments."""
    parse = argparse.ArgumentParser.parse_args

    def parse_only(*args: Any) -> None:
        parse(*args)
        raise ParsedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
        with pytest.raises((ParsedError, SystemExit)) as raised:
            wsfast.cli.main(arguments)
    assert getattr(raised.value, "code", 0) == 0, arguments  # as after --help


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "console"], ids=str)
def test_console(block: Block, tmp_path: Path) -> None:
    """What readers are told to type exists, and takes these options."""
    lines = block.code.splitlines()
    assert all(line.startswith("$ ") for line in lines)
    for line in lines:
        check_command(line.removeprefix("$ ").partition("  #")[0], block.page, tmp_path)
        if remedy := re.search(r"# .*(pip install .*)", line):
            check_command(remedy[1], block.page, tmp_path)


MENTIONED = re.compile(r"(?:make|pip install|python|uvicorn|wsfast) [^.].*")


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_text(page: str, tmp_path: Path) -> None:
    """Commands that the text mentions exist as well."""
    for code in inline_code_of(page):
        if MENTIONED.fullmatch(code):
            check_command(code.replace(" COMMAND", "").replace("FILE", "x"), page, tmp_path)


# ---- Links, names


@pytest.mark.parametrize("page", PAGES)
def test_links(page: str) -> None:
    """Every link to a file or to a heading of the repository leads to one."""
    for link in links_of(page):
        if page == "README.md":  # PyPI shows it, too
            assert re.match(r"#|[a-z]+:", link.target), link
        place = in_repository(link.target)
        if place is None and re.match(r"[a-z]+:", link.target):
            continue
        path, _, anchor = (place or link.target).partition("#")
        directory = ROOT if place else (ROOT / page).parent
        target = os.path.normpath(directory / path) if path else str(ROOT / page)
        assert Path(target).exists(), link
        if anchor:
            assert anchor in anchors_of(os.path.relpath(target, ROOT)), link


def test_every_page_is_in_the_site() -> None:
    """MkDocs knows all pages of docs/."""
    nav = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2].partition("\n\n")[0]
    listed = re.findall(r"[\w/.-]+\.md\b", nav)
    assert sorted(f"docs/{page}" for page in listed if not page.startswith("repository/")) == [
        page for page in PAGES if page.startswith("docs/")
    ]


def look_up(name: str) -> Any:
    """Return what a dotted name stands for."""
    module, _, rest = name.rpartition(".")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        return getattr(look_up(module), rest)


def has_member(what: Any, name: str) -> bool:
    """Whether a class has an attribute, or its instances do, or a module has it."""
    kinds = [kind for kind in getattr(what, "__mro__", [what]) if getattr(kind, "__module__", "") != "builtins"]
    assigned = re.compile(rf"\bself\.{name}(?:: [^=\n]+)? = ")
    return hasattr(what, name) or any(assigned.search(inspect.getsource(kind)) for kind in kinds)


def test_reference_has_all_names() -> None:
    """The reference lists every public name, and none that is not there."""
    pytest.importorskip("websockets.trio", reason="websockets before 17 has no connections for trio")
    documented = set()
    for page in (ROOT / "docs" / "reference").glob("*.md"):
        directives = re.findall(r"^::: ([\w.]+)\n((?: +.*\n)*)", page.read_text(), re.MULTILINE)
        assert directives or page.name in {"api.md", "command-line.md"}
        for name, options in directives:
            what = look_up(name)
            members = re.search(r"members: \[(.*)\]", options)
            listed = members[1].split(", ") if members else getattr(what, "__all__", [])
            if inspect.ismodule(what):
                documented |= {f"{name}.{member}" for member in listed}
            for member in listed:
                assert has_member(what, member), f"{name}.{member}"
            heading = re.search(r"heading: (\S+)", options)
            documented.add(heading[1] if heading else name)
    public = {f"wsfast.{name}" for name in wsfast.__all__ if not inspect.ismodule(getattr(wsfast, name))}
    public |= {f"wsfast.relay.{name}" for name in wsfast.relay.__all__}
    public |= {"wsfast.trio.broadcast", "wsfast.prometheus.Collector"}
    assert public <= documented


def test_architecture_has_all_layers() -> None:
    """The page on the architecture names every module of the layers that imports may go through."""
    page = (ROOT / "docs/explanation/architecture.md").read_text()
    table = page.partition("\n## Layers\n")[2].partition("\n## ")[0]
    modules = {path.stem for path in (ROOT / "src/wsfast").iterdir() if path.suffix == ".py" or path.is_dir()}
    named = {name for layer in LAYERS for name in layer} & modules - {"__init__", "__main__"}
    assert {name for name in named if not re.search(rf"`{name}/?`", table)} == set()


def test_contract_has_all_names() -> None:
    """The public API at a glance, the contract, lists what is there, and nothing else."""
    page = (ROOT / "docs/reference/api.md").read_text()
    kinds = {"channel": wsfast.Channel, "hub": wsfast.Hub, "relay": wsfast.relay.Relay}
    kinds["subscription"] = wsfast.Subscription
    for owner, name in re.findall(r"(?<![\w.])(channel|hub|relay|subscription)\.(\w+)", page):
        assert has_member(kinds[owner], name), f"{owner}.{name}"
    for name in re.findall(r"(?<![\w.])wsfast\.(?!trio\.)([\w.:]*\w)", page):  # trio is not there before websockets 17
        look_up(f"wsfast.{name.replace(':', '.')}")
    for name in wsfast.__all__:
        assert re.search(rf"\b{name}\b", page), name
