"""Closing many connections: close frames spread over some seconds, and an end for every connection.

One task goes through a list of connections, sorted by the moment of their close frames. There is one timer for all of
them. A connection whose moment has come first gets what waits for it, then its close frame through its own library, and
is aborted if it is still there at the deadline.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, NamedTuple

from ._arguments import check_close, check_seconds
from ._core import core
from .connections.foreign import abort
from .connections.shape import PEER, bound_closing, has_left, is_open

__all__ = ["Closing", "Drained", "DrainingError", "ServerShutdown", "ShutdownPlan", "moments", "new_connections"]

logger = logging.getLogger("wsfast")

ANSWER = 2.0
"""Seconds at the end of a drain in which no close frame is due: the last clients need time to answer theirs."""

TICK = 0.02
"""Seconds between two looks at the connections that are being closed; more if there are many."""

TICK_PER_CONNECTION = 2e-5
"""Seconds that each connection that is being closed adds to it, so that looking takes a small part of the time."""


class DrainingError(RuntimeError):
    """The channel, hub or server is being drained, or was drained: it takes no new connections."""


class Drained(NamedTuple):
    """The result of `drain()`: connections that have left."""

    closed: int
    """Connections that were closed in time, or that their clients had closed."""
    aborted: int
    """Connections that were aborted because they were still there at the deadline."""


class ShutdownPlan(NamedTuple):
    """How to close connections. See `Hub.drain()`."""

    seconds: float
    code: int
    reason: str
    jitter: bool

    def check(self) -> None:
        """Check the arguments.

        Raises:
            TypeError: If one of them has another type.
            ValueError: If `seconds` is not positive, `code` may not be sent, or `reason` is too long.
        """
        check_seconds("seconds", self.seconds)
        check_close(self.code, self.reason)

    @property
    def window(self) -> float:
        """Seconds over which the close frames are spread."""
        return self.seconds - min(ANSWER, self.seconds / 4)


def moments(count: int, window: float, jitter: bool, source: random.Random) -> list[float]:
    """Return the moments of close frames, in ascending order, in seconds from now.

    The window is divided into as many parts of equal length as there are close frames, and one is due in each. So no
    part of the window gets more than its share, rounded up, plus one.

    Args:
        count: Number of close frames.
        window: Length of the window in seconds.
        jitter: Whether each is due at a random moment of its part, rather than at the beginning of it.
        source: Source of randomness.
    """
    return [(number + (source.random() if jitter else 0.0)) * window / count for number in range(count)]


class Closing:
    """One run that closes connections. Several tasks may wait for it; it is cancelled when all of them are.

    Args:
        find: Returns the connections to close. It is called again at the end, for those that came meanwhile.
        plan: How to close them.
        at_once: Whether all close frames are due now.
        source: Source of randomness.
    """

    _all: ClassVar[set[asyncio.Task[Any]]] = set()
    """Tasks in progress. The event loop itself keeps no task alive."""

    def __init__(
        self,
        find: Callable[[], Iterable[Any]],
        plan: ShutdownPlan,
        *,
        at_once: bool = False,
        source: random.Random | None = None,
    ) -> None:
        self._find = find
        self._plan = plan
        self._loop = asyncio.get_running_loop()
        self._start = self._loop.time()
        self._closed = self._aborted = 0
        self._emptying: dict[Any, Any] = {}  # connections, with transports, that get what waits for them
        self._leaving: dict[Any, tuple[Any, asyncio.Task[None]]] = {}  # those that are being closed, with their tasks
        self._waiters = 0
        source = source or random.Random()
        found = list(find())
        self._known = set(found)
        if plan.jitter:
            source.shuffle(found)
        due = [0.0] * len(found) if at_once else moments(len(found), plan.window, plan.jitter, source)
        self._due = deque(
            (moment, connection, _transport_of(connection)) for moment, connection in zip(due, found, strict=True)
        )
        self._task = self._keep(self._run())

    def _keep(self, coroutine: Any) -> asyncio.Task[Any]:
        task = self._loop.create_task(coroutine)
        self._all.add(task)
        task.add_done_callback(self._all.discard)
        return task

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return self._task.done()

    async def wait(self) -> Drained:
        """Wait until all connections have left."""
        self._waiters += 1
        try:
            return await asyncio.shield(self._task)
        finally:
            self._waiters -= 1
            if not self._waiters and not self._task.done():
                self._task.cancel()

    async def _run(self) -> Drained:
        while True:
            now = self._loop.time() - self._start
            while self._due and self._due[0][0] <= now:
                _, connection, transport = self._due.popleft()
                self._emptying[connection] = transport
            self._look(now)
            if not (self._due or self._emptying or self._leaving):
                if not self._add_latecomers():
                    return Drained(self._closed, self._aborted)
                continue
            if now >= self._plan.seconds:
                await self._abort_all()
                return Drained(self._closed, self._aborted)
            pause = max(TICK, TICK_PER_CONNECTION * (len(self._leaving) + len(self._emptying)))
            if not (self._leaving or self._emptying):
                pause = max(pause, min(self._due[0][0] - now, 1.0))
            await asyncio.sleep(min(pause, self._plan.seconds - now))

    def _add_latecomers(self) -> bool:
        """Close connections that were not there at the beginning, at once; return whether there are any."""
        late = [connection for connection in self._find() if connection not in self._known]
        self._known.update(late)
        self._due.extend((0.0, connection, _transport_of(connection)) for connection in late)
        return bool(late)

    def _look(self, now: float) -> None:
        """Close connections that nothing waits for any more, and forget those that have left."""
        for connection, transport in list(self._emptying.items()):
            peer = getattr(connection, PEER, None)
            if has_left(connection, transport):
                del self._emptying[connection]
                self._forget(connection)
            elif peer is None or peer.backlog is None or now >= self._plan.window:
                del self._emptying[connection]
                bound_closing(connection, transport)
                self._leaving[connection] = transport, self._keep(self._close(connection, transport, peer))
        for connection, (transport, _) in list(self._leaving.items()):
            if has_left(connection, transport):
                del self._leaving[connection]
                self._forget(connection)
        while self._due and has_left(*self._due[-1][1:]):  # the rest of those that left by themselves, soon
            self._forget(self._due.pop()[1])

    def _forget(self, connection: Any) -> None:
        self._closed += 1
        _end(connection)

    async def _close(self, connection: Any, transport: Any, peer: core.Peer | None) -> None:
        try:
            if peer is not None and peer.dispatcher is not None:
                peer.dispatcher.flush_last(peer)
                peer.invalidate()
            if is_open(connection):  # something else may have closed it
                await connection.close(self._plan.code, self._plan.reason)
        except Exception as exc:
            logger.warning("could not close %s: %r", connection.id, exc)
            abort(transport)

    async def _abort_all(self) -> None:
        """Abort all connections that are still there."""
        tasks = [task for _, task in self._leaving.values()]
        there = {connection: transport for _, connection, transport in self._due}
        there |= self._emptying | {connection: transport for connection, (transport, _) in self._leaving.items()}
        there |= {one: _transport_of(one) for one in self._find() if one not in self._known}
        for connection, transport in there.items():
            try:
                abort(transport)
            except Exception as exc:  # continue with the others
                logger.warning("could not abort %s: %r", connection.id, exc)
            self._aborted += 1
            _end(connection)
        self._due.clear()
        self._emptying.clear()
        self._leaving.clear()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


def _transport_of(connection: Any) -> Any:
    """Return the transport of a connection, without telling a connection that reports that it was read."""
    peer: core.Peer | None = getattr(connection, PEER, None)
    return connection.transport if peer is None or peer.transport is None else peer.transport


def _end(connection: Any) -> None:
    """End the subscriptions of a connection that is gone. Its library may report it later, or not at all."""
    peer: core.Peer | None = getattr(connection, PEER, None)
    if peer is not None and peer.dispatcher is not None:
        peer.dispatcher.end(peer)


class ServerShutdown:
    """Closes the connections that a server hands over when it shuts down, those of each event loop by one run."""

    def __init__(self, plan: ShutdownPlan) -> None:
        self._plan = plan
        self._handed_over: dict[asyncio.AbstractEventLoop, list[Any]] = {}

    def __call__(self, connection: Any) -> None:
        """Close a connection, together with those that are handed over in the same iteration of the event loop."""
        loop = connection.loop
        if loop not in self._handed_over:
            self._handed_over[loop] = []
            loop.call_soon(self._start, loop)
        self._handed_over[loop].append(connection)

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        connections = self._handed_over.pop(loop)
        Closing(lambda: connections, self._plan)


def new_connections(what: object) -> DrainingError:
    """Return the error for a connection that comes too late."""
    return DrainingError(
        f"{what!r} is being drained, or was: it takes no new connections; close this one with code 1012 or 1013, so "
        "that its client tries another server"
    )
