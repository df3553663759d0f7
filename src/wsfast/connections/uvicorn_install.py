"""Has uvicorn use wsfast's protocols without an option.

| private or moving name                                            | what                              | versions     |
|-------------------------------------------------------------------|-----------------------------------|--------------|
| `ws_protocol_class` of `H11Protocol`, `HttpToolsProtocol`         | class for upgraded connections    | 0.35 to 0.54 |
| `ws_protocol_class` of `ZttpProtocol`                             | the same                          | 0.54         |
| `websockets_impl.WebSocketProtocol`, `wsproto_impl.WSProtocol`    | uvicorn's own classes             | 0.35 to 0.54 |
"""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["install"]

NAME = "ws_protocol_class"

HTTP_PROTOCOLS = {
    "uvicorn.protocols.http.h11_impl": "H11Protocol",
    "uvicorn.protocols.http.httptools_impl": "HttpToolsProtocol",
    "uvicorn.protocols.http.zttp_impl": "ZttpProtocol",
}

REPLACEMENTS = {
    ("uvicorn.protocols.websockets.websockets_impl", "WebSocketProtocol"): "WebSocketsProtocol",
    ("uvicorn.protocols.websockets.websockets_sansio_impl", "WebSocketsSansIOProtocol"): "WebSocketsProtocol",
    ("uvicorn.protocols.websockets.wsproto_impl", "WSProtocol"): "WSProtocol",
}
"""Maps uvicorn's own classes to their counterparts in `wsfast.uvicorn`."""


class _Replacing:
    """An attribute of an HTTP protocol: the class that takes over an upgraded connection, replaced by wsfast's."""

    def __get__(self, protocol: Any, owner: type | None = None) -> Any:
        if protocol is None:
            return self
        try:
            kind = vars(protocol)[NAME]
        except KeyError:
            raise AttributeError(NAME) from None
        name = REPLACEMENTS.get((getattr(kind, "__module__", ""), getattr(kind, "__qualname__", "")))
        return kind if name is None else getattr(importlib.import_module("wsfast.uvicorn"), name)

    def __set__(self, protocol: Any, kind: Any) -> None:
        vars(protocol)[NAME] = kind


def install() -> None:
    """See `wsfast.uvicorn.install()`."""
    for module, name in HTTP_PROTOCOLS.items():
        try:
            protocol = getattr(importlib.import_module(module), name)
        except ImportError:  # its parser is not installed, or this release has no such protocol
            continue
        if not isinstance(vars(protocol).get(NAME), _Replacing):
            setattr(protocol, NAME, _Replacing())
