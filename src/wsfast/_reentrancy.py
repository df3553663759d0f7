"""Re-entrant calls wait: one call at a time changes the channels and hubs of an event loop.

Wherever Python creates an object or calls a function, it may collect garbage or run a signal handler. A finalizer or
signal handler that publishes, subscribes or unsubscribes then runs in the middle of another such call, whose changes
are half done. The inner call is queued, and runs right after the outer one.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable
from functools import partial, wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar
from weakref import WeakSet

__all__ = ["Calls", "consistent", "exclusive"]

P = ParamSpec("P")
R = TypeVar("R")


class Calls:
    """The calls that change subscriptions or publish in one event loop; see `exclusive()` and `consistent()`."""

    __slots__ = ("__weakref__", "_loop", "_runs", "begun", "busy", "forked", "waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.busy: bool = False
        """Whether such a call is in progress."""
        self.begun: int = 0
        """Number of calls that have begun to change something."""
        self.forked: bool = False
        """Whether this is a copy in a child process, while the connections belong to the parent."""
        _all.add(self)
        self._loop = loop
        self._runs = False  # whether run() is in progress
        self.waiting: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        """Calls to make after the one in progress."""

    @property
    def here(self) -> bool:
        """Whether this thread runs the event loop. Calls of other threads do not wait."""
        return asyncio._get_running_loop() is self._loop

    def check_thread(self) -> None:
        """Check that no other thread runs the event loop.

        Raises:
            RuntimeError: If another thread runs it.
        """
        if not self.here and self._loop.is_running():
            raise RuntimeError(
                "this must be called in the thread of its event loop; from another thread, use "
                "loop.call_soon_threadsafe()"
            )

    def after(self, call: Callable[..., object], *arguments: Any) -> None:
        """Make a call right after the one in progress."""
        self.waiting.append((call, arguments))

    def run(self) -> None:
        """Make the calls that have waited."""
        if self._runs:
            return
        self._runs = True
        try:
            while self.waiting:
                waiting, begun = self.waiting[0], self.begun
                call, arguments = waiting
                try:
                    call(*arguments)
                    self.waiting.popleft()
                except BaseException as exc:
                    waits = self.waiting and self.waiting[0] is waiting
                    # A call that was interrupted before it began still waits. No call is made twice.
                    if waits and (isinstance(exc, Exception) or self.begun != begun):
                        self.waiting.popleft()
                    if not isinstance(exc, Exception):
                        raise
                    # The caller has already continued, so the exception goes to the event loop's handler.
                    message = f"exception in {call!r}, which was delayed until another call was done"
                    self._loop.call_exception_handler({"message": message, "exception": exc})
        finally:
            self._runs = False
            if self.waiting:  # after a KeyboardInterrupt
                self._loop.call_soon(self.run)


_all: WeakSet[Calls] = WeakSet()


def _after_fork() -> None:
    for calls in tuple(_all):
        calls.forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class _Owner(Protocol):
    @property
    def _calls(self) -> Calls | None: ...


S = TypeVar("S", bound=_Owner)


def exclusive(method: Callable[Concatenate[S, P], None]) -> Callable[Concatenate[S, P], None]:
    """Decorate a method that changes something: inside another such method, the call waits until that is done."""

    @wraps(method)
    def call(self: S, /, *args: P.args, **kwargs: P.kwargs) -> None:
        calls = self._calls
        if calls is None:  # not bound to an event loop yet
            method(self, *args, **kwargs)
            return
        if calls.busy:
            calls.after(partial(call, self, *args, **kwargs))
            return
        calls.busy = True  # without a context manager: its exit could be interrupted before it begins
        calls.begun += 1
        try:
            method(self, *args, **kwargs)
        finally:
            calls.busy = False
            if calls.waiting:
                calls.run()

    return call


def consistent(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """Decorate a method that only reads: calls that change something wait until it is done."""

    @wraps(method)
    def call(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        calls = self._calls
        if calls is None or calls.busy or not calls.here:
            return method(self, *args, **kwargs)
        calls.busy = True
        try:
            return method(self, *args, **kwargs)
        finally:
            calls.busy = False
            if calls.waiting:
                calls.run()

    return call
