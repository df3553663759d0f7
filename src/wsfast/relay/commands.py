"""Commands of other processes: `Hub.disconnect()` is carried out wherever a user or a topic has connections.

A command travels like a message, by the channel of its user or topic, and is signed like one. It has no number, since
nobody needs to know how many were missed. Its epoch is the time at which it was sent, in nanoseconds since 1970, and
those of one publisher grow. A command is carried out once, and not when it is old: clients may have come back since.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import Any, TypeAlias

from wsfast._arguments import check_close
from wsfast._encoding.message import PreparedMessage
from wsfast.hub import Command, Hub, Kind
from wsfast.hub.topics import check_topic

__all__ = ["MAX_AGE", "SECONDS", "Commands", "Parts", "address_of", "check_parts", "parts_of"]

SECONDS = 10.0
"""Seconds after which the connections that a command closes are aborted."""

MAX_AGE = 300.0
"""Seconds by which the time of a command may differ from this machine's."""

LAST = 16384
"""Pairs of a publisher and an address of which the time of the last command is kept."""

Parts: TypeAlias = tuple[str | None, int, str, bool]
"""A command without its address and message: the topic to which a command about a user is limited, the close code, the
reason, and whether there is a message."""


def address_of(command: Command) -> tuple[Kind, Any]:
    """Return the address by whose channel a command travels."""
    return ("topic", command.topic) if command.user is None else ("user", command.user)


def parts_of(command: Command) -> Parts:
    """Return the parts of a command."""
    topic = None if command.user is None else command.topic
    return topic, command.code, command.reason, command.message is not None


def check_parts(value: Any) -> Parts:
    """Return the parts of a command that were received.

    Raises:
        TypeError, ValueError: If no relay can have sent them.
    """
    if not isinstance(value, list) or len(value) != 4 or type(value[3]) is not bool:
        raise ValueError("it has no valid command")
    topic, code, reason, has_message = value
    if topic is not None:
        check_topic(topic)
    check_close(code, reason)
    return topic, code, reason, has_message


class Commands:
    """Carries out commands of other processes, each once."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._last: OrderedDict[tuple[int, int], int] = OrderedDict()  # by publisher and hash of the address

    def is_new(self, publisher: int, address: tuple[Kind, Any], epoch: int) -> bool:
        """Whether a command is neither old nor received already. Notes that it was received."""
        key = publisher, hash(address)  # names may be long
        if abs(time.time_ns() - epoch) > MAX_AGE * 1e9 or epoch <= self._last.get(key, 0):
            return False
        self._last[key] = epoch
        self._last.move_to_end(key)
        if len(self._last) > LAST:
            self._last.popitem(last=False)
        return True

    def carry_out(self, address: tuple[Kind, Any], parts: Parts, message: PreparedMessage | None) -> None:
        """Close the connections that a command is about."""
        kind, name = address
        topic, code, reason, has_message = parts
        user, topic = (name, topic) if kind == "user" else (None, name)
        self._hub.carry_out(Command(user, topic, code, reason, message if has_message else None), SECONDS)
