"""What the benchmarks stand on: send_many(), their floor, and drain(), their clients."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from array import array
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType

import pytest

from wsfast._core import _pure

PATIENCE = 60


@pytest.fixture(params=["c", "py"])
def twin(request: pytest.FixtureRequest) -> ModuleType:
    """Either core, whichever of them is in use."""
    if request.param == "py":
        return _pure
    extension: ModuleType = pytest.importorskip("wsfast._core._core")
    return extension


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


class Drain:
    """A drain() at work in a thread."""

    def __init__(self, twin: ModuleType, sockets: list[socket.socket]) -> None:
        self.octets = memoryview(bytearray(8)).cast("Q")
        self.stop_fd, self.stop = os.pipe()
        descriptors = array("i", [sock.fileno() for sock in sockets])
        self.thread = threading.Thread(target=twin.drain, args=(descriptors, self.stop_fd, self.octets))
        self.thread.start()

    def wait_for(self, octets: int) -> None:
        """Wait until so many octets have been read."""
        deadline = time.monotonic() + PATIENCE
        while self.octets[0] < octets:
            assert time.monotonic() < deadline, f"{self.octets[0]} of {octets} octets"
            time.sleep(0.0001)
        assert self.octets[0] == octets

    def join(self) -> None:
        """Wait until it has ended."""
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()


@contextmanager
def draining(twin: ModuleType, sockets: list[socket.socket]) -> Iterator[Drain]:
    drain = Drain(twin, sockets)
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
            pairs[0][0].sendall(b"x" * 10)
            drain.wait_for(10)
            for ours, _ in pairs:
                ours.sendall(b"x" * 100)
            drain.wait_for(310)

    def test_drains_more_than_sockets_hold(
        self, twin: ModuleType, pairs: list[tuple[socket.socket, socket.socket]]
    ) -> None:
        """A sender that blocks until there is room gets rid of everything."""
        with draining(twin, [theirs for _, theirs in pairs]) as drain:
            pairs[1][0].sendall(bytes(4 << 20))
            drain.wait_for(4 << 20)

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
            pairs[2][0].sendall(b"x")
            drain.wait_for(1)
            pairs[2][0].close()
            drain.join()

    def test_no_sockets(self, twin: ModuleType) -> None:
        """Without sockets, it ends at once."""
        with draining(twin, []) as drain:
            drain.join()

    def test_adds_to_the_counter(self, twin: ModuleType, pairs: list[tuple[socket.socket, socket.socket]]) -> None:
        """What the counter held before stays in it."""
        ours, theirs = pairs[0]
        ours.sendall(b"x" * 7)
        ours.shutdown(socket.SHUT_WR)
        octets = array("Q", [1 << 40])
        stop_fd, stop = os.pipe()
        twin.drain(array("i", [theirs.fileno()]), stop_fd, memoryview(octets))
        os.close(stop_fd)
        os.close(stop)
        assert octets[0] == (1 << 40) + 7

    def test_bad_descriptor(self, twin: ModuleType) -> None:
        """What cannot be watched is an error."""
        stop_fd, stop = os.pipe()
        os.close(stop)
        os.close(stop_fd)
        with pytest.raises((OSError, ValueError)):
            twin.drain(array("i"), stop_fd, memoryview(array("Q", [0])))


class TestSendMany:
    """send_many() offers, and does not look back."""

    def test_sends_to_all(self, twin: ModuleType, pairs: list[tuple[socket.socket, socket.socket]]) -> None:
        """All descriptors get the data."""
        assert twin.send_many(array("i", [ours.fileno() for ours, _ in pairs]), b"data") == 3
        assert [theirs.recv(10) for _, theirs in pairs] == [b"data"] * 3

    def test_sends_in_order(self, twin: ModuleType, pairs: list[tuple[socket.socket, socket.socket]]) -> None:
        """A descriptor that is given twice gets the data twice."""
        ours, theirs = pairs[0]
        assert twin.send_many(array("i", [ours.fileno()] * 2), b"data") == 2
        assert theirs.recv(10) == b"datadata"

    def test_counts_what_was_taken_completely(
        self, twin: ModuleType, pairs: list[tuple[socket.socket, socket.socket]]
    ) -> None:
        """Neither a socket that is full nor one whose peer has gone counts, nor do they stop it."""
        for ours, _ in pairs:
            ours.setblocking(False)
        full, gone, good = (ours for ours, _ in pairs)
        with contextlib.suppress(BlockingIOError):
            while True:
                full.send(bytes(65536))
        pairs[1][1].close()
        assert twin.send_many(array("i", [full.fileno(), gone.fileno(), good.fileno()]), b"data") == 1
        assert pairs[2][1].recv(10) == b"data"

    def test_no_descriptors(self, twin: ModuleType) -> None:
        """Without descriptors, there is nothing to do."""
        assert twin.send_many(array("i"), b"data") == 0
