"""The C of benchmarks in plain Python, where there is no compiler: then there is no floor, and clients read slower."""

from __future__ import annotations

import contextlib
import os
import selectors
from array import array

__all__ = ["drain", "send_many"]


def send_many(fds: array[int], data: bytes) -> int:
    """Offer `data` to each descriptor of a non-blocking socket, without regard to anything; return how many took all.

    In the extension, this is the floor that benchmarks measure against: no fan-out can be faster.
    """
    complete = 0
    for fd in fds:
        with contextlib.suppress(OSError):
            complete += os.write(fd, data) == len(data)
    return complete


def drain(fds: array[int], stop_fd: int, octets: memoryview, awake: bool = False) -> None:
    """Read and discard what arrives at `fds` until `stop_fd` is readable or all of `fds` have ended.

    Args:
        fds: Descriptors of non-blocking sockets, as `array("i")`.
        stop_fd: Descriptor of a pipe.
        octets: One unsigned integer of 64 bits, to which what was read is added as it comes.
        awake: Whether never to sleep; to wake a process up costs the one that sends to it.

    Raises:
        OSError: If they cannot be watched.
    """
    with selectors.DefaultSelector() as selector:
        selector.register(stop_fd, selectors.EVENT_READ)
        for fd in fds:
            selector.register(fd, selectors.EVENT_READ)
        while len(selector.get_map()) > 1:
            for key, _ in selector.select(0 if awake else None):
                if key.fd == stop_fd:
                    return
                try:
                    received = len(os.read(key.fd, 65536))
                except BlockingIOError:
                    continue
                except OSError:
                    received = 0
                if received:
                    octets[0] += received
                else:
                    selector.unregister(key.fd)
