"""Messages as a hub publishes them: envelopes with the topic and the offset, and events with an id."""

from __future__ import annotations

import json

from .chunks import event_of
from .message import PreparedMessage, SelfContained, self_contained

__all__ = ["Publication", "enveloped", "publication_of"]

HEAD_SIZE = 2
"""Bytes of the length of the head of a binary envelope."""


class Publication(SelfContained):
    """The encodings of a message as it is published once, with the id that event streams get.

    The frames are those of the message itself, made once for all publications, or those of an envelope around it.

    Args:
        message: The message.
        id: The id.
        envelope: The payload to send in the place of the message's; None for no envelope.
    """

    __slots__ = ("_id", "_source")

    def __init__(self, message: PreparedMessage, id: str, envelope: bytes | None) -> None:  # noqa: A002
        source = self_contained(message)
        compress = message.compress is None
        super().__init__(message.opcode, message.data if envelope is None else envelope, compress)
        if envelope is None:
            self.plain = source.plain
            self._compressed, self._windows = source._compressed, source._windows
        self.fields = source.fields
        self._source = source
        self._id = id

    def _make_event(self) -> bytes:
        fields = self.fields
        if not self._id or fields.startswith(b"id:") or b"\nid:" in fields:
            return event_of(self._source._data, fields)
        return event_of(self._source._data, b"%sid: %s\n" % (fields, self._id.encode()))


def publication_of(message: PreparedMessage, id: str, envelope: bytes | None = None) -> PreparedMessage:  # noqa: A002
    """Return a message as it is published once. See `Publication` for the arguments."""
    publication = PreparedMessage.__new__(PreparedMessage)
    publication._opcode, publication._compress = message.opcode, message.compress
    publication._data = message.data if envelope is None else envelope
    publication._encodings = Publication(message, id, envelope)
    return publication


def enveloped(message: PreparedMessage, topic: str, offset: int) -> bytes:
    """Return the payload of the envelope of a message.

    A Text message becomes the JSON text `["topic",offset,"payload"]`. A Binary message gets a head before its payload:
    the length of the following JSON text in two bytes, most significant first, and `["topic",offset]`.
    """
    head = f"[{json.dumps(topic, ensure_ascii=False)},{offset}"
    if message.text:
        text = json.dumps(message.data.decode(errors="replace"), ensure_ascii=False)
        return f"{head},{text}]".encode()
    data = f"{head}]".encode()
    return b"%b%b%b" % (len(data).to_bytes(HEAD_SIZE), data, message.data)
