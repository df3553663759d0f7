"""The process with the clients of all lanes. They read, check the order of what they read, and measure its age.

Reads commands and writes reports, both as lines of JSON, and ends with its standard input. A command is `stall` or
`release`; it is about the phone, one client in each lane. Reports have `connected`, or `lanes`, or `failed`.

A client of websockets needs 30 us for each message. These need a third, so that a thousand leave time for the servers.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import selectors
import socket
import statistics
import struct
import sys
import time
from collections import deque
from typing import Any

from websockets.client import ClientProtocol
from websockets.exceptions import InvalidHandshake
from websockets.frames import Frame, Opcode
from websockets.protocol import CONNECTING
from websockets.uri import parse_uri

from .lane import INTERVAL, PHONE, tell
from .message import HEAD, parse

__all__ = ["Client", "Counts", "main"]

AT_ONCE = 32
"""Opening handshakes under way in each lane; less than the backlog of a server of asyncio, 100."""

PATIENCE = 30.0
"""Seconds for a handshake."""

BUFFER = 32768
"""SO_RCVBUF of the phone: the kernel takes little for it."""

WINDOW = round(1 / INTERVAL)
"""Reports that a number is taken over: one second."""

room = memoryview(bytearray(1 << 18))
"""Buffer that all clients read into."""


class Counts:
    """Counts messages and faults of the clients of a lane, except the phone."""

    def __init__(self) -> None:
        self.ages: deque[list[float]] = deque([[]], maxlen=WINDOW)
        """Seconds from the start of sending to the client for each message, by report."""
        self.newest = 0.0
        """Time of the last message."""
        self.missed = 0
        self.disordered = 0
        """Messages that came twice, or after a newer one."""
        self.lost = 0
        """Clients that were disconnected."""

    def report(self, now: float) -> dict[str, Any]:
        """Return messages per second and their median age; with none, the age of the last."""
        ages = [age for some in self.ages for age in some]
        lag = statistics.median(ages) if ages else now - self.newest if self.newest else None
        past = len(self.ages) * INTERVAL
        if not ages and self.newest == 0:
            self.ages.clear()
        self.ages.append([])
        seen = {"missed": self.missed, "disordered": self.disordered, "lost": self.lost}
        return {"delivered": round(len(ages) / past), "lag": lag, **seen}


class Client:
    """One connection, which reads messages. The phone is not counted."""

    __slots__ = ("_left", "_message", "_part", "counts", "number", "sock")

    def __init__(self, sock: socket.socket, counts: Counts | None) -> None:
        self.sock = sock
        self.counts = counts
        self.number = 0
        self._part = b""  # the start of a frame
        self._message = b""  # the head of the message that is being read
        self._left = 0  # bytes of its frame that have not arrived

    def read(self) -> bool:
        """Read what is there; tell whether the connection goes on."""
        try:
            size = self.sock.recv_into(room)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return size > 0 and self.feed(room[:size])

    def feed(self, data: memoryview) -> bool:
        """Take bytes of unmasked frames (RFC 6455, section 5.2); tell whether the connection goes on."""
        if self._part:
            data, self._part = memoryview(self._part + bytes(data)), b""
        at, end = 0, len(data)
        while True:
            step = min(self._left, end - at)
            self._left -= step
            at += step
            if self._left:
                return True
            if self._message:
                self.count(self._message)
                self._message = b""
            if at == end:
                return True
            start = data[at : at + 2 + 8 + 125]
            header = 2 if len(start) < 2 else {126: 4, 127: 10}.get(start[1], 2)
            length = 0
            if len(start) >= header:
                length = start[1] if header == 2 else int.from_bytes(start[2:header], "big")
            if len(start) < header + min(length, 125):
                self._part = bytes(data[at:])
                return True
            payload = bytes(start[header : header + min(length, 125)])
            match start[0] & 0x0F:
                case Opcode.TEXT:
                    self._message = payload[:HEAD]
                case Opcode.PING:
                    with contextlib.suppress(OSError):
                        self.sock.sendall(Frame(Opcode.PONG, payload).serialize(mask=True))
                case Opcode.CLOSE:
                    return False
            at += header
            self._left = length

    def count(self, message: bytes) -> None:
        """Count a message that has been read to its end."""
        counts = self.counts
        if counts is None:
            return
        number, sent = parse(message)
        if number <= self.number:
            counts.disordered += 1
        elif self.number:
            counts.missed += number - self.number - 1
        self.number = number
        counts.newest = max(counts.newest, sent)
        counts.ages[-1].append(time.monotonic() - sent)


def begin(port: int, path: str) -> tuple[socket.socket, ClientProtocol]:
    """Connect, and send an opening handshake."""
    sock = socket.socket()
    try:
        sock.settimeout(PATIENCE)
        if path == PHONE:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        sock.connect(("127.0.0.1", port))
        protocol = ClientProtocol(parse_uri(f"ws://127.0.0.1:{port}{path}"))
        protocol.send_request(protocol.connect())
        sock.sendall(b"".join(protocol.data_to_send()))
    except BaseException:
        sock.close()
        raise
    return sock, protocol


def finish(sock: socket.socket, protocol: ClientProtocol) -> socket.socket:
    """Read the answer to an opening handshake, and not a byte more."""
    while protocol.state is CONNECTING and protocol.handshake_exc is None:
        octet = sock.recv(1)
        if octet:
            protocol.receive_data(octet)
        else:
            protocol.receive_eof()
    if protocol.handshake_exc is not None:
        raise protocol.handshake_exc
    # A close resets the connection, so that none stays in TIME_WAIT.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.setblocking(False)
    return sock


class Clients:
    """All clients.

    Args:
        ports: Port of each lane.
        each: Clients in each lane, the phone included.
    """

    def __init__(self, ports: dict[str, int], each: int) -> None:
        self.ports = ports
        self.counts = {lane: Counts() for lane in ports}
        self.phones: dict[str, Client | None] = {}
        self.stalled = False
        self._each = each
        self._selector = selectors.DefaultSelector()

    def connect(self) -> None:
        """Connect all, and report how many there are."""
        for start in range(0, self._each, AT_ONCE):
            numbers = range(start, min(self._each, start + AT_ONCE))
            begun = [
                (lane, n, begin(self.ports[lane], f"/{n}" if n else PHONE)) for lane in self.ports for n in numbers
            ]
            for lane, number, handshake in begun:
                client = Client(finish(*handshake), self.counts[lane] if number else None)
                if not number:
                    self.phones[lane] = client
                self._selector.register(client.sock, selectors.EVENT_READ, (lane, client))
            tell({"connected": numbers.stop * len(self.ports)})

    def do(self, command: str) -> None:
        """Stall the phones or release them."""
        self.stalled = command == "stall"
        for lane, phone in self.phones.items():
            if phone is not None and (phone.sock in self._selector.get_map()) == self.stalled:
                if self.stalled:
                    self._selector.unregister(phone.sock)
                else:
                    self._selector.register(phone.sock, selectors.EVENT_READ, (lane, phone))

    def reconnect(self) -> None:
        """Connect the phones again that were disconnected."""
        for lane in [lane for lane, phone in self.phones.items() if phone is None]:
            with contextlib.suppress(OSError, InvalidHandshake):  # the lane may have ended; else try again
                phone = Client(finish(*begin(self.ports[lane], PHONE)), None)
                self._selector.register(phone.sock, selectors.EVENT_READ, (lane, phone))
                self.phones[lane] = phone

    def run(self) -> None:
        """Read until standard input ends."""
        commands = sys.stdin.fileno()
        self._selector.register(commands, selectors.EVENT_READ, None)
        while True:
            # Right before a tick of the first lane, so that whole ticks are in each second.
            due = (math.floor(time.monotonic() / INTERVAL + 0.02) + 0.98) * INTERVAL
            while (left := due - time.monotonic()) > 0:
                for key, _ in self._selector.select(left):
                    if key.data is None:
                        lines = os.read(commands, 4096).decode().splitlines()
                        if not lines:
                            return
                        for line in lines:
                            self.do(json.loads(line)["do"])
                    else:
                        lane, client = key.data
                        if key.fd in self._selector.get_map() and not client.read():  # it may be stalled by now
                            self.lose(lane, client)
            if not self.stalled:
                self.reconnect()
            tell({"lanes": {lane: counts.report(due) for lane, counts in self.counts.items()}})

    def lose(self, lane: str, client: Client) -> None:
        """Forget a client that was disconnected."""
        self._selector.unregister(client.sock)
        client.sock.close()
        if client.counts is None:
            self.phones[lane] = None
        else:
            client.counts.lost += 1


def main() -> None:
    """Run the process; its task is in the first argument."""
    task = json.loads(sys.argv[1])
    clients = Clients(task["ports"], task["clients"])
    try:
        clients.connect()
    except (OSError, InvalidHandshake) as exc:
        tell({"failed": f"{type(exc).__name__}: {exc}"})
        return
    clients.run()
    os._exit(0)


if __name__ == "__main__":
    main()
