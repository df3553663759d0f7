"""broadcast() for connections of websockets.trio."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import random
import struct
import termios
from typing import Any

import pytest

trio = pytest.importorskip("trio", reason="websockets.trio needs trio")
connection_module = pytest.importorskip("websockets.trio.connection", reason="websockets before 17 has no trio")

import websockets.trio.client  # noqa: E402
import websockets.trio.server  # noqa: E402
from trio.testing import MockClock, wait_all_tasks_blocked  # noqa: E402
from websockets.client import ClientProtocol  # noqa: E402
from websockets.exceptions import ConcurrencyError, ConnectionClosed  # noqa: E402
from websockets.uri import parse_uri  # noqa: E402

from helpers.peers import TIMEOUT  # noqa: E402
from wsfast.trio import broadcast  # noqa: E402

SMALL = 4096


@contextlib.asynccontextmanager
async def crowd(count: int, compression: str | None, stuck: bool = False) -> Any:
    """Give the connections of a server, and their clients; stuck ones have small buffers and never read."""
    connections: list[Any] = []
    clients: list[Any] = []

    async def handler(connection: Any) -> None:
        connections.append(connection)
        with contextlib.suppress(Exception):
            async for _ in connection:
                pass

    async with trio.open_nursery() as nursery, contextlib.AsyncExitStack() as stack:
        server = await nursery.start(
            lambda task_status: websockets.trio.server.serve(
                handler, 0, host="127.0.0.1", compression=compression, task_status=task_status
            )
        )
        port = server.listeners[0].socket.getsockname()[1]
        for _ in range(count):
            if stuck:
                sock = trio.socket.socket()
                sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, SMALL)
                await sock.connect(("127.0.0.1", port))
                clients.append(await stack.enter_async_context(trio.SocketStream(sock)))
                protocol = ClientProtocol(parse_uri(f"ws://127.0.0.1:{port}/"))
                protocol.send_request(protocol.connect())
                await clients[-1].send_all(b"".join(protocol.data_to_send()))
            else:
                client = websockets.trio.client.connect(
                    f"ws://127.0.0.1:{port}/", compression=compression, max_size=None, proxy=None
                )
                clients.append(await stack.enter_async_context(client))
            with trio.fail_after(TIMEOUT):
                while len(connections) < len(clients):
                    await trio.sleep(0)  # the clock may stand still
        yield connections, clients
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("compression", [None, "deflate"])
def test_messages_are_exact_and_in_order(compression: str | None) -> None:
    """Every message arrives exactly, in order with those that the connections send by themselves."""

    async def main() -> None:
        async with crowd(4, compression) as (connections, clients):
            expected: list[Any] = []
            got: list[list[Any]] = [[] for _ in clients]

            async def read(client: Any, messages: list[Any]) -> None:
                async for message in client:
                    messages.append(message)  # noqa: PERF401

            async with trio.open_nursery() as nursery:
                for client, messages in zip(clients, got, strict=True):
                    nursery.start_soon(read, client, messages)
                for number in range(60):
                    size = random.Random(number).choice([0, 20, 3000, 900_000])
                    message: Any = f"{number} " + random.Random(number).randbytes(size // 2).hex()
                    message = message if number % 3 else message.encode()
                    assert await broadcast(connections, message) == (4, 0, 0, 0)
                    expected.append(message)
                    if number % 4 == 0:
                        for connection in connections:
                            await connection.send("private " * 30)
                        expected.append("private " * 30)
                with trio.fail_after(TIMEOUT):
                    while any(len(messages) < len(expected) for messages in got):
                        await trio.sleep(0.001)
                nursery.cancel_scope.cancel()
            assert got == [expected] * 4

    trio.run(main)


def test_closed_and_fragmented() -> None:
    """Connections that are closed, or send a fragmented message, are skipped; what is no connection is a TypeError."""

    async def main() -> None:
        async with crowd(2, None) as (connections, clients):
            await clients[0].aclose()
            with trio.fail_after(TIMEOUT):
                while connections[0].protocol.state.name != "CLOSED":
                    await trio.sleep(0.001)
            assert await broadcast(connections, "x") == (1, 0, 1, 0)
            assert await clients[1].recv() == "x"
            connections[1].send_in_progress = trio.Event()
            with pytest.raises(ExceptionGroup) as caught:
                await broadcast(connections, "y", raise_exceptions=True)
            connections[1].send_in_progress = None
            assert isinstance(caught.value.exceptions[0], ConcurrencyError)
            with pytest.raises(TypeError, match="int"):
                await broadcast([5], "x")

    trio.run(main)


@pytest.mark.parametrize("compression", [None, "deflate"])
def test_out_of_descriptors(monkeypatch: pytest.MonkeyPatch, compression: str | None) -> None:
    """Without a descriptor to try at once with, the connections' own methods send the message."""

    def dup(_: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async def main() -> None:
        async with crowd(2, compression) as (connections, clients):
            for number in range(6):
                with monkeypatch.context() as patch:
                    if number % 3:
                        patch.setattr(os, "dup", dup)
                    message = f"message {number} " * 20
                    assert await broadcast(connections, message) == (2, 0, 0, 0)
                assert [await client.recv() for client in clients] == [message] * 2

    trio.run(main)


def test_cancellation() -> None:
    """If it is cancelled in the middle of a frame, nothing follows on that connection, and its lock is free."""

    def begun(client: Any) -> bool:
        """Tell whether more has arrived at a client that does not read than the opening handshake."""
        (count,) = struct.unpack("i", fcntl.ioctl(client.socket.fileno(), termios.FIONREAD, bytes(4)))
        return int(count) > 1000

    async def main() -> None:
        async with crowd(2, None, stuck=True) as (connections, clients):
            for connection in connections:
                connection.stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_SNDBUF, SMALL)
            scope = trio.CancelScope()

            async def send() -> None:
                with scope:
                    await broadcast(connections, b"x" * 10_000_000)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                with trio.fail_after(TIMEOUT):
                    while not all(map(begun, clients)):
                        await trio.sleep(0.001)
                scope.cancel()
            assert scope.cancelled_caught
            with trio.fail_after(TIMEOUT):  # those who have waited for a lock have their turn
                while any(connection.send_lock.locked() for connection in connections):
                    await trio.sleep(0.001)
            assert all(connection.stream.socket.fileno() == -1 for connection in connections)

    trio.run(main)


