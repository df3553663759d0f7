"""Tells when sockets that were full have room again.

The event loop has no say in this: it refuses to watch the sockets of its own transports. It watches one descriptor
instead, that of an epoll (Linux) or kqueue (BSD, macOS) of our own, in which the sockets are. Elsewhere, and for what
has no socket of its own, time tells.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select as system_select
import socket
from collections.abc import Callable
from typing import Any
from weakref import ref

__all__ = ["LATE", "POLL_INTERVAL", "Notification", "Writable"]

select: Any = system_select  # what is in it depends on the platform, and mypy looks at one at a time

POLL_INTERVAL = 0.01
"""Seconds between two looks at what cannot be watched."""

LATE = 0.1
"""Seconds after which something is scheduled anew: a signal handler may have interrupted it before it began."""


class Writable:
    """Calls back once for each socket that has room for more, and for each thing that is to be looked at again.

    Args:
        loop: The event loop that calls.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._pid = os.getpid()
        self._poller: Any = None
        self._callbacks: dict[int, tuple[object, Callable[[], None]]] = {}
        self._later: dict[object, Callable[[], None]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def once_writable(self, fd: int, key: object, callback: Callable[[], None]) -> None:
        """Call back, once, when the socket has room; it must be forgotten before another gets its descriptor."""
        self._once(fd, key, callback, write=True)

    def once_readable(self, fd: int, key: object, callback: Callable[[], None]) -> None:
        """Call back, once, when there is something to be read; or earlier."""
        self._once(fd, key, callback, write=False)

    def _once(self, fd: int, key: object, callback: Callable[[], None], *, write: bool) -> None:
        try:
            self._watch(fd, write)
        except OSError:  # as when there are no more descriptors
            self.once_later(key, callback)
        else:
            self._callbacks[fd] = key, callback

    def _watch(self, fd: int, write: bool) -> None:
        if not hasattr(select, "epoll") and not hasattr(select, "kqueue"):
            raise OSError("there is nothing to watch it with")
        if self._poller is None:
            poller = select.epoll() if hasattr(select, "epoll") else select.kqueue()
            reference = ref(self)  # the loop must not keep what is to end when nobody needs it

            def on_ready() -> None:
                watch = reference()
                if watch is not None:
                    watch._on_ready()

            try:
                self._loop.add_reader(poller.fileno(), on_ready)
            except BaseException:
                poller.close()
                raise
            self._poller = poller
        if hasattr(select, "epoll"):
            events = (select.EPOLLOUT if write else select.EPOLLIN) | select.EPOLLONESHOT
            try:
                self._poller.modify(fd, events)
            except FileNotFoundError:
                self._poller.register(fd, events)
        else:
            flags = select.KQ_EV_ADD | select.KQ_EV_ONESHOT
            kind = select.KQ_FILTER_WRITE if write else select.KQ_FILTER_READ
            self._poller.control([select.kevent(fd, kind, flags)], 0, 0)

    def once_later(self, key: object, callback: Callable[[], None]) -> None:
        """Call back, once, after a short while."""
        self._later[key] = callback
        self.check()

    def check(self) -> None:
        """Have the timer run if something is to be called."""
        if self._later and (self._timer is None or self._loop.time() - self._timer.when() > LATE):
            if self._timer is not None and self._timer.when() <= self._loop.time():
                self._timer.cancel()  # it may be late, rather than lost
            self._timer = self._loop.call_later(POLL_INTERVAL, self._on_time)

    def forget(self, fd: int, key: object) -> None:
        """Do not call back for them any more."""
        self._later.pop(key, None)
        if fd in self._callbacks and self._callbacks[fd][0] is key:
            del self._callbacks[fd]
            if hasattr(select, "epoll"):
                with contextlib.suppress(OSError):  # it may be closed
                    self._poller.unregister(fd)

    def __del__(self) -> None:
        if self._poller is not None:
            # After a fork, the poller of the event loop is shared with the parent.
            if os.getpid() == self._pid and not self._loop.is_closed():
                self._loop.remove_reader(self._poller.fileno())
            self._poller.close()

    def _on_ready(self) -> None:
        keys = []
        try:
            if hasattr(select, "epoll"):
                ready = [fd for fd, _ in self._poller.poll(0)]
            else:
                ready = [event.ident for event in self._poller.control(None, 256, 0)]
            for fd in ready:
                if fd in self._callbacks:
                    key, callback = self._callbacks[fd]
                    self._later[key] = callback
                    del self._callbacks[fd]
                    keys.append(key)
            self._call(keys)
        except BaseException:  # the poller tells once only, and nobody knows of which ones it has told
            self._later.update(self._callbacks.values())
            raise
        finally:
            self.check()

    def _on_time(self) -> None:
        try:
            self._timer = None
            self._call(list(self._later))
        finally:
            self.check()

    def _call(self, keys: list[object]) -> None:
        """Call back some of those that are in `_later`, though some may fail; who is interrupted stays there."""
        for key in keys:
            callback = self._later.get(key)
            if callback is None:  # it was forgotten meanwhile
                continue
            try:
                del self._later[key]
                callback()
            except Exception as exc:
                context = {"message": "a subscriber could not catch up", "exception": exc}
                self._loop.call_exception_handler(context)
            except BaseException:
                self._later[key] = callback
                raise


class Notification:
    """Two sockets: what is written to the descriptor of one can be read from that of the other."""

    _sockets: tuple[socket.socket, ...] = ()

    def __init__(self) -> None:
        self._sockets = socket.socketpair()
        for one in self._sockets:
            one.setblocking(False)
        self.reader, self.writer = (one.fileno() for one in self._sockets)

    def clear(self) -> None:
        """Read what was written."""
        with contextlib.suppress(BlockingIOError):
            self._sockets[0].recv(4096)

    def __del__(self) -> None:
        for one in self._sockets:
            one.close()
