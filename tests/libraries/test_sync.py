"""broadcast() to connections of websockets.sync, which belong to threads."""

from __future__ import annotations

import contextlib
import logging
import random
import select
import socket
import ssl
import threading
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import websockets.sync.client
import websockets.sync.server
from websockets.exceptions import ConcurrencyError, ConnectionClosed

import wsfast
from helpers.peers import TIMEOUT
from wsfast.connections import sync

SMALL = 4096


def proxyless() -> dict[str, Any]:
    import inspect

    return {"proxy": None} if "proxy" in inspect.signature(websockets.sync.client.connect).parameters else {}


class Crowd:
    """Connections of a server with their clients."""

    def __init__(self, server: Any, tls: ssl.SSLContext | None, compression: str | None) -> None:
        self.server = server
        self.tls = tls
        self.compression = compression
        self.arrived: list[Any] = []
        self.exits = contextlib.ExitStack()

    def connect(self, *, small: bool = False) -> tuple[Any, Any]:
        sock = socket.socket()
        if small:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
        sock.connect(self.server.socket.getsockname())
        before = len(self.arrived)
        client = self.exits.enter_context(
            websockets.sync.client.connect(
                "wss://localhost/" if self.tls else "ws://localhost/",
                sock=sock,
                ssl=self.tls,
                compression=self.compression,
                max_size=None,
                close_timeout=TIMEOUT,
                **proxyless(),
            )
        )
        wait_for(lambda: len(self.arrived) > before)
        return self.arrived[-1], client


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@contextlib.contextmanager
def crowd(
    kind: str, tls: tuple[ssl.SSLContext, ssl.SSLContext], *, small: bool = False, **options: Any
) -> Iterator[Crowd]:
    listener = socket.socket()
    if small:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
    listener.bind(("127.0.0.1", 0))
    listener.listen(20)
    compression = "deflate" if kind == "deflate" else None
    people: Any = None

    def handler(connection: Any) -> None:
        people.arrived.append(connection)
        with contextlib.suppress(Exception):
            for _ in connection:
                pass

    server = websockets.sync.server.serve(
        handler, sock=listener, ssl=tls[0] if kind == "tls" else None, compression=compression, **options
    )
    people = Crowd(server, tls[1] if kind == "tls" else None, compression)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    with people.exits:
        try:
            yield people
        finally:
            server.shutdown()
            thread.join(TIMEOUT)


