"""Draining connections of every library, as their clients see it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import pytest

import wsfast
from helpers.fixtures import Run
from helpers.libraries import LIBRARIES, Library, fastapi_app, litestar_app, send_text, under_uvicorn
from helpers.peers import TIMEOUT
from wsfast.connections import foreign

UNBOUNDED = wsfast.Disconnect(max_messages=None, max_bytes=None)


@pytest.fixture(autouse=True)
def looked_at_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have connections that tell nobody of their end be looked at often."""
    monkeypatch.setattr(foreign, "CLOSING_INTERVAL", 0.02)


async def read_all(client: Any) -> tuple[list[Any], int | None, str | None]:
    """Return the messages that a client gets, and the code and the reason of the close frame."""
    messages: list[Any] = []
    async with asyncio.timeout(TIMEOUT):
        with contextlib.suppress(Exception):
            while True:
                messages.append(await client.recv())
    return messages, client.close_code, client.close_reason


def by_channel() -> tuple[Any, Callable[[Any], object], Callable[[str], object]]:
    channel = wsfast.Channel(slow=UNBOUNDED)
    return channel, channel.subscribe, channel.publish


def by_hub() -> tuple[Any, Callable[[Any], object], Callable[[str], object]]:
    hub = wsfast.Hub(slow=UNBOUNDED)
    return hub, lambda connection: hub.subscribe(connection, "t"), lambda message: hub.publish("t", message)


OPEN: dict[str, Library] = {name: library for name, library in LIBRARIES.items() if name != "aiohttp-client"}
# uvicorn's own protocols, which can only be sent to through ASGI.
OPEN["asgi-fastapi"] = Library(under_uvicorn(fastapi_app, "websockets-sansio"), send_text)
OPEN["asgi-litestar"] = Library(under_uvicorn(litestar_app, "websockets-sansio"), send_text)
SERVERS = sorted(OPEN)


@pytest.mark.parametrize("name", SERVERS)
def test_clients_get_all_messages_and_the_close_frame(run: Run, core: Any, name: str) -> None:
    """Clients get what is published until their turn comes, then the code and the reason, and nothing else."""

    async def drain(pairs: list[tuple[Any, Any]], make: Callable[[], tuple[Any, ...]]) -> None:
        publisher, subscribe, publish = make()
        for connection, _ in pairs:
            subscribe(connection)
        readers = [asyncio.create_task(read_all(client)) for _, client in pairs]
        publish("first")
        draining = asyncio.create_task(publisher.drain(1.2, 4321, "restart"))
        count = 0
        while not draining.done():
            publish(f"{count}")
            count += 1
            await asyncio.sleep(0.005)
        assert await draining == (4, 0)
        everything = ["first", *map(str, range(count))]
        for messages, code, reason in await asyncio.gather(*readers):
            assert (code, reason) == (4321, "restart")
            assert messages == everything[: len(messages)]
            assert messages
        stats = publisher.stats()
        assert (stats.subscribers, stats.queued) == (0, 0)
        assert stats.published == stats.sent + stats.dropped

    async def main() -> None:
        async with OPEN[name].open(compress=False, small=False) as connect:
            pairs = [await connect() for _ in range(8)]
            await asyncio.gather(drain(pairs[:4], by_channel), drain(pairs[4:], by_hub))

    run(main)


@pytest.mark.parametrize("name", sorted(set(SERVERS) - {"sink"}))
def test_stalled_clients_are_aborted(run: Run, core: Any, name: str) -> None:
    """A client that reads nothing is gone at the deadline; one that reads late gets all that waited, and the code."""

    async def main() -> None:
        async with OPEN[name].open(compress=False, small=True) as connect:
            channel = wsfast.Channel(slow=UNBOUNDED)
            (stalled, client), (slow, late) = await connect(), await connect()
            for connection, one in ((stalled, client), (slow, late)):
                channel.subscribe(connection)
                one.transport.pause_reading()
            sent = [f"{number} " * 4000 for number in range(200)]
            for message in sent:
                channel.publish(message)
                await asyncio.sleep(0)  # a transport takes all that is published in one iteration of the event loop
            assert channel.stats().lagging == 2
            draining = asyncio.create_task(channel.drain(1.5, 1012, jitter=False))
            await asyncio.sleep(0.1)
            late.transport.resume_reading()
            messages, code, _ = await read_all(late)
            assert (messages, code) == (sent, 1012)
            begin = asyncio.get_running_loop().time()
            assert await draining == (1, 1)
            assert asyncio.get_running_loop().time() - begin < 3
            assert len(channel) == 0
            if name.startswith("asgi-"):
                return  # the application has received a disconnect; the server closes the connection in its own way
            client.transport.resume_reading()
            messages, code, _ = await read_all(client)
            assert messages == sent[: len(messages)]
            assert len(messages) < len(sent)

    run(main)
