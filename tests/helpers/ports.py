"""Ports for programs that must be told which one to listen at."""

from __future__ import annotations

import itertools
import os
import random
import socket

__all__ = ["free_port"]

# Below those that Linux gives to whoever connects, and for each process of pytest-xdist a range of its own, in which
# each run begins elsewhere: between the choice of a port and its use, no other test may take it.
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 12
_START = random.randrange(1000)
_candidates = itertools.cycle(20_000 + 1000 * _WORKER + (_START + number) % 1000 for number in range(1000))


def free_port() -> int:
    """Return a port of the loopback that nobody listens at, another one each time."""
    for port in itertools.islice(_candidates, 1000):
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # also one that was listened at before
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError("all ports are in use")
