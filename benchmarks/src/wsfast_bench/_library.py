"""The private names of wsfast that benchmarks need: they are here and nowhere else."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from wsfast._core import _pure, core
from wsfast._publisher import NOTSENT_LOWAT
from wsfast.connections import adapt
from wsfast.policies import Policy

__all__ = [
    "NOTSENT_LOWAT",
    "UVICORN_PROTOCOL",
    "Policy",
    "apply_mask",
    "core_in_use",
    "descriptor_of",
    "extension_present",
    "has_files",
    "pure_core",
    "without_files",
]

UVICORN_PROTOCOL = "wsfast.uvicorn:WebSocketsProtocol"
"""Protocol class for the option `ws` of uvicorn."""

apply_mask = core.apply_mask

pure_core = _pure
"""The twin of the extension, in plain Python."""


def extension_present() -> bool:
    """Tell whether the core in use is the extension."""
    return core is not _pure


@contextmanager
def core_in_use(chosen: Any) -> Iterator[None]:
    """Have `wsfast.broadcast()` use that core, the extension or its twin, while in the context."""
    names = ("_delivery", "_encoding.message")
    users: list[Any] = [sys.modules[f"wsfast.{name}"] for name in names]
    before = [user.core for user in users]
    for user in users:
        user.core = chosen
    try:
        yield
    finally:
        for user, former in zip(users, before, strict=True):
            user.core = former


def descriptor_of(connection: Any) -> int:
    """Return the descriptor of the socket of any connection that can be sent to."""
    descriptor: int = adapt(connection).transport.get_extra_info("socket").fileno()
    return descriptor


def has_files() -> bool:
    """Tell whether the core can send large frames by `sendfile()`."""
    return hasattr(core, "set_files")


@contextmanager
def without_files() -> Iterator[None]:
    """Have the core send large frames by `send()`, like all others, while in the context; it must have files."""
    choose: Callable[..., tuple[int | None, int]] = getattr(core, "set_files")  # noqa: B009
    before = choose(None)
    try:
        yield
    finally:
        choose(*before)
