"""What docs/how-to/support.md tells of the releases that are installed here is what is seen."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import importlib
import importlib.metadata
import importlib.util
import json
import platform
import socket
import sys
import threading
import types
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import websockets.asyncio.server
import websockets.protocol

import wsfast
from helpers.cores import PURE_ONLY, load_core
from helpers.fixtures import Run
from helpers.libraries import (
    LIBRARIES,
    Connect,
    Tls,
    aiohttp_clients,
    listen,
    of_websockets,
    serve_legacy,
    starlette_app,
    under_uvicorn,
)
from helpers.peers import TIMEOUT
from helpers.support import COLUMNS, Finding, look_up

pytestmark = pytest.mark.skipif(PURE_ONLY, reason="only the C core writes to sockets")

COUNT = 3
"""Connections of each server."""

TEXT = "a text that can be compressed, " * 1000
BINARY = bytes(range(256)) * 100

Broadcast = Callable[[list[Any], Any], Awaitable[wsfast.Delivery]]


# ---- Servers that do not run in the event loop of their clients


@contextlib.asynccontextmanager
async def open_sync(*, compress: bool, small: bool, tls: Tls) -> AsyncIterator[Connect]:
    """Serve with websockets.sync."""
    from websockets.sync.server import serve

    loop = asyncio.get_running_loop()
    arrived: asyncio.Queue[Any] = asyncio.Queue()

    def handler(connection: Any) -> None:
        loop.call_soon_threadsafe(arrived.put_nowait, connection)
        with contextlib.suppress(Exception):
            for _ in connection:
                pass

    listener = listen(small=small)
    listener.setblocking(True)
    address = listener.getsockname()
    server = serve(
        handler, sock=listener, ssl=None if tls is None else tls[0], compression="deflate" if compress else None
    )
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        async with aiohttp_clients(arrived, address, compress=compress, tls=tls) as connect:
            yield connect
    finally:
        await asyncio.to_thread(server.shutdown)
        await asyncio.to_thread(thread.join, TIMEOUT)


@contextlib.asynccontextmanager
async def open_trio(*, compress: bool, small: bool, tls: Tls) -> AsyncIterator[Connect]:
    """Serve with websockets.trio, in a thread."""
    import trio
    from websockets.trio.server import serve

    loop = asyncio.get_running_loop()
    arrived: asyncio.Queue[Any] = asyncio.Queue()
    started: asyncio.Future[Any] = loop.create_future()

    async def handler(connection: Any) -> None:
        connection.token = trio.lowlevel.current_trio_token()
        loop.call_soon_threadsafe(arrived.put_nowait, connection)
        with contextlib.suppress(Exception):
            async for _ in connection:
                pass

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            server = await nursery.start(
                lambda task_status: serve(
                    handler,
                    0,
                    host="127.0.0.1",
                    ssl=None if tls is None else tls[0],
                    compression="deflate" if compress else None,
                    task_status=task_status,
                )
            )
            address = server.listeners[0].socket.getsockname()
            token = trio.lowlevel.current_trio_token()
            stop = functools.partial(token.run_sync_soon, nursery.cancel_scope.cancel)
            loop.call_soon_threadsafe(started.set_result, (address, stop))

    thread = asyncio.create_task(asyncio.to_thread(trio.run, main))
    address, stop = await started
    try:
        async with aiohttp_clients(arrived, address, compress=compress, tls=tls) as connect:
            yield connect
    finally:
        stop()
        await thread


async def broadcast(connections: list[Any], message: Any) -> wsfast.Delivery:
    return wsfast.broadcast(connections, message)


async def broadcast_in_thread(connections: list[Any], message: Any) -> wsfast.Delivery:
    return await asyncio.to_thread(wsfast.broadcast, connections, message)


async def broadcast_in_trio(connections: list[Any], message: Any) -> wsfast.Delivery:
    import trio

    from wsfast.trio import broadcast

    token = connections[0].token
    call = functools.partial(trio.from_thread.run, broadcast, connections, message, trio_token=token)
    return await asyncio.to_thread(call)


# ---- What is tried


@dataclass(frozen=True)
class Subject:
    """A kind of connections, and who serves them to clients of another library."""

    title: str
    """What it is called on the page."""
    package: str
    """The distribution whose release counts."""
    open: Callable[..., contextlib.AbstractAsyncContextManager[Connect]]
    module: str = ""
    """What must be there."""
    compresses: bool = True
    channels: bool = True
    loops: tuple[str, ...] = ("asyncio", "uvloop")
    broadcast: Broadcast = broadcast


def serve_picows(*args: Any, **options: Any) -> Any:
    import picows.websockets

    return picows.websockets.serve(*args, **options)


def opener(name: str) -> Any:
    return LIBRARIES[name].open


SUBJECTS = {
    "websockets.asyncio": Subject(
        "`websockets.asyncio`", "websockets", of_websockets(websockets.asyncio.server.serve, aiohttp_clients)
    ),
    "wsfast.serve": Subject("`wsfast.serve()`", "websockets", of_websockets(wsfast.serve, aiohttp_clients)),
    "websockets.legacy": Subject(
        "`websockets.legacy`", "websockets", of_websockets(serve_legacy, aiohttp_clients), "websockets.legacy"
    ),
    "websockets.sync": Subject(
        "`websockets.sync`",
        "websockets",
        open_sync,
        channels=False,
        loops=("threads",),
        broadcast=broadcast_in_thread,
    ),
    "websockets.trio": Subject(
        "`websockets.trio`",
        "websockets",
        open_trio,
        "websockets.trio",
        channels=False,
        loops=("trio",),
        broadcast=broadcast_in_trio,
    ),
    "uvicorn": Subject("uvicorn", "uvicorn", opener("fastapi")),
    "uvicorn-wsproto": Subject("uvicorn with wsproto", "uvicorn", opener("fastapi-wsproto")),
    "starlette": Subject("Starlette", "starlette", under_uvicorn(starlette_app)),
    "fastapi": Subject("FastAPI", "fastapi", opener("fastapi")),
    "litestar": Subject("Litestar", "litestar", opener("litestar")),
    "quart": Subject("Quart", "quart", opener("quart")),
    "aiohttp": Subject("aiohttp server", "aiohttp", opener("aiohttp")),
    "aiohttp-client": Subject("aiohttp client", "aiohttp", opener("aiohttp-client")),
    "wsproto": Subject("wsproto", "wsproto", opener("wsproto")),
    "picows": Subject("picows", "picows", opener("picows"), compresses=False),
    "picows.websockets": Subject(
        "`picows.websockets`", "picows", of_websockets(serve_picows), "picows.websockets", channels=False
    ),
    "sink": Subject("`wsfast.attach(sink)`", "wsfast", opener("sink"), compresses=False),
}
for _name in "sanic", "hypercorn", "tornado":
    if _name in LIBRARIES:
        SUBJECTS[_name] = Subject(_name.title(), _name, opener(_name), compresses=LIBRARIES[_name].compresses)


def version_of(package: str) -> str:
    """Return the release of a package, which must be that of the module that is imported."""
    distribution = importlib.metadata.distribution(package)
    module = importlib.import_module(package)
    assert module.__file__ is not None
    if package != "wsfast":  # whose sources are elsewhere than what tells about them
        assert Path(str(distribution.locate_file(""))).resolve() == Path(module.__file__).resolve().parent.parent
    return distribution.version


# ---- What is seen


@pytest.fixture
def direct(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of each call of the core, to how many sockets it has written frames."""
    core = load_core("c")
    sent: list[int] = []

    class Batch(core.Batch):  # type: ignore[misc, name-defined]
        def send(self) -> None:
            super().send()
            sent.append(self.sent)

    class Encrypted(core.Encrypted):  # type: ignore[misc, name-defined]
        def __init__(self, batch: Any) -> None:
            super().__init__(batch)
            self.sent_to = batch

        def send(self) -> bool:
            before = self.sent_to.sent
            more: bool = super().send()
            sent.append(self.sent_to.sent - before)
            return more

    values = {key: getattr(core, key) for key in dir(core) if not key.startswith("_")}
    spy = types.SimpleNamespace(**{**values, "Batch": Batch, "Encrypted": Encrypted})
    monkeypatch.setattr(sys.modules["wsfast._delivery"], "core", spy)
    return sent


