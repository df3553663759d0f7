"""Messages as events of an event stream (WHATWG HTML, section 9.2), in chunks of HTTP/1.1 (RFC 9112, section 7.1).

An event is the same for all of its receivers, so it is made once. Receivers of chunks are those whose encoder has the
window `CHUNKED`.
"""

from __future__ import annotations

import functools
import logging
from typing import Any, Final

from wsfast._core import core

__all__ = ["CHUNKED", "COMMENT", "ChunkEncoder", "chunk_of", "event_of"]

logger: logging.Logger = logging.getLogger("wsfast")

COMMENT: Final = b":\n\n"
"""An event that clients ignore."""


class Chunked:
    """Stands for the window of all receivers of chunks."""

    __slots__ = ()


CHUNKED: Final = Chunked()


class ChunkEncoder(core.EncoderBase):
    """Stands for the encoders of all receivers of chunks. There is no state."""

    __slots__ = ()

    def __init__(self) -> None:
        self.encoder: Any = None
        self.peer: Any = None
        self.state: Any = CHUNKED

    def move_to(self, window: Any) -> None:
        """Do nothing."""

    def forget(self) -> None:
        """Do nothing."""


def event_of(data: bytes, fields: bytes) -> bytes:
    """Return a message as an event; a comment in its place if it is not UTF-8, which an event cannot carry.

    Args:
        data: Payload of the message. Clients get each CR LF and each CR in it as LF.
        fields: Lines of the event before its data.
    """
    try:
        data.decode()
    except UnicodeDecodeError:
        _warn_once()
        return COMMENT
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return b"%sdata: %s\n\n" % (fields, data.replace(b"\n", b"\ndata: "))


@functools.cache
def _warn_once() -> None:
    logger.warning("event streams skip binary messages that are not UTF-8 text; encode them, for example with base64")


def chunk_of(body: bytes) -> bytes:
    """Return a part of a body, which must not be empty, as a chunk."""
    return b"%x\r\n%s\r\n" % (len(body), body)
