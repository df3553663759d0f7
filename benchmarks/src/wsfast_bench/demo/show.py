"""Who gets which tick, and how: the clients of the demonstration, what they do, and the methods to send to them."""

from __future__ import annotations

import asyncio
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from websockets.asyncio.server import ServerConnection, broadcast
from websockets.exceptions import ConnectionClosed

import wsfast
from wsfast import Channel, Subscription
from wsfast_bench._library import NOTSENT_LOWAT

from .calls import KEPT, Calls
from .commands import METHODS, POLICIES, TURNS, CommandError, Settings, count_of
from .crowd import Crowd, LostError
from .ticks import Market, Tick

__all__ = ["PILE", "Member", "Show"]

PHASE = 1.0
"""Seconds for which one method sends before it is another's turn; less if there is less time in all."""

PILE = 256 << 20
"""Bytes that broadcast() may pile up for clients that read nothing: it has no bound of its own, but your memory has."""

NEAR = 2
"""Ticks that may be on their way to a client that has just caught up."""


@dataclass(slots=True, eq=False)
class Member:
    """A client that has connected."""

    number: int
    connection: ServerConnection
    state: str = "arriving"
    """`arriving`, `reading`, `stalled`, `waking` (it reads again, and has not caught up yet), or `gone`."""
    subscription: Subscription | None = None
    pinged: bool = False
    near: bool = False
    """Whether a pong has told that it had read everything."""

    @property
    def waiting(self) -> int:
        """Bytes that wait for it in its transport."""
        return self.connection.transport.get_write_buffer_size()


