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
    "pure_core",
    "send_files",
]

UVICORN_PROTOCOL = "wsfast.uvicorn:WebSocketsProtocol"
"""Protocol class for the option `ws` of uvicorn."""

apply_mask = core.apply_mask

FILE_SIZE = 4096
"""Octets of a frame from which on the core sends it by `sendfile()` unless told otherwise."""

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


def send_files(wanted: bool) -> bool:
    """Choose whether large frames leave by `sendfile()` or, like all others, by `send()`.

    Returns:
        Whether this core has the choice.
    """
    choose: Callable[[int | None], None] | None = getattr(core, "set_files", None)
    if choose is not None:
        choose(FILE_SIZE if wanted else None)
    return choose is not None
