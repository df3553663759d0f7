"""The process in which the clients of a server are. It does nothing but read and answer pings, by a loop in C."""

from __future__ import annotations

import mmap
import os
import socket
import ssl
import struct
import sys
from array import array
from base64 import b64encode

from .certificate import client_context
from .native import drain

__all__ = ["connect", "main", "read_line", "upgrade"]

BATCH = 64
"""Connections that are opened at once; less than the backlog of a server of asyncio, 100."""


OFFER = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"
"""The offer of websockets' clients and of browsers (RFC 7692, section 7.1)."""


def connect(
    port: int, count: int, *, deflate: bool, receive_buffer: int | None = None, tls: bool = False
) -> list[socket.socket]:
    """Open connections to a WebSocket server at 127.0.0.1.

    Args:
        port: Its port.
        count: How many.
        deflate: Whether to offer permessage-deflate, which the server must accept; else there are no extensions.
        receive_buffer: SO_RCVBUF of the sockets; None to leave it to the kernel.
        tls: Whether to connect over TLS; whose certificate it is does not matter.

    Returns:
        Sockets, not blocking, whose opening handshakes are done (RFC 6455, section 4.1).

    Raises:
        OSError: If the server refuses.
    """
    context = client_context() if tls else None
    sockets: list[socket.socket] = []
    while len(sockets) < count:
        missing = min(BATCH, count - len(sockets))
        batch = [_open(port, receive_buffer, context) for _ in range(missing)]
        for sock in batch:
            sock.sendall(upgrade(port, OFFER if deflate else ""))
        for sock in batch:
            response = b""
            while b"\r\n\r\n" not in response:
                received = sock.recv(4096)
                if not received:
                    raise ConnectionError("the server closed a connection in its opening handshake")
                response += received
            if not response.startswith(b"HTTP/1.1 101 ") or not response.endswith(b"\r\n\r\n"):
                raise ConnectionError(f"the server answered {response[:60]!r}")
            if deflate != (b"\r\nsec-websocket-extensions: permessage-deflate" in response.lower()):
                raise ConnectionError("the server " + ("does not compress" if deflate else "insists on an extension"))
            # Closing sends a reset: thousands of connections in TIME_WAIT would be in the way of the next case.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.setblocking(False)
        sockets += batch
    return sockets


def upgrade(port: int, extensions: str = "", path: str = "/") -> bytes:
    """Return the opening handshake of a client (RFC 6455, section 4.1)."""
    return (
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {b64encode(os.urandom(16)).decode()}\r\nSec-WebSocket-Version: 13\r\n{extensions}\r\n"
    ).encode()


def _open(port: int, receive_buffer: int | None, context: ssl.SSLContext | None) -> socket.socket:
    sock = socket.socket()
    try:
        sock.settimeout(60)
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)  # the window is agreed on right away
        sock.connect(("127.0.0.1", port))
        return sock if context is None else context.wrap_socket(sock)
    except BaseException:
        sock.close()
        raise


def main() -> None:
    """Obey `connect PORT COUNT [deflate] [tls]` and `drain [awake] [records]` on standard input; end with it."""
    shared = int(sys.argv[1])
    if sys.argv[2]:
        os.sched_setaffinity(0, {int(sys.argv[2])})
    count = memoryview(mmap.mmap(shared, mmap.PAGESIZE)).cast("Q")[:2]
    sockets: list[socket.socket] = []
    while request := read_line(sys.stdin.fileno()).split():
        if request[0] == "drain":
            print("ok", flush=True)
            descriptors = array("i", [sock.fileno() for sock in sockets])
            drain(descriptors, sys.stdin.fileno(), count, awake="awake" in request, records="records" in request)
            return
        try:
            options = {"deflate": "deflate" in request, "tls": "tls" in request}
            sockets += connect(int(request[1]), int(request[2]), **options)
        except OSError as exc:
            print(f"{type(exc).__name__}: {exc}", flush=True)
        else:
            print("ok", flush=True)


def read_line(fd: int) -> str:
    """Read a line and not a byte more, so that a watcher of the descriptor is notified of the next line."""
    line = b""
    while (octet := os.read(fd, 1)) not in (b"", b"\n"):
        line += octet
    return line.decode()


if __name__ == "__main__":
    main()
