"""Ports for programs that must be told which one to listen at."""

from __future__ import annotations

import itertools
import os
import socket

__all__ = ["free_port"]

# Below those that Linux gives to whoever connects, and for each process of pytest-xdist a range of its own: between the
# choice of a port and its use, no other test may take it.
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 12
_candidates = itertools.cycle(range(20_000 + 1000 * _WORKER, 21_000 + 1000 * _WORKER))


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
