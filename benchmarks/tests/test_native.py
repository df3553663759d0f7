"""What the benchmarks stand on: send_many(), their floor, and drain(), their clients."""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import socket
import sys
import tempfile
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import TypeAlias

import pytest
from websockets.frames import Frame, Opcode

from wsfast_bench import _native_py

PATIENCE = 60

Send: TypeAlias = "Callable[[array[int], bytes], list[tuple[int, int]]]"

linux = pytest.mark.skipif(sys.platform != "linux", reason="sendfile() of a file in memory is Linux's")


@pytest.fixture(params=["c", "py"])
def twin(request: pytest.FixtureRequest) -> ModuleType:
    """The extension and its twin, whichever is in use."""
    if request.param == "py":
        return _native_py
    return importlib.import_module("wsfast_bench._native")


@pytest.fixture
def pairs() -> Iterator[list[tuple[socket.socket, socket.socket]]]:
    """Three connections: the server's end, and the client's, which does not block."""
    with ExitStack() as stack:
        pairs = [socket.socketpair() for _ in range(3)]
        for ours, theirs in pairs:
            stack.enter_context(ours)
            stack.enter_context(theirs)
            theirs.setblocking(False)
        yield pairs


def frame(size: int) -> bytes:
    """Return a server's frame with so many octets of payload."""
    return Frame(Opcode.BINARY, bytes(size)).serialize(mask=False)


class Drain:
    """A drain() at work in a thread."""

    def __init__(self, twin: ModuleType, sockets: list[socket.socket], *, records: bool = False) -> None:
        self.count = memoryview(bytearray(16)).cast("Q")
        self.stop_fd, self.stop = os.pipe()
        descriptors = array("i", [sock.fileno() for sock in sockets])
        arguments = (descriptors, self.stop_fd, self.count, False, records)
        self.thread = threading.Thread(target=twin.drain, args=arguments)
        self.thread.start()

    def wait_for(self, messages: int, octets: int) -> None:
        """Wait until so many messages have been read, and so many octets of them."""
        deadline = time.monotonic() + PATIENCE
        while self.count[1] < messages or self.count[0] < octets:
            assert time.monotonic() < deadline, f"{self.count[1]} of {messages} messages"
            time.sleep(0.0001)
        assert list(self.count) == [octets, messages]

    def join(self) -> None:
        """Wait until it has ended."""
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()


@contextmanager
def draining(twin: ModuleType, sockets: list[socket.socket], *, records: bool = False) -> Iterator[Drain]:
    drain = Drain(twin, sockets, records=records)
    try:
        yield drain
    finally:
        os.close(drain.stop)
        drain.join()
        os.close(drain.stop_fd)


