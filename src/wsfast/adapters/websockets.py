"""Connections of websockets.asyncio, versions 14 to 17.

| private or moving name       | what                                          | versions |
|------------------------------|-----------------------------------------------|----------|
| `fragmented_send_waiter`     | future, or None                               | 14, 15   |
| `send_in_progress`           | the same                                      | 16, 17   |
| `Protocol._state`            | what the property `state` returns             | 14 to 17 |
| `expect_continuation_frame`  | True between the fragments of a message       | 14 to 17 |
| `set_recv_exc`               | keeps the reason why a connection was lost    | 14 to 16 |
| `set_connection_exc`         | the same                                      | 17       |
"""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import Any

import websockets.asyncio.connection
import websockets.client
import websockets.protocol
import websockets.server
import websockets.version
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.connection import Connection
from websockets.asyncio.server import ServerConnection

from . import ConnectionLayout, cache_by_type

__all__ = ["SEND_IN_PROGRESS", "SET_EXCEPTION", "connection_layout", "is_connection"]

_MAJOR = int(websockets.version.version.split(".")[0])

SEND_IN_PROGRESS = "send_in_progress" if _MAJOR >= 16 else "fragmented_send_waiter"
"""Attribute of a connection: None, unless a fragmented message is being sent."""

SET_EXCEPTION = "set_connection_exc" if hasattr(Connection, "set_connection_exc") else "set_recv_exc"
"""Method of a connection: keeps an exception as the reason why the connection was lost, unless it has one already."""


def _original(method: Any, module: ModuleType) -> object:
    """Return the function if it is the library's own; if another was put in its place, what no method is."""
    return method if getattr(method, "__globals__", None) is vars(module) else object()


# What a connection must not have replaced, be it in a subclass or on itself, if it is to be written to directly: what
# sends, and what the transport calls back in the middle of sending.
_METHODS = {
    name: _original(getattr(Connection, name), websockets.asyncio.connection)
    for name in ("send_data", "pause_writing", SET_EXCEPTION)
}
_PROTOCOL_METHODS = {
    name: _original(getattr(websockets.protocol.Protocol, name), websockets.protocol)
    for name in ("send_text", "send_binary", "send_frame", "data_to_send")
}


def _layout(protocol_type: type, *, masked: bool) -> ConnectionLayout:
    return ConnectionLayout(
        protocol="protocol",
        protocol_type=protocol_type,
        transport="transport",
        loop="loop",
        send_in_progress=SEND_IN_PROGRESS,
        state="_state",
        open_state=websockets.protocol.OPEN,
        debug="debug",
        extensions="extensions",
        expect_continuation="expect_continuation_frame",
        writes="writes",
        methods=_METHODS,
        protocol_methods=_PROTOCOL_METHODS,
        masked=masked,
    )


_SERVER = _layout(websockets.server.ServerProtocol, masked=False)
_CLIENT = _layout(websockets.client.ClientProtocol, masked=True)

# What else a subclass must leave alone: the attributes that gather reads.
_READ = ("loop", "transport", "protocol", SEND_IN_PROGRESS, "__getattribute__", "__getattr__", "__setattr__")


@cache_by_type
def connection_layout(kind: type) -> ConnectionLayout | None:
    """Return where connections of this type keep things, or None if they must be sent to by their own methods alone."""
    if not issubclass(kind, Connection):
        return None
    if any(_static(kind, name) is not _static(Connection, name) for name in (*_METHODS, *_READ)):
        return None
    if issubclass(kind, ServerConnection):
        return _SERVER
    if issubclass(kind, ClientConnection):
        return _CLIENT
    return None


def is_connection(connection: Any) -> bool:
    """Whether upstream's `broadcast()` knows how to send to it: by its type, or by having all the same parts."""
    if isinstance(connection, Connection):
        return True
    # Stand-ins and wrappers. The connections of websockets.sync and .trio have the first two, but write otherwise.
    return not type(connection).__module__.startswith("websockets.") and all(
        hasattr(connection, name) for name in ("protocol", SEND_IN_PROGRESS, "send_data", "logger")
    )


def _static(kind: type, name: str) -> object:
    return inspect.getattr_static(kind, name, None)
