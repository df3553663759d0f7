"""Proxies of werkzeug, as `quart.websocket` is one: each time, they stand for something else."""

from __future__ import annotations

from typing import Any

from . import adapt as adapt_what_it_is

__all__ = ["adapt"]


def adapt(proxy: Any) -> Any:
    """Return what stands for the connection for which a proxy stands now.

    Raises:
        RuntimeError: If it stands for nothing, as outside of a request.
    """
    return adapt_what_it_is(proxy._get_current_object())
