"""Commands of other processes: `Hub.disconnect()` is carried out wherever a user or a topic has connections.

A command travels as a message of its user or topic does, and is numbered and signed like one, so it is carried out
once, and after all messages before it. It is not carried out if it is old: clients may have come back since.
"""

from __future__ import annotations

import time
from typing import Any, TypeAlias

from wsfast._arguments import check_close
from wsfast._encoding.message import PreparedMessage
from wsfast.hub import Command, Hub, Kind
from wsfast.hub.topics import check_topic

__all__ = ["MAX_AGE", "SECONDS", "Parts", "address_of", "carry_out", "check_parts", "parts_of"]

SECONDS = 10.0
"""Seconds after which the connections that a command closes are aborted."""

MAX_AGE = 300.0
"""Seconds by which the time of a command may differ from this machine's."""

Parts: TypeAlias = tuple[int, str | None, int, str, bool]
"""A command without its address and message: the time at which it was given, in nanoseconds since 1970; the topic to
which a command about a user is limited; the close code; the reason; and whether there is a message."""


def address_of(command: Command) -> tuple[Kind, Any]:
    """Return the address by whose channel a command travels."""
    return ("topic", command.topic) if command.user is None else ("user", command.user)


def parts_of(command: Command, when: int) -> Parts:
    """Return the parts of a command that is given at a time."""
    topic = None if command.user is None else command.topic
    return when, topic, command.code, command.reason, command.message is not None


def check_parts(value: Any) -> Parts:
    """Return the parts of a command that were received.

    Raises:
        TypeError, ValueError: If no relay can have sent them.
    """
    if not isinstance(value, list) or len(value) != 5 or type(value[0]) is not int or type(value[4]) is not bool:
        raise ValueError("it has no valid command")
    when, topic, code, reason, has_message = value
    if topic is not None:
        check_topic(topic)
    check_close(code, reason)
    return when, topic, code, reason, has_message


def carry_out(hub: Hub, address: tuple[Kind, Any], parts: Parts, message: PreparedMessage) -> None:
    """Close the connections that a command is about, unless it is old."""
    kind, name = address
    when, topic, code, reason, has_message = parts
    if abs(time.time_ns() - when) <= MAX_AGE * 1e9:
        user, topic = (name, topic) if kind == "user" else (None, name)
        hub.carry_out(Command(user, topic, code, reason, message if has_message else None), SECONDS)
