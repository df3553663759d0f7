"""broadcast() to connections of websockets.sync, which belong to threads."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import socket
import ssl
import sys
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
from helpers import processes
from helpers.peers import TIMEOUT
from wsfast.connections import sync

SMALL = 4096


@pytest.fixture(autouse=True)
def short_lived_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have threads that send over TLS end soon when there is nothing to do."""
    monkeypatch.setattr(sync, "IDLE", 0.05)


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


def broadcast(connections: Any, message: Any, **options: Any) -> wsfast.Delivery:
    """Broadcast, with a time limit only where a test gives one: how long a client lags here depends on the machine."""
    return wsfast.broadcast(connections, message, **{"timeout": None, **options})


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
            sent, buffered, skipped, failed = broadcast(connections, message)
            assert (sent + buffered, skipped, failed) == (5, 0, 0)
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
        assert broadcast([client for _, client in pairs] * 2, "x" * 1000) == (4, 0, 0, 0)
        for _, client in pairs:
            client.close()
            assert client.close_code == 1000  # the server has understood all frames before


def drained() -> bool:
    """Whether nothing waits any more, and the thread has ended."""
    return not any(thread.name == "wsfast" for thread in threading.enumerate())


@pytest.mark.parametrize("kind", ["plain", "deflate", "tls"])
def test_nobody_waits_for_a_slow_client(kind: str, tls: Any) -> None:
    """While one client does not read, all others get every message, and no call waits; what waited follows in order."""
    with crowd(kind, tls, small=True) as people:
        slow, slow_client = people.connect(small=True)
        others = [people.connect() for _ in range(4)]
        connections = [slow, *(one for one, _ in others)]
        messages = [random.Random(number).randbytes(100_000) for number in range(10)]
        # A client of websockets.sync reads in a thread of its own; it is stalled by holding its lock.
        with slow_client.protocol_mutex:
            for message in messages:
                sent, buffered, skipped, failed = broadcast(connections, message)
                assert (sent + buffered, skipped, failed) == (5, 0, 0)
                for _, client in others:
                    assert client.recv(timeout=TIMEOUT) == message
            assert slow.protocol_mutex.locked()
            own = threading.Thread(target=slow.send, args=("own",))  # it comes after all that were broadcast before
            own.start()
        assert [slow_client.recv(timeout=TIMEOUT) for _ in range(11)] == [*messages, "own"]
        own.join(TIMEOUT)
        assert not own.is_alive()
        wait_for(drained)
        assert not slow.protocol_mutex.locked()
        assert broadcast([slow], "then") == (1, 0, 0, 0)
        assert slow_client.recv(timeout=TIMEOUT) == "then"


