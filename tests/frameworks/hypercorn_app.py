"""The applications of asgi_app.py under Hypercorn, with `wsfast.hypercorn.install()`; and one for its trio worker."""

from __future__ import annotations

from typing import Any

import starlette.applications
import starlette.routing

import wsfast
import wsfast.hypercorn
from frameworks.asgi_app import app, litestar_app, quart_app

__all__ = ["app", "litestar_app", "quart_app", "trio_app"]

wsfast.hypercorn.install()


async def with_trio(websocket: Any) -> None:
    """Say what happens when it is broadcast to."""
    await websocket.accept()
    try:
        wsfast.broadcast([websocket], "no")
    except Exception as exc:
        await websocket.send_text(repr(exc))
    await websocket.close()


trio_app = starlette.applications.Starlette(routes=[starlette.routing.WebSocketRoute("/ws", with_trio)])
