"""The C of benchmarks in plain Python, where there is no compiler: then there is no floor, and clients read slower."""

from __future__ import annotations

import contextlib
import os
import selectors
from array import array

__all__ = ["Records", "Stream", "drain", "send_file_many", "send_many"]

_FIN, _CONTROL, _PING, _PONG = 0x80, 0x08, 0x89, 0x8A
_APPLICATION_DATA = 23


def send_many(fds: array[int], data: bytes) -> list[tuple[int, int]]:
    """Offer `data` to each descriptor of a non-blocking socket.

    In the extension, this is the floor that benchmarks measure against: no fan-out can be faster.

    Returns:
        For each descriptor that did not take all of it, the index and how many octets it took.
    """
    cut = []
    for index, fd in enumerate(fds):
        taken = 0
        with contextlib.suppress(OSError):
            taken = os.write(fd, data)
        if taken != len(data):
            cut.append((index, taken))
    return cut


def send_file_many(fds: array[int], file: int, size: int) -> list[tuple[int, int]]:
    """Do the same by `sendfile()`, with the first `size` octets of a file: sockets share its pages. Linux only.

    Returns:
        The same as `send_many()`.
    """
    cut = []
    for index, fd in enumerate(fds):
        taken = 0
        with contextlib.suppress(OSError):
            taken = os.sendfile(fd, file, 0, size)
        if taken != size:
            cut.append((index, taken))
    return cut


class Stream:
    """How far the stream of frames from a server is (RFC 6455, section 5.2)."""

    def __init__(self) -> None:
        self._rest = b""
        self._left = 0
        """Octets of a data frame's payload still to come."""
        self._final = False

    def read(self, data: bytes) -> tuple[int, int, bytes]:
        """Go through what has arrived.

        Returns:
            Octets of frames that carry data, the messages that end here, and the pongs to be sent.

        Raises:
            ValueError: If it breaks the rules of framing.
        """
        data, octets, messages, pongs, at = self._rest + data, 0, 0, b"", 0
        while True:
            part = min(self._left, len(data) - at)
            self._left -= part
            octets, at = octets + part, at + part
            messages += self._final and not self._left
            self._final = self._final and self._left > 0
            head = data[at : at + 10]
            size = 2 if len(head) < 2 else {126: 4, 127: 10}.get(head[1], 2)
            if len(head) < max(size, 2):
                break
            length = int.from_bytes(head[2:size]) if size > 2 else head[1]
            if head[0] & _CONTROL:
                if length > 125:
                    raise ValueError(f"a control frame of {length} octets")
                if len(data) - at < size + length:
                    break
                if head[0] == _PING:
                    pongs += bytes((_PONG, 0x80 | length, 0, 0, 0, 0)) + data[at + size : at + size + length]
                at += size + length
            elif head[1] & 0x80:
                raise ValueError("a server's frame is masked")
            else:
                octets, at = octets + size, at + size
                self._left, self._final = length, bool(head[0] & _FIN)
        self._rest = data[at:]
        return octets, messages, pongs


class Records:
    """How far a stream of TLS records is (RFC 8446, section 5.1): each of application data counts as a message."""

    def __init__(self) -> None:
        self._rest = b""

    def read(self, data: bytes) -> tuple[int, int, bytes]:
        """Go through what has arrived, as `Stream.read()` does; there is nothing to be answered."""
        octets, rest, messages = len(data), self._rest + data, 0
        while rest:
            if rest[0] != _APPLICATION_DATA:
                raise ValueError("a record of another type than application data")
            end = 5 + int.from_bytes(rest[3:5])
            if len(rest) < max(end, 5):
                break
            rest, messages = rest[end:], messages + 1
        self._rest = rest
        return octets, messages, b""


def drain(fds: array[int], stop_fd: int, count: memoryview, awake: bool = False, records: bool = False) -> None:
    """Read the frames that arrive at `fds` until `stop_fd` is readable or all of `fds` have ended; answer pings.

    Args:
        fds: Descriptors of non-blocking sockets, as `array("i")`.
        stop_fd: Descriptor of a pipe.
        count: Two unsigned integers of 64 bits, to which the octets of frames that carry data, and the messages, are
            added as they come.
        awake: Whether never to sleep; to wake a process up costs the one that sends to it.
        records: Whether TLS encrypts what arrives. Then each record of application data counts as a message, and
            nothing is decrypted or answered.

    Raises:
        OSError: If they cannot be watched.
    """
    streams = {fd: Records() if records else Stream() for fd in fds}
    with selectors.DefaultSelector() as selector:
        selector.register(stop_fd, selectors.EVENT_READ)
        for fd in fds:
            selector.register(fd, selectors.EVENT_READ)
        while len(selector.get_map()) > 1:
            for key, _ in selector.select(0 if awake else None):
                if key.fd == stop_fd:
                    return
                try:
                    received = os.read(key.fd, 65536)
                    octets, messages, pongs = streams[key.fd].read(received)
                    if pongs:
                        with contextlib.suppress(BlockingIOError):
                            os.write(key.fd, pongs)
                except BlockingIOError:
                    continue
                except (OSError, ValueError):
                    received = b""
                if received:
                    count[0] += octets
                    count[1] += messages
                else:
                    selector.unregister(key.fd)
