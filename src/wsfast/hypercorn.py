"""Fast fan-out to the WebSockets of Quart, FastAPI, Starlette and Litestar under Hypercorn.

Call `install()` once, for example at the top of the module that creates the application:

    wsfast.hypercorn.install()

With it, wsfast finds the connection behind a framework's WebSocket and writes to its socket directly. And a message
that the application sends never overtakes messages that channels published before.
"""

from __future__ import annotations

from ._arguments import needs

with needs("hypercorn>=0.16", "hypercorn"):
    from .connections.hypercorn import install as _install

__all__ = ["install"]


def install() -> None:
    """Make Hypercorn give wsfast access to the WebSockets of this process.

    Call it before clients connect: it concerns connections that are upgraded from now on. It works with the command
    line of Hypercorn, with `--workers` and `--reload`, and with `hypercorn.asyncio.serve()`, on asyncio and uvloop.
    Calling it again does nothing. WebSockets over HTTP/2 keep using a queue and a task each. Under another server, it
    has no effect.
    """
    _install()
