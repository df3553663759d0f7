"""Protocols for uvicorn, by which a framework's WebSocket leads to its connection.

    uvicorn.run(app, ws="wsfast.uvicorn:WebSocketsProtocol")  # in place of ws="websockets-sansio" or "auto"
    uvicorn.run(app, ws="wsfast.uvicorn:WSProtocol")  # in place of ws="wsproto", which must be installed

uvicorn 0.35 takes only the class itself: `ws=WebSocketsProtocol`.

They are uvicorn's own. Two things differ: a message that the application sends by itself never overtakes what channels
have published before, and neither `broadcast()` nor channels need to ask them whether they can be written to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._arguments import needs

with needs("uvicorn>=0.35", "uvicorn"):
    from .connections.uvicorn import WebSocketsProtocol

if TYPE_CHECKING:
    from .connections.uvicorn_wsproto import WSProtocol

__all__ = ["WSProtocol", "WebSocketsProtocol"]


def __getattr__(name: str) -> Any:
    """Import wsproto only for those who use it."""
    if name != "WSProtocol":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with needs("wsproto", "wsproto"):
        from .connections.uvicorn_wsproto import WSProtocol
    return WSProtocol
