"""The drop-in for `websockets.broadcast()`, with the same types, skips, errors and log records."""

from __future__ import annotations

import asyncio
import contextlib
import traceback
from collections import deque
from collections.abc import Collection, Iterable
from typing import Any, Literal, NamedTuple, cast
from weakref import WeakSet

from websockets.exceptions import ConcurrencyError

from ._core import core
from ._delivery import Outcome, deliver, report_lost
from ._dispatcher import Dispatcher
from ._encoding.message import Message, PreparedMessage, prepare
from ._encoding.shared import encodings_of
from .connections import adapt, adapter_of, is_buffering, is_sync, name_of, transport_layout, unsupported
from .connections.foreign import Foreign
from .connections.shape import is_closing, is_open, is_sending, send_message
from .connections.websockets import connection_layout, is_connection

__all__ = ["SEND_TIMEOUT", "Delivery", "Reporter", "broadcast", "check_timeout"]

SEND_TIMEOUT = 10.0
"""Default time limit, in seconds, for connections of websockets.sync and .trio to take a message. An argument that is
this very object means that the caller gave none."""


class Delivery(NamedTuple):
    """The result of a broadcast: the number of connections with each outcome.

    A connection that was given twice counts twice.
    """

    sent: int
    """The kernel took the whole message. With TLS, or with a transport that does not report this, the transport did."""
    buffered: int
    """The message, or the end of it, waits in the transport's write buffer. For websockets.sync, and for WebSockets of
    ASGI whose server offers no transport, it waits in a queue."""
    skipped: int
    """The connection is not open, or is in the middle of sending a fragmented message."""
    failed: int
    """The message could not be written, or the transport is closing and discarded it."""


# Iterating over these types runs no user code, so one delivery can send to all of their items. Iterating over any other
# type can run user code between two items. That code may write to a connection or close it, so the message must have
# been sent to the items before it.
_INERT = frozenset({list, tuple, set, frozenset, dict, type({}.keys()), type({}.values()), deque, WeakSet})


def broadcast(
    connections: Iterable[object],
    message: Message,
    raise_exceptions: bool = False,
    *,
    text: bool | None = None,
    compress: Literal[False] | None = None,
    timeout: float | None = SEND_TIMEOUT,
) -> Delivery:
    """Broadcast a message to several WebSocket connections.

    This function is a drop-in for `websockets.broadcast()`: it takes the same arguments, delivers the same messages,
    logs the same records and raises the same exceptions. Like that function, it is synchronous, pushes the message even
    to connections whose write buffers overflow, silently skips connections that are not open, and continues when one
    fails. When it returns, the message is in the kernel or in the transport's write buffer. Connections of
    `websockets.sync` have no write buffer: a background thread sends later what they have no room for now.

    Connections that negotiated permessage-deflate (RFC 7692, the default of websockets) share compressed frames. All
    connections that were sent the same messages before, and nothing else, get one frame, which refers to those messages
    (context takeover, section 7.1.1). Other connections, for example one that was sent a private message, get a frame
    that is compressed on its own. A message is compressed at most three times for each set of parameters.

    Broadcasting is fastest when `connections` is a list, tuple, set, frozenset, dict, dict view, deque or WeakSet. Any
    other iterable, such as a generator, is consumed lazily: each connection is sent the message before the iterable
    yields the next one.

    Args:
        connections: Connections of `websockets.asyncio`, server or client side, or of another supported library. A
            connection that is given twice is sent the message twice.
        message: A `str` is sent as a Text frame; `bytes`, `bytearray` and `memoryview` as a Binary frame (RFC 6455,
            section 5.6). A `PreparedMessage` is sent as it was prepared.
        raise_exceptions: Whether to raise failures at the end instead of logging each as a warning. Failures of
            messages that are sent later, to connections of `websockets.sync`, are always logged.
        text: True to send bytes, which must be UTF-8, in a Text frame; False to send a string in a Binary frame.
        compress: None to compress the message, where the connection allows it, if it has at least 16 bytes and
            shrinks; False to never compress it.
        timeout: Seconds that a connection of `websockets.sync` may lag: from the first message that it has no room
            for until it has taken that message and all that follow it. After that time, it is aborted and a warning is
            logged. None for no limit. If several calls set limits, the earliest one counts. Not allowed for other
            connections.

    Returns:
        How many connections the message was sent to, buffered for, skipped and not written to.

    Raises:
        TypeError: If `message` has another type, or `text` or `compress` is given with a `PreparedMessage`; nothing was
            sent then. Also if one of `connections` is not supported, or if `timeout` is given and one of them is not a
            connection of websockets.sync; at most the connections ahead of it were sent the message then.
        UnicodeEncodeError: If `message` is a string with a lone surrogate; nothing was sent then.
        ValueError: If `compress` is neither None nor False, or `timeout` is not positive; nothing was sent then.
        RuntimeError: If one of `connections` belongs to an event loop that runs in another thread; the connections
            ahead of it were sent the message then. Use `loop.call_soon_threadsafe(wsfast.broadcast, ...)`.
        ExceptionGroup: With `raise_exceptions`, if the message could not be written to some of the connections.
    """
    prepared = prepare(message, text, compress)
    check_timeout(timeout)
    receivers = len(cast("Collection[Any]", connections)) if type(connections) in _INERT else None
    fan_out = _FanOut(prepared, encodings_of(prepared, receivers), raise_exceptions, timeout)
    if type(connections) in _INERT:
        fan_out.send(cast("Collection[Any]", connections))
    else:
        for connection in connections:
            fan_out.send([connection])
    if fan_out.exceptions:
        raise ExceptionGroup("skipped broadcast", fan_out.exceptions)
    return Delivery(fan_out.sent, fan_out.buffered, fan_out.skipped, fan_out.failed)


