"""Connections of websockets.sync. Threads use them, and each has a lock.

| private or moving name                     | what                                                   | versions |
|--------------------------------------------|--------------------------------------------------------|----------|
| `protocol_mutex`                           | a Lock, held while using `protocol` and while sending  | 14 to 17 |
| `socket`                                   | a blocking socket, or that of TLS                      | 14 to 17 |
| `send_in_progress`                         | True between the fragments of a message                | 14 to 17 |
| `send_data()`                              | sends the output of `protocol`, with the lock held     | 14 to 17 |

A connection that does not take a message at once gets a backlog. One thread of the process sends all backlogs, as soon
as there is room. A backlog holds the connection's lock until it is empty. So nothing gets into the middle of a frame,
and messages of the connection itself come after earlier broadcasts. Where it is unknown how much a socket takes, as
with TLS, threads send through the connection's own methods.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

from websockets.exceptions import ConcurrencyError
from websockets.protocol import OPEN

from wsfast._core import core
from wsfast._encoding.message import PreparedMessage, frame_for, self_contained

from .websockets import encoder_of_extensions, without_deflate

__all__ = ["Call", "limit_after", "send_to_all"]

# Windows has neither, so all connections are sent to through their own methods there.
MSG_DONTWAIT: int = getattr(socket, "MSG_DONTWAIT", 0)
POLLOUT: int = getattr(select, "POLLOUT", 0)

PATIENCE = 0.05
"""Most seconds that a call waits for connections that other threads are using, and for threads that send over TLS."""

TICK = 0.005
"""Seconds between two checks of backlogs that are new, late, or waiting for the connection's lock."""

IDLE = 1.0
"""Seconds after which a thread without work ends."""

Outcome = Exception | bool | None
"""The outcome of a message: True if it was sent, False if the connection is not open, None if it waits in a backlog, or
the exception that explains why it was not sent."""


class Call(NamedTuple):
    """One message that is being sent to connections."""

    message: PreparedMessage
    encodings: core.Encodings
    report: Callable[[Any, Outcome], None]
    """Called with each connection and the outcome of the message, in any order, before the call returns."""
    report_later: Callable[[Any, Outcome], None]
    """Called in another thread if messages that waited cannot be sent."""
    limit: tuple[float, float]
    """Time by which a connection that does not take the message at once must have taken all messages, and the seconds
    until then."""


def limit_after(seconds: float | None) -> tuple[float, float]:
    """Return the time limit of a call that begins now."""
    seconds = math.inf if seconds is None else seconds
    return time.monotonic() + seconds, seconds


def send_to_all(connections: Sequence[Any], call: Call) -> None:
    """Send a message to all connections without waiting for clients. A connection given twice gets it twice."""
    threaded: list[_Backlog] = []
    try:
        busy = [connection for connection in connections if not _send_to_one(connection, call, 0, threaded)]
        patience = time.monotonic() + PATIENCE
        for connection in busy:
            if not _send_to_one(connection, call, max(patience - time.monotonic(), 0), threaded):
                _drainer.append(connection, call, create=True)
                call.report(connection, None)
        for backlog in threaded:
            backlog.ended.wait(max(patience - time.monotonic(), 0))
            with _drainer.lock:
                backlog.report, outcome = call.report_later, backlog.outcome
            call.report(backlog.connection, outcome)
    finally:
        _drainer.start()


def _send_to_one(connection: Any, call: Call, seconds: float, threaded: list[_Backlog]) -> bool:
    """Send a message to a connection; return False if another thread uses the connection for longer than `seconds`."""
    if _drainer.append(connection, call):
        call.report(connection, None)
        return True
    if not connection.protocol_mutex.acquire(timeout=seconds):
        return False
    held = True
    try:
        outcome = _begin(connection, call.message, call.encodings)
        if outcome is not None and not isinstance(outcome, memoryview):
            held = False  # no call from here to the release, so no signal handler can run in between
            connection.protocol_mutex.release()
            call.report(connection, outcome)
            return True
        with _drainer.lock:
            backlog = _Backlog(connection)
            known = _drainer.add(backlog, call)
            if isinstance(outcome, memoryview):
                known.rest = outcome
                known.report = call.report_later
            else:
                known.messages.appendleft(call.message)
            if outcome is None and known is backlog:
                threaded.append(backlog)
                _drainer.send_by_thread(backlog)
            known.held, held = True, False
    except BaseException:  # an asynchronous exception, for example of a signal handler
        if held:
            _abort(connection)
            connection.protocol_mutex.release()
        raise
    if backlog not in threaded[-1:]:
        call.report(connection, None)
    return True


