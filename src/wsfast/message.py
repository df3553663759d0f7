"""Messages that are framed once, however many connections they are sent to."""

from __future__ import annotations

from typing import Any, TypeAlias

from ._impl import core

__all__ = ["TEXT", "Message", "PreparedMessage", "prepare"]

TEXT, BINARY = 1, 2  # opcodes, RFC 6455, section 11.8
FIN = 0x80


class PreparedMessage:
    """A message that is framed at most once and can be sent any number of times.

    It is accepted wherever a message is, and immutable: later changes to a `bytearray` or `memoryview` that it was
    made of do not show. Two are equal if they have the same payload and are of the same type.

    Args:
        data: `str` for a Text frame; `bytes`, `bytearray` or `memoryview` for a Binary frame. A memoryview counts as
            its bytes in C order, whatever its shape, strides and item size.
        text: True to send bytes, which must be UTF-8, in a Text frame; False to send a string in a Binary frame.

    Raises:
        TypeError: If `data` has another type.
        UnicodeEncodeError: If a string has a lone surrogate and thus no encoding as UTF-8.
    """

    __slots__ = ("_data", "_frame", "_opcode")

    def __init__(self, data: str | bytes | bytearray | memoryview, *, text: bool | None = None) -> None:
        if isinstance(data, str):
            self._data = data.encode()
            self._opcode = BINARY if text is False else TEXT
        elif isinstance(data, (bytes, bytearray, memoryview)):
            self._data = data.tobytes() if isinstance(data, memoryview) else bytes(data)
            self._opcode = TEXT if text is True else BINARY
        else:
            raise TypeError("data must be str or bytes")
        self._frame: bytes | None = None

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
        if self._frame is None:
            self._frame = core.encode_frame(FIN | self._opcode, self._data)
        return self._frame

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PreparedMessage):
            return NotImplemented
        return self._opcode == other._opcode and self._data == other._data

    def __hash__(self) -> int:
        return hash((self._opcode, self._data))

    def __repr__(self) -> str:
        shown = repr(self._data[:24])[1:] + ("..." if self.size > 24 else "")
        return f"<PreparedMessage {'text' if self.text else 'binary'} {shown} size={self.size}>"


Message: TypeAlias = str | bytes | bytearray | memoryview | PreparedMessage
"""What can be sent."""


def prepare(message: Message | Any, text: bool | None) -> PreparedMessage:
    """Return `message` as a PreparedMessage, itself if it is one.

    Raises:
        TypeError: If it cannot be sent, or if `text` is given for a message that has been prepared already.
    """
    if not isinstance(message, PreparedMessage):
        return PreparedMessage(message, text=text)
    if text is not None:
        raise TypeError("text cannot be chosen for a PreparedMessage: give it when the message is prepared")
    return message
