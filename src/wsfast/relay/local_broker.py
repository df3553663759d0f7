"""The processes of one machine, connected with each other by Unix sockets, instead of a broker.

Each process listens at a socket of its own, and connects to the sockets of all others. It publishes through the
connections that it has made, and receives through those that others have made:

- The process that connects sends the name of its own socket, so that the other process connects back.
- The other process answers with the topics, patterns and users that it is interested in, and sends each change. The
  publisher confirms that, and sends only what is wanted.
- A process that does not read its messages counts as lost: the connection is closed and made anew. The other process
  learns that by the new connection, and asks for positions, which tell what it has missed.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from .broker import Interest, Receive, Receiving, Sending
from .interests import Interests
from .link import CONFIRMATION, HEADER, HELLO, INTERESTS, LARGEST, PACKET, Link
from .runtime_directory import RuntimeDirectory
from .wire import Address

__all__ = ["LocalBroker"]

START = 1.0
"""Seconds that a process waits for the answers of those that are there when it starts."""

PATIENCE = 0.1
"""Seconds that a publisher waits for room. After that, it goes on, and the others are not kept waiting."""

LOOK = 1.0
"""Seconds between two looks at the directory. Processes tell each other when they start, unless one is too busy."""

CHUNK = 5000
"""Interests in one frame."""


class _Peer:
    """Another process."""

    __slots__ = ("incoming", "met", "outgoing", "silent")

    def __init__(self) -> None:
        self.outgoing: Link | None = None
        self.incoming: Link | None = None
        self.met = False  # whether there was a connection to it before
        self.silent = False  # whether it has not answered in time, so that nobody waits for it


class LocalBroker:
    """The processes whose sockets are in the same directory.

    Args:
        directory: See `wsfast.relay.local()`.
        prefix: Beginning of the names of sockets.
        timeout: Seconds after which a process that does not read or answer counts as lost.
    """

    echoes: bool = False

    def __init__(self, directory: str | os.PathLike[str] | None, prefix: str, timeout: float) -> None:
        self._directory = RuntimeDirectory(directory, prefix)
        self.name: str = str(self._directory)
        self._timeout = timeout
        self._users = 0
        self._opening = asyncio.Lock()
        self._changed = asyncio.Event()
        self._failed: asyncio.Future[None] | None = None
        self._own = ""  # name of our socket
        self._server: asyncio.Server | None = None
        self._watching: asyncio.Task[None] | None = None
        self._connecting: set[asyncio.Task[None]] = set()
        self._peers: dict[str, _Peer] = {}
        self._links: set[Link] = set()  # all that are not closed
        self._wanted: Interests[Link] = Interests()  # by others
        self._interests: dict[Interest, None] = {}  # our own
        self._number = 0  # of the last change of our interests
        self._receive: Receive | None = None
        self._on_missed: Callable[[], None] | None = None

    def channel(self, interest: Interest | None) -> bytes:
        """Return the channel, which is the same for all: packets say themselves what they are about."""
        return b""

    # ---- Open and close

    async def open_sending(self) -> Sending:
        """Connect to the other processes."""
        await self._open()
        return _Sending(self)

    async def open_receiving(self, receive: Receive, on_missed: Callable[[], None]) -> Receiving:
        """Have the other processes connect to this one."""
        self._receive, self._on_missed = receive, on_missed
        await self._open()
        if self._interests:  # they are told again
            self.unsubscribe(list(self._interests))
        return _Receiving(self)

    async def _open(self) -> None:
        async with self._opening:
            if self._server is None:
                await self._listen()
            if self._watching is None:
                self._failed = asyncio.get_running_loop().create_future()
                self._look()
                self._watching = asyncio.create_task(self._watch())
                try:
                    await self._until(lambda: not self._unanswered(), min(START, self._timeout / 2))
                except BaseException:
                    self._end()
                    raise
                for peer in self._unanswered():
                    peer.silent = True
            self._users += 1

    async def leave(self) -> None:
        """Close everything, if this was the last user."""
        self._users -= 1
        if self._users:
            return
        self._end()
        try:
            # Tasks that connect are not cancelled: with uvloop, the connection would stay open.
            await self._until(lambda: not self._connecting and all(link.closed for link in self._links), self._timeout)
        finally:
            for link in self._links:
                link.abort()
            self._links.clear()

    def _end(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            self._watching = None
        if self._server is not None:
            self._directory.remove(self._own)
            self._server.close()
            self._server = None
        incoming = {peer.incoming for peer in self._peers.values()}
        for link in self._links:
            if link in incoming or not link.ready:
                link.abort()
            else:
                link.close()
            self._wanted.discard(link)
        self._peers.clear()

    async def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        self._own = self._own or self._directory.new_name()
        listening = self._directory.listen(self._own)
        try:
            self._server = await loop.create_unix_server(self._accept, sock=listening)
        except BaseException:
            self._directory.remove(self._own)
            listening.close()
            raise

    async def _until(self, holds: Callable[[], bool], seconds: float) -> None:
        """Wait until a condition holds, at most for some seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not holds():
                    self._changed.clear()
                    await self._changed.wait()

    # ---- Other processes

    async def _watch(self) -> None:
        """Look from time to time whether a process is lost or was overlooked, and whether our own socket is there."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(min(LOOK, self._timeout / 2))
            oldest = loop.time() - self._timeout
            for peer in list(self._peers.values()):
                link = peer.outgoing
                if link is not None and link.full_since is not None and link.full_since < oldest:
                    self._reconnect(link)
            self._look()
            if not self._directory.has(self._own) and self._server is not None:
                self._server.close()
                self._server = None
                try:
                    await self._listen()
                except OSError as exc:
                    assert self._failed is not None
                    self._failed.set_exception(exc)
                    self._watching = None
                    return

    def _look(self) -> None:
        """Connect to all processes to which there is no connection, and forget those that have ended."""
        names = self._directory.names()
        for name in self._peers.keys() - names:  # another process has removed the socket
            ended = self._peers[name]
            if ended.outgoing is None and ended.incoming is None:
                del self._peers[name]
                self._changed.set()
        for name in names:
            if name != self._own and ((peer := self._peers.get(name)) is None or peer.outgoing is None):
                self._connect(name)

    def _connect(self, name: str) -> None:
        try:
            connection = self._directory.connect(name)
        except OSError:  # too many wait there already
            return
        peer = self._peers.setdefault(name, _Peer())
        if connection is None:  # its process has ended
            if peer.incoming is None:
                del self._peers[name]
            self._changed.set()
            return
        link = peer.outgoing = self._link(self._on_interests, self._reconnect)
        link.peer = name
        task = asyncio.create_task(self._greet(link, connection, peer.met))
        self._connecting.add(task)
        task.add_done_callback(self._connected)

    def _connected(self, task: asyncio.Task[None]) -> None:
        self._connecting.discard(task)
        self._changed.set()

    async def _greet(self, link: Link, connection: socket.socket, again: bool) -> None:
        try:
            await asyncio.get_running_loop().create_unix_connection(lambda: link, sock=connection)
        except OSError:
            self._reconnect(link)
        except BaseException:
            connection.close()
            raise
        else:
            link.send(HELLO, [self._own, again])

    def _link(self, on_control: Callable[[Link, int, Any], None], on_lost: Callable[[Link], None]) -> Link:
        self._links = {link for link in self._links if not (link.lost and link.closed)}
        link = Link(self._on_packet, on_control, self._on_error, self._changed.set, on_lost)
        self._links.add(link)
        return link

    def _accept(self) -> Link:
        return self._link(self._on_hello, self._on_incoming_lost)

    def _reconnect(self, link: Link) -> None:
        """Close a connection that was made here, and make another one unless the process has ended."""
        link.abort()
        self._wanted.discard(link)
        self._changed.set()
        peer = self._peers.get(link.peer)
        if peer is None or peer.outgoing is not link:
            return
        peer.outgoing = None
        if link.ready or not self._directory.has(link.peer):  # otherwise `_look()` does it, not too often
            self._connect(link.peer)

    def _on_incoming_lost(self, link: Link) -> None:
        peer = self._peers.get(link.peer)
        if peer is not None and peer.incoming is link:
            peer.incoming = None
            if peer.outgoing is None and not self._directory.has(link.peer):
                del self._peers[link.peer]
        self._changed.set()

    # ---- Frames

    def _on_packet(self, data: bytes) -> None:
        if self._receive is not None:
            self._receive(data, b"")

    def _on_error(self, exc: Exception) -> None:
        context = {"message": "a message of another process could not be delivered", "exception": exc}
        asyncio.get_running_loop().call_exception_handler(context)
        if self._on_missed is not None:
            self._on_missed()

    def _on_hello(self, link: Link, kind: int, contents: Any) -> None:
        """Process a frame of a process that has connected to this one: a greeting, or a confirmation."""
        if kind == CONFIRMATION:
            link.confirmed = int(contents)
            self._changed.set()
            return
        name, again = contents
        if kind != HELLO or link.peer or not self._directory.is_name(name):
            raise ValueError("it is no greeting")
        link.peer = name
        link.ready = True
        peer = self._peers.setdefault(name, _Peer())
        if peer.incoming is not None:  # what is newer must not come before what waits there
            peer.incoming.abort()
        peer.incoming = link
        peer.silent = False
        self._tell(link, self._number, self._interests, ())
        if peer.outgoing is None:
            self._connect(name)
        if again and self._on_missed is not None:
            self._on_missed()

    def _tell(self, link: Link, number: int, new: Iterable[Interest], old: Iterable[Interest]) -> None:
        """Tell a publisher our new and old interests. The number comes last: it is confirmed."""
        iterator = iter(new)
        while len(some := list(itertools.islice(iterator, CHUNK))) == CHUNK:
            link.send(INTERESTS, [None, some, []])
        link.send(INTERESTS, [number, some, list(old)])

    def _on_interests(self, link: Link, kind: int, contents: Any) -> None:
        """Process a frame of a process to which this one has connected."""
        if kind != INTERESTS:
            raise ValueError("it is no list of interests")
        number, new, old = contents
        self._wanted.add(link)
        for kind_of, name in new:
            self._wanted.add(link, (kind_of, name))
        for kind_of, name in old:
            self._wanted.remove(link, (kind_of, name))
        if number is not None:
            link.ready = True
            if (peer := self._peers.get(link.peer)) is not None:
                peer.met = True
            link.send(CONFIRMATION, number)
            self._changed.set()

    # ---- Publish and subscribe

    def publish(self, packets: Sequence[tuple[Address | None, bytes]]) -> dict[int, Exception]:
        """Write packets to all who want them; return the reasons of those that are too large, by index."""
        receivers = self._wanted.receivers
        groups: dict[tuple[Link, ...], list[bytes]] = {}
        refused: dict[int, Exception] = {}
        for index, (address, data) in enumerate(packets):
            if len(data) > LARGEST:
                refused[index] = ValueError(f"it has {len(data)} bytes, more than {LARGEST}")
            elif links := receivers(address):
                parts = groups.get(links)
                if parts is None:
                    parts = groups[links] = []
                parts += (HEADER.pack(len(data), PACKET), data)
        chunks: dict[Link, list[bytes]] = {}
        for links, parts in groups.items():
            joined = b"".join(parts)
            for link in links:
                chunks.setdefault(link, []).append(joined)
        for link, some in chunks.items():
            if not link.write(some):
                self._reconnect(link)
        return refused

    async def wait_for_room(self) -> None:
        """Wait until those have read who read at all."""
        full = self._full()
        if full:
            await self._until(lambda: not self._full(), min(PATIENCE, self._timeout / 4))
            for link in self._full():
                link.is_waited_for = False

    def _full(self) -> list[Link]:
        links = [peer.outgoing for peer in self._peers.values()]
        return [link for link in links if link is not None and link.full_since is not None and link.is_waited_for]

    async def subscribe(self, interests: Sequence[Interest | None]) -> None:
        """Tell all publishers of new interests, and wait until they have confirmed them."""
        new = [interest for interest in interests if interest is not None]
        self._interests.update(dict.fromkeys(new))
        self._change(new, ())
        number = self._number
        await self._until(lambda: not self._unanswered(number), self._timeout)
        for peer in self._unanswered(number):
            peer.silent = True
            if peer.incoming is not None:
                peer.incoming.abort()
                peer.incoming = None

    def unsubscribe(self, interests: Sequence[Interest]) -> None:
        """Tell all publishers of interests that have ended."""
        for interest in interests:
            self._interests.pop(interest, None)
        self._change((), interests)

    def _change(self, new: Sequence[Interest], old: Sequence[Interest]) -> None:
        self._number += 1
        for peer in self._peers.values():
            if peer.incoming is not None:
                self._tell(peer.incoming, self._number, new, old)

    def _unanswered(self, number: int = 0) -> list[_Peer]:
        """Return the processes that have not answered, or not confirmed a change of our interests."""
        return [
            peer
            for peer in self._peers.values()
            if not peer.silent
            and (
                peer.incoming is None or peer.incoming.confirmed < number or not (peer.outgoing and peer.outgoing.ready)
            )
        ]

    async def run(self) -> None:
        """Wait until there is no socket any more by which others find this process."""
        assert self._failed is not None
        await asyncio.shield(self._failed)


class _Sending:
    largest: int = LARGEST

    def __init__(self, broker: LocalBroker) -> None:
        self._broker = broker

    async def publish(self, packets: Sequence[tuple[Address | None, bytes]]) -> dict[int, Exception]:
        refused = self._broker.publish(packets)
        await self._broker.wait_for_room()
        return refused

    async def close(self) -> None:
        await self._broker.leave()


class _Receiving:
    def __init__(self, broker: LocalBroker) -> None:
        self._broker = broker

    async def subscribe(self, interests: Sequence[Interest | None]) -> None:
        await self._broker.subscribe(interests)

    async def unsubscribe(self, interests: Sequence[Interest]) -> None:
        self._broker.unsubscribe(interests)

    async def run(self) -> None:
        await self._broker.run()

    async def close(self) -> None:
        await self._broker.leave()
