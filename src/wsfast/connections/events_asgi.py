"""A response of ASGI, for where Starlette, whose `Response` has these attributes too, is not installed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["Response"]


class Response:
    """The base class of `wsfast.sse.EventSource` without Starlette."""

    status_code: int
    background: Any
    raw_headers: list[tuple[bytes, bytes]]

    def init_headers(self, headers: Mapping[str, str]) -> None:
        """Set the headers."""
        self.raw_headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
