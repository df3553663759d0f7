"""Clients that come back where they were, in a process of their own: those of scenarios `herd` and `rolling`.

They speak the session protocol over plain sockets, a tenth of what a client of websockets costs. Each knows its
position, and checks every message: that its offset is the next one, and that its text begins with that number.
"""

from __future__ import annotations

import contextlib
import functools
import heapq
import json
import os
import random
import selectors
import socket
import struct
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from websockets.frames import Frame, Opcode

from .clients import Clients
from .machine import UnfitError
from .peer import read_line, upgrade

__all__ = ["TOPIC", "Client", "Herd", "Returning", "main", "parse"]

TOPIC = "news"

RESET = struct.pack("ii", 1, 0)
"""SO_LINGER with which a close sends a reset: thousands of connections in TIME_WAIT would be in the way."""


class Run(NamedTuple):
    """Messages whose offsets follow on each other."""

    first: int
    last: int


class Parsed(NamedTuple):
    """The content of some bytes of a connection."""

    events: tuple[Run | dict[str, Any] | tuple[int, bytes], ...]
    """Runs of messages, answers of the session protocol, and control frames (RFC 6455, section 5.5), in their order."""
    rest: bytes
    """The beginning of a frame."""


class FaultError(UnfitError):
    """A server has sent something that it must not send; the text says what."""


@functools.lru_cache(maxsize=256)
def parse(data: bytes) -> Parsed:
    """Parse unmasked frames. Clients that are sent the same get the same result, so it costs next to nothing.

    Raises:
        FaultError: If the text of a message does not begin with its offset.
    """
    events: list[Any] = []
    at, end = 0, len(data)
    while end - at >= 2:
        length, start = data[at + 1], at + 2
        if length == 126:
            length, start = int.from_bytes(data[at + 2 : at + 4], "big"), at + 4
        elif length == 127:
            length, start = int.from_bytes(data[at + 2 : at + 10], "big"), at + 10
        if end < start + length:
            break
        opcode, payload = data[at] & 0x0F, data[start : start + length]
        at = start + length
        if opcode != Opcode.TEXT:
            events.append((opcode, payload))
            continue
        content = json.loads(payload)
        if isinstance(content, dict):
            events.append(content)
            continue
        _, offset, text = content
        if int(text.split(maxsplit=1)[0]) != offset:
            raise FaultError(f"message {text[:20]!r} has the offset {offset}")
        if events and isinstance(events[-1], Run) and events[-1].last + 1 == offset:
            events[-1] = Run(events[-1].first, offset)
        else:
            events.append(Run(offset, offset))
    return Parsed(tuple(events), data[at:])


