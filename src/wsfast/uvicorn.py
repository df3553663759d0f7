"""Fast fan-out to the WebSockets of FastAPI, Starlette, Litestar and Quart under uvicorn.

Call `install()` in the application, or choose a protocol class when uvicorn is started:

    uvicorn.run(app, ws="wsfast.uvicorn:WebSocketsProtocol")  # instead of ws="websockets-sansio" or "auto"
    uvicorn.run(app, ws="wsfast.uvicorn:WSProtocol")  # instead of ws="wsproto"; needs wsproto

uvicorn 0.35 accepts only the class itself: `ws=WebSocketsProtocol`.

With these protocols, wsfast finds the connection behind a framework's WebSocket. They are subclasses of uvicorn's own
protocols and behave like them, with two differences. A message that the application sends never overtakes messages that
channels published before. And `broadcast()` and channels send to them without checking first whether they can be
written to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._arguments import needs
from ._shutdown import ServerShutdown, ShutdownPlan
from .connections.foreign import set_takeover

with needs("uvicorn>=0.35", "uvicorn"):
    from .connections.uvicorn import WebSocketsProtocol
    from .connections.uvicorn_install import install as _install

if TYPE_CHECKING:
    from .connections.uvicorn_wsproto import WSProtocol

__all__ = ["WSProtocol", "WebSocketsProtocol", "drain_on_shutdown", "install"]


def install() -> None:
    """Make uvicorn use these protocols in this process, without the option `ws` or `--ws`.

    Call it once, for example at the top of the module that creates the application. It then works with the command line
    of uvicorn, `--workers` and `--reload`, with `fastapi run` and `fastapi dev`, and with workers of gunicorn. It
    replaces uvicorn's own protocols, for connections that are upgraded from now on; a class of your own that was passed
    as `ws` stays. Calling it again does nothing. Under another server, it has no effect.
    """
    _install()


def drain_on_shutdown(seconds: float, code: int = 1012, reason: str = "", jitter: bool = True) -> None:
    """Have uvicorn close its connections like `Hub.drain()` when it shuts down, instead of all in one moment.

    Call it once, for example at the top of the module that creates the application. It holds for the connections of the
    protocols in this module, subscribed or not, and for event streams that wsfast writes to directly. Calling it again
    replaces the arguments. uvicorn has stopped accepting connections by then. It must wait long enough: its option
    `timeout_graceful_shutdown` must be None or longer than `seconds`, and so must gunicorn's `graceful_timeout`.

    Args:
        seconds: Seconds after which all connections are closed or aborted.
        code: Status code of the close frames.
        reason: Reason in the close frames, at most 123 bytes.
        jitter: See `Hub.drain()`.

    Raises:
        TypeError, ValueError: See `Hub.drain()`.
    """
    plan = ShutdownPlan(seconds, code, reason, jitter)
    plan.check()
    set_takeover(ServerShutdown(plan))


def __getattr__(name: str) -> Any:
    """Import wsproto only when `WSProtocol` is used."""
    if name != "WSProtocol":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with needs("wsproto", "wsproto"):
        from .connections.uvicorn_wsproto import WSProtocol
    return WSProtocol