@pytest.mark.parametrize("busy", [False, True], ids=["", "while-sending"])
def test_clients_that_do_not_read_are_closed(busy: bool, caplog: pytest.LogCaptureFixture) -> None:
    """When the time is over, connections whose clients do not read are closed; everybody else has the message."""
    clock = MockClock()  # which stands still
    message = random.Random(0).randbytes(1_000_000)

    async def main() -> None:
        async with crowd(2, None, stuck=True) as (bad, _), crowd(2, None) as (good, clients):
            for connection in bad:
                connection.stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_SNDBUF, SMALL)
            results: list[Any] = []

            async def send() -> None:
                results.append(await broadcast([*bad, *good, bad[0]], message))

            async def send_own(connection: Any) -> None:
                with contextlib.suppress(ConnectionClosed):
                    await connection.send(message * 10)

            async with trio.open_nursery() as nursery:
                if busy:
                    for connection in bad:
                        nursery.start_soon(send_own, connection)
                    while not all(connection.send_lock.locked() for connection in bad):
                        await trio.sleep(0)
                nursery.start_soon(send)
                for client in clients:
                    assert await client.recv() == message
                clock.jump(9.9)
                await wait_all_tasks_blocked()
                assert results == []
                assert all(connection.stream.socket.fileno() >= 0 for connection in bad)
                clock.jump(0.2)
            assert results == [(2, 0, 0, 3)]
            assert caplog.text.count("TimeoutError: the client has not taken the message within 10.0 s") == 3
            assert all(connection.stream.socket.fileno() == -1 for connection in bad)
            for connection in bad:
                await connection.wait_closed()
                assert not connection.send_lock.locked()
            assert await broadcast([*bad, *good], "y", timeout=None) == (2, 0, 2, 0)
            for client in clients:
                assert await client.recv() == "y"

    with caplog.at_level("WARNING"):
        trio.run(main, clock=clock)


def test_what_is_no_limit() -> None:
    """What is no positive number of seconds is refused."""
    some: list[Any] = [0, -1.0, "5"]
    for timeout in some:
        with pytest.raises((TypeError, ValueError), match=r"^timeout must be "):
            trio.run(functools.partial(broadcast, [], "x", timeout=timeout))