@pytest.fixture
def by_protocol(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Messages that a protocol of websockets was given to frame."""
    framed: list[Any] = []
    for name in ("send_text", "send_binary"):
        original = getattr(websockets.protocol.Protocol, name)

        def send(protocol: Any, data: Any, *args: Any, original: Any = original) -> None:
            framed.append(data)
            original(protocol, data, *args)

        monkeypatch.setattr(websockets.protocol.Protocol, name, send)
    return framed


def received(client: Any) -> int:
    """Return how many bytes have arrived on a client's socket."""
    transport = client.transport if hasattr(client, "transport") else client
    info = transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 136)
    return int.from_bytes(info[128:136], sys.byteorder)  # tcpi_bytes_received


async def expect(clients: list[Any], message: str | bytes) -> None:
    async with asyncio.timeout(TIMEOUT):
        for client in clients:
            assert await client.recv() == message


def is_whole(count: int, messages: int) -> bool:
    """Whether all connections were sent all messages in one way, rather than none of them."""
    assert count in (0, messages * COUNT)
    return count > 0


async def watch(subject: Subject, tls: Tls, compress: bool, direct: list[int], request: Any) -> str:
    """Have clients of another library read what is sent to them; return the path that it took."""
    async with subject.open(compress=compress, small=False, tls=tls) as connect:
        pairs = [await connect() for _ in range(COUNT)]
        connections, clients = [connection for connection, _ in pairs], [client for _, client in pairs]
        before = [received(client) for client in clients]
        framed = [] if subject.broadcast is broadcast else request.getfixturevalue("by_protocol")
        direct.clear()
        for message in (TEXT, BINARY):
            assert await subject.broadcast(connections, message) == (COUNT, 0, 0, 0)
        fast = is_whole(sum(direct), 2) if subject.broadcast is broadcast else not is_whole(len(framed), 2)
        for message in (TEXT, BINARY):
            await expect(clients, message)
        if sys.platform == "linux":
            for client, start in zip(clients, before, strict=True):
                assert (received(client) - start < len(TEXT) // 2) is compress
        if subject.channels:
            channel = wsfast.Channel()
            for connection in connections:
                channel.subscribe(connection)
            direct.clear()
            channel.publish(TEXT)
            await expect(clients, TEXT)
            assert is_whole(sum(direct), 1) is fast
    return "fast" if fast else "ordinary"


CASES = [
    (name, loop, tls, compress)
    for name, subject in SUBJECTS.items()
    for loop in subject.loops
    for tls, compress in COLUMNS
    if subject.compresses >= compress
]


@pytest.mark.parametrize(
    ("name", "loop_kind", "secure", "compress"),
    CASES,
    ids=[f"{name}-{loop}{'-tls' * tls}{'-deflate' * compress}" for name, loop, tls, compress in CASES],
)
def test_support(
    run: Run,
    direct: list[int],
    tls: Tls,
    request: pytest.FixtureRequest,
    name: str,
    loop_kind: str,
    secure: bool,
    compress: bool,
) -> None:
    """Messages arrive exactly, by the path that the page tells."""
    subject = SUBJECTS[name]
    if subject.module:
        pytest.importorskip(subject.module, reason=f"this {subject.package} has no {subject.module}")
    try:
        path = run(lambda: watch(subject, tls if secure else None, compress, direct, request))
    except TypeError as exc:
        assert f"{subject.package} " in str(exc), "it is not said which release it takes"  # noqa: PT017
        path = "unsupported"
    finding = Finding(
        library=subject.title,
        version=version_of(subject.package),
        python=platform.python_version(),
        loop=loop_kind,
        tls=secure,
        compressed=compress,
        path=path,
    )
    file = request.config.getoption("--support")
    if file is None:
        told = look_up(finding.library, finding.version, finding.loop, tls=secure, compressed=compress)
        if told is None:
            pytest.skip(f"the page tells nothing of {subject.package} {finding.version}")
        assert told == path
    else:
        with file.open("a") as lines:
            lines.write(json.dumps(dataclasses.asdict(finding)) + "\n")