class _Backlog:
    """Messages that wait for one connection."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.messages: deque[PreparedMessage] = deque()
        self.rest = memoryview(b"")  # of a frame that was sent in part
        self.held = False  # whether it holds the connection's lock
        self.limit = (math.inf, math.inf)
        self.fd = -1  # the descriptor, while it is watched
        self.working = False  # whether a thread is in one of the connection's own methods
        self.report: Callable[[Any, Outcome], None] | None = None  # None if a call reads the outcome itself
        self.outcome: Outcome = None
        self.ended = threading.Event()


class _Drainer:
    """All backlogs of the process, and the thread that sends them. The thread runs while there are backlogs.

    Finalizers and signal handlers may broadcast in the middle of any code here, in the same thread. So the lock is an
    RLock, and related fields are changed without a call in between. No other user code runs while the lock is held.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything. The child of a fork must do this, because the connections belong to the parent."""
        self.lock = threading.RLock()
        self._backlogs: dict[int, _Backlog] = {}  # by the id() of the connection, which the backlog keeps alive
        self._unwatched: dict[int, _Backlog] = {}  # new backlogs, and those waiting for the connection's lock
        self._watched: dict[int, _Backlog] = {}  # backlogs waiting for room, by descriptor
        self._poller: Any = select.poll() if hasattr(select, "poll") else None
        self._soonest = math.inf  # no limit is earlier
        self._thread: threading.Thread | None = None
        self._jobs: SimpleQueue[_Backlog] = SimpleQueue()
        self._free = 0  # threads that wait for a job, minus jobs that wait for a thread

    def append(self, connection: Any, call: Call, *, create: bool = False) -> bool:
        """Append a message to the backlog of a connection; return False if it has none and `create` is false."""
        key = id(connection)
        with self.lock:
            if create:
                self.add(_Backlog(connection), call).report = call.report_later
            if key not in self._backlogs:
                return False
            backlog = self._backlogs[key]
            backlog.messages.append(call.message)
            self._set_limit(backlog, call)
        return True

    def add(self, new: _Backlog, call: Call) -> _Backlog:
        """Return the backlog of a connection: `new`, if it had none. The lock must be held."""
        key = id(new.connection)
        backlog = self._backlogs.setdefault(key, new)
        if backlog is new:
            self._unwatched[key] = new
        self._set_limit(backlog, call)
        return backlog

    def _set_limit(self, backlog: _Backlog, call: Call) -> None:
        backlog.limit = min(backlog.limit, call.limit)
        self._soonest = min(self._soonest, backlog.limit[0])

    def start(self) -> None:
        """Start the thread, if it is needed and not running."""
        with self.lock:
            if self._thread is not None or not self._backlogs:
                return
            thread = self._thread = threading.Thread(target=self._run, name="wsfast", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no more threads can be started: this one sends the backlogs itself
            self._thread = threading.current_thread()
            self._run()
        except BaseException:
            self._thread = None  # if it did start, it ends at once
            raise

    def _run(self) -> None:
        me = threading.current_thread()
        try:
            while self._thread is me:
                self._tick()
                with self.lock:
                    if not self._backlogs:
                        self._thread = None
        except BaseException:
            self._thread = None
            raise

    def _tick(self) -> None:
        """Wait briefly for connections that have room, and send to them."""
        if self._poller is None:
            time.sleep(TICK)
        else:
            for fd, _ in self._poller.poll(1000 * TICK):
                if fd in self._watched:
                    self._go_on(self._watched[fd])
        with self.lock:  # without the lock, a backlog that a thread is about to send would be included
            unwatched = tuple(self._unwatched.values())
        for backlog in unwatched:
            self._go_on(backlog)
        if (now := time.monotonic()) >= self._soonest:
            self._abort_late(now)

    def _go_on(self, backlog: _Backlog) -> None:
        """Send as much as a connection takes now."""
        try:
            if not backlog.held:
                if not backlog.connection.protocol_mutex.acquire(blocking=False):
                    return
                backlog.held = True
            self._send(backlog)
        except Exception as exc:
            self._end(backlog, exc)
        except BaseException:  # if this is the caller's thread
            self._end(backlog, ConnectionError("interrupted in the middle of the frame"))
            raise

    def _send(self, backlog: _Backlog) -> None:
        if backlog.rest:
            result = _send(backlog.connection.socket, backlog.rest)
            if isinstance(result, Exception):
                raise result
            backlog.rest = backlog.rest[result:]
        while not backlog.rest and (message := self._next(backlog)) is not None:
            outcome = _begin(backlog.connection, message, self_contained(message))
            if isinstance(outcome, memoryview):
                backlog.rest = outcome
            elif outcome is None:
                with self.lock:
                    backlog.messages.appendleft(message)
                    self.send_by_thread(backlog)
                return
            elif outcome is not True:
                self._end(backlog, outcome)
                return
        if backlog.rest and backlog.fd < 0:
            self._watch(backlog)

    def _watch(self, backlog: _Backlog) -> None:
        fd = backlog.connection.socket.fileno()
        closed = ConnectionError("the connection was closed in the middle of the frame")
        if fd in self._watched:  # that socket was closed, and its descriptor was reused
            self._end(self._watched[fd], closed)
        if fd < 0:
            raise closed
        self._poller.register(fd, POLLOUT)
        self._unwatched.pop(id(backlog.connection), None)
        self._watched[fd] = backlog
        backlog.fd = fd

    def _unwatch(self, backlog: _Backlog) -> None:
        self._unwatched.pop(id(backlog.connection), None)
        if backlog.fd >= 0:
            del self._watched[backlog.fd]
            self._poller.unregister(backlog.fd)
            backlog.fd = -1

    def _abort_late(self, now: float) -> None:
        with self.lock:
            late = [backlog for backlog in self._backlogs.values() if backlog.limit[0] <= now]
            for backlog in late:
                backlog.outcome = TimeoutError(f"the client has not taken the message within {backlog.limit[1]} s")
                backlog.limit = (math.inf, math.inf)
                backlog.messages.clear()
                _abort(backlog.connection)
            self._soonest = min((backlog.limit[0] for backlog in self._backlogs.values()), default=math.inf)
            idle = [backlog for backlog in late if not backlog.working]  # a working thread notices this itself
        for backlog in idle:
            self._end(backlog, backlog.outcome)

    def _next(self, backlog: _Backlog) -> PreparedMessage | None:
        """Take the next message; if there is none, end the backlog and return None."""
        with self.lock:
            while not backlog.messages:
                if self._end(backlog, True):
                    return None
            return backlog.messages.popleft()

    def _end(self, backlog: _Backlog, outcome: Outcome) -> bool:
        """End a backlog and release the connection. Return False if all was sent, but more messages came meanwhile."""
        connection, key = backlog.connection, id(backlog.connection)
        with self.lock:
            if key not in self._backlogs or self._backlogs[key] is not backlog:
                return True
            outcome = backlog.outcome or outcome
            failed = isinstance(outcome, Exception)
            if failed and not isinstance(outcome, ConcurrencyError):
                _abort(connection)  # half a frame may be out, and messages are missing
            self._unwatch(backlog)
            if outcome is True and backlog.messages:  # no call from here to the release, so no signal handler
                return False
            backlog.outcome = outcome
            del self._backlogs[key]
            if backlog.held:
                connection.protocol_mutex.release()
            backlog.ended.set()
            report = backlog.report
        if failed and report is not None:
            with contextlib.suppress(Exception):  # of a log handler
                report(connection, outcome)
        return True

    def send_by_thread(self, backlog: _Backlog) -> None:
        """Let a free or a new thread send a backlog through the connection's own methods. The lock must be held."""
        self._unwatch(backlog)
        self._jobs.put(backlog)
        self._free -= 1
        if self._free < 0:
            with contextlib.suppress(RuntimeError):  # no more threads can be started: it waits for one that exists
                threading.Thread(target=self._work, name="wsfast", daemon=True).start()
                self._free += 1

    def _work(self) -> None:
        while True:
            try:
                backlog = self._jobs.get(timeout=IDLE)
            except Empty:
                with self.lock:
                    if self._free > 0:
                        self._free -= 1
                        return
                continue  # a backlog for this thread is on its way
            try:
                with self.lock:
                    backlog.working = True
                while (message := self._next(backlog)) is not None:
                    _send_by_own_methods(backlog.connection, message)
            except Exception as exc:
                self._end(backlog, exc)
            with self.lock:
                self._free += 1


