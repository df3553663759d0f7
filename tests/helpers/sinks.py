"""Clients without a network: sinks that keep what is written."""

from __future__ import annotations

from typing import Any

import wsfast
from helpers.peers import parse_frames

__all__ = ["Client"]


class Client:
    """A client without a network."""

    def __init__(self) -> None:
        self.data = b""
        self.connection = wsfast.attach(self)

    def write(self, data: bytes) -> None:
        self.data += data

    def writable(self) -> bool:
        return True

    def close(self, code: int, reason: str) -> None:
        """Do nothing."""

    @property
    def received(self) -> list[Any]:
        """The messages that have arrived: strings, and bytes."""
        frames, rest = parse_frames(self.data)
        assert rest == b""
        return [frame.payload.decode() if frame.first & 15 == 1 else frame.payload for frame in frames]
