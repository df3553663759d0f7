"""Messages that are framed and compressed once, for any number of connections."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias
from weakref import ref

from wsfast._core import core

from .chunks import CHUNKED, chunk_of, event_of
from .deflate import Encoder, Parameters, Window

__all__ = [
    "RSV1",
    "SMALLEST_COMPRESSED",
    "TEXT",
    "Encoding",
    "Joined",
    "Message",
    "PreparedMessage",
    "SelfContained",
    "frame_for",
    "join",
    "prepare",
    "publishable",
    "self_contained",
]

TEXT, BINARY = 1, 2  # opcodes, RFC 6455, section 11.8
FIN, RSV1 = 0x80, 0x40

SMALLEST_COMPRESSED = 16
"""Size in bytes of the smallest payload that is compressed."""


class Encoding:
    """One encoding of a message as a frame, or several frames that leave together.

    Args:
        first: First octet of the frame (RFC 6455, section 5.2).
        payload: Payload of the frame, before masking.
    """

    __slots__ = ("_frame", "ends", "first", "payload")

    ends: tuple[int, ...] | None
    """End offset of each of several frames in `frame`; None if there is only one."""

    def __init__(self, first: int, payload: bytes) -> None:
        self.first: int = first
        self.payload: bytes = payload
        self.ends = None
        self._frame: bytes | None = None

    @classmethod
    def of_frames(cls, frames: Sequence[bytes]) -> Encoding:
        """Return an encoding of several frames of a server, one after the other."""
        encoding = cls(0, b"")
        encoding._frame = b"".join(frames)
        encoding.ends = tuple(itertools.accumulate(map(len, frames)))
        return encoding

    @classmethod
    def of_chunk(cls, body: bytes) -> Encoding:
        """Return a part of a body of HTTP as an encoding, to be sent as a frame is."""
        encoding = cls(0, body)
        encoding._frame = chunk_of(body)
        return encoding

    @property
    def frame(self) -> bytes:
        """The frame that a server sends, unmasked. It is created on first access."""
        if self._frame is None:
            self._frame = core.encode_frame(self.first, self.payload)
        return self._frame


class SelfContained:
    """The encodings of a message that can be decoded without any other message. Each is created once, when needed.

    Args:
        opcode: 1 for text, 2 for binary.
        data: Payload.
        compress: Whether the payload may be compressed.
    """

    __slots__ = ("_chunk", "_compress", "_compressed", "_data", "_event", "_windows", "fields", "plain")

    plain: Encoding
    """The message, not compressed."""
    fields: bytes
    """Lines that come before the data when the message is sent as an event."""

    def __init__(self, opcode: int, data: bytes, compress: bool) -> None:
        self.plain = Encoding(FIN | opcode, data)
        self._data = data
        self._compress = compress and len(data) >= SMALLEST_COMPRESSED
        self._compressed: dict[Parameters, Encoding] = {}
        self._windows: dict[Parameters, ref[Window]] = {}  # of receivers of the compressed message, afterwards
        self._event: bytes | None = None
        self._chunk: Encoding | None = None
        self.fields = b""

    @property
    def event(self) -> bytes:
        """The message as an event of an event stream. It is created on first access."""
        if self._event is None:
            self._event = self._make_event()
        return self._event

    @event.setter
    def event(self, event: bytes) -> None:
        self._event = event

    def _make_event(self) -> bytes:
        return event_of(self._data, self.fields)

    @property
    def chunk(self) -> Encoding:
        """The event in a chunk of HTTP/1.1. It is created on first access."""
        if self._chunk is None:
            self._chunk = Encoding.of_chunk(self.event)
        return self._chunk

    def choose(self, window: Any) -> tuple[Encoding, Any]:
        """See `Encodings` in the core."""
        if window is CHUNKED:
            return self.chunk, window
        if not self._compress:
            return self.plain, window
        parameters = window.parameters
        encoding = self._compressed_for(parameters)
        # If the contents of the window are unknown, send the message compressed even if it does not shrink. Then the
        # window is known, and the next message, which may be similar, can refer to it. The result depends only on
        # values that never change.
        first = window in (parameters.unknown, parameters.own) and 2 * len(self._data) <= parameters.window
        if len(encoding.payload) >= len(self._data) and not first:
            return self.plain, window
        if window is parameters.per_message.state:
            return encoding, window
        return encoding, self._window_after(parameters)

    def after(self, window: Window, count: int) -> Window:
        """See `Encodings` in the core."""
        return self.choose(window)[1] if count else window

    def _window_after(self, parameters: Parameters) -> Window:
        known = self._windows.get(parameters)
        window = None if known is None else known()
        if window is None or not window.tail:
            window = Window(parameters, self._data[-parameters.window :])
            parameters.keep(window)
            self._windows[parameters] = ref(window)
        return window

    def _compressed_for(self, parameters: Parameters) -> Encoding:
        """Return the message compressed on its own, whether it shrinks or not."""
        parameters = parameters.fit(len(self._data))
        encoding = self._compressed.get(parameters)
        if encoding is None:
            encoding = Encoding(RSV1 | self.plain.first, parameters.compress(self._data))
            encoding = self._compressed.setdefault(parameters, encoding)
        return encoding


class Joined:
    """The encodings of several messages, one after the other."""

    __slots__ = ("_chosen", "_joined", "parts")

    def __init__(self, parts: Sequence[core.Encodings]) -> None:
        self.parts = parts
        self._chosen: dict[Window | None, tuple[Encoding, Sequence[Any]]] = {}  # and the windows after each part
        self._joined: dict[tuple[Encoding, ...], Encoding] = {}

    @property
    def plain(self) -> Encoding:
        """All messages, not compressed."""
        if None not in self._chosen:
            self._chosen[None] = self._join([part.plain for part in self.parts]), ()
        return self._chosen[None][0]

    def choose(self, window: Window) -> tuple[Encoding, Any]:
        """See `Encodings` in the core."""
        encoding, windows = self._choose(window)
        return encoding, windows[-1]

    def after(self, window: Window, count: int) -> Any:
        """See `Encodings` in the core."""
        return self._choose(window)[1][count - 1] if count else window

    def _choose(self, window: Window) -> tuple[Encoding, Sequence[Any]]:
        chosen = self._chosen.get(window)
        if chosen is None:
            encodings = []
            windows = [window]
            for part in self.parts:
                encoding, after = part.choose(windows[-1])
                encodings.append(encoding)
                windows.append(after)
            chosen = self._chosen[window] = self._join(encodings), windows[1:]
        return chosen

    def _join(self, encodings: Sequence[Any]) -> Encoding:
        key = tuple(encodings)
        joined = self._joined.get(key)
        if joined is None:
            joined = self._joined[key] = Encoding.of_frames([encoding.frame for encoding in encodings])
        return joined


def frame_for(encoder: Encoder | None, encodings: core.Encodings, *, masked: bool) -> tuple[bytes, Any]:
    """Return the frame for one connection, and the receiver's window after it."""
    encoding, window = (encodings.plain, None) if encoder is None else encodings.choose(encoder.state)
    if masked:
        return core.encode_frame(encoding.first, encoding.payload, os.urandom(4)), window
    return encoding.frame, window


