"""Event streams under uvicorn: finds the response's cycle behind ASGI's `send`, and writes chunks to its transport.

| private or moving name                                      | meaning                             | versions     |
|-------------------------------------------------------------|-------------------------------------|--------------|
| `httptools_impl.RequestResponseCycle`, also of `h11_impl`   | owner of `send`                     | 0.35 to 0.54 |
| `cycle.transport`, `cycle.disconnected`, `cycle.keep_alive` | asyncio's; state                    | 0.35 to 0.54 |
| `cycle.response_started`, `cycle.response_complete`         | state of the response               | 0.35 to 0.54 |
| `cycle.chunked_encoding` (httptools)                        | True: the body is in chunks         | 0.35 to 0.54 |
| `cycle.conn._writer` (h11 0.14 to 0.16): `ChunkedWriter`    | the same                            | 0.35 to 0.54 |
| `cycle.flow.write_paused`                                   | whether `send()` waits              | 0.35 to 0.54 |
| `cycle.on_response`: a method of the protocol               | leads to the protocol               | 0.35 to 0.54 |
| `protocol.shutdown()`                                       | called when the server ends         | 0.35 to 0.54 |
| Starlette: `wrap_app_handling_exceptions`: `sender`         | function around `send`              | 0.40 to 1.10 |
| `ServerErrorMiddleware`: `_send`                            | the same                            | 0.40 to 1.10 |
| `SessionMiddleware`: `send_wrapper`                         | changes headers only                | 0.40 to 1.10 |
| `CORSMiddleware.send`, in a `functools.partial`             | changes headers only                | 0.40 to 1.10 |
| `GZipResponder`, `IdentityResponder`: `.send`               | what `.send_with_compression` calls | 0.46 to 1.10 |
| `responder.content_type_is_excluded`                        | True: it does not compress          | 0.46 to 1.10 |

Any other function around `send` may change the body, so nothing can be written past it.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any

from .events import EventStream
from .foreign import hand_over

__all__ = ["find_stream"]

CYCLES = {
    ("uvicorn.protocols.http.h11_impl", "RequestResponseCycle"),
    ("uvicorn.protocols.http.httptools_impl", "RequestResponseCycle"),
}

WRAPPERS = {
    ("starlette._exception_handler", "wrap_app_handling_exceptions.<locals>.wrapped_app.<locals>.sender"),
    ("starlette.middleware.errors", "ServerErrorMiddleware.__call__.<locals>._send"),
    ("starlette.middleware.sessions", "SessionMiddleware.__call__.<locals>.send_wrapper"),
}
"""Modules and names of functions that call the `send` in their closure with each part of a body, unchanged."""

MOST_WRAPPERS = 100


def find_stream(send: Any, client: object) -> EventStream | None:
    """Return an event stream for the response that has been started with `send`; None if that must write the body."""
    cycle = _cycle_behind(send)
    if cycle is None or not cycle.response_started or cycle.response_complete or cycle.disconnected:
        return None
    if not _is_chunked(cycle) or cycle.scope["method"] == "HEAD":
        return None
    protocol = getattr(cycle.on_response, "__self__", None)
    return None if protocol is None else _UvicornStream(cycle, protocol, client)


class _UvicornStream(EventStream):
    """That of a cycle. It ends when the server is shut down, unless it is handed over."""

    def __init__(self, cycle: Any, protocol: Any, client: object) -> None:
        super().__init__(cycle.transport, client)
        self._cycle = cycle
        self._protocol = protocol
        protocol.shutdown = functools.partial(self._shut_down, protocol.shutdown)

    def _shut_down(self, shutdown: Callable[[], None]) -> None:
        shutdown()
        if not hand_over(self):
            self.finish()

    def finish(self) -> None:
        """See `EventStream`."""
        self._cycle.keep_alive = False
        super().finish()

    def release(self) -> None:
        """See `EventStream`."""
        vars(self._protocol).pop("shutdown", None)

    def can_end_now(self) -> bool:
        """See `EventStream`."""
        return not self._cycle.flow.write_paused


def _cycle_behind(send: Any) -> Any:
    for _ in range(MOST_WRAPPERS):
        if isinstance(send, MethodType):
            owner = send.__self__
            if send.__func__ is getattr(type(owner), "send", None) and _is_one_of(type(owner), CYCLES):
                return owner
        send = _wrapped_by(send)
    return None


def _wrapped_by(send: Any) -> Any:
    """Return the function that a known wrapper calls with each part of a body; None for any other function."""
    if isinstance(send, FunctionType) and (send.__module__, send.__qualname__) in WRAPPERS:
        names = send.__code__.co_freevars
        cells = send.__closure__ or ()
        return cells[names.index("send")].cell_contents if "send" in names else None
    if isinstance(send, functools.partial):
        method = send.func
        cors = getattr(sys.modules.get("starlette.middleware.cors"), "CORSMiddleware", None)
        known = cors is not None and getattr(method, "__func__", None) is cors.send
        return send.keywords.get("send") if known else None
    if isinstance(send, MethodType):
        responder: Any = send.__self__
        known = type(responder).__module__ == "starlette.middleware.gzip" and send.__name__ == "send_with_compression"
        return responder.send if known and getattr(responder, "content_type_is_excluded", None) is True else None
    return None


def _is_one_of(kind: type, names: set[tuple[str, str]]) -> bool:
    """Whether a type is exactly the one that a module has under one of these names."""
    name = kind.__module__, kind.__qualname__
    return name in names and getattr(sys.modules.get(name[0]), name[1], None) is kind


def _is_chunked(cycle: Any) -> bool:
    if hasattr(cycle, "chunked_encoding"):
        return cycle.chunked_encoding is True
    return type(getattr(cycle.conn, "_writer", None)).__name__ == "ChunkedWriter"