def check_timeout(timeout: object) -> None:
    """Raise TypeError or ValueError if `timeout` is not a valid time limit."""
    if timeout is None:
        return
    if not isinstance(timeout, (int, float)):
        raise TypeError(f"timeout must be a number of seconds or None, not {timeout!r}")
    if not timeout > 0:
        raise ValueError(f"timeout must be positive or None, not {timeout!r}")


class Reporter:
    """Counts the outcomes of a broadcast, and records or logs its failures."""

    def __init__(self, raise_exceptions: bool) -> None:
        self.raise_exceptions = raise_exceptions
        self.exceptions: list[Exception] = []
        self.sent = self.buffered = self.skipped = self.failed = 0

    def report(self, connection: Any, outcome: Exception | bool | None) -> None:
        """Count the outcome of a message for one connection: see `Outcome` in `connections.sync`."""
        if outcome is True:
            self.sent += 1
        elif outcome is False:
            self.skipped += 1
        elif outcome is None:
            self.buffered += 1
        elif isinstance(outcome, ConcurrencyError):
            self.report_fragmented(connection, outcome)
        else:
            self.report_failure(connection, outcome)

    def report_fragmented(self, connection: Any, exception: ConcurrencyError) -> None:
        """Record or log that a connection was skipped because it is sending a fragmented message."""
        self.skipped += 1
        if self.raise_exceptions:
            self.exceptions.append(exception)
        else:
            connection.logger.warning("skipped broadcast: sending a fragmented message")

    def report_failure(self, connection: Any, cause: Exception) -> None:
        """Record or log that the message could not be written."""
        self.failed += 1
        if self.raise_exceptions:
            exception = RuntimeError("failed to write message")
            exception.__cause__ = cause
            self.exceptions.append(exception)
        else:
            connection.logger.warning(
                "skipped broadcast: failed to write message: %s",
                traceback.format_exception_only(cause)[0].strip(),
            )