class Client:
    """One client: its connection, if it has one, and its position."""

    __slots__ = ("began", "epoch", "live", "messages", "number", "offset", "rest", "sock", "upgraded")

    def __init__(self, number: int) -> None:
        self.number = number
        self.sock: socket.socket | None = None
        self.epoch: str | None = None
        self.offset: int | None = None
        self.messages = 0
        self.began = 0.0  # when it began to connect
        self.live = False  # whether it is subscribed
        self.upgraded = False
        self.rest = b""

    def open(self, port: int) -> socket.socket:
        """Begin to connect."""
        self.began = time.monotonic()
        self.live = self.upgraded = False
        self.rest = b""
        self.sock = sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        sock.connect_ex(("127.0.0.1", port))  # an error shows when something is sent
        return sock

    def close(self) -> None:
        """Cut the connection."""
        if self.sock is not None:
            self.sock.close()
        self.sock = None
        self.live = False

    def send(self, opcode: Opcode, payload: bytes) -> None:
        """Send a small frame, which the kernel takes whole."""
        assert self.sock is not None
        self.sock.send(Frame(opcode, payload).serialize(mask=True))

    def subscribe(self) -> None:
        """Ask for the topic, from the position on if there is one."""
        position = None if self.epoch is None else [self.epoch, self.offset]
        self.send(Opcode.TEXT, json.dumps({"subscribe": {TOPIC: position}}).encode())

    def feed(self, data: bytes) -> bool:
        """Take what was received; return whether the connection goes on.

        Raises:
            FaultError: If a message is missing, comes twice, or is another one, or nothing was recovered.
        """
        if self.rest:
            data = self.rest + data
        if not self.upgraded:
            head, end, data = data.partition(b"\r\n\r\n")
            if not end:
                self.rest = head
                return True
            if not head.startswith(b"HTTP/1.1 101 "):
                return False
            self.upgraded = True
            self.subscribe()
        parsed = parse(data)
        self.rest = parsed.rest
        return all(map(self.take, parsed.events))

    def take(self, event: Run | dict[str, Any] | tuple[int, bytes]) -> bool:
        """Take one part of what was received; return whether the connection goes on."""
        if isinstance(event, Run):
            if self.offset is not None and event.first != self.offset + 1:
                raise FaultError(f"client {self.number} is at {self.offset} and gets {event}")
            self.offset = event.last
            self.messages += event.last - event.first + 1
        elif isinstance(event, dict):
            if "subscribed" not in event:
                raise FaultError(f"client {self.number} is told {event}")
            self.begin(event["subscribed"][TOPIC])
        elif event[0] == Opcode.CLOSE:
            with contextlib.suppress(OSError):
                self.send(Opcode.CLOSE, event[1][:2])
            return False
        elif event[0] == Opcode.PING:
            with contextlib.suppress(OSError):
                self.send(Opcode.PONG, event[1])
        return True

    def begin(self, position: dict[str, Any]) -> None:
        """Note that the client is subscribed, after what was sent again."""
        if self.epoch is not None and not (position["recovered"] and position["epoch"] == self.epoch):
            raise FaultError(f"client {self.number} was at {self.epoch}-{self.offset} and is told {position}")
        if self.offset is None:
            self.offset = position["offset"]
        if self.offset != position["offset"]:
            raise FaultError(f"client {self.number} has got all up to {self.offset} and is told {position}")
        self.epoch = position["epoch"]
        self.live = True


class Herd:
    """All clients. A client that is disconnected comes back after a random time."""

    def __init__(self, port: int, count: int) -> None:
        self.port = port
        self.clients = [Client(number) for number in range(count)]
        self.within = 1.0
        """Bound of the random time before a client connects, in seconds."""
        self.live = 0
        self.reached = 0
        """Clients that have got all up to `goal`."""
        self.goal = 0
        self.times: list[float] = []
        """When clients were subscribed, by the monotonic clock."""
        self.took: list[float] = []
        """How long that took each, from connecting on."""
        self.refused = 0
        """Attempts that have failed."""
        self._due: list[tuple[float, int]] = []
        self._selector = selectors.DefaultSelector()

    def send_all(self, within: float) -> None:
        """Have all that are not connected connect within some seconds."""
        self.within = within
        for client in self.clients:
            if client.sock is None:
                self._wait(client)

    def cut(self) -> None:
        """Cut all connections; nobody comes back before `send_all()`."""
        self._due.clear()
        for client in self.clients:
            self._drop(client)

    def _wait(self, client: Client) -> None:
        heapq.heappush(self._due, (time.monotonic() + random.random() * self.within, client.number))

    def _drop(self, client: Client) -> None:
        if client.sock is not None:
            self.live -= client.live
            self._selector.unregister(client.sock)
            client.close()

    def _lose(self, client: Client) -> None:
        """Have a client that was disconnected come back."""
        self.refused += not client.live
        self._drop(client)
        self._wait(client)

    def _open(self, client: Client) -> None:
        self._selector.register(client.open(self.port), selectors.EVENT_WRITE, client)

    def open_due(self) -> float:
        """Connect the clients whose time has come; return the seconds until the next one, at most one."""
        while self._due:
            left = self._due[0][0] - time.monotonic()
            if left > 0:
                return min(left, 1.0)
            self._open(self.clients[heapq.heappop(self._due)[1]])
        return 1.0

    def poll(self, timeout: float) -> bool:
        """Read what there is; return whether a command has arrived."""
        command = False
        for key, events in self._selector.select(timeout):
            client: Client | None = key.data
            if client is None:
                command = True
                continue
            try:
                goes_on = self._write(client) if events & selectors.EVENT_WRITE else self._read(client)
            except BlockingIOError:
                continue
            except OSError:
                goes_on = False
            if not goes_on:
                self._lose(client)
        return command

    def listen(self, descriptor: int) -> None:
        """Have `poll()` tell of commands."""
        self._selector.register(descriptor, selectors.EVENT_READ)

    def _write(self, client: Client) -> bool:
        """Go on when the connection is there."""
        sock = client.sock
        assert sock is not None
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            return False
        sock.send(upgrade(self.port))
        self._selector.modify(sock, selectors.EVENT_READ, client)
        return True

    def _read(self, client: Client) -> bool:
        assert client.sock is not None
        data = client.sock.recv(1 << 18)
        if not data:
            return False
        was_live, before = client.live, client.offset or 0
        goes_on = client.feed(data)
        if client.live and not was_live:
            now = time.monotonic()
            self.live += 1
            self.times.append(now)
            self.took.append(now - client.began)
        self.reached += before < self.goal <= (client.offset or 0)
        return goes_on

    def aim(self, goal: int) -> None:
        """Count the clients that have got all up to an offset."""
        self.goal = goal
        self.reached = sum((client.offset or 0) >= goal for client in self.clients)

    def report(self) -> dict[str, Any]:
        """Return the counts since the last report."""
        told = {
            "live": self.live,
            "refused": self.refused,
            "times": self.times,
            "took": self.took,
            "messages": sum(client.messages for client in self.clients),
        }
        self.times, self.took, self.refused = [], [], 0
        return told


