"""What is sent in these tests: every kind of message, in every way, and a record of who must receive which."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

import wsfast
from helpers.peers import until
from wsfast.connections.websockets import SEND_IN_PROGRESS

__all__ = ["How", "Kind", "Line", "Sender", "Sent"]

Kind: TypeAlias = Literal["tick", "tiny", "page", "foreign", "noise", "large", "repeated", "heartbeat"]
How: TypeAlias = Literal["broadcast", "settled", "uncompressed", "private"]

KINDS: dict[Kind, int] = {"tick": 700, "tiny": 120, "page": 60, "foreign": 50, "noise": 40, "repeated": 30, "large": 3}
SYMBOLS = ["BTC-USD", "ETH-USD", "EUR-CHF", "XAU-USD", "DE000A1EWWW0"]
FOREIGN = "Grüße, Zürich: 天地玄黄 宇宙洪荒 Ω≈ç√ 🎉🧵 привет мир "
HEARTBEAT = json.dumps({"type": "heartbeat", "says": "still here, still here, and all is well, and nothing to tell"})
CONTAINERS: list[Callable[[Any], Any]] = [list, tuple, set, iter]
CALM, SETTLED, LIVELY, SAME = 400, 250, 300, 100
LAG = 1 << 18  # bytes in the write buffer of a connection


class Sent(NamedTuple):
    """A message that one connection was sent."""

    message: str | bytes
    kind: Kind
    how: How


@dataclass
class Line:
    """A connection on the side that sends, and what its peer must receive."""

    name: str
    connection: Any
    survives_split: bool = True
    """Whether the peer can cope with a ping between the fragments of a compressed message."""
    sent: list[Sent] = field(default_factory=list)
    pongs: list[Any] = field(default_factory=list)


class Messages:
    """An endless mix of messages, the same ones for the same seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.number = 0
        self.recent: list[str | bytes] = []

    def next(self) -> tuple[str | bytes, Kind]:
        """Return a message and what kind it is."""
        self.number += 1
        kind = self.random.choices(list(KINDS), list(KINDS.values()))[0]
        message: str | bytes = getattr(self, f"_{kind}")()
        self.recent = [*self.recent[-20:], message]
        return message, kind

    def _tick(self) -> str:
        tick: dict[str, Any] = {
            "type": "tick",
            "sequence": self.number,
            "symbol": self.random.choice(SYMBOLS),
            "price": round(self.random.uniform(1, 70_000), 2),
        }
        for name in ("bid", "ask", "volume", "open", "high", "low")[: self.random.randint(0, 6)]:
            tick[name] = [round(self.random.uniform(1, 70_000), 2), self.random.randint(0, 99)]
        return json.dumps(tick)

    def _tiny(self) -> str | bytes:
        text = "ok tiny ping back yes no 0123456789 the end of it all, over"[: self.random.randint(0, 60)]
        return text if self.random.random() < 0.7 else text.encode()

    def _page(self) -> str | bytes:
        text = "\n".join(self._tick() for _ in range(self.random.randint(6, 50)))
        return text if self.random.random() < 0.7 else text.encode()

    def _foreign(self) -> str:
        start = self.random.randrange(len(FOREIGN))
        return FOREIGN[start:] + str(self.number) + FOREIGN[:start] * self.random.randint(0, 3)

    def _noise(self) -> bytes:
        return self.random.randbytes(self.random.randint(1, 3000))

    def _large(self) -> str | bytes:
        size = self.random.randint(66_000, 130_000)
        if self.random.random() < 0.5:
            return self.random.randbytes(size)
        return (self._tick() + self._foreign() + "x" * self.random.randint(0, 300)) * (size // 300)

    def _repeated(self) -> str | bytes:
        return self.random.choice(self.recent) if self.recent else ""


class Sender:
    """Sends to its lines until each has got its share; then it closes them."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.messages = Messages(seed)
        self.heartbeat = wsfast.PreparedMessage(HEARTBEAT)
        self.lines: list[Line] = []
        self.steps = 0
        self.skipped = 0

    # ---- In all ways, and all of them mixed

    async def play(self, *, count: int) -> None:
        """Go on until each line has got at least `count` messages. One that has got them is closed."""
        while self.lines:
            await self.calm(count)
            await self.lively(count)
            await self.same(count)

    async def calm(self, count: int) -> None:
        """Broadcast to all, and do little else: soon what is common to all fills the largest window."""
        for number in range(CALM):
            how: How = "settled" if number >= SETTLED else "broadcast"
            self.broadcast(how, self.lines)
            if self.lines and number % 50 == 0:
                await self.ping()
            await self.turn(count)

    async def same(self, count: int) -> None:
        """Broadcast to all in turns with one half of them."""
        for number in range(SAME):
            self.broadcast("broadcast", self.lines[number % 2 :: 2] if number % 3 else self.lines)
            await self.turn(count)

    async def lively(self, count: int) -> None:
        """Do everything there is."""
        ways: dict[Callable[[], Any], int] = {
            lambda: self.broadcast("broadcast", self.lines): 40,
            lambda: self.broadcast("broadcast", self.some()): 16,
            lambda: self.broadcast("broadcast", self.lines[::2]): 8,
            lambda: self.broadcast("uncompressed", self.some()): 5,
            lambda: self.broadcast("uncompressed", self.lines): 5,
            self.send_heartbeat: 6,
            self.retype: 3,
            self.send: 20,
            self.send_fragments: 3,
            self.send_fragments_and_broadcast: 3,
            self.ping: 4,
        }
        for _ in range(LIVELY):
            if not self.lines:
                return
            doing = self.random.choices(list(ways), list(ways.values()))[0]()
            if doing is not None:
                await doing
            await self.turn(count)

    async def turn(self, count: int) -> None:
        """Let the event loop run now and then, and let nobody lag far behind."""
        self.steps += 1
        if self.steps % 8:
            return
        await asyncio.sleep(0)
        transports = [line.connection.transport for line in self.lines]
        await until(lambda: all(transport.get_write_buffer_size() < LAG for transport in transports), "the receivers")
        for line in list(self.lines):
            if len(line.sent) >= count:
                self.lines.remove(line)
                await asyncio.gather(*line.pongs)
                await line.connection.close()

    def some(self) -> list[Line]:
        """Return some of the lines."""
        return self.random.sample(self.lines, self.random.randint(1, len(self.lines)) if self.lines else 0)

    # ---- One way each

    def broadcast(
        self,
        how: How,
        lines: Sequence[Line],
        *,
        busy: Line | None = None,
    ) -> None:
        """Broadcast the next message."""
        message, kind = self.messages.next()
        options = {"compress": False} if how == "uncompressed" else {}
        self.deliver(lines, message, Sent(message, kind, how), busy=busy, **options)

    def send_heartbeat(self) -> None:
        """Broadcast a message that was prepared once."""
        self.deliver(self.lines, self.heartbeat, Sent(HEARTBEAT, "heartbeat", "broadcast"))

    def retype(self) -> None:
        """Broadcast a string as a binary message, or bytes as a text."""
        text = self.messages._tick()
        if self.random.random() < 0.5:
            self.deliver(self.lines, text, Sent(text.encode(), "tick", "broadcast"), text=False)
        else:
            self.deliver(self.lines, text.encode(), Sent(text, "tick", "broadcast"), text=True)

    def deliver(
        self,
        lines: Sequence[Line],
        message: Any,
        sent: Sent,
        *,
        busy: Line | None = None,
        **options: Any,
    ) -> None:
        """Call broadcast(), and take note of who must receive what; those with a fragmented message must not."""
        container = self.random.choice(CONTAINERS)
        delivery = wsfast.broadcast(container([line.connection for line in lines]), message, **options)
        skipped = sum(line is busy for line in lines)
        gone = [
            (line.name, line.connection.protocol.close_rcvd) for line in lines if line.connection.protocol.close_rcvd
        ]
        assert not gone, gone
        assert (sum(delivery), delivery.skipped, delivery.failed) == (len(lines), skipped, 0), delivery
        self.skipped += skipped
        for line in lines:
            if line is not busy:
                line.sent.append(sent)

    async def send(self) -> None:
        """Send something to one connection alone."""
        line = self.random.choice(self.lines)
        message, kind = self.messages.next()
        line.sent.append(Sent(message, kind, "private"))
        await line.connection.send(message)

    async def send_fragments(self) -> None:
        """Send something to one connection alone, in fragments."""
        line = self.random.choice(self.lines)
        message, kind = self.messages.next()
        line.sent.append(Sent(message, kind, "private"))
        await line.connection.send(self.cut(message))

    async def send_fragments_and_broadcast(self) -> None:
        """Broadcast while a fragmented message is being sent to one connection, which must miss the broadcasts."""
        line = self.random.choice(self.lines)
        message, kind = self.messages.next()
        gate = asyncio.get_running_loop().create_future()

        async def fragments() -> AsyncIterator[str | bytes]:
            first, *others = self.cut(message)
            yield first
            await gate
            for other in others:
                yield other

        sending = asyncio.ensure_future(line.connection.send(fragments()))
        await until(lambda: getattr(line.connection, SEND_IN_PROGRESS) is not None, "the first fragment")
        for how in ("broadcast", "broadcast", "uncompressed"):
            self.broadcast(how, self.lines, busy=line)
        if line.survives_split:
            line.pongs.append(await line.connection.ping())
        gate.set_result(None)
        await sending
        line.sent.append(Sent(message, kind, "private"))

    async def ping(self) -> None:
        """Ping one of the connections."""
        line = self.random.choice(self.lines)
        line.pongs.append(await line.connection.ping())

    def cut(self, message: str | bytes) -> list[str | bytes]:
        """Cut a message in pieces, some of which may be empty."""
        cuts = sorted(self.random.randint(0, len(message)) for _ in range(self.random.randint(1, 4)))
        return [message[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(message)], strict=True)]