class TestDrain:
    """drain() reads and discards."""

    def test_counts_what_arrives(self, twin: ModuleType, pairs: list[tuple[socket.socket, socket.socket]]) -> None:
        """What arrives at any of the sockets is counted as it comes."""
        with draining(twin, [theirs for _, theirs in pairs]) as drain:
            pairs[0][0].sendall(frame(10))
            drain.wait_for(1, 12)
            for ours, _ in pairs:
                ours.sendall(frame(100))
            drain.wait_for(4, 12 + 3 * 102)

    def test_drains_more_than_sockets_hold(
        self, twin: ModuleType, pairs: list[tuple[socket.socket, socket.socket]]
    ) -> None:
        """A sender that blocks until there is room gets rid of everything."""
        with draining(twin, [theirs for _, theirs in pairs]) as drain:
            pairs[1][0].sendall(frame(4 << 20))
            drain.wait_for(1, (4 << 20) + 10)

    @pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536])
    def test_reads_frames_that_are_cut_anywhere(
        self, size: int, twin: ModuleType, pairs: list[tuple[socket.socket, socket.socket]]
    ) -> None:
        """A message counts when all of it has arrived, its octets before that."""
        ours = pairs[0][0]
        data = frame(size)
        with draining(twin, [theirs for _, theirs in pairs]) as drain:
            for number in range(1, 4):
                for at in range(min(len(data) - 1, 12)):
                    ours.sendall(data[at : at + 1])
                assert drain.count[1] < number
                ours.sendall(data[min(len(data) - 1, 12) :])
                drain.wait_for(number, number * len(data))

    def test_answers_pings(self, twin: ModuleType, pairs: list[tuple[socket.socket, socket.socket]]) -> None:
        """Pings are answered, also between the fragments of a message; control frames are not counted."""
        ours = pairs[0][0]
        with draining(twin, [theirs for _, theirs in pairs]) as drain:
            ours.sendall(b"\x01\x01H\x89\x04ab")
            drain.wait_for(0, 3)
            ours.sendall(b"cd\x8a\x01x\x80\x01i\x89\x00" + frame(1))
            drain.wait_for(2, 9)
            pongs = b""
            while len(pongs) < 16:
                pongs += ours.recv(16)
        assert pongs == b"\x8a\x84\0\0\0\0abcd" + b"\x8a\x80\0\0\0\0"

    @pytest.mark.parametrize("data", [b"\x81\x81keykx", b"\x89\x7e\x00\x7e"], ids=["masked", "long ping"])
    def test_what_breaks_the_rules_has_ended(
        self, data: bytes, twin: ModuleType, pairs: list[tuple[socket.socket, socket.socket]]
    ) -> None:
        """A frame that no server may send ends its connection, and no other one."""
        with draining(twin, [theirs for _, theirs in pairs[:2]]) as drain:
            pairs[0][0].sendall(data)
            pairs[1][0].sendall(frame(1))
            drain.wait_for(1, 3)
            pairs[1][0].close()
            drain.join()

    @pytest.mark.parametrize("size", [0, 1, 300, 16384])
    def test_counts_records(
        self, size: int, twin: ModuleType, pairs: list[tuple[socket.socket, socket.socket]]
    ) -> None:
        """A record of TLS counts when all of it has arrived, wherever it is cut; what is in it does not matter."""
        ours = pairs[0][0]
        record = b"\x17\x03\x03" + size.to_bytes(2) + b"\x15" * size
        with draining(twin, [theirs for _, theirs in pairs], records=True) as drain:
            for number in range(1, 4):
                for at in range(min(len(record) - 1, 7)):
                    ours.sendall(record[at : at + 1])
                assert drain.count[1] < number
                ours.sendall(record[min(len(record) - 1, 7) :])
                drain.wait_for(number, number * len(record))
            pairs[1][0].sendall(record * 2)
            drain.wait_for(5, 5 * len(record))

    def test_record_of_another_type_has_ended(
        self, twin: ModuleType, pairs: list[tuple[socket.socket, socket.socket]]
    ) -> None:
        """An alert ends its connection, and no other one."""
        with draining(twin, [theirs for _, theirs in pairs[:2]], records=True) as drain:
            pairs[0][0].sendall(b"\x15\x03\x03\0\2\1\0")
            pairs[1][0].sendall(b"\x17\x03\x03\0\1x")
            drain.wait_for(1, 6)
            pairs[1][0].close()
            drain.join()

    def test_ends_when_told_by_the_pipe(
        self, twin: ModuleType, pairs: list[tuple[socket.socket, socket.socket]]
    ) -> None:
        """A byte in the pipe ends it."""
        with draining(twin, [theirs for _, theirs in pairs]) as drain:
            os.write(drain.stop, b"x")
            drain.join()

    def test_ends_with_the_pipe(self, twin: ModuleType, pairs: list[tuple[socket.socket, socket.socket]]) -> None:
        """The end of the process at the other end of the pipe ends it."""
        with draining(twin, [theirs for _, theirs in pairs]):
            pass

    def test_ends_with_the_last_socket(
        self, twin: ModuleType, pairs: list[tuple[socket.socket, socket.socket]]
    ) -> None:
        """It goes on until all sockets have ended."""
        with draining(twin, [theirs for _, theirs in pairs]) as drain:
            pairs[0][0].close()
            pairs[1][0].close()
            pairs[2][0].sendall(frame(1))
            drain.wait_for(1, 3)
            pairs[2][0].close()
            drain.join()

    def test_no_sockets(self, twin: ModuleType) -> None:
        """Without sockets, it ends at once."""
        with draining(twin, []) as drain:
            drain.join()

    def test_adds_to_the_counter(self, twin: ModuleType, pairs: list[tuple[socket.socket, socket.socket]]) -> None:
        """What the counter held before stays in it."""
        ours, theirs = pairs[0]
        ours.sendall(frame(7))
        ours.shutdown(socket.SHUT_WR)
        count = array("Q", [1 << 40, 1 << 41])
        stop_fd, stop = os.pipe()
        twin.drain(array("i", [theirs.fileno()]), stop_fd, memoryview(count))
        os.close(stop_fd)
        os.close(stop)
        assert list(count) == [(1 << 40) + 9, (1 << 41) + 1]

    def test_bad_descriptor(self, twin: ModuleType) -> None:
        """What cannot be watched is an error."""
        stop_fd, stop = os.pipe()
        os.close(stop)
        os.close(stop_fd)
        with pytest.raises((OSError, ValueError)):
            twin.drain(array("i"), stop_fd, memoryview(array("Q", [0, 0])))