class Returning(Clients):
    """Clients that come back where they were, in a process of their own."""

    module = "wsfast_bench.returning"

    async def do(self, name: str, *values: float) -> dict[str, Any]:
        """Have the clients do something, and return their report.

        Args:
            name: `open` with a port, a number of clients and the seconds within which they connect; `cut`; `back` with
                the seconds within which they come back; `wait` with seconds within which those come back that a server
                disconnects, at once; `reach` with an offset. `open`, `back` and `reach` return when it is done.
            *values: Its arguments.

        Raises:
            FaultError: If a message was missing, came twice, or was not recovered.
            UnfitError: If the process has ended.
        """
        answer: dict[str, Any] = json.loads(await self.answer(json.dumps([name, *values])) or "{}")
        if "fault" in answer:
            raise FaultError(answer["fault"])
        if not answer:
            raise UnfitError(f"clients cannot {name}: their process has ended")
        return answer


def _commands(herd: Herd | None, command: list[Any]) -> Iterator[Herd]:
    """Obey a command; yield the clients until it is done."""
    name, *values = command
    if name == "open":
        herd = Herd(int(values[0]), int(values[1]))
        herd.listen(sys.stdin.fileno())
        herd.send_all(values[2])
    assert herd is not None
    if name == "cut":
        herd.cut()
    elif name == "back":
        herd.send_all(values[0])
    elif name == "wait":
        herd.within = values[0]
    elif name == "reach":
        herd.aim(int(values[0]))
        while herd.reached < len(herd.clients):
            yield herd
    while name in ("open", "back") and herd.live < len(herd.clients):
        yield herd
    print(json.dumps(herd.report()), flush=True)
    while True:
        yield herd


def main() -> None:
    """Obey commands on standard input; end with it."""
    if sys.argv[2]:
        os.sched_setaffinity(0, {int(sys.argv[2])})
    herd: Herd | None = None
    pending: Iterator[Herd] | None = None
    try:
        while True:
            if pending is None or (herd is not None and herd.poll(herd.open_due())):
                line = read_line(sys.stdin.fileno())
                if not line:
                    return
                pending = _commands(herd, json.loads(line))
            herd = next(pending)
    except FaultError as exc:
        print(json.dumps({"fault": str(exc)}), flush=True)


if __name__ == "__main__":
    main()
