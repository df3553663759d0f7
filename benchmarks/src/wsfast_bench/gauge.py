"""How much was sent, where nobody can know it in advance: a compressed message is as long as its encoder makes it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
import termios
from array import array
from typing import Any

from ._library import waits_for_a_channel
from .machine import UnfitError

__all__ = ["Gauge"]

# struct tcp_info of linux/tcp.h, tcpi_bytes_acked, which is there since Linux 4.1.
_ACKNOWLEDGED = struct.Struct("=Q")
_OFFSET = 120


class Gauge:
    """Tells how much was written to a connection, by whomever.

    Connections that were accepted alike and were sent the same messages were sent as many bytes, so that one of them
    tells for all.

    Args:
        connection: A connection of websockets or of picows, over IPv4.
    """

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._transport = getattr(connection, "transport", None)
        # Those of picows hide theirs, and with it their sockets.
        self._socket = _socket_to(connection.remote_address)
        self._written = 0
        self.advance()

    def advance(self) -> int:
        """Return how many bytes were written since the last time.

        Those that wait in the transport are included, except in one of picows, where there are only such as the socket
        had no room for.
        """
        # What has been acknowledged, and what has not; and the first once more, since it moves by itself.
        waiting = array("i", [0])
        written = -1
        while written < 0:
            acknowledged = self._acknowledged()
            fcntl.ioctl(self._socket, termios.TIOCOUTQ, waiting)
            if self._acknowledged() == acknowledged:
                written = acknowledged + waiting[0]
        if self._transport is not None:
            written += self._transport.get_write_buffer_size()
        before, self._written = self._written, written
        return written - before

    @property
    def behind(self) -> bool:
        """Whether something waits in a channel, of which nobody knows how long it will be."""
        return waits_for_a_channel(self._connection)

    def _acknowledged(self) -> int:
        info = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        if len(info) < _OFFSET + _ACKNOWLEDGED.size:
            self.close()
            raise UnfitError("with compression, Linux must tell how much was acknowledged, as since version 4.1")
        count: int = _ACKNOWLEDGED.unpack_from(info, _OFFSET)[0]
        return count

    def close(self) -> None:
        """Let go of the connection."""
        self._socket.close()


def _socket_to(peer: tuple[str, int]) -> socket.socket:
    """Return another descriptor of the socket of this process that is connected to that peer."""
    for name in os.listdir("/proc/self/fd"):
        # One of these is that of the directory, closed by now; and not all sockets are connected.
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            if os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                sock = stack.enter_context(socket.socket(fileno=os.dup(int(name))))
                if sock.family == socket.AF_INET and sock.getpeername() == tuple(peer):
                    stack.pop_all()
                    return sock
    raise UnfitError(f"the connection to {peer} has no socket in this process")