@pytest.mark.parametrize("kind", ["plain", "deflate", "tls"])
def test_calls_do_not_wait(kind: str, tls: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call returns at once where a client lags; only for a new thread, or another's, it waits a moment at all."""
    waits: list[float] = []

    class Event(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            assert timeout is not None
            waits.append(timeout)
            return False

    with crowd(kind, tls, small=True) as people:
        connections = [stalled(people)[0] for _ in range(3)]
        with monkeypatch.context() as patched:
            patched.setattr(sync, "threading", types.SimpleNamespace(**{**vars(threading), "Event": Event}))
            for _ in range(20):
                assert broadcast(connections, b"x" * 3_000_000).failed == 0
        assert len(waits) == (3 if kind == "tls" else 0)
        assert all(wait <= sync.PATIENCE for wait in waits)
        assert broadcast(connections, "x", timeout=LIMIT) == (0, 3, 0, 0)
    wait_for(drained)


@pytest.mark.parametrize("kind", ["plain", "tls"])
def test_close_comes_after_what_waits(kind: str, tls: Any) -> None:
    """close() of a connection that lags sends the close frame behind all messages."""
    with crowd(kind, tls, small=True) as people:
        slow, client = people.connect(small=True)
        messages = [random.Random(number).randbytes(1_000_000) for number in range(3)]
        with client.protocol_mutex:
            for message in messages:
                broadcast([slow], message)
            thread = threading.Thread(target=slow.close)
            thread.start()
        assert list(client) == messages
        assert client.close_code == 1000
        thread.join(TIMEOUT)
        assert not thread.is_alive()
        wait_for(drained)


@pytest.mark.parametrize("kind", ["plain", "tls"])
def test_connections_that_are_busy_are_not_waited_for(kind: str, tls: Any) -> None:
    """A connection that another thread is using is sent the messages as soon as it is free."""
    with crowd(kind, tls) as people:
        (busy, busy_client), (free, free_client) = people.connect(), people.connect()
        with busy.protocol_mutex:
            for message in ("one", "two"):
                assert sum(broadcast([busy, free], message)[:2]) == 2
                assert free_client.recv(timeout=TIMEOUT) == message
        assert [busy_client.recv(timeout=TIMEOUT) for _ in range(2)] == ["one", "two"]
        wait_for(drained)


def test_a_call_without_threads(tls: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no thread can be started, the call itself sends what waits, and aborts who is late."""

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with crowd("plain", tls, small=True) as people:
        connection, _ = stalled(people)
        other, client = people.connect()
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", start)
            assert broadcast([connection], b"x" * 3_000_000, timeout=LIMIT) == (0, 1, 0, 0)
            assert not connection.protocol_mutex.locked()
            assert broadcast([other], b"x" * 1_000_000).failed == 0
            assert not other.protocol_mutex.locked()
        assert client.recv(timeout=TIMEOUT) == b"x" * 1_000_000


FORK = """
import os, socket, sys, threading
from websockets.protocol import OPEN
from websockets.sync.connection import Connection
from websockets.protocol import Protocol, SERVER
import wsfast

def lag():
    one, other = socket.socketpair()
    connection = Connection(one, Protocol(SERVER, state=OPEN))
    assert wsfast.broadcast([connection], b"x" * 10_000_000) == (0, 1, 0, 0)
    assert any(thread.name == "wsfast" for thread in threading.enumerate())
    return connection, other

def drain(connection, other):
    left = 10_000_010
    while left:
        left -= len(other.recv(left))
    while any(thread.name == "wsfast" for thread in threading.enumerate()):
        pass
    assert not connection.protocol_mutex.locked()

pair = lag()
pid = os.fork()
if not pid:
    try:
        drain(*lag())
        os._exit(0)
    finally:
        os._exit(1)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
drain(*pair)
os._exit(0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork()")
def test_fork() -> None:
    """After a fork, the child has a thread of its own, and leaves to the parent what waits there."""
    processes.run(sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORK, check=True)


def test_many_threads(tls: Any) -> None:
    """Several threads may broadcast at once, to the same connections."""
    with crowd("deflate", tls) as people:
        pairs = [people.connect() for _ in range(3)]
        connections = [connection for connection, _ in pairs]

        def shout(name: int) -> None:
            for number in range(100):
                broadcast(connections, f"{name} {number} " + "and so on, and so on, " * 20)

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
        assert broadcast([gone, there], "x", raise_exceptions=True) == (1, 0, 1, 0)
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
                    broadcast([connection], "x", raise_exceptions=True)
                assert isinstance(caught.value.exceptions[0], ConcurrencyError)
            else:
                assert broadcast([connection], "x") == (0, 0, 1, 0)
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
            assert broadcast([broken, there], "x") == (1, 0, 0, 1)
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
    message = random.Random(0).randbytes(500_000)
    with crowd(kind, tls, small=True) as people:
        bad = [stalled(people)[0] for _ in range(count)]
        good = [people.connect() for _ in range(3)]
        threads = [sending(connection) for connection in bad] if by == "itself" else []
        connections = [*bad, *(connection for connection, _ in good), bad[0]]
        clock = Clock(monkeypatch)
        with caplog.at_level(logging.WARNING, "websockets"):
            sent, buffered, skipped, failed = broadcast(connections, message, timeout=LIMIT)
            assert (sent + buffered, skipped, failed) == (3 + count + 1, 0, 0)
            for _, client in good:
                assert client.recv(timeout=TIMEOUT) == message
            wait_for(lambda: not any(connection.protocol_mutex.locked() for connection, _ in good))  # theirs is out
            clock.now += LIMIT
            late = f"TimeoutError: the client has not taken the message within {LIMIT} s"
            wait_for(lambda: caplog.text.count(late) == count)
        wait_for(lambda: all(connection.protocol.state.name == "CLOSED" for connection in bad))
        wait_for(lambda: all(connection.socket.fileno() < 0 for connection in bad))
        # The thread that closes a connection takes its lock for a moment after that.
        wait_for(lambda: not any(connection.protocol_mutex.locked() for connection in bad))
        for one in threads:
            one.join(TIMEOUT)
            assert not one.is_alive()
        wait_for(drained)
        assert broadcast(connections, "y") == (3, 0, count + 1, 0)
        for _, client in good:
            assert client.recv(timeout=TIMEOUT) == "y"


@pytest.mark.parametrize("kind", ["plain", "tls"])
def test_the_first_limit_counts(
    kind: str, tls: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that lags has as long as the first message gave it, however much is broadcast meanwhile: one warning."""
    clock = Clock(monkeypatch)
    with crowd(kind, tls, small=True) as people, caplog.at_level(logging.WARNING, "websockets"):
        connection, _ = stalled(people)
        for timeout in (5.0, 10.0, None):
            broadcast([connection], b"x" * 3_000_000, timeout=timeout)
        clock.now += 5.0
        wait_for(lambda: connection.protocol.state.name == "CLOSED")
        wait_for(drained)
    assert caplog.text.count("TimeoutError: the client has not taken the message within 5.0 s") == 1


def test_nothing_is_sent_after_the_limit(tls: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What no thread has begun to send when the time is over is not sent later."""
    begun, go_on = threading.Event(), threading.Event()
    sent: list[Any] = []

    def send(connection: Any, message: Any) -> None:
        sent.append(connection)
        begun.set()
        assert go_on.wait(TIMEOUT)

    monkeypatch.setattr(sync, "_send_by_own_methods", send)
    start = threading.Thread.start

    def start_one(thread: threading.Thread) -> None:
        if begun.is_set() and "_work" in repr(thread._target):  # type: ignore[attr-defined]
            raise RuntimeError("can't start new thread")
        start(thread)

    with crowd("tls", tls) as people:
        (one, _), (other, _) = people.connect(), people.connect()
        assert broadcast([one], "x", timeout=LIMIT) == (0, 1, 0, 0)
        assert begun.wait(TIMEOUT)
        monkeypatch.setattr(threading.Thread, "start", start_one)
        assert broadcast([other], "x", timeout=LIMIT).sent == 0
        wait_for(lambda: not other.protocol_mutex.locked())
        go_on.set()
        wait_for(drained)
        assert sent == [one]


def test_threads_that_could_not_be_started(tls: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that could not be started once is not counted on later."""
    go_on = threading.Event()
    send = sync._send_by_own_methods
    start = threading.Thread.start

    def send_late(connection: Any, message: Any) -> None:
        assert go_on.wait(TIMEOUT)
        send(connection, message)

    def start_none(thread: threading.Thread) -> None:
        if "_work" in repr(thread._target):  # type: ignore[attr-defined]
            raise RuntimeError("can't start new thread")
        start(thread)

    with crowd("tls", tls) as people:
        (one, one_client), (other, other_client) = people.connect(), people.connect()
        with monkeypatch.context() as patched:
            patched.setattr(sync, "_send_by_own_methods", send_late)
            assert broadcast([one], "x") == (0, 1, 0, 0)
            patched.setattr(threading.Thread, "start", start_none)
            assert broadcast([other], "x") == (0, 1, 0, 0)
            go_on.set()
            assert one_client.recv(timeout=TIMEOUT) == other_client.recv(timeout=TIMEOUT) == "x"
        wait_for(lambda: all(thread.name != "wsfast" for thread in threading.enumerate()))
        assert sum(broadcast([other], "y")[:2]) == 1
        assert other_client.recv(timeout=TIMEOUT) == "y"


def test_no_limit(tls: Any) -> None:
    """Without a limit, messages wait for as long as it takes."""
    with crowd("plain", tls) as people:
        (busy, client), (stuck, stuck_client) = people.connect(), people.connect()
        busy.protocol_mutex.acquire()
        threading.Timer(0.05, busy.protocol_mutex.release).start()
        assert sum(broadcast([busy, stuck], "x", timeout=None)[:2]) == 2
        assert client.recv(timeout=TIMEOUT) == stuck_client.recv(timeout=TIMEOUT) == "x"


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), "5", b"5", object()])
def test_what_is_no_limit(timeout: Any) -> None:
    """What is no positive number of seconds is refused, whoever is sent to."""
    with pytest.raises((TypeError, ValueError), match=r"^timeout must be "):
        broadcast([], "x", timeout=timeout)
