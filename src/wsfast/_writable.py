"""Reports when sockets that were full have room again.

The event loop refuses to watch the sockets of its own transports. So wsfast registers the sockets with an epoll (Linux)
or kqueue (BSD, macOS) object of its own, and the event loop watches the descriptor of that object. On other platforms,
and for connections without a socket of their own, wsfast polls.
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

select: Any = system_select  # its contents depend on the platform, and mypy checks one platform at a time

POLL_INTERVAL = 0.01
"""Seconds between two polls of connections that cannot be watched."""

LATE = 0.1
"""Seconds after which an overdue timer is scheduled again: a signal handler may have interrupted it before it began."""


class Writable:
    """Calls a function once when a socket has room, can be read, or must be polled again.

    Args:
        loop: The event loop that calls the functions.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._pid = os.getpid()
        self._poller: Any = None
        self._callbacks: dict[int, tuple[object, Callable[[], None]]] = {}
        self._later: dict[object, Callable[[], None]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def once_writable(self, fd: int, key: object, callback: Callable[[], None]) -> None:
        """Call back once when the socket has room. Call `forget()` before another socket gets the same descriptor."""
        self._once(fd, key, callback, write=True)

    def once_readable(self, fd: int, key: object, callback: Callable[[], None]) -> None:
        """Call back once when there is something to read, or earlier."""
        self._once(fd, key, callback, write=False)

    def _once(self, fd: int, key: object, callback: Callable[[], None], *, write: bool) -> None:
        try:
            self._watch(fd, write)
        except OSError:  # for example, when there are no more descriptors
            self.once_later(key, callback)
        else:
            self._callbacks[fd] = key, callback

    def _watch(self, fd: int, write: bool) -> None:
        if not hasattr(select, "epoll") and not hasattr(select, "kqueue"):
            raise OSError("this platform has neither epoll nor kqueue")
        if self._poller is None:
            poller = select.epoll() if hasattr(select, "epoll") else select.kqueue()
            reference = ref(self)  # the event loop must not keep this object alive

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
        """Call back once, after POLL_INTERVAL."""
        self._later[key] = callback
        self.check()

    def check(self) -> None:
        """Start the timer if there is something to call."""
        if self._later and (self._timer is None or self._loop.time() - self._timer.when() > LATE):
            if self._timer is not None and self._timer.when() <= self._loop.time():
                self._timer.cancel()  # it may be late, not lost
            self._timer = self._loop.call_later(POLL_INTERVAL, self._on_time)

    def forget(self, fd: int, key: object) -> None:
        """Cancel the callbacks of a descriptor and key."""
        self._later.pop(key, None)
        if fd in self._callbacks and self._callbacks[fd][0] is key:
            del self._callbacks[fd]
            if hasattr(select, "epoll"):
                with contextlib.suppress(OSError):  # the descriptor may be closed
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
        except BaseException:  # the poller reports each socket once, and it is unknown which ones it has reported
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
        """Call some of the callbacks in `_later`. One that fails does not stop the others; an interrupted one stays."""
        for key in keys:
            callback = self._later.get(key)
            if callback is None:  # it was cancelled meanwhile
                continue
            try:
                del self._later[key]
                callback()
            except Exception as exc:
                context = {"message": "sending the messages that wait for a connection failed", "exception": exc}
                self._loop.call_exception_handler(context)
            except BaseException:
                self._later[key] = callback
                raise


class Notification:
    """A pair of connected sockets, to wake the event loop from another thread."""

    _sockets: tuple[socket.socket, ...] = ()

    def __init__(self) -> None:
        self._sockets = socket.socketpair()
        for one in self._sockets:
            one.setblocking(False)
        self.reader, self.writer = (one.fileno() for one in self._sockets)

    def clear(self) -> None:
        """Read and discard what was written."""
        with contextlib.suppress(BlockingIOError):
            self._sockets[0].recv(4096)

    def __del__(self) -> None:
        for one in self._sockets:
            one.close()
