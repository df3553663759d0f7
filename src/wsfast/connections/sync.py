"""Connections of websockets.sync, each of which is used by threads and has a lock.

| private or moving name                     | what                                                   | versions |
|--------------------------------------------|--------------------------------------------------------|----------|
| `protocol_mutex`                           | held by whoever uses `protocol`, or sends              | 14 to 17 |
| `socket`                                   | a blocking socket, or that of TLS                      | 14 to 17 |
| `send_in_progress`                         | True between the fragments of a message                | 14 to 17 |
| `send_data()`                              | sends what `protocol` has to send, with the lock held  | 14 to 17 |
"""

from __future__ import annotations

import contextlib
import math
import select
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from queue import SimpleQueue
from typing import Any

from websockets.exceptions import ConcurrencyError
from websockets.protocol import OPEN

from wsfast._core import core
from wsfast._encoding.message import PreparedMessage, frame_for

from .websockets import encoder_of_extensions, without_deflate

__all__ = ["send_to_all"]

# Windows has neither, and there all connections are sent to ordinarily: see `alone`.
MSG_DONTWAIT: int = getattr(socket, "MSG_DONTWAIT", 0)
POLLOUT: int = getattr(select, "POLLOUT", 0)

RETRY = 0.005
"""Seconds between two looks at whether a connection that another thread uses is free."""

LONGEST_POLL = 1e6
"""Seconds beyond which poll() might not count."""

Outcome = Exception | bool
"""What became of a message: True if it was sent, False if the connection is not open; else why it was not sent."""


def send_to_all(
    connections: Sequence[Any],
    message: PreparedMessage,
    encodings: core.Encodings,
    report: Callable[[Any, Outcome], None],
    timeout: float | None,
) -> None:
    """Send a message to all connections, to each as fast as it takes it; return when all have taken it or failed.

    Nobody waits for anybody else: those that have room are sent to at once; what is left goes out to all the others
    side by side, and connections that another thread is using are tried again from time to time. Those whose sockets
    cannot be asked for room, as those of TLS, are sent to by other threads. A connection that has not taken the message
    in time is aborted, since half a frame may be out, or another thread may wait for it as long.

    Args:
        connections: The connections. One that is given twice is sent the message twice.
        message: The message.
        encodings: Its encodings.
        report: Called with each connection and what became of it, in any order.
        timeout: Seconds that all of them have, from now; None for no limit.
    """
    deadline = math.inf if timeout is None else time.monotonic() + timeout
    call = _Call(message, encodings, report)
    try:
        busy = call.begin(connections)
        while (busy or call.rests) and (left := deadline - time.monotonic()) > 0:
            call.go_on(min(left, RETRY) if busy else left)
            busy = call.begin(busy)
        call.finish(busy, deadline, TimeoutError(f"the client has not taken the message within {timeout} s"))
    finally:
        call.end()


class _Call:
    """One message on its way to connections."""

    def __init__(
        self, message: PreparedMessage, encodings: core.Encodings, report: Callable[[Any, Outcome], None]
    ) -> None:
        self.rests: dict[int, tuple[Any, memoryview]] = {}
        """Connections, by their descriptors, with what is left of the frame."""
        self._message = message
        self._encodings = encodings
        self._report = report
        self._held: dict[int, Any] = {}  # connections whose locks are held here, while a frame may be out in part
        self._futures: list[tuple[Any, Future[Outcome]]] = []
        self._crew = _Crew()
        self._poller: Any = select.poll() if hasattr(select, "poll") else None

    def begin(self, connections: Sequence[Any]) -> list[Any]:
        """Send to those that no other thread is using; return the others."""
        busy = []
        for connection in connections:
            if not connection.protocol_mutex.acquire(blocking=False):
                busy.append(connection)
                continue
            self._held[id(connection)] = connection
            outcome = _begin(connection, self._message, self._encodings, alone=self._poller is None)
            fd = connection.socket.fileno()
            if isinstance(outcome, memoryview) and fd < 0:
                outcome = ConnectionError("the connection was closed in the middle of the frame")
            if isinstance(outcome, memoryview):
                self.rests[fd] = connection, outcome
                self._poller.register(fd, POLLOUT)
                continue
            _release(self._held, connection)
            if outcome is None:
                self._futures.append((connection, self._crew.send(connection, self._message)))
            else:
                self._report(connection, outcome)
        return busy

    def go_on(self, seconds: float) -> None:
        """Send rests to those that have room, for which to wait so long at most."""
        if self._poller is None:
            time.sleep(min(seconds, RETRY))
            return
        for fd, _ in self._poller.poll(None if seconds > LONGEST_POLL else 1000 * seconds):
            connection, rest = self.rests[fd]
            result = _send(connection.socket, rest)
            if isinstance(result, int):
                rest = rest[result:]
            if isinstance(result, Exception) or not rest:
                self._end_rest(fd, result if isinstance(result, Exception) else True)
            else:
                self.rests[fd] = connection, rest

    def _end_rest(self, fd: int, outcome: Outcome) -> None:
        connection, _ = self.rests[fd]
        self._poller.unregister(fd)
        del self.rests[fd]
        _release(self._held, connection)
        self._report(connection, outcome)

    def finish(self, busy: list[Any], deadline: float, late: TimeoutError) -> None:
        """Wait for the other threads, which have as long; abort the connections that are late."""
        for _, future in self._futures:
            while not future.done() and (left := deadline - time.monotonic()) > 0:
                wait([future], min(left, threading.TIMEOUT_MAX))
        ends = [(connection, future, future.done()) for connection, future in self._futures]  # before any is aborted
        for fd, (connection, _) in list(self.rests.items()):
            _abort(connection)
            self._end_rest(fd, late)
        for connection in busy:
            _abort(connection)
            self._report(connection, late)
        for connection, future, done in ends:
            if not done:
                future.cancel()  # if it has not begun; else it ends when the socket does
                _abort(connection)
            self._report(connection, future.result() if done else late)

    def end(self) -> None:
        """Release all that is held."""
        for connection in self._held.values():  # an exception out of nowhere
            _abort(connection)
            connection.protocol_mutex.release()
        self._crew.dismiss()


