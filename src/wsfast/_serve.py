"""Servers whose connections need not be asked before they are sent to."""

from __future__ import annotations

from typing import Any

import websockets.asyncio.server

from .connections.websockets import EventedConnection

__all__ = ["ServerConnection", "serve"]


class ServerConnection(EventedConnection):
    """A connection of websockets that tells `broadcast()` and channels what happens to it.

    It is used like that of websockets. Two things differ: a `send()` of its own waits until what channels published for
    this connection before has left; and neither channels nor `broadcast()` need to ask it whether it can be written to.
    Code of yours that does something to the transport or the protocol must take it from `connection.transport` or
    `connection.protocol` each time.
    """


def serve(*args: Any, **options: Any) -> Any:
    """Do as `websockets.serve()` does, with connections that are instances of `wsfast.ServerConnection`.

    Raises:
        TypeError: If `create_connection` is given and is no subclass of `wsfast.ServerConnection`.
    """
    create_connection = options.setdefault("create_connection", ServerConnection)
    if create_connection is None:
        options["create_connection"] = ServerConnection
    elif not (isinstance(create_connection, type) and issubclass(create_connection, ServerConnection)):
        raise TypeError(f"create_connection must be a subclass of wsfast.ServerConnection, not {create_connection!r}")
    return websockets.asyncio.server.serve(*args, **options)