def by_file(twin: ModuleType, fds: array[int], data: bytes) -> list[tuple[int, int]]:
    """Send by `sendfile()`, which needs sockets that do not block."""
    for fd in fds:
        os.set_blocking(fd, False)
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        cut: list[tuple[int, int]] = twin.send_file_many(fds, file.fileno(), len(data))
    return cut


@pytest.fixture(params=["send", pytest.param("sendfile", marks=linux)])
def send_many(request: pytest.FixtureRequest, twin: ModuleType) -> Send:
    """What sends to all: by `send()`, or by `sendfile()`."""
    return twin.send_many if request.param == "send" else functools.partial(by_file, twin)


class TestSendMany:
    """send_many() and send_file_many() offer, and do not look back."""

    def test_sends_to_all(self, send_many: Send, pairs: list[tuple[socket.socket, socket.socket]]) -> None:
        """All descriptors get the data."""
        assert send_many(array("i", [ours.fileno() for ours, _ in pairs]), b"data") == []
        assert [theirs.recv(10) for _, theirs in pairs] == [b"data"] * 3

    def test_sends_in_order(self, send_many: Send, pairs: list[tuple[socket.socket, socket.socket]]) -> None:
        """A descriptor that is given twice gets the data twice."""
        ours, theirs = pairs[0]
        assert send_many(array("i", [ours.fileno()] * 2), b"data") == []
        assert theirs.recv(10) == b"datadata"

    def test_tells_what_was_not_taken(self, send_many: Send, pairs: list[tuple[socket.socket, socket.socket]]) -> None:
        """Neither a socket that is full nor one whose peer has gone stops it, and both are told."""
        for ours, _ in pairs:
            ours.setblocking(False)
        full, gone, good = (ours for ours, _ in pairs)
        with contextlib.suppress(BlockingIOError):
            while True:
                full.send(bytes(65536))
        pairs[1][1].close()
        assert send_many(array("i", [full.fileno(), gone.fileno(), good.fileno()]), b"data") == [(0, 0), (1, 0)]
        assert pairs[2][1].recv(10) == b"data"

    def test_tells_how_much_was_taken(self, send_many: Send, pairs: list[tuple[socket.socket, socket.socket]]) -> None:
        """Of a frame that is cut, it is told where."""
        ours, theirs = pairs[0]
        ours.setblocking(False)
        ((index, taken),) = send_many(array("i", [ours.fileno()]), bytes(16 << 20))
        assert index == 0
        assert 0 < taken < 16 << 20
        received = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                received += len(theirs.recv(1 << 20))
        assert received == taken

    def test_no_descriptors(self, send_many: Send) -> None:
        """Without descriptors, there is nothing to do."""
        assert send_many(array("i"), b"data") == []
