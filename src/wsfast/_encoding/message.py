"""Messages that are framed and compressed once, however many connections they are sent to."""

from __future__ import annotations

import functools
from typing import Any, Literal, TypeAlias

from wsfast._core import core

from .deflate import Encoder, Parameters

__all__ = [
    "RSV1",
    "SMALLEST_COMPRESSED",
    "TEXT",
    "Encoding",
    "Message",
    "PreparedMessage",
    "SelfContained",
    "encodings_of",
    "prepare",
]

TEXT, BINARY = 1, 2  # opcodes, RFC 6455, section 11.8
FIN, RSV1 = 0x80, 0x40

SMALLEST_COMPRESSED = 64
"""Bytes of the smallest payload that is compressed by itself: JSON below that shrinks by less than a tenth."""


class Encoding:
    """One way in which a message can stand in a frame.

    Args:
        first: First octet of the frame (RFC 6455, section 5.2).
        payload: Payload as it stands in the frame, but for the mask.
        window: End of the message before it was compressed by itself, as much as a receiver's window holds.
    """

    __slots__ = ("_frame", "first", "payload", "window")

    def __init__(self, first: int, payload: bytes, window: bytes = b"") -> None:
        self.first = first
        self.payload = payload
        self.window = window
        self._frame: bytes | None = None

    @classmethod
    def of_frames(cls, frames: bytes) -> Encoding:
        """Return what stands for several frames of a server, one behind the other."""
        encoding = cls(0, b"")
        encoding._frame = frames
        return encoding

    @property
    def frame(self) -> bytes:
        """The frame that a server sends: unmasked. It is made when first asked for."""
        if self._frame is None:
            self._frame = core.encode_frame(self.first, self.payload)
        return self._frame


class SelfContained:
    """The encodings of a message that need no other message to be decoded: each is made once, when first asked for.

    Args:
        opcode: 1 for text, 2 for binary.
        data: Payload.
        compress: Whether it may be compressed.
    """

    __slots__ = ("_by_parameters", "_compress", "_compressed", "_data", "plain")

    plain: Encoding
    """The message as it is."""

    def __init__(self, opcode: int, data: bytes, compress: bool) -> None:
        self.plain = Encoding(FIN | opcode, data)
        self._data = data
        self._compress = compress
        self._compressed: dict[Parameters, Encoding] = {}
        self._by_parameters: dict[Parameters, Encoding] = {}

    def encoding_for(self, encoder: Encoder) -> Encoding:
        """Return what is to be sent to a connection with permessage-deflate, and have its encoder take note of it.

        Who does not send it must take it back.
        """
        encoding = self._by_parameters.get(encoder.parameters)
        if encoding is None:
            encoding = self._by_parameters[encoder.parameters] = self._choose(encoder.parameters)
        if encoding is not self.plain:
            encoder.deliver(encoding.window)  # last, when nothing can fail any more
        return encoding

    def take_back(self, encoder: Encoder) -> None:
        """Take note that what was last chosen for a connection was not sent."""
        if self._by_parameters.get(encoder.parameters) is not self.plain:
            encoder.forget()

    def _choose(self, parameters: Parameters) -> Encoding:
        if not self._compress or len(self._data) < SMALLEST_COMPRESSED:
            return self.plain
        encoding = self.compressed(parameters)
        return encoding if len(encoding.payload) < len(self._data) else self.plain

    def compressed(self, parameters: Parameters) -> Encoding:
        """Return the message, which must not be empty, compressed by itself, whether it shrinks or not."""
        parameters = parameters.fit(len(self._data))
        encoding = self._compressed.get(parameters)
        if encoding is None:
            payload = parameters.compress(self._data)
            encoding = Encoding(RSV1 | self.plain.first, payload, self._data[-parameters.window :])
            encoding = self._compressed.setdefault(parameters, encoding)
        return encoding


class PreparedMessage:
    """A message that is framed and compressed at most once per encoding and can be sent any number of times.

    It is accepted wherever a message is, and immutable: later changes to a `bytearray` or `memoryview` that it was
    made of do not show. Two are equal if they have the same payload, are of the same type, and may be compressed alike.

    Args:
        data: `str` for a Text frame; `bytes`, `bytearray` or `memoryview` for a Binary frame. A memoryview counts as
            its bytes in C order, whatever its shape, strides and item size.
        text: True to send bytes, which must be UTF-8, in a Text frame; False to send a string in a Binary frame.
        compress: Whether connections that have negotiated permessage-deflate (RFC 7692) get it compressed. None to
            decide by its size: it is sent as it is if it has less than 64 bytes or does not shrink. False never to
            compress it, as for what is compressed already, or secrets next to what an attacker may choose.

    Raises:
        TypeError: If `data` has another type.
        UnicodeEncodeError: If a string has a lone surrogate and thus no encoding as UTF-8.
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
            self._data = data.tobytes() if isinstance(data, memoryview) else bytes(data)
            self._opcode = TEXT if text is True else BINARY
        else:
            raise TypeError("data must be str or bytes")
        self._compress: Literal[False] | None = compress
        self._encodings = SelfContained(self._opcode, self._data, compress is None)

    @property
    def data(self) -> bytes:
        """Payload; of a text, its encoding as UTF-8."""
        return self._data

    @property
    def text(self) -> bool:
        """Whether it is sent in a Text frame; else in a Binary frame."""
        return self._opcode == TEXT

    @property
    def opcode(self) -> int:
        """Opcode of its frame: 1 for Text, 2 for Binary (RFC 6455, section 5.2)."""
        return self._opcode

    @property
    def size(self) -> int:
        """Size of the payload in bytes."""
        return len(self._data)

    @property
    def frame(self) -> bytes:
        """The frame that a server sends: unmasked, not compressed. It is made when first asked for."""
        return self._encodings.plain.frame

    @property
    def compress(self) -> Literal[False] | None:
        """False if it is never compressed; None if that depends on its size."""
        return self._compress

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PreparedMessage):
            return NotImplemented
        return (self._opcode, self._compress, self._data) == (other._opcode, other._compress, other._data)

    def __hash__(self) -> int:
        return hash((self._opcode, self._compress, self._data))

    def __reduce__(self) -> tuple[Any, ...]:
        # Without the encodings that have been made so far.
        return functools.partial(PreparedMessage, text=self.text, compress=self._compress), (self._data,)

    def __repr__(self) -> str:
        shown = repr(self._data[:24])[1:] + ("..." if self.size > 24 else "")
        return f"<PreparedMessage {'text' if self.text else 'binary'} {shown} size={self.size}>"


Message: TypeAlias = str | bytes | bytearray | memoryview | PreparedMessage
"""What can be sent."""


def prepare(
    message: Message | Any, text: bool | None = None, compress: Literal[False] | None = None
) -> PreparedMessage:
    """Return `message` as a PreparedMessage, itself if it is one.

    Raises:
        TypeError: If it cannot be sent, or if `text` or `compress` is given for a message that has been prepared
            already.
        ValueError: If `compress` is neither None nor False.
    """
    if not isinstance(message, PreparedMessage):
        return PreparedMessage(message, text=text, compress=compress)
    for name, choice in (("text", text), ("compress", compress)):
        if choice is not None:
            raise TypeError(f"{name} cannot be chosen for a PreparedMessage: give it when the message is prepared")
    return message


def encodings_of(message: PreparedMessage) -> SelfContained:
    """Return the encodings of a message. They are not public, since to ask for one obliges to send it."""
    return message._encodings
