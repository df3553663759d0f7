"""What stands in examples/ runs."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosedError

import wsfast.client
from helpers import processes
from helpers.brokers import measured_broker
from helpers.chromium import REQUIRED, find_chromium, open_page
from helpers.peers import TIMEOUT, until
from helpers.ports import free_port
from wsfast_bench.brokers import BROKERS

EXAMPLES = Path(__file__).parents[2] / "examples"


@contextlib.asynccontextmanager
async def running(
    name: str,
    *arguments: str,
    ready: str,
    times: int = 1,
    end_by: signal.Signals = signal.SIGTERM,
    status: int = 0,
) -> AsyncIterator[Any]:
    """Run an example until it has said so many times that it is ready; end it by a signal, which it must obey."""
    async with processes.running(
        sys.executable,
        str(EXAMPLES / name),
        *arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:
        await processes.until_output(process, ready, times)
        yield process
        process.send_signal(end_by)
        async with asyncio.timeout(TIMEOUT):
            rest, _ = await process.communicate()
        assert process.returncode == status, rest.decode()
        assert b"Traceback" not in rest, rest.decode()


@pytest.mark.parametrize("kind", BROKERS)
def test_workers(kind: str) -> None:
    """Everybody in a room gets what is said there, and one user what is for that one, whatever worker they are with."""

    async def main(url: str) -> None:
        port = free_port()
        async with (
            running("workers.py", url, "2", str(port), ready="is ready", times=2),
            contextlib.AsyncExitStack() as stack,
        ):
            clients = [
                await stack.enter_async_context(
                    connect(f"ws://127.0.0.1:{port}/rooms/lobby?user=user{number}", ping_interval=None)
                )
                for number in range(12)
            ]
            # A worker subscribes at the broker when the first client has come. Until all hear each other:
            heard: set[int] = set()
            async with asyncio.timeout(TIMEOUT):
                while len(heard) < 12 * 11:
                    for number, client in enumerate(clients):
                        await client.send(f"hello from {number}")
                    await asyncio.sleep(0.05)
                    for number, client in enumerate(clients):
                        with contextlib.suppress(TimeoutError):
                            while True:
                                async with asyncio.timeout(0.01):
                                    text = await client.recv()
                                heard.add(number * 12 + int(str(text).rpartition(" ")[2]))
                for number, client in enumerate(clients):
                    await client.send(f"@user{(number + 5) % 12}: only you")
                for number, client in enumerate(clients):
                    while "to you alone" not in (text := await client.recv()):
                        pass
                    assert text == f"user{(number - 5) % 12}, to you alone: only you"

    with measured_broker(kind) as url:
        asyncio.run(main(url))


ENDS = [signal.SIGINT, signal.SIGTERM]


def by_name(number: signal.Signals) -> str:
    return number.name


async def dial(port: int, path: str) -> ClientConnection:
    return await connect(f"ws://127.0.0.1:{port}/{path}", max_queue=None, ping_interval=None)


async def receive(client: ClientConnection) -> str:
    """Return the next message."""
    async with asyncio.timeout(TIMEOUT):
        return str(await client.recv())


async def recv(client: ClientConnection) -> Any:
    """Return the next message, parsed as JSON."""
    return json.loads(await receive(client))


async def see(client: ClientConnection, players: dict[str, Any], condition: Callable[[], bool]) -> None:
    """Apply to a player's picture what has changed, until it shows something."""
    while not condition():
        change = await recv(client)
        if change["at"] is None:
            del players[change["player"]]
        else:
            players[change["player"]] = change["at"]


@pytest.mark.parametrize("end_by", ENDS, ids=by_name)
def test_game(end_by: signal.Signals) -> None:
    """Newcomers get a snapshot, then all get what changes: nobody's picture ever differs from the others' for long."""

    async def main() -> None:
        port = free_port()
        async with running("game.py", str(port), ready="ready at", end_by=end_by):
            ann = await dial(port, "ann")
            assert await recv(ann) == {"players": {"ann": [0, 0]}}
            picture: dict[str, Any] = {"ann": [0, 0]}
            await ann.send("right")
            await see(ann, picture, lambda: picture["ann"] == [1, 0])
            bob = await dial(port, "bob")
            assert await recv(bob) == {"players": {"ann": [1, 0], "bob": [0, 0]}}
            bobs = {"ann": [1, 0], "bob": [0, 0]}
            await bob.send("fly")
            await bob.send("up")
            await see(bob, bobs, lambda: bobs["bob"] == [0, 19])
            await see(ann, picture, lambda: picture == bobs)

            again = await dial(port, "bob")
            with pytest.raises(ConnectionClosedError, match="choose another name"):
                await again.recv()

            await bob.close()
            await see(ann, picture, lambda: picture == {"ann": [1, 0]})
            await ann.close()

    asyncio.run(main())