def join(parts: Sequence[core.Encodings]) -> core.Encodings:
    """Return the encodings of several messages, one after the other. A single message keeps its own encodings."""
    return parts[0] if len(parts) == 1 else Joined(parts)


class PreparedMessage:
    """A message that is framed, and compressed, once for each encoding, and can be sent any number of times.

    It is accepted wherever a message is. It is immutable: later changes to the `bytearray` or `memoryview` that it was
    made from have no effect. Two prepared messages are equal if they have the same payload, the same frame type and the
    same `compress`.

    Args:
        data: A `str` for a Text frame; `bytes`, `bytearray` or `memoryview` for a Binary frame. A memoryview counts as
            its bytes in C order, whatever its shape, strides and item size.
        text: True to send bytes, which must be UTF-8, in a Text frame; False to send a string in a Binary frame.
        compress: Whether to compress the message for connections that negotiated permessage-deflate (RFC 7692). None to
            compress it if it has at least 16 bytes and shrinks. False to never compress it: use this for data that is
            compressed already, and for secrets that are sent next to text that an attacker can choose.

    Raises:
        TypeError: If `data` has another type, or `text` is neither a bool nor None.
        UnicodeEncodeError: If a string contains a lone surrogate, which has no encoding in UTF-8.
        ValueError: If `compress` is neither None nor False.
    """

    __slots__ = ("_compress", "_data", "_encodings", "_opcode")

    def __init__(
        self,
        data: str | bytes | bytearray | memoryview,
        *,
        text: bool | None = None,
        compress: Literal[False] | None = None,
    ) -> None:
        if compress is not None and compress is not False:
            raise ValueError(f"compress must be None (decide by size) or False (never), not {compress!r}")
        if isinstance(data, str):
            self._data = data.encode()
            self._opcode = BINARY if text is False else TEXT
        elif isinstance(data, (bytes, bytearray, memoryview)):
            # Not bytes(data), which calls the __bytes__() of a subclass. Upstream sends the octets of the object.
            self._data = data if type(data) is bytes else memoryview(data).tobytes()
            self._opcode = TEXT if text is True else BINARY
        else:
            raise TypeError("data must be str or bytes")  # upstream's exact message
        if text is not None and not isinstance(text, bool):
            raise TypeError(f"text must be True, False or None, not {text!r}")
        self._compress: Literal[False] | None = compress
        self._encodings: SelfContained | None = None  # created when needed: most relayed messages have no receiver here

    @property
    def data(self) -> bytes:
        """The payload. For a string, its encoding in UTF-8."""
        return self._data

    @property
    def text(self) -> bool:
        """Whether the message is sent in a Text frame. Otherwise, it is sent in a Binary frame."""
        return self._opcode == TEXT

    @property
    def opcode(self) -> int:
        """Opcode of the frame: 1 for Text, 2 for Binary (RFC 6455, section 5.2)."""
        return self._opcode

    @property
    def size(self) -> int:
        """Size of the payload in bytes."""
        return len(self._data)

    @property
    def frame(self) -> bytes:
        """The frame that a server sends, unmasked and not compressed. It is created on first access."""
        return self_contained(self).plain.frame

    @property
    def compress(self) -> Literal[False] | None:
        """False if the message is never compressed; None if that depends on its size."""
        return self._compress

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PreparedMessage):
            return NotImplemented
        return self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[Any, ...]:
        return self._opcode, self._compress, self._data, self._encodings.fields if self._encodings else b""

    def __reduce__(self) -> tuple[Any, ...]:
        # A pickle does not contain the encodings that have been made so far.
        return functools.partial(PreparedMessage, text=self.text, compress=self._compress), (self._data,)

    def __repr__(self) -> str:
        shown = repr(self._data[:24])[1:] + ("..." if self.size > 24 else "")
        return f"<PreparedMessage {'text' if self.text else 'binary'} {shown} size={self.size}>"