_drainer = _Drainer()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_drainer.reset)


def _abort(connection: Any) -> None:
    """Shut the socket down, so that all threads using it notice; close() would wait for the thread that reads."""
    sock = connection.socket
    with contextlib.suppress(OSError):
        if isinstance(sock, socket.socket):  # after SSLSocket.shutdown(), other threads would continue without TLS
            socket.socket.shutdown(sock, socket.SHUT_RDWR)
        else:
            sock.shutdown(socket.SHUT_RDWR)


def _begin(connection: Any, message: PreparedMessage, encodings: core.Encodings) -> Outcome | memoryview:
    """Send what the kernel takes at once, with the lock held; return the rest, or None if a thread must send it."""
    refused = _refusal(connection)
    if refused is not None:
        return refused
    protocol = connection.protocol
    encoder = encoder_of_extensions(protocol.extensions)
    plain = POLLOUT and type(connection.socket) is socket.socket
    if not plain or encoder is False or protocol.debug or protocol.writes:
        return None
    frame, window = frame_for(encoder, encodings, masked=protocol.side.name == "CLIENT")
    result = _send(connection.socket, frame)
    if isinstance(result, Exception):
        return result
    if encoder is not None:
        encoder.move_to(window)
    return True if result == len(frame) else memoryview(frame)[result:]


def _refusal(connection: Any) -> Outcome:
    """Return why a connection cannot be sent to, or None if it can. The lock must be held."""
    if connection.protocol.state is not OPEN:
        return False
    if connection.send_in_progress:
        return ConcurrencyError("sending a fragmented message")
    return None


def _send(sock: Any, data: bytes | memoryview) -> int | Exception:
    """Send as much as the kernel takes right now."""
    try:
        return int(sock.send(data, MSG_DONTWAIT))
    except (BlockingIOError, InterruptedError):
        return 0
    except OSError as exc:
        return exc


def _send_by_own_methods(connection: Any, message: PreparedMessage) -> None:
    """Send a message through the connection's own methods, which may block, with the lock held."""
    send = connection.protocol.send_text if message.text else connection.protocol.send_binary
    with contextlib.nullcontext() if message.compress is None else without_deflate(connection.protocol):
        send(message.data)
    connection.send_data()
