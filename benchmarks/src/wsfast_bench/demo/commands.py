"""What may be asked of the demonstration while it runs, by its page or by anybody who has its control socket."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from wsfast import Conflate, Disconnect, DropNewest, DropOldest
from wsfast_bench._library import Policy

from .ticks import LARGEST, SMALLEST

__all__ = ["FASTEST", "METHODS", "POLICIES", "TURNS", "CommandError", "Settings", "parse"]

TURNS = "turns"
"""All methods, one after the other."""

METHODS = ("websockets", "wsfast", "channel")

QUEUE = 64
"""Messages that may wait for one client: so few that nobody has to wait for a policy to act."""

POLICIES: dict[str, Policy] = {
    "Disconnect": Disconnect(max_messages=QUEUE),
    "DropNewest": DropNewest(max_messages=QUEUE),
    "DropOldest": DropOldest(max_messages=QUEUE),
    "Conflate": Conflate(max_messages=QUEUE),
}

FASTEST = 1000.0
"""Ticks per second, at most."""

_ARGUMENTS = {
    "add": "count",
    "remove": "count",
    "stall": "count",
    "wake": "count",
    "method": "name",
    "policy": "name",
    "rate": "value",
    "size": "value",
}


class CommandError(Exception):
    """That cannot be done; the text says why."""


@dataclass(slots=True)
class Settings:
    """What can be chosen while the demonstration runs."""

    method: str = TURNS
    policy: str = "Conflate"
    rate: float = 10.0
    """Ticks per second, at most: fewer if the clients cannot follow."""
    size: int = 256
    """Bytes of a tick."""

    def set_method(self, name: object) -> None:
        """Choose how ticks are sent."""
        self.method = _one_of("method", name, (TURNS, *METHODS))

    def set_policy(self, name: object) -> None:
        """Choose what the channel does about clients that do not keep up."""
        self.policy = _one_of("policy", name, tuple(POLICIES))

    def set_rate(self, value: object) -> None:
        """Choose how many ticks per second there are."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= FASTEST:
            raise CommandError(f"rate must be a number of ticks per second up to {FASTEST:g}, not {value!r}")
        self.rate = float(value)

    def set_size(self, value: object) -> None:
        """Choose how large a tick is."""
        if isinstance(value, bool) or not isinstance(value, int) or not SMALLEST <= value <= LARGEST:
            raise CommandError(f"size must be a number of bytes from {SMALLEST} to {LARGEST}, not {value!r}")
        self.size = value


def _one_of(what: str, name: object, known: tuple[str, ...]) -> str:
    if isinstance(name, str) and name in known:
        return name
    raise CommandError(f"unknown {what} {name!r}; known are {', '.join(known)}")


def count_of(value: object) -> int:
    """Return a number of clients.

    Raises:
        CommandError: If it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise CommandError(f"count must be a positive number of clients, not {value!r}")
    return value


def parse(message: str | bytes) -> tuple[str, Any]:
    """Return what a message on the control socket asks for: which command, and its argument, which is not checked yet.

    Raises:
        CommandError: If it is no command.
    """
    try:
        command = json.loads(message)
    except (ValueError, RecursionError):
        raise CommandError("a command must be JSON") from None
    if not isinstance(command, dict) or not isinstance(command.get("do"), str):
        raise CommandError('a command must be an object with "do"')
    name = command["do"]
    if name not in _ARGUMENTS:
        raise CommandError(f"unknown command {name!r}; known are {', '.join(_ARGUMENTS)}")
    if set(command) != {"do", _ARGUMENTS[name]}:
        raise CommandError(f'{name} takes "{_ARGUMENTS[name]}", and nothing else')
    return name, command[_ARGUMENTS[name]]