Message: TypeAlias = str | bytes | bytearray | memoryview | PreparedMessage
"""The types of messages that can be sent."""


def prepare(
    message: Message | Any, text: bool | None = None, compress: Literal[False] | None = None
) -> PreparedMessage:
    """Return `message` as a PreparedMessage; one that is a PreparedMessage already is returned as it is.

    Raises:
        TypeError: If `message` cannot be sent, or `text` or `compress` is given with a PreparedMessage.
        ValueError: If `compress` is neither None nor False.
    """
    if not isinstance(message, PreparedMessage):
        return PreparedMessage(message, text=text, compress=compress)
    for name, choice in (("text", text), ("compress", compress)):
        if choice is not None:
            raise TypeError(f"{name} cannot be given with a PreparedMessage; give it to PreparedMessage() instead")
    return message


def publishable(message: Message | Any) -> PreparedMessage:
    """Return a message to be published as a PreparedMessage, as `prepare()` does, with a clearer error.

    Raises:
        TypeError: If `message` cannot be sent.
    """
    if isinstance(message, (PreparedMessage, str, bytes, bytearray, memoryview)):
        return prepare(message)
    hint = "; pass json.dumps(message)" if isinstance(message, (dict, list, tuple)) else ""
    raise TypeError(f"message must be str or bytes, not {type(message).__name__}{hint}")


def self_contained(message: PreparedMessage) -> SelfContained:
    """Return the encodings of a message that do not refer to other messages."""
    encodings = message._encodings
    if encodings is None:
        encodings = message._encodings = SelfContained(message.opcode, message.data, message.compress is None)
    return encodings
