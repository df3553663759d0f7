"""Positions of clients in the messages of a topic, and how much history a hub keeps so that they can continue there."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from wsfast._arguments import check_integer, check_seconds

from .topics import check_topic

__all__ = ["History", "Position", "Since", "check_since", "history_of", "new_epoch"]

_TEXT = re.compile(r"([0-9a-f]{16})-(0|[1-9][0-9]{0,18})")


class Position(NamedTuple):
    """A position in the messages of a topic: everything up to a message.

    A client that comes back gives its position to `Hub.subscribe(since=)`, and gets what it has missed. `str(position)`
    is `"epoch-offset"`, for headers and URLs; `parse()` is the inverse.
    """

    epoch: str
    """Random text of 16 hexadecimal digits, made when the numbering of the topic began."""
    offset: int
    """Number of messages of the topic in this epoch."""

    def __str__(self) -> str:
        return f"{self.epoch}-{self.offset}"

    @classmethod
    def parse(cls, text: str) -> Position:
        """Return the position whose `str()` is `text`.

        Raises:
            TypeError: If `text` is not a string.
            ValueError: If it is not the text of a position.
        """
        found = _TEXT.fullmatch(text)
        if found is None:
            raise ValueError(f"a position is written as epoch-offset, for example 0123456789abcdef-5, not {text!r:.60}")
        return cls(found[1], int(found[2]))


@dataclass(frozen=True, slots=True)
class History:
    """How many recent messages of each topic a hub keeps. The oldest are forgotten first.

    Args:
        messages: Maximum number of messages per topic.
        bytes: Maximum size of their payloads per topic in bytes. The newest message is kept even if it is larger. None
            for no limit.
        seconds: Maximum age of a message. A topic to which nothing was published for so long is forgotten. None to keep
            all topics until `Hub.forget()` is called for them.

    Raises:
        TypeError: If a number has the wrong type.
        ValueError: If `messages` is negative, `bytes` is not positive, or `seconds` is not positive or infinite.
    """

    messages: int
    bytes: int | None = 16 * 1024 * 1024
    seconds: float | None = 300.0

    def __post_init__(self) -> None:
        check_integer("messages", self.messages, least=0)
        check_integer("bytes", self.bytes, optional=True)
        check_seconds("seconds", self.seconds, optional=True)


def history_of(history: int | History) -> History:
    """Return the history that an argument asks for: a number of messages stands for the default bounds.

    Raises:
        TypeError: If it is neither an integer nor a `History`.
        ValueError: If it is negative.
    """
    if isinstance(history, History):
        return history
    check_integer("history", history, least=0)
    return History(history)


Since: TypeAlias = Position | Mapping[str, Position]
"""A position in all messages of a hub, or one for each of some topics."""


def check_since(since: Any, topics: tuple[str, ...]) -> Since:
    """Return the argument `since` of `Hub.subscribe()`.

    Args:
        since: The argument.
        topics: The topics and patterns that are subscribed to.

    Raises:
        TypeError: If it is neither a `Position` nor a mapping of topics to positions.
        ValueError: If a topic is not valid, a pattern, or not subscribed to, or an offset is negative.
    """
    if isinstance(since, Position):
        return _position(since)
    if not isinstance(since, Mapping):
        raise TypeError(f"since must map topics to positions, as in since={{'news': position}}, not {since!r:.80}")
    positions = {check_topic(topic, "topic of since"): _position(position) for topic, position in since.items()}
    for topic in positions:
        if topic not in topics:
            raise ValueError(f"since has a position for {topic!r}, which is not one of the topics to subscribe to")
    return positions


def _position(value: Any) -> Position:
    if not isinstance(value, (tuple, list)) or len(value) != 2 or not isinstance(value[0], str):
        raise TypeError(f"a position must be a Position or (epoch, offset), not {value!r:.80}")
    check_integer("offset", value[1], least=0)
    return Position(value[0], int(value[1]))


def new_epoch() -> str:
    """Return a new epoch."""
    return secrets.token_hex(8)