class Show:
    """The clients and their ticks.

    A tick leaves when all clients that read have got the one before. Thus none of them ever lags, however slow the
    machine is, and each of them must get every tick, whatever the method and the policy.

    Args:
        settings: How to begin.
        crowd: The process of the clients.
        limit: How many clients there may be.
        phase: Seconds for which one method sends before it is another's turn.
    """

    def __init__(self, settings: Settings, crowd: Crowd, limit: int, phase: float = PHASE) -> None:
        self.settings = settings
        self.crowd = crowd
        self.limit = limit
        self.phase = phase
        self.market = Market()
        self.members: dict[int, Member] = {}
        self.calls = {
            "websockets": Calls("websockets.broadcast"),
            "wsfast": Calls("wsfast.broadcast"),
            "channel": Calls("wsfast.Channel"),
        }
        self.channel = self._new_channel()
        self.delays: deque[float] = deque(maxlen=KEPT)
        """Seconds from each call until the last client that reads had decoded the tick."""
        self.all_along = True
        """Whether the clients that there are have been there, reading, from the first tick on."""
        self.shed = 0
        """Clients that were closed because of `PILE`."""
        self.on_tick: Callable[[Tick], object] = lambda tick: None
        self.on_notice: Callable[[str], object] = lambda text: None
        self.on_change: Callable[[], object] = lambda: None
        self._expected: set[int] = set()
        self._number = 0
        self._connections: list[ServerConnection] = []
        self._reading = 0
        self._method = METHODS[0]
        self._turn_ends = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self._wishes = asyncio.Event()
        self._sent_at = 0.0
        crowd.on_failure = self._fail

    # ---- Looking

    def count(self, *states: str) -> int:
        """Return how many clients are in one of these states."""
        return sum(member.state in states for member in self.members.values())

    @property
    def compared(self) -> bool:
        """Whether each method that is to have a turn has had one, or there is nobody to send to."""
        return self.settings.method != TURNS or not self._connections or all(calls.all for calls in self.calls.values())

    @property
    def connecting(self) -> int:
        """How many clients are expected."""
        return len(self._expected)

    def waiting(self) -> tuple[int, int, float]:
        """Return how many messages wait in queues, how many bytes in all, and for how long the oldest has."""
        messages, size, seconds = 0, 0, 0.0
        for member in self.members.values():
            if member.state in ("stalled", "waking"):
                size += member.waiting
                if member.subscription is not None:
                    lag = member.subscription.lag
                    messages += lag.messages
                    size += lag.bytes
                    seconds = max(seconds, lag.seconds)
        return messages, size, seconds

    # ---- Commands

    def do(self, name: str, argument: object) -> None:
        """Do what a command asks for.

        Raises:
            CommandError: If it cannot be done; then nothing has changed.
        """
        {
            "add": self.add,
            "remove": self.remove,
            "stall": self.stall,
            "wake": self.wake,
            "method": self.set_method,
            "policy": self.set_policy,
            "rate": self.set_rate,
            "size": self.set_size,
        }[name](argument)
        self.on_change()

    def add(self, count: object) -> None:
        """Have more clients connect."""
        number = count_of(count)
        there = len(self.members) + len(self._expected)
        if there + number > self.limit:
            raise CommandError(
                f"there can be {self.limit} clients, and {there} are there: each needs a file descriptor (ulimit -Hn)"
            )
        numbers = range(self._number + 1, self._number + 1 + number)
        self._number += number
        self._expected.update(numbers)
        self.crowd.tell("connect", numbers)
        self.all_along = self.all_along and not self.market.seq

    def remove(self, count: object) -> None:
        """Have clients leave, those first that came last."""
        number = count_of(count)
        leaving = [member for member in self.members.values() if member.state != "gone"][-number:]
        if not leaving:
            raise CommandError("no client is there")
        self._dismiss(leaving)
        self.crowd.tell("remove", [member.number for member in leaving])

    def stall(self, count: object) -> None:
        """Have clients stop reading."""
        number = count_of(count)
        members = [member for member in self.members.values() if member.state == "reading"][:number]
        if not members:
            raise CommandError("no client reads")
        for member in members:
            member.state = "stalled"
        self._reading -= len(members)
        self.all_along = False
        self.crowd.tell("stall", [member.number for member in members])
        self.crowd.stir()

    def wake(self, count: object) -> None:
        """Have clients that were stalled go on reading."""
        number = count_of(count)
        members = [member for member in self.members.values() if member.state == "stalled"][:number]
        if not members:
            raise CommandError("no client is stalled")
        for member in members:
            member.state = "waking"
            member.pinged = member.near = False
        self.crowd.tell("wake", [member.number for member in members])

    def set_method(self, name: object) -> None:
        """Choose how ticks are sent."""
        self.settings.set_method(name)
        self._turn_ends = 0.0

    def set_policy(self, name: object) -> None:
        """Choose what is done about clients that do not keep up: by a new channel, whose counts begin anew."""
        self.settings.set_policy(name)
        subscribed = self._method == "channel"
        self._unsubscribe()
        self.channel = self._new_channel()
        if subscribed:
            self._subscribe()

    def set_rate(self, value: object) -> None:
        """Choose how many ticks per second there are."""
        self.settings.set_rate(value)
        self._wishes.set()

    def set_size(self, value: object) -> None:
        """Choose how large a tick is."""
        self.settings.set_size(value)
        self._begin_anew()

    # ---- Coming and going

    async def attend(self, number: int, connection: ServerConnection) -> None:
        """Have a client that has connected be there until its connection ends."""
        if number not in self._expected:
            return  # it was removed, or is nobody's
        self._expected.remove(number)
        member = self.members[number] = Member(number, connection)
        # As a channel does: whatever the method, the kernel is to take equally much for a client that reads nothing.
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            sock = connection.transport.get_extra_info("socket")
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, NOTSENT_LOWAT)
        self.crowd.stir()
        try:
            await connection.wait_closed()
        finally:
            self._dismiss([member])
            del self.members[number]
            self.crowd.tell("remove", [number])

    def expects(self, number: int) -> bool:
        """Tell whether a client of this number was asked for and has not come yet."""
        return number in self._expected

    def _fail(self, number: int) -> None:
        if number in self._expected:
            self._expected.remove(number)
            self.on_notice(f"a client could not connect: {self.crowd.failures[-1]}")

    def _dismiss(self, members: list[Member]) -> None:
        """Send nothing more to clients."""
        for member in members:
            self._reading -= member.state == "reading"
            member.state = "gone"
            if member.subscription is not None:
                member.subscription.unsubscribe()
                member.subscription = None
        self._take_stock()
        self.crowd.stir()

    async def _admit(self) -> None:
        """Have all who have arrived, or caught up, miss nothing from the next tick on."""
        for member in self.members.values():
            if member.state == "waking" and not member.pinged and self._has_everything(member):
                member.pinged = True
                task = asyncio.create_task(self._ping(member))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        admitted = [
            member
            for member in self.members.values()
            if member.state == "arriving" or (member.state == "waking" and member.near and self._has_everything(member))
        ]
        if not admitted:
            return
        # Nothing is sent before the clients know.
        since = self.market.seq + 1
        await self.crowd.done(self.crowd.tell("expect", [member.number for member in admitted], since=since))
        for member in admitted:
            if member.state in ("arriving", "waking"):
                member.state = "reading"
                self._reading += 1
        self._take_stock()

    @staticmethod
    def _has_everything(member: Member) -> bool:
        """Whether everything that was sent to a client has gone to the kernel."""
        return member.waiting == 0 and (member.subscription is None or member.subscription.lag.messages == 0)

    async def _ping(self, member: Member) -> None:
        """Find out whether a client that reads again has read nearly everything."""
        seq = self.market.seq
        try:
            await (await member.connection.ping())
        except ConnectionClosed:
            return
        member.pinged = False
        member.near = self.market.seq - seq <= NEAR

    def _take_stock(self) -> None:
        """Note to whom ticks go now."""
        self._connections = [
            member.connection for member in self.members.values() if member.state in ("reading", "stalled", "waking")
        ]
        if self._method == "channel":
            self._subscribe()
        self._begin_anew()

    def _begin_anew(self) -> None:
        for calls in self.calls.values():
            calls.clear()
        self.delays.clear()

    def _shed(self) -> None:
        """Close the connections of clients that take too much memory, as nobody but this demonstration would."""
        piled = [member for member in self.members.values() if member.state in ("stalled", "waking") and member.waiting]
        size = sum(member.waiting for member in piled)
        if size > PILE:
            for member in piled:
                member.connection.transport.abort()
            self._dismiss(piled)
            self.shed += len(piled)
            self.on_notice(
                f"{size >> 20} MiB waited for {len(piled)} stalled clients: broadcast() has no bound. "
                "The demonstration has closed them; take the Channel, which has one"
            )

    # ---- The channel

    def _new_channel(self) -> Channel:
        return Channel("prices", slow=POLICIES[self.settings.policy], on_disconnect=self._on_disconnect)

    def _subscribe(self) -> None:
        for member in self.members.values():
            if member.state in ("reading", "stalled", "waking") and member.subscription is None:
                try:
                    member.subscription = self.channel.subscribe(member.connection)
                except RuntimeError:
                    continue  # it is being closed, which will be noticed soon

    def _unsubscribe(self) -> None:
        for member in self.members.values():
            if member.subscription is not None:
                member.subscription.unsubscribe()
                member.subscription = None

    def _on_disconnect(self, subscription: Subscription) -> None:
        gone = [member for member in self.members.values() if member.subscription is subscription]
        self._dismiss(gone)
        self.crowd.tell("remove", [member.number for member in gone])

    # ---- Ticks

    async def gather(self) -> None:
        """Wait until all clients that are expected have come.

        Raises:
            LostError: If one cannot connect, or the process of the clients ends.
        """
        await self.crowd.until(lambda: not self._expected or bool(self.crowd.failures))
        if self.crowd.failures:
            raise LostError(f"a client could not connect: {self.crowd.failures[0]}")
        await self._admit()

    async def run(self) -> None:
        """Send ticks until cancelled.

        Raises:
            LostError: If the clients do not follow.
        """
        due = time.perf_counter()
        while True:
            self.crowd.check()  # nobody may be there who would be waited for
            await self._admit()
            await self._until_everywhere()
            while (pause := due - time.perf_counter()) > 0:
                # The rate may change while a slow one is waited for.
                self._wishes.clear()
                before = self.settings.rate
                try:
                    await asyncio.wait_for(self._wishes.wait(), pause)
                except TimeoutError:
                    break
                due += 1 / self.settings.rate - 1 / before
            due = max(due + 1 / self.settings.rate, time.perf_counter())
            self.publish()
            await asyncio.sleep(0)

    async def finish(self) -> dict[str, int]:
        """Wait until the last tick is everywhere, and return what the clients report.

        Raises:
            LostError: If they do not.
        """
        await self._until_everywhere()
        return await self.crowd.report(self.market.seq)

    async def _until_everywhere(self) -> None:
        """Wait until all clients that read have got the last tick."""
        seq = self.market.seq
        if self._reading and self.crowd.everywhere < seq:
            await self.crowd.until(lambda: self.crowd.everywhere >= seq or not self._reading)
            if self._sent_at:
                self.delays.append(time.perf_counter() - self._sent_at)

    def publish(self) -> Tick:
        """Send the next tick."""
        self._take_turns()
        tick = self.market.tick(self.settings.size)
        send = getattr(self, f"_by_{self._method}")
        self._sent_at = begin = time.perf_counter()
        send(tick)
        call = time.perf_counter() - begin
        if self._connections:
            self.calls[self._method].add(call * 1e3)
        if self._method != "channel" and self._reading < len(self._connections):
            self._shed()
        self.on_tick(tick)
        return tick

    def _by_websockets(self, tick: Tick) -> None:
        broadcast(self._connections, tick.message)

    def _by_wsfast(self, tick: Tick) -> None:
        wsfast.broadcast(self._connections, tick.message)

    def _by_channel(self, tick: Tick) -> None:
        self.channel.publish(tick.message, key=tick.symbol)
        self.channel.flush()

    def _take_turns(self) -> None:
        """Find out by which method the next tick goes."""
        method = self.settings.method
        if method == TURNS:
            method = self._method
            now = time.perf_counter()
            if now >= self._turn_ends:
                if self._turn_ends:
                    method = METHODS[(METHODS.index(method) + 1) % len(METHODS)]
                self._turn_ends = now + self.phase
        if method != self._method:
            self._method = method
            if method == "channel":
                self._subscribe()
            else:
                self._unsubscribe()

    def state(self) -> dict[str, Any]:
        """Return the settings, and how many clients there are."""
        return {
            "method": self.settings.method,
            "policy": self.settings.policy,
            "rate": self.settings.rate,
            "size": self.settings.size,
            "clients": len(self._connections),
            "connecting": len(self._expected) + self.count("arriving"),
            "reading": self.count("reading"),
            "stalled": self.count("stalled"),
            "waking": self.count("waking"),
        }
