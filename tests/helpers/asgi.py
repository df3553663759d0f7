"""Servers of ASGI applications, started by their command lines, and what must hold under each of them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from websockets.exceptions import ConnectionClosed

from frameworks.asgi_app import expected
from helpers import processes
from helpers.interop.clients import CLIENTS, Inbox, Node, Offer, fingerprint, install_ws
from helpers.libraries import dial
from helpers.peers import TIMEOUT
from helpers.ports import free_port

__all__ = [
    "COMMANDS",
    "TESTS",
    "check_foreign",
    "check_last_words",
    "check_room",
    "check_stalled",
    "connect",
    "python_path",
    "serve",
    "until_end",
]

TESTS = Path(__file__).parents[1]

COMMANDS: dict[str, list[str]] = {
    "uvicorn": ["uvicorn", "--port", "{port}", "--no-access-log"],
    "uvicorn-wsproto": ["uvicorn", "--port", "{port}", "--no-access-log", "--ws", "wsproto"],
    "uvicorn-h11": ["uvicorn", "--port", "{port}", "--no-access-log", "--http", "h11"],
    "hypercorn": ["hypercorn", "--bind", "127.0.0.1:{port}"],
    "granian": ["granian", "--interface", "asgi", "--port", "{port}"],
    "daphne": ["daphne", "--port", "{port}", "--verbosity", "0"],
}


def python_path() -> str:
    """Return where other processes find modules: those of tests, and releases that scripts/support tries."""
    return os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))


@contextlib.asynccontextmanager
async def serve(
    command: list[str], app: str = "app", *, directory: Path | None = None, **environment: str
) -> AsyncIterator[int]:
    """Run a server's own command line; give the port that it listens at."""
    port = free_port()
    arguments = [part.format(port=port) for part in command]
    async with processes.running(
        sys.executable,
        "-m",
        *arguments,
        *([f"frameworks.asgi_app:{app}"] if app else []),
        cwd=directory,
        env=os.environ | {"PYTHONPATH": python_path(), "PYTHONWARNINGS": "ignore"} | environment,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    ) as process:
        async with asyncio.timeout(TIMEOUT):
            while True:
                assert process.returncode is None, "the server has ended"
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    await asyncio.sleep(0.02)
                else:
                    writer.close()
                    break
        yield port


async def connect(port: int, *, compress: bool = True, small: bool = False, path: str = "/ws") -> Any:
    return await dial(("127.0.0.1", port), compress=compress, small=small, path=path)


async def until_end(client: Any, kind: str) -> list[str]:
    """Receive until the end of what was asked for."""
    messages: list[str] = []
    while not messages or messages[-1] != f"end of {kind}":
        messages.append(await client.recv())
    return messages


async def check_room(port: int, *, clients: int = 4, messages: int = 120) -> str:
    """Have everything published and broadcast; return what the first connection is sent to by."""
    async with contextlib.AsyncExitStack() as stack, asyncio.timeout(TIMEOUT):
        connected: list[Any] = []
        for index in range(clients):
            client = await connect(port)
            stack.push_async_callback(client.close)
            assert await client.recv() == f"welcome {index}"
            connected.append(client)
        for kind in ("play", "shout"):
            await connected[0].send(f"{kind} {messages}")
            received = await asyncio.gather(*(until_end(client, kind) for client in connected))
            for index, one in enumerate(received):
                assert one == expected(kind, messages, index, clients)
        await connected[-1].close()
        while True:
            await connected[0].send("count")
            count, kind = (await connected[0].recv()).split()
            if int(count) == clients - 1:
                return str(kind)


async def check_stalled(port: int) -> None:
    """One who does not read is given up, while another one gets everything; then its handler ends."""
    async with asyncio.timeout(TIMEOUT):
        healthy = await connect(port)
        assert await healthy.recv() == "welcome 0"
        stalled = await connect(port, small=True)
        assert await stalled.recv() == "welcome 1"
        stalled.transport.pause_reading()
        try:
            await healthy.send("stall")
            while (message := await healthy.recv()) == "next" or isinstance(message, bytes):
                pass
            assert message == "stalled: ['SLOW_CONSUMER']"
            count = "2"
            while count == "2":
                await healthy.send("count")
                count = (await healthy.recv()).split()[0]
        finally:
            stalled.transport.abort()
            await healthy.close()


async def check_last_words(port: int) -> None:
    """Messages that were published before a close leave before the close frame."""
    async with asyncio.timeout(TIMEOUT):
        client = await connect(port, path="/leave")
        messages = []
        with contextlib.suppress(ConnectionClosed):
            while True:
                messages.append(await client.recv())
    assert messages == [f"last words {number}" for number in range(20)]
    assert client.close_code == 4321


async def check_foreign(port: int) -> None:
    """Clients of Node's ws and of aiohttp get everything as well, until the application closes their connections."""
    modules = await asyncio.to_thread(install_ws, TESTS.parent / "build" / "node")
    offer, messages = Offer(), 120
    async with contextlib.AsyncExitStack() as stack, asyncio.timeout(TIMEOUT):
        leader = await connect(port)
        stack.push_async_callback(leader.close)
        assert await leader.recv() == "welcome 0"
        node = Node(modules)
        stack.push_async_callback(node.exits.aclose)
        await node.start()
        inboxes = [Inbox() for _ in range(3)]
        url = f"ws://127.0.0.1:{port}/ws"

        async def joined(count: int) -> None:
            while True:
                await leader.send("count")
                if (await leader.recv()).split()[0] == str(count):
                    break

        # Their inboxes are told apart by the URL.
        node.receive(f"{url}?1", offer, inboxes[0])
        await joined(2)
        node.receive(f"{url}?2", offer, inboxes[1])
        await joined(3)
        node.close()
        by_aiohttp = asyncio.create_task(CLIENTS["aiohttp"](url, offer, inboxes[2]))
        await joined(4)
        kinds = ("play", "shout")
        for kind in kinds:
            await leader.send(f"{kind} {messages}")
            assert await until_end(leader, kind) == expected(kind, messages, 0, 4)
        await leader.send("dismiss")
        await asyncio.gather(node.run(), by_aiohttp)
    for index, inbox in enumerate(inboxes, start=1):
        sent = [f"welcome {index}", *(text for kind in kinds for text in expected(kind, messages, index, 4))]
        assert inbox.received == ([*map(fingerprint, sent)] if index < 3 else sent)
        assert inbox.code == 1000