async def stall(port: int, path: str) -> ClientConnection:
    """Connect a client that does not read, with a buffer so small that it shows; it reads again by `recv()`."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    sock.connect(("127.0.0.1", port))
    sock.setblocking(False)
    url = f"ws://127.0.0.1:{port}/{path}"
    return await connect(url, sock=sock, max_queue=1, compression=None, ping_interval=None)


class Picture:
    """What a player sees, as long as it reads."""

    def __init__(self, client: ClientConnection) -> None:
        self.client = client
        self.players: dict[str, Any] = {}
        self.changes = self.bytes = 0

    async def read(self) -> None:
        """Read until the connection is closed."""
        async for text in self.client:
            message = json.loads(text)
            if "players" in message:
                self.players |= message["players"]
            else:
                self.players[message["player"]] = message["at"]
                self.changes += 1
                self.bytes += len(text)


def test_game_with_players_who_stall() -> None:
    """Players who do not read slow down nobody; when they read again, they get what still matters, and no more."""

    async def main() -> None:
        port = free_port()
        async with running("game.py", str(port), ready="ready at"):
            stalled = [Picture(await stall(port, f"{number}-{'x' * 500}")) for number in range(20)]
            ann = Picture(await dial(port, "ann"))
            reading = [asyncio.create_task(ann.read())]
            while ann.bytes < 500_000:
                before = ann.changes
                for player in stalled:
                    await player.client.send("right")
                await until(lambda count=before: ann.changes > count, "anybody to move")  # type: ignore[misc]
            reading += [asyncio.create_task(player.read()) for player in stalled]
            await until(lambda: all(player.players == ann.players for player in stalled), "all to see the same")
            assert all(player.changes < ann.changes for player in stalled)
            for player in (ann, *stalled):
                await player.client.close()
            await asyncio.gather(*reading)

    asyncio.run(main())


@pytest.mark.parametrize("end_by", ENDS, ids=by_name)
def test_market(end_by: signal.Signals) -> None:
    """Newcomers first get the last price of each symbol; a bad topic is refused."""

    async def main() -> None:
        port = free_port()
        async with running("market.py", str(port), ready="ready at", end_by=end_by):
            early = await dial(port, "prices.lse")
            known: set[str] = set()
            while len(known) < 500:
                known.add((await recv(early))["symbol"])
            newcomer = await dial(port, "prices.lse")
            assert {(await recv(newcomer))["symbol"] for _ in range(500)} == known
            lost = await dial(port, "prices..lse")
            with pytest.raises(ConnectionClosedError, match="1008"):
                await lost.recv()
            for client in early, newcomer:
                await client.close()

    asyncio.run(main())


def test_market_with_a_client_that_stalls() -> None:
    """A client that has stopped to read gets the newest price of each symbol when it reads again."""

    async def main() -> None:
        port = free_port()
        async with running("market.py", str(port), ready="ready at"):
            slow = await stall(port, "prices.nyse")
            fast = await dial(port, "prices.nyse")
            newest: dict[str, int] = {}
            for _ in range(10_000):
                quote = await recv(fast)
                assert quote["number"] > newest.get(quote["symbol"], 0)
                newest[quote["symbol"]] = quote["number"]
            await fast.close()

            seen: dict[str, int] = {}
            passed_over = 0
            while any(seen.get(symbol, 0) < number for symbol, number in newest.items()):
                quote = await recv(slow)
                passed = quote["number"] - seen.get(quote["symbol"], 0) - 1
                assert passed >= 0
                passed_over += passed
                seen[quote["symbol"]] = quote["number"]
            assert passed_over > 0
            slow.transport.abort()  # its close frame would wait for it to read all that is under way

    asyncio.run(main())


# uvicorn ends by the signal itself, as shells like it, but for SIGINT.
@pytest.mark.parametrize(("end_by", "status"), [(signal.SIGINT, 0), (signal.SIGTERM, -signal.SIGTERM)])
def test_chat(end_by: signal.Signals, status: int) -> None:
    """All get what anybody says, newcomers what was said before, and there is a page."""

    async def main() -> None:
        port = free_port()
        async with running("chat.py", str(port), ready="Uvicorn running on", end_by=end_by, status=status):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=TIMEOUT) as response:
                assert b"<title>Chat</title>" in response.read()
            ann = await dial(port, "chat/ann")
            await ann.send("hello")
            assert await receive(ann) == "ann: hello"
            bob = await dial(port, "chat/bob")
            assert [await receive(bob) for _ in range(2)] == ["ann joined", "ann: hello"]
            assert await receive(ann) == "bob joined"
            await bob.send("hi")
            assert await receive(ann) == await receive(bob) == "bob: hi"
            await bob.close()
            assert await receive(ann) == "bob left"
            await ann.close()

    asyncio.run(main())


class Prices:
    """A client of the example, and what it has been told."""

    def __init__(self) -> None:
        self.told: list[bool] = []
        self.numbers: dict[str, list[int]] = {}

    def on_event(self, event: wsfast.client.Event) -> None:
        """Note whether a topic was recovered."""
        assert isinstance(event, wsfast.client.Closed | wsfast.client.Subscribed)
        if isinstance(event, wsfast.client.Subscribed) and not event.first:
            self.told.append(event.recovered)

    async def read(self, client: wsfast.client.Client, topic: str) -> None:
        """Note the numbers of all prices."""
        async for message in client.subscribe(topic):
            self.numbers.setdefault(topic, []).append(json.loads(message.payload)["number"])

    async def more(self, count: int = 5) -> None:
        """Wait for more prices of each topic."""
        before = {topic: len(self.numbers.get(topic, ())) for topic in PRICES}
        await until(
            lambda: all(len(self.numbers.get(topic, ())) >= before[topic] + count for topic in PRICES), "prices"
        )


PRICES = "prices.eur", "prices.gbp", "prices.jpy"


def test_prices() -> None:
    """After `kill -9`, a client is told that old prices are lost, and then gets every new one once."""

    async def main() -> None:
        port = free_port()
        url = f"ws://127.0.0.1:{port}/ws"
        prices = Prices()
        options: dict[str, Any] = {"backoff": wsfast.client.Backoff(base=0.05, cap=0.2), "on_event": prices.on_event}
        serve = functools.partial(running, "prices.py", str(port), ready="ready at")
        async with wsfast.client.connect(url, **options) as client:
            reading = [asyncio.create_task(prices.read(client, topic)) for topic in PRICES]
            async with serve(end_by=signal.SIGKILL, status=-signal.SIGKILL):
                await prices.more()
            assert prices.told == []
            async with serve():
                await prices.more()
                await client.close()
            await asyncio.gather(*reading)
        assert prices.told == [False] * 3
        for numbers in prices.numbers.values():
            again = numbers.index(1, 1)
            assert numbers == [*range(1, again + 1), *range(1, len(numbers) - again + 1)]

    asyncio.run(main())


def test_prices_with_redis() -> None:
    """With Redis, the page gets every price once, although its server was killed, and says so."""
    chromium = find_chromium()
    if chromium is None:
        (pytest.fail if REQUIRED else pytest.skip)("there is no Chromium")

    async def main(url: str) -> None:
        port = free_port()
        serve = functools.partial(running, "prices.py", str(port), url, ready="ready at")
        async with running("prices.py", "feed", url, ready="is ready"), open_page(chromium) as page:

            async def numbers() -> list[int]:
                ids = ["received", "missing", "twice", "recovered", "lost"]
                return [int(await page.evaluate(f"document.getElementById({one!r}).textContent")) for one in ids]

            async with serve(end_by=signal.SIGKILL, status=-signal.SIGKILL):
                await page.go(f"http://127.0.0.1:{port}/")
                await page.until("Number(document.getElementById('received').textContent) > 30")
            await page.until("document.getElementById('state').textContent.startsWith('The server is gone')")
            before, *_ = await numbers()
            async with serve():
                await page.until("document.getElementById('recovered').textContent === '3'")
                await page.until(f"Number(document.getElementById('received').textContent) > {before + 30}")
                assert (await numbers())[1:] == [0, 0, 3, 0]
                await page.evaluate("location.href = 'about:blank'")

    with measured_broker("redis") as url:
        asyncio.run(main(url))
