"""WebSockets of ASGI frameworks: Starlette and FastAPI, Litestar, Quart. They do not know their connection."""

from __future__ import annotations

import contextlib
from typing import Any

from . import adapt as adapt_what_it_is
from . import name_of

__all__ = ["EXTENSION", "adapt", "adapt_proxy"]

EXTENSION = "wsfast"
"""Under this name, the ASGI scope's extensions hold the connection of the server."""


def adapt(websocket: Any) -> Any:
    """Return the server's connection of a framework's WebSocket."""
    connection = (websocket.scope.get("extensions") or {}).get(EXTENSION)
    if connection is None:
        raise TypeError(
            f"cannot reach the connection of {name_of(type(websocket))}: run its server as "
            'uvicorn.run(app, ws="wsfast.uvicorn:WebSocketsProtocol"), '
            "or uvicorn --ws wsfast.uvicorn:WebSocketsProtocol"
        )
    if connection.websocket is None:
        connection.websocket = websocket
    with contextlib.suppress(AttributeError):  # that of Litestar has no room for it, and is asked each time
        websocket._wsfast_adapted = connection
    return connection


def adapt_proxy(proxy: Any) -> Any:
    """Return what stands for the connection for which a proxy stands now.

    Raises:
        RuntimeError: If it stands for nothing, as outside of a request.
    """
    return adapt_what_it_is(proxy._get_current_object())