def _abort(connection: Any) -> None:
    """Shut the socket down, so that all threads that use it find out; close() would wait for the one that reads."""
    sock = connection.socket
    with contextlib.suppress(OSError):
        if isinstance(sock, socket.socket):  # SSLSocket.shutdown() would have other threads go on without TLS
            socket.socket.shutdown(sock, socket.SHUT_RDWR)
        else:
            sock.shutdown(socket.SHUT_RDWR)


def _release(held: dict[int, Any], connection: Any) -> None:
    """Release the lock of a connection on which all frames are whole. No signal handler runs in the middle."""
    key = id(connection)
    del held[key]
    connection.protocol_mutex.release()


def _begin(
    connection: Any, message: PreparedMessage, encodings: core.Encodings, *, alone: bool
) -> Outcome | memoryview | None:
    """Send what goes out at once, with the lock held; return the rest, or None if it must be sent ordinarily."""
    refused = _refusal(connection)
    if refused is not None:
        return refused
    protocol = connection.protocol
    encoder = encoder_of_extensions(protocol.extensions)
    plain = type(connection.socket) is socket.socket
    if alone or encoder is False or protocol.debug or protocol.writes or not plain:
        return None
    frame, window = frame_for(encoder, encodings, masked=protocol.side.name == "CLIENT")
    result = _send(connection.socket, frame)
    if isinstance(result, Exception):
        return result
    if encoder is not None:
        encoder.move_to(window)
    return True if result == len(frame) else memoryview(frame)[result:]


def _refusal(connection: Any) -> Outcome | None:
    """Return why a connection is not sent to, with the lock held; None if it is."""
    if connection.protocol.state is not OPEN:
        return False
    if connection.send_in_progress:
        return ConcurrencyError("sending a fragmented message")
    return None


def _send(sock: Any, data: bytes | memoryview) -> int | Exception:
    """Send what the kernel takes right now."""
    try:
        return int(sock.send(data, MSG_DONTWAIT))
    except (BlockingIOError, InterruptedError):
        return 0
    except OSError as exc:
        return exc


def _send_ordinarily(connection: Any, message: PreparedMessage) -> Outcome:
    """Send a message by the connection's own methods, which may wait."""
    with connection.protocol_mutex:
        refused = _refusal(connection)
        if refused is not None:
            return refused
        try:
            send = connection.protocol.send_text if message.text else connection.protocol.send_binary
            if message.compress is None:
                send(message.data)
            else:
                with without_deflate(connection.protocol):
                    send(message.data)
            connection.send_data()
        except Exception as exc:
            return exc
    return True


class _Crew:
    """Threads of one call. There are as many as are busy at the same time, so that nobody waits for anybody else."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[tuple[Future[Outcome], Any, PreparedMessage] | None] = SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._size = 0

    def send(self, connection: Any, message: PreparedMessage) -> Future[Outcome]:
        """Have an idle thread send a message to a connection; a new one if there is none."""
        future: Future[Outcome] = Future()
        self._jobs.put((future, connection, message))
        if not self._idle.acquire(blocking=False):
            try:
                threading.Thread(target=self._work, name="wsfast", daemon=True).start()
            except RuntimeError:
                if not self._size:
                    raise
                return future  # there can be no more threads: it has to wait for one of these
            self._size += 1
        return future

    def dismiss(self) -> None:
        """Have all threads end when they have nothing to do any more."""
        for _ in range(self._size):
            self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            future, connection, message = job
            if not future.set_running_or_notify_cancel():  # it is too late
                self._idle.release()
                continue
            try:
                future.set_result(_send_ordinarily(connection, message))
            except BaseException as exc:
                future.set_exception(exc)
            self._idle.release()
