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
import select
import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
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

Outcome = Exception | bool
"""What became of a message: True if it was sent, False if the connection is not open; else why it was not sent."""


def send_to_all(
    connections: Sequence[Any],
    message: PreparedMessage,
    encodings: core.Encodings,
    report: Callable[[Any, Outcome], None],
) -> None:
    """Send a message to all connections, to each as fast as it takes it; return when all have taken it or failed.

    Nobody waits for anybody else: those that have room are sent to at once; what is left goes out to all the others
    side by side, and connections that another thread is using are tried again from time to time. Those whose sockets
    cannot be asked for room, as those of TLS, are sent to by other threads.

    Args:
        connections: The connections. One that is given twice is sent the message twice.
        message: The message.
        encodings: Its encodings.
        report: Called with each connection and what became of it, in any order.
    """
    free: list[Any] = list(connections)
    held: dict[int, Any] = {}  # connections whose locks are held here, while a frame may have gone out in part
    rests: dict[int, tuple[Any, memoryview]] = {}  # of these
    futures: list[tuple[Any, Future[Outcome]]] = []
    crew = _Crew()
    poller = select.poll() if hasattr(select, "poll") else None
    try:
        while free or rests:
            busy = []
            for connection in free:
                if not connection.protocol_mutex.acquire(blocking=False):
                    busy.append(connection)
                    continue
                held[id(connection)] = connection
                outcome = _begin(connection, message, encodings, alone=poller is None)
                if isinstance(outcome, memoryview):
                    fd = connection.socket.fileno()
                    rests[fd] = connection, outcome
                    assert poller is not None
                    poller.register(fd, POLLOUT)
                    continue
                _release(held, connection)
                if outcome is None:
                    futures.append((connection, crew.send(connection, message)))
                else:
                    report(connection, outcome)
            free = busy
            if not free and not rests:
                break
            assert poller is not None or not rests
            ready = poller.poll(RETRY * 1000 if free else None) if poller is not None else []
            for fd, _ in ready:
                connection, rest = rests[fd]
                result = _send(connection.socket, rest)
                if isinstance(result, int):
                    rest = rest[result:]
                if isinstance(result, Exception) or not rest:
                    poller.unregister(fd)  # type: ignore[union-attr]
                    del rests[fd]
                    _release(held, connection)
                    report(connection, result if isinstance(result, Exception) else True)
                else:
                    rests[fd] = connection, rest
        for connection, future in futures:
            report(connection, future.result())
    finally:
        for connection in held.values():  # an exception out of nowhere
            with contextlib.suppress(OSError):
                connection.socket.shutdown(socket.SHUT_RDWR)  # close() would wait for the thread that reads
            connection.protocol_mutex.release()
        crew.dismiss()


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
    if alone or encoder is False or protocol.debug or protocol.writes or isinstance(connection.socket, ssl.SSLSocket):
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
            try:
                future.set_result(_send_ordinarily(connection, message))
            except BaseException as exc:
                future.set_exception(exc)
            self._idle.release()
