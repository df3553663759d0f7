"""Messages with the fields that only event streams have."""

from __future__ import annotations

from typing import Any, Literal

from wsfast._arguments import check_integer, check_str

from .chunks import COMMENT
from .message import PreparedMessage, self_contained

__all__ = ["KEEPALIVE", "Event", "event_with_id", "fields_of"]


class Event(PreparedMessage):
    """A message with a type and an id for its receivers by event stream (WHATWG HTML, section 9.2).

    It is a `PreparedMessage`: publish it to a channel or a hub, any number of times. Event streams get all of it.
    WebSockets get its data in a Text frame. It is immutable.

    Args:
        data: Text. `bytes`, `bytearray` and `memoryview` must be UTF-8. Event streams get each CR LF and each CR as LF.
        event: Type of the event, for `addEventListener()`. None for the browser's default, `message`.
        id: Id of the event. A browser that reconnects sends the last one in the header `Last-Event-ID`.
        retry: Milliseconds that clients wait from now on before they reconnect.
        compress: See `PreparedMessage`.

    Raises:
        TypeError: If an argument has another type.
        ValueError: If `event` or `id` contains a line break or `id` a null character, `retry` is negative, `data` is
            not UTF-8, or `compress` is neither None nor False.
    """

    __slots__ = ()

    def __init__(
        self,
        data: str | bytes | bytearray | memoryview,
        *,
        event: str | None = None,
        id: str | None = None,  # noqa: A002
        retry: int | None = None,
        compress: Literal[False] | None = None,
    ) -> None:
        super().__init__(data, text=True, compress=compress)
        self._data.decode()
        self_contained(self).fields = fields_of(event, id, retry)

    @property
    def fields(self) -> bytes:
        """The lines of the event before its data, each with a line feed."""
        return self_contained(self).fields

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (self._data, self.fields, self._compress)


def _restore(data: bytes, fields: bytes, compress: Literal[False] | None) -> Event:
    event = Event(data, compress=compress)
    self_contained(event).fields = fields
    return event


def fields_of(event: str | None, id: str | None, retry: int | None) -> bytes:  # noqa: A002
    """Return the lines of an event before its data.

    Raises:
        TypeError: If an argument has another type.
        ValueError: If `event` or `id` contains a line break or `id` a null character, or `retry` is negative.
    """
    fields = b""
    for name, value, excluded in (("event", event, "\r\n"), ("id", id, "\r\n\0")):
        if value is not None:
            check_str(name, value)
            if any(character in value for character in excluded):
                null = " or null characters" if "\0" in excluded else ""
                raise ValueError(f"{name} must not contain line breaks{null}, but is {value!r:.80}")
            fields += f"{name}: {value}\n".encode()
    check_integer("retry", retry, least=0, optional=True)
    return fields if retry is None else fields + b"retry: %d\n" % retry


KEEPALIVE = PreparedMessage("")
"""A comment, to event streams. Never sent to WebSockets."""
self_contained(KEEPALIVE).event = COMMENT


def event_with_id(id: str) -> PreparedMessage:  # noqa: A002
    """Return a message that only tells event streams an id: clients note it without an event."""
    message = PreparedMessage("")
    self_contained(message).event = b"id: %b\n\n" % id.encode()
    return message