class _FanOut(Reporter):
    """One call of `broadcast()` in progress."""

    def __init__(
        self, message: PreparedMessage, encodings: core.Encodings, raise_exceptions: bool, timeout: float | None
    ) -> None:
        super().__init__(raise_exceptions)
        self.message = message
        self.encodings = encodings
        self.timeout = timeout
        try:
            self.running_loop: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            self.running_loop = None
        Dispatcher.finish(self.running_loop)

    def send(self, collection: Collection[Any]) -> None:
        """Send the message to all connections, as many as possible in one delivery.

        Iterating over `collection` must run no user code.
        """
        connections: Any = collection
        if self.timeout is not SEND_TIMEOUT:
            connections = list(connections)
            self.refuse_timeout(connections)
        start = 0
        while start < len(connections):
            batch = self.deliver(connections, start)
            connections, stop = batch.connections, batch.stop
            if stop >= len(connections):
                break
            if stop == start and self.adapt(connections, start):
                continue
            if stop == start and is_sync(type(connections[start])):
                while stop < len(connections) and is_sync(type(connections[stop])):
                    stop += 1
                self.send_synchronously(connections[start:stop])
            elif stop == start:
                self.send_by_own_methods(connections[stop])
                stop += 1
            start = stop

    def refuse_timeout(self, connections: list[Any]) -> None:
        """Raise TypeError if some of the connections are not of websockets.sync."""
        for connection in connections:
            if not is_sync(type(connection)):
                raise TypeError(
                    f"timeout applies only to connections of websockets.sync, not to {name_of(type(connection))}; "
                    f"omit it, or use a Channel to bound what waits for a slow client"
                )

    def adapt(self, connections: list[Any], start: int) -> bool:
        """Replace connections of other libraries, from `start` on, by their `Foreign`; return whether any was replaced.

        It stops without an error at a connection that cannot be adapted.
        """
        kind = type(connections[start])
        if adapter_of(kind) is None:
            return False
        connections[start] = adapt(connections[start])
        with contextlib.suppress(TypeError, RuntimeError):  # raised again when that connection's turn comes
            for position in range(start + 1, len(connections)):
                connection = connections[position]
                known = getattr(connection, "_wsfast_adapted", None) if type(connection) is kind else None
                connections[position] = adapt(connection) if known is None else known
        return True

    def send_synchronously(self, connections: list[Any]) -> None:
        """Send the message to connections of websockets.sync; a thread sends later what they have no room for."""
        from .connections.sync import Call, limit_after, send_to_all

        limit, report_later = limit_after(self.timeout), Reporter(False).report
        send_to_all(connections, Call(self.message, self.encodings, self.report, report_later, limit))

    def deliver(self, connections: Collection[Any], start: int) -> core.Batch:
        """Send the message to as many connections as possible at once; the batch that is returned knows how many."""
        outcome = Outcome()
        calls = Dispatcher.calls_in(self.running_loop)
        try:
            if calls is not None:
                calls.busy = True  # gather does not see what a signal handler changes now
            batch = deliver(
                outcome,
                lambda batch: batch.gather(
                    connections, start, self.encodings, connection_layout, transport_layout, self.running_loop
                ),
                self.encodings,
            )
        finally:
            if calls is not None:
                calls.busy = False
                if calls.waiting:
                    calls.run()
        self.sent += batch.sent
        self.skipped += len(batch.closed)
        if not outcome.counts and not batch.waiting and not batch.refused and not batch.own:
            return batch

        # From here on, user code may run.
        connection_at = batch.connections.__getitem__
        report_lost(batch, lambda place, _: connection_at(place))
        failures = outcome.failures
        for position in (*outcome.counts, *(place for place, _ in (*batch.waiting, *batch.refused))):
            if position not in failures:
                self.count(connection_at(position))
        for position in sorted((*failures, *batch.own)):
            if position in failures:
                self.report_failure(connection_at(position), failures.pop(position))
            else:
                self.send_by_own_methods(connection_at(position))
        return batch

    def count(self, connection: Any) -> None:
        """Count a message that a connection has accepted."""
        try:
            buffered, closing = is_buffering(connection.transport), is_closing(connection)
        except Exception:
            buffered = closing = False  # there is no transport, or it does not report this
        if buffered or (isinstance(connection, Foreign) and connection.queues):
            self.buffered += 1
        elif closing:
            self.failed += 1
        else:
            self.sent += 1

    def send_by_own_methods(self, connection: Any) -> None:
        """Send the message the way upstream does."""
        if not isinstance(connection, Foreign) and not is_connection(connection):
            raise unsupported(connection)
        if not is_open(connection):
            self.skipped += 1
            return
        loop = getattr(connection, "loop", None)
        if loop is not None and loop is not self.running_loop and loop.is_running():
            raise RuntimeError(
                "broadcast() must be called in the thread of the event loop that runs the connection; "
                "from another thread, use loop.call_soon_threadsafe(wsfast.broadcast, connections, message)"
            )
        if is_sending(connection):
            self.report_fragmented(connection, ConcurrencyError("sending a fragmented message"))
            return
        try:
            send_message(connection, self.message)
        except ConcurrencyError as exc:  # the connection could not report this beforehand
            self.report_fragmented(connection, exc)
        except Exception as exc:
            self.report_failure(connection, exc)
        else:
            self.count(connection)
