"""The process in which the clients of scenario `integrations` are: they count one mark in each message.

Each kind of server wraps a message in something else: in a frame, in a packet of Socket.IO, or in an event. A mark in
the text is found in all of them.
"""

from __future__ import annotations

import mmap
import os
import selectors
import socket
import struct
import sys

from .clients import Clients
from .peer import read_line, upgrade

__all__ = ["MARK", "Followers", "main"]

MARK = "#"
"""A character that each message has once. Nothing else that a server sends contains it."""

PATHS = {"websocket": "/", "socketio": "/socket.io/?EIO=4&transport=websocket"}

ENTER = b"\x81\x82\0\0\0\x0040"
"""The packet that connects to the namespace / of Socket.IO, in a masked frame."""


class Followers(Clients):
    """Clients that count marks in what they are sent, in a process of their own."""

    module = "wsfast_bench.follower"

    async def open(self, port: int, count: int, kind: str) -> None:
        """Connect so many clients to a server at 127.0.0.1.

        Args:
            port: Port of the server.
            count: How many.
            kind: `websocket`, `socketio` or `events`.

        Raises:
            UnfitError: If they could not.
        """
        await self.ask(f"connect {port} {count} {kind}")


def _connect(port: int, kind: str) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), timeout=60)
    request = f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()
    sock.sendall(request if kind == "events" else upgrade(port, path=PATHS[kind]))
    # A server of events answers when it likes to.
    if kind != "events":
        _receive(sock, b"\r\n\r\n")
    if kind == "socketio":
        sock.sendall(ENTER)
        _receive(sock, b"40{")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.setblocking(False)
    return sock


def _receive(sock: socket.socket, end: bytes) -> None:
    """Receive until something has come."""
    received = b""
    while end not in received:
        data = sock.recv(4096)
        if not data:
            raise ConnectionError(f"the server closed a connection: {received[:60]!r}")
        received += data


def _follow(sockets: list[socket.socket], count: memoryview) -> None:
    """Count bytes and marks until standard input ends or a server closes a connection."""
    mark = MARK.encode()
    with selectors.DefaultSelector() as selector:
        selector.register(sys.stdin.fileno(), selectors.EVENT_READ)
        for sock in sockets:
            selector.register(sock, selectors.EVENT_READ, sock)
        while True:
            for key, _ in selector.select():
                data = b"" if key.data is None else key.data.recv(1 << 16)
                if not data:
                    return
                count[0] += len(data)
                count[1] += data.count(mark)


def main() -> None:
    """Obey `connect PORT COUNT KIND` and `drain` on standard input; end with it."""
    shared = int(sys.argv[1])
    if sys.argv[2]:
        os.sched_setaffinity(0, {int(sys.argv[2])})
    count = memoryview(mmap.mmap(shared, mmap.PAGESIZE)).cast("Q")[:2]
    sockets: list[socket.socket] = []
    while request := read_line(sys.stdin.fileno()).split():
        if request[0] == "drain":
            print("ok", flush=True)
            _follow(sockets, count)
            return
        try:
            sockets += [_connect(int(request[1]), request[3]) for _ in range(int(request[2]))]
        except OSError as exc:
            print(f"{type(exc).__name__}: {exc}", flush=True)
        else:
            print("ok", flush=True)


if __name__ == "__main__":
    main()
