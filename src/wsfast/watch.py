"""Tells when sockets that were full have room again.

The event loop has no say in this: it refuses to watch the sockets of its own transports. It watches one descriptor
instead, that of an epoll (Linux) or kqueue (BSD, macOS) of our own, in which the sockets are. Elsewhere, and for what
has no socket of its own, time tells.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable
from typing import Any

__all__ = ["POLL_INTERVAL", "Watch"]

POLL_INTERVAL = 0.01
"""Seconds between two looks at what cannot be watched."""


class Watch:
    """Calls back once for each socket that has room for more, and for each thing that is to be looked at again.

    Args:
        loop: The event loop that calls.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._poller: Any = None
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._known: set[int] = set()
        self._later: dict[object, Callable[[], None]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def once_writable(self, fd: int, callback: Callable[[], None]) -> None:
        """Call back, once, when the socket has room; it must be forgotten before it is closed."""
        if not hasattr(select, "epoll") and not hasattr(select, "kqueue"):
            self.once_later(fd, callback)
            return
        if self._poller is None:
            self._poller = select.epoll() if hasattr(select, "epoll") else select.kqueue()  # type: ignore[attr-defined]
            self._loop.add_reader(self._poller.fileno(), self._on_ready)
        self._callbacks[fd] = callback
        if hasattr(select, "epoll"):
            change = self._poller.modify if fd in self._known else self._poller.register
            change(fd, select.EPOLLOUT | select.EPOLLONESHOT)
        else:
            flags = select.KQ_EV_ADD | select.KQ_EV_ONESHOT  # type: ignore[attr-defined]
            self._poller.control([select.kevent(fd, select.KQ_FILTER_WRITE, flags)], 0, 0)  # type: ignore[attr-defined]
        self._known.add(fd)

    def once_later(self, key: object, callback: Callable[[], None]) -> None:
        """Call back, once, after a short while."""
        self._later[key] = callback
        if self._timer is None:
            self._timer = self._loop.call_later(POLL_INTERVAL, self._on_time)

    def forget(self, fd: int, key: object) -> None:
        """Do not call back for them any more."""
        self._later.pop(key, None)
        self._later.pop(fd, None)
        self._callbacks.pop(fd, None)
        if fd in self._known:
            self._known.remove(fd)
            if hasattr(select, "epoll"):
                self._poller.unregister(fd)
            if not self._known:
                self._end()

    def _end(self) -> None:
        if self._poller is not None:
            if not self._loop.is_closed():
                self._loop.remove_reader(self._poller.fileno())
            self._poller.close()
            self._poller = None

    def _on_ready(self) -> None:
        if hasattr(select, "epoll"):
            ready = [fd for fd, _ in self._poller.poll(0)]
        else:
            ready = [event.ident for event in self._poller.control(None, 256, 0)]
        for fd in ready:
            if (callback := self._callbacks.pop(fd, None)) is not None:
                callback()
            if self._poller is None:
                break

    def _on_time(self) -> None:
        self._timer = None
        callbacks, self._later = self._later, {}
        for callback in callbacks.values():
            callback()
