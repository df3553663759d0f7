"""Re-entrant calls wait: what one event loop's channels and hubs know is changed by one call at a time.

Wherever Python makes an object or calls a function, it may collect garbage or run a signal handler. A finalizer or a
handler that publishes, subscribes or unsubscribes then runs in the middle of another such call, whose changes are
half done. Its call is queued, and runs right after the other one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

__all__ = ["Calls"]


class Calls(AbstractContextManager[None]):
    """The calls that change what is subscribed or published in one event loop.

    A method that takes several steps begins with these lines, once its arguments are checked:

        if calls.postponed(self.method, *arguments):
            return
        with calls:
            ...

    One that reads several things does so `with calls.reading()`.
    """

    __slots__ = ("_depth", "_loop", "_runs", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._depth = 0  # calls in progress, each in the middle of the one before
        self._runs = False  # whether calls that have waited run already
        self._waiting: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()

    def postponed(self, call: Callable[..., object], *arguments: Any) -> bool:
        """Return whether another call is in progress; if so, this one is made right after it."""
        if not self._depth:
            return False
        self._waiting.append((call, arguments))
        return True

    def __enter__(self) -> None:
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if self._waiting and not self._depth and not self._runs:
            self._run()

    def reading(self) -> AbstractContextManager[None]:
        """Return a context in which nothing changes, unless it is of another thread."""
        return self if asyncio._get_running_loop() is self._loop else nullcontext()

    def _run(self) -> None:
        self._runs = True
        try:
            while self._waiting:
                call, arguments = self._waiting.popleft()
                try:
                    call(*arguments)
                except Exception as exc:  # whoever made the call has gone on
                    message = f"Exception in a call of {call!r} that was postponed"
                    self._loop.call_exception_handler({"message": message, "exception": exc})
        finally:
            self._runs = False
            if self._waiting:  # after a KeyboardInterrupt
                self._loop.call_soon(self._run)
