"""The process of clients that look at what they read.

It obeys lines on standard input, with a line of JSON for each:

- `connect PORT COUNT RECEIVE_BUFFER`: opens connections; SO_RCVBUF is left alone if it is 0.
- `check SIZE STALLED`: so many of the clients never read. The others read all they can; each byte is compared with the
  frames that are expected. `end MESSAGES [SILENCE]` ends it, when they have read so many or nothing comes any more.
- `trickle SIZE RATE`: each client reads so many messages a second. `hurry MESSAGES` has them read all there is, until
  they have the newest of so many messages about each thing, or nothing comes any more.
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
import time
from dataclasses import dataclass, field
from typing import Any

from .numbered import Numbered, newest
from .peer import connect, read_line

__all__ = ["Checker", "Trickle", "main"]

SILENCE = 10.0
"""Seconds without a byte after which nothing is expected any more."""

CHUNK = 65536
"""Bytes that are read at once."""

BLOCK = 256
"""Messages whose frames are made at once."""


class Checker:
    """Compares what clients read with the messages that all of them should get."""

    def __init__(self, size: int) -> None:
        self._numbered = Numbered(size)
        self._bytes = BLOCK * self._numbered.length
        self._blocks: dict[int, bytes] = {}

    def length(self, messages: int) -> int:
        """Return how many bytes so many messages are."""
        return messages * self._numbered.length

    def agrees(self, position: int, data: bytes) -> bool:
        """Tell whether these are the bytes from a position on, at most `CHUNK`."""
        index, offset = divmod(position, self._bytes)
        block = self._blocks.get(index)
        if block is None:
            if len(self._blocks) > 64:
                self._blocks.clear()
            more = CHUNK // self._numbered.length + 1
            block = self._numbered.frames(index * BLOCK, (index + 1) * BLOCK + more)
            self._blocks[index] = block
        return block.startswith(data, offset)


def check(sockets: list[socket.socket], size: int, stalled: int) -> dict[str, int]:
    """Read what there is until a line tells how many messages there were; return what became of the clients."""
    checker = Checker(size)
    stride = len(sockets) // stalled if stalled else len(sockets) + 1
    asleep = set(sockets[::stride][:stalled]) if stalled else set()
    live = {sock.fileno(): sock for sock in sockets if sock not in asleep}
    read = dict.fromkeys(live, 0)
    wrong: set[int] = set()
    control = sys.stdin.fileno()
    poller = select.epoll()
    poller.register(control, select.EPOLLIN)
    for fd in live:
        poller.register(fd, select.EPOLLIN)
    closed: set[int] = set()
    expected: int | None = None
    silence = SILENCE
    missing = len(live)
    since = time.monotonic()
    while missing and (expected is None or time.monotonic() - since < silence):
        for fd, _ in poller.poll(1, 1024):
            if fd == control:
                request = read_line(control).split()
                if not request:
                    sys.exit()
                expected = checker.length(int(request[1]))
                silence = float(request[2]) if len(request) > 2 else SILENCE
                poller.unregister(control)
                missing = sum(count < expected for fd, count in read.items() if fd not in closed)
                since = time.monotonic()
                continue
            try:
                data = live[fd].recv(CHUNK)
            except OSError:
                data = b""
            if not data:
                closed.add(fd)
                missing -= expected is None or read[fd] < expected
                poller.unregister(fd)
                continue
            if fd not in wrong and not checker.agrees(read[fd], data):
                wrong.add(fd)
            read[fd] += len(data)
            since = time.monotonic()
            if expected is not None and read[fd] >= expected > read[fd] - len(data):
                missing -= 1
    if expected is None:  # all of them were closed
        expected = checker.length(int(read_line(control).split()[1]))
    poller.close()
    complete = sum(count == expected and fd not in wrong for fd, count in read.items())
    short = sum(count < expected for count in read.values())
    return {"live": len(live), "complete": complete, "wrong": len(wrong), "short": short, "closed": len(closed)}


@dataclass(slots=True)
class Trickle:
    """A client that reads message by message."""

    sock: socket.socket
    numbered: Numbered
    ages: list[float] = field(default_factory=list)
    """Seconds since each message that it has read was published."""
    latest: dict[int, int] = field(default_factory=dict)
    """Number of the last message about each thing."""
    disordered: int = 0
    """Messages older than another about the same thing that came before."""
    part: bytes = b""

    def read(self) -> bool:
        """Read one message, if it is there; tell whether anything was."""
        try:
            data = self.sock.recv(self.numbered.length - len(self.part))
        except BlockingIOError:
            return False
        if not data:
            raise ConnectionError("the server has closed the connection")
        self.part += data
        if len(self.part) == self.numbered.length:
            mark = self.numbered.mark(self.part)
            self.part = b""
            self.ages.append(time.monotonic() - mark.published)
            self.disordered += self.latest.get(mark.key, -1) >= mark.number
            self.latest[mark.key] = mark.number
        return True


def trickle(sockets: list[socket.socket], size: int, rate: float) -> list[dict[str, Any]]:
    """Read slowly until a line tells how many messages there were, then all; return what each client has seen."""
    clients = [Trickle(sock, Numbered(size)) for sock in sockets]
    control = sys.stdin.fileno()
    start = time.monotonic()
    reads = 0
    while True:
        reads += 1
        wait = max(start + reads / rate - time.monotonic(), 0)
        if select.select([control], [], [], wait)[0]:
            break
        for client in clients:
            before = len(client.ages)
            while len(client.ages) == before and client.read():  # what the kernel has may be a part of a message
                pass
    request = read_line(control).split()
    if not request:
        sys.exit()
    last = newest(int(request[1]))
    told: list[dict[str, Any]] = [{"slow": list(client.ages)} for client in clients]
    since = time.monotonic()
    while time.monotonic() - since < SILENCE and any(client.latest != last for client in clients):
        readable = select.select(sockets, [], [], 0.1)[0]
        for client in clients:
            if client.sock in readable and client.read():
                since = time.monotonic()
    for client, answer in zip(clients, told, strict=True):
        answer["read"] = len(client.ages)
        answer["newest"] = sum(client.latest.get(key) == number for key, number in last.items())
        answer["keys"] = len(last)
        answer["disordered"] = client.disordered
    return told


def main() -> None:
    """Obey; end with standard input."""
    if sys.argv[1]:
        os.sched_setaffinity(0, {int(sys.argv[1])})
    sockets: list[socket.socket] = []
    while request := read_line(sys.stdin.fileno()).split():
        answer: Any = "ok"
        try:
            if request[0] == "connect":
                port, count, receive_buffer = map(int, request[1:])
                sockets += connect(port, count, deflate=False, receive_buffer=receive_buffer or None)
            else:
                print(json.dumps("ok"), flush=True)
                if request[0] == "check":
                    answer = check(sockets, int(request[1]), int(request[2]))
                else:
                    answer = trickle(sockets, int(request[1]), float(request[2]))
        except (OSError, ValueError) as exc:
            answer = {"error": f"{type(exc).__name__}: {exc}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