def text(number: int, size: int) -> str:
    return f"{number} " + random.Random(number).randbytes(size // 2).hex()


@pytest.mark.parametrize("kind", ["plain", "deflate", "tls"])
def test_messages_are_exact_and_in_order(kind: str, tls: Any) -> None:
    """Every message arrives exactly and in order with those that the connections send by themselves."""
    with crowd(kind, tls) as people:
        pairs = [people.connect() for _ in range(5)]
        connections = [connection for connection, _ in pairs]
        expected: list[str | bytes] = []
        for number in range(40):
            message: Any = text(number, random.Random(number).choice([0, 10, 200, 3000, 40_000]))
            message = message if number % 3 else message.encode()
            assert wsfast.broadcast(connections, message) == (5, 0, 0, 0)
            expected.append(message)
            if number % 4 == 0:
                for connection in connections:
                    connection.send(f"private {number} " * 20)
                expected.append(f"private {number} " * 20)
        for _, client in pairs:
            assert [client.recv(timeout=TIMEOUT) for _ in expected] == expected


def test_clients(tls: Any) -> None:
    """Connections of the client side mask their messages; one that is given twice is sent the message twice."""
    with crowd("plain", tls) as people:
        pairs = [people.connect() for _ in range(2)]
        assert wsfast.broadcast([client for _, client in pairs] * 2, "x" * 1000) == (4, 0, 0, 0)
        for _, client in pairs:
            client.close()
            assert client.close_code == 1000  # the server has understood all frames before


@pytest.mark.parametrize("kind", ["plain", "deflate"])
def test_nobody_waits_for_a_slow_client(kind: str, tls: Any) -> None:
    """While one client does not read, all others get the message; the call returns when the last one has it."""
    with crowd(kind, tls, small=True) as people:
        slow, slow_client = people.connect(small=True)
        others = [people.connect() for _ in range(4)]
        message = random.Random(0).randbytes(3_000_000)
        # A client of websockets.sync reads in a thread of its own; it is stalled by holding its lock.
        slow_client.protocol_mutex.acquire()
        results: list[Any] = []
        thread = threading.Thread(
            target=lambda: results.append(wsfast.broadcast([slow, *(one for one, _ in others)], message))
        )
        thread.start()
        for _, client in others:
            assert client.recv(timeout=TIMEOUT) == message
        assert thread.is_alive()
        assert results == []
        slow_client.protocol_mutex.release()
        assert slow_client.recv(timeout=TIMEOUT) == message
        thread.join(TIMEOUT)
        assert results == [(5, 0, 0, 0)]


def test_connections_that_are_busy_are_waited_for(tls: Any) -> None:
    """A connection that another thread is using is sent the message as soon as it is free."""
    with crowd("plain", tls) as people:
        (busy, busy_client), (free, free_client) = people.connect(), people.connect()
        busy.protocol_mutex.acquire()
        results: list[Any] = []
        thread = threading.Thread(target=lambda: results.append(wsfast.broadcast([busy, free], "x")))
        thread.start()
        assert free_client.recv(timeout=TIMEOUT) == "x"
        assert results == []
        busy.protocol_mutex.release()
        assert busy_client.recv(timeout=TIMEOUT) == "x"
        thread.join(TIMEOUT)
        assert results == [(2, 0, 0, 0)]


def test_many_threads(tls: Any) -> None:
    """Several threads may broadcast at once, to the same connections."""
    with crowd("deflate", tls) as people:
        pairs = [people.connect() for _ in range(3)]
        connections = [connection for connection, _ in pairs]

        def shout(name: int) -> None:
            for number in range(100):
                wsfast.broadcast(connections, f"{name} {number} " + "and so on, and so on, " * 20)

        threads = [threading.Thread(target=shout, args=(name,)) for name in range(4)]
        for thread in threads:
            thread.start()
        for _, client in pairs:
            got = [client.recv(timeout=TIMEOUT).split()[:2] for _ in range(400)]
            for name in range(4):
                assert [one for one in got if one[0] == str(name)] == [[str(name), str(n)] for n in range(100)]
        for thread in threads:
            thread.join(TIMEOUT)


def test_closed_connections_are_skipped(tls: Any) -> None:
    """A connection that is not open is skipped, without a word."""
    with crowd("plain", tls) as people:
        (gone, gone_client), (there, client) = people.connect(), people.connect()
        gone_client.close()
        wait_for(lambda: gone.protocol.state.name == "CLOSED")
        assert wsfast.broadcast([gone, there], "x", raise_exceptions=True) == (1, 0, 1, 0)
        assert client.recv(timeout=TIMEOUT) == "x"


@pytest.mark.parametrize("raise_exceptions", [False, True])
def test_fragmented_messages_are_not_interrupted(
    tls: Any, caplog: pytest.LogCaptureFixture, raise_exceptions: bool
) -> None:
    """A connection on which a fragmented message is being sent is skipped, with a warning or an exception."""
    with crowd("plain", tls) as people:
        connection, client = people.connect()
        middle, go_on = threading.Event(), threading.Event()

        def fragments() -> Iterator[str]:
            yield "one "
            middle.set()
            assert go_on.wait(TIMEOUT)
            yield "message"

        thread = threading.Thread(target=lambda: connection.send(fragments()))
        thread.start()
        assert middle.wait(TIMEOUT)
        with caplog.at_level(logging.WARNING, "websockets"):
            if raise_exceptions:
                with pytest.raises(ExceptionGroup, match="skipped broadcast") as caught:
                    wsfast.broadcast([connection], "x", raise_exceptions=True)
                assert isinstance(caught.value.exceptions[0], ConcurrencyError)
            else:
                assert wsfast.broadcast([connection], "x") == (0, 0, 1, 0)
                assert "skipped broadcast: sending a fragmented message" in caplog.text
        go_on.set()
        thread.join(TIMEOUT)
        assert client.recv(timeout=TIMEOUT) == "one message"


def test_failures_are_reported(tls: Any, caplog: pytest.LogCaptureFixture) -> None:
    """If a socket cannot be written to, that is logged or raised, and the others are sent to."""
    with crowd("plain", tls) as people:
        (broken, witness), (there, client) = people.connect(), people.connect()
        with witness.protocol_mutex, caplog.at_level(logging.WARNING, "websockets"):  # lest it close the connection
            broken.socket.shutdown(socket.SHUT_WR)
            assert wsfast.broadcast([broken, there], "x") == (1, 0, 0, 1)
        assert "skipped broadcast: failed to write message: BrokenPipeError" in caplog.text
        assert client.recv(timeout=TIMEOUT) == "x"


# ---- Time limits


def stalled(people: Crowd) -> tuple[Any, Any]:
    """Connect a client that does not read, nor answer."""
    connection, client = people.connect(small=True)
    client.protocol_mutex.acquire()
    people.exits.callback(client.protocol_mutex.release)
    return connection, client


def sending(connection: Any) -> threading.Thread:
    """Have another thread be in the connection's own send(), with its lock."""

    def send() -> None:
        with contextlib.suppress(ConnectionClosed):
            connection.send(b"x" * 10_000_000)

    thread = threading.Thread(target=send)
    thread.start()
    wait_for(connection.protocol_mutex.locked)
    return thread


LIMIT = 0.05


class Clock:
    """A clock that stands still until the time is over."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(sync, "time", types.SimpleNamespace(monotonic=lambda: self.now, sleep=time.sleep))


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("by", ["broadcast", "itself"])
@pytest.mark.parametrize("kind", ["plain", "deflate", "tls"])
def test_clients_that_do_not_read_are_aborted(
    kind: str, by: str, count: int, tls: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the time is over, the connections of all who do not read are, and everybody else has the message."""
    message = random.Random(0).randbytes(3_000_000)
    with crowd(kind, tls, small=True) as people:
        bad = [stalled(people)[0] for _ in range(count)]
        good = [people.connect() for _ in range(3)]
        threads = [sending(connection) for connection in bad] if by == "itself" else []
        connections = [*bad, *(connection for connection, _ in good), bad[0]]
        clock = Clock(monkeypatch)
        with caplog.at_level(logging.WARNING, "websockets"):
            results: list[Any] = []
            thread = threading.Thread(
                target=lambda: results.append(wsfast.broadcast(connections, message, timeout=LIMIT))
            )
            thread.start()
            for _, client in good:
                assert client.recv(timeout=TIMEOUT) == message
            assert results == []
            clock.now += LIMIT
            thread.join(TIMEOUT)
        assert results == [(3, 0, 0, count + 1)]
        assert caplog.text.count(f"TimeoutError: the client has not taken the message within {LIMIT} s") == count + 1
        wait_for(lambda: all(connection.protocol.state.name == "CLOSED" for connection in bad))
        wait_for(lambda: all(connection.socket.fileno() < 0 for connection in bad))
        assert not any(connection.protocol_mutex.locked() for connection in bad)
        for one in threads:
            one.join(TIMEOUT)
            assert not one.is_alive()
        wait_for(lambda: all(one.name != "wsfast" for one in threading.enumerate()))
        assert wsfast.broadcast(connections, "y") == (3, 0, count + 1, 0)
        for _, client in good:
            assert client.recv(timeout=TIMEOUT) == "y"


def test_stalled_clients_share_one_limit(tls: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many connections are late, of whatever kind, the call looks at one deadline only."""
    clock = Clock(monkeypatch)

    class Poll:
        def __init__(self) -> None:
            self.register = self.unregister = lambda *_: None

        def poll(self, milliseconds: float | None) -> list[Any]:
            assert milliseconds is not None
            clock.now += milliseconds / 1000
            return []

    with crowd("plain", tls, small=True) as people:
        connections = [stalled(people)[0] for _ in range(4)]
        sender = sending(connections[3])
        monkeypatch.setattr(select, "poll", Poll)
        with pytest.raises(ExceptionGroup) as caught:
            wsfast.broadcast(connections, b"x" * 3_000_000, raise_exceptions=True)
        monkeypatch.undo()
        sender.join(TIMEOUT)
    assert [type(one.__cause__) for one in caught.value.exceptions] == [TimeoutError] * 4
    assert 1010.0 <= clock.now < 1010.1


def test_nothing_is_sent_after_the_limit(tls: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What no thread has begun to send when the time is over is not sent later."""
    begun, go_on = threading.Event(), threading.Event()
    sent: list[Any] = []

    def send(connection: Any, message: Any) -> bool:
        sent.append(connection)
        begun.set()
        return go_on.wait(TIMEOUT)

    start = threading.Thread.start
    monkeypatch.setattr(sync, "_send_ordinarily", send)

    def start_one(thread: threading.Thread) -> None:
        if thread.name == "wsfast" and begun.is_set():
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_one)
    with crowd("tls", tls) as people:
        (one, _), (other, _) = people.connect(), people.connect()
        monkeypatch.setattr(sync._Crew, "send", after_first(sync._Crew.send, begun))
        assert wsfast.broadcast([one, other], "x", timeout=LIMIT) == (0, 0, 0, 2)
        go_on.set()
        wait_for(lambda: all(thread.name != "wsfast" for thread in threading.enumerate()))
        assert sent == [one]


def after_first(send: Any, begun: threading.Event) -> Any:
    """Have the second job wait until a thread has taken the first one."""
    jobs: list[Any] = []

    def wait_and_send(crew: Any, connection: Any, message: Any) -> Any:
        if jobs:
            assert begun.wait(TIMEOUT)
        jobs.append(connection)
        return send(crew, connection, message)

    return wait_and_send


def test_no_limit(tls: Any) -> None:
    """Without a limit, the call waits for as long as it takes."""
    with crowd("plain", tls) as people:
        (busy, client), (stuck, stuck_client) = people.connect(), people.connect()
        busy.protocol_mutex.acquire()
        threading.Timer(0.05, busy.protocol_mutex.release).start()
        assert wsfast.broadcast([busy, stuck], "x", timeout=None) == (2, 0, 0, 0)
        assert client.recv(timeout=TIMEOUT) == stuck_client.recv(timeout=TIMEOUT) == "x"


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), "5", b"5", object()])
def test_what_is_no_limit(timeout: Any) -> None:
    """What is no positive number of seconds is refused, whoever is sent to."""
    with pytest.raises((TypeError, ValueError), match=r"^timeout must be "):
        wsfast.broadcast([], "x", timeout=timeout)
    with pytest.raises((TypeError, ValueError), match=r"^timeout must be "):
        wsfast.Audience().broadcast([], "x", timeout=timeout)
