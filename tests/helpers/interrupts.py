"""Signal handlers that raise exceptions, wherever CPython runs them while wsfast is running."""

from __future__ import annotations

import inspect
import sys
from types import FrameType

__all__ = ["Interrupt", "Nowhere"]


class Nowhere(BaseException):
    """What a signal handler raises."""


class Interrupt:
    """Raises an exception at a moment, counted in calls while wsfast is running."""

    def __init__(self, moment: int) -> None:
        self.left = moment

    def __enter__(self) -> None:
        sys.setprofile(self.look)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        sys.setprofile(None)
        return kind is Nowhere

    def look(self, frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        # Nobody gets what is raised in a finalizer or a generator. The pause of the collector is one step in the
        # extension; its twin cannot protect its own first line.
        ignored = (
            code.co_name == "__del__"
            or code.co_flags & inspect.CO_GENERATOR
            or code.co_qualname.startswith("CollectorPause.")
        )
        if event in ("call", "c_return") and "/wsfast/" in code.co_filename and not ignored:
            self.left -= 1
            if self.left == 0:
                sys.setprofile(None)
                raise Nowhere
