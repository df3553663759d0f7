"""The server of a soak: publishes by all that wsfast has, to connections of all libraries, while much goes wrong."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import ctypes
import gc
import logging
import os
import random
import signal
import time
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import uvloop

from helpers.brokers import relay_of
from soak.feeds import FEEDS, ChannelFeed, Feed, HubFeed, OwnFeed
from soak.link import Lines
from soak.messages import GENERATION
from soak.servers import open_server
from wsfast._core import core
from wsfast.connections import adapt

KEPT = {"Subscription", "Member", "Backlog", "Dispatcher", "Channel", "Hub", "Relay", "ServerConnection", "HubStream"}
"""Types of which nothing may be left after a round."""


class OutOfNowhereError(BaseException):
    """What the signal handler raises."""


class Interrupts:
    """A timer whose signal handler raises an exception, while it is armed."""

    def __init__(self) -> None:
        self.armed = False
        self.count = 0
        signal.signal(signal.SIGALRM, self._on_alarm)

    def _on_alarm(self, *_: object) -> None:
        if self.armed:
            self.armed = False
            self.count += 1
            raise OutOfNowhereError

    def call(self, function: Any, seconds: float) -> None:
        """Call a function that is perhaps interrupted after a while."""
        try:
            try:
                self.armed = True
                signal.setitimer(signal.ITIMER_REAL, seconds)
                function()
            finally:
                self.armed = False
        except OutOfNowhereError:
            self.armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)


class Round:
    """One round."""

    def __init__(self, plan: dict[str, Any], brokers: dict[str, str]) -> None:
        self.plan = plan
        self.brokers = brokers
        self.rng = random.Random(plan["seed"])
        self.feeds: list[Feed] = [
            FEEDS[feed["kind"]](number, feed, random.Random(f"{plan['seed']} {number}"))
            for number, feed in enumerate(plan["feeds"])
        ]
        self.interrupts = Interrupts()
        self.connections: dict[int, Any] = {}
        self.faults: list[str] = []
        self.stack = contextlib.AsyncExitStack()
        self.stopped = False
        self.publishing: asyncio.Task[None] | None = None
        self.kicks: set[asyncio.Task[Any]] = set()

    async def open(self) -> list[int]:
        """Start the servers; return their ports."""
        asyncio.get_running_loop().set_exception_handler(self.on_exception)
        for feed in self.feeds:
            if isinstance(feed, HubFeed) and feed.far is not None:
                kind = feed.plan["relay"]
                for hub in feed.hubs():
                    relay = relay_of(kind, hub, self.brokers[kind], prefix=f"soak.{os.getpid()}.{id(feed)}")
                    feed.relays.append(await self.stack.enter_async_context(relay))
        ports = [
            await self.stack.enter_async_context(
                open_server(server["library"], server["compression"], self.on_arrival, small=server["small"])
            )
            for server in self.plan["servers"]
        ]
        self.publishing = asyncio.create_task(self.publish())
        return ports

    def on_exception(self, _: Any, context: dict[str, Any]) -> None:
        exception = context.get("exception")
        if isinstance(exception, OutOfNowhereError | OSError):
            return
        if len(self.faults) < 20:
            self.faults.append(f"{context.get('message')}: {exception!r}")

    def on_arrival(self, client: int, connection: Any, send: Any) -> None:
        """Subscribe a client as the plan has it."""
        self.connections[client] = connection
        for number in self.plan["clients"][client % GENERATION]["joins"]:
            feed = self.feeds[number]
            with contextlib.suppress(RuntimeError):  # it is not open any more
                if isinstance(feed, OwnFeed):
                    feed.add(client, connection, send)
                else:
                    feed.subscribe(client, connection)

    async def publish(self) -> None:
        """Publish until it is stopped."""
        rng, plan = self.rng, self.plan
        looked = 0.0
        while not self.stopped:
            for feed in self.feeds:
                if rng.random() < feed.plan["share"]:
                    self.burst(feed)
            if rng.random() < plan["kicks"]:
                self.kick()
            if rng.random() < plan["collections"]:
                gc.collect()
            await asyncio.sleep(rng.choice(plan["pauses"]))
            now = time.monotonic()
            while now - looked > 0.05 and self.behind() and not self.stopped and time.monotonic() - now < 1:
                await asyncio.sleep(0.01)
            looked = now

    def behind(self) -> bool:
        """Whether too many clients do not keep up for it to be their fault."""
        most = max(4, len(self.plan["clients"]) // 4)
        return any(feed.queued()[1] > most for feed in self.feeds)

    def burst(self, feed: Feed) -> None:
        count, rng = self.rng.randrange(1, feed.plan["burst"] + 1), self.rng

        def publish() -> None:
            for _ in range(count):
                feed.publish()
            if rng.random() < 0.1 or self.interrupts.armed:
                feed.flush()

        if feed.plan["chaos"] and rng.random() < self.plan["interrupts"]:
            self.interrupts.call(publish, rng.choice([20e-6, 100e-6, 500e-6, 2e-3]) * rng.random() + 1e-6)
        else:
            publish()
        if feed.plan["chaos"] and rng.random() < 0.05:
            feed.churn()
        if isinstance(feed, ChannelFeed):
            if rng.random() < self.plan["finalizers"]:
                feed.publish_in_finalizer()
            if feed.plan["chaos"] and rng.random() < self.plan["threads"]:
                feed.publish_in_thread()

    def kick(self) -> None:
        """Close some connection, just after something was published."""
        if not self.connections:
            return
        adapted = adapt(self.connections.pop(self.rng.choice(list(self.connections))))
        if self.rng.random() < 0.4:
            if not adapted.transport.is_closing():  # asyncio's fails if it has closed
                adapted.transport.abort()
            return
        closing: Any = adapted.close()  # whatever the library
        task = asyncio.ensure_future(closing)
        self.kicks.add(task)
        task.add_done_callback(self.kicks.discard)
        task.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def settle(self) -> None:
        """Stop publishing, and wait until nothing waits any more."""
        self.stopped = True
        if self.publishing is not None:
            await asyncio.wait([self.publishing])
            if self.publishing.exception() is not None:
                exc = self.publishing.exception()
                self.faults.append("publishing has ended: " + "".join(traceback.format_exception(exc)[-6:]))
        gc.collect()
        deadline = time.monotonic() + 30
        while any(feed.waiting() for feed in self.feeds) or self.kicks:
            if time.monotonic() > deadline:
                for feed in self.feeds:
                    if feed.waiting():
                        self.faults.append(f"feed {feed.number} still waits: {feed.queued()}")
                break
            await asyncio.sleep(0.01)

    def report(self) -> dict[str, Any]:
        """Return what must have become of everything."""
        clients: dict[int, dict[int, list[int]]] = {}
        ranges: dict[int, dict[int, tuple[int, int]]] = {}
        active: dict[int, list[int]] = {}
        loose: dict[int, list[int]] = {}
        slack: dict[int, dict[int, int]] = {}
        faults = list(self.faults)
        for feed in self.feeds:
            faults += [f"feed {feed.number}: {fault}" for fault in feed.faults + feed.reconcile()]
            ends = {source.number: source.next_number for source in feed.sources}
            for ticket in feed.tickets:
                counts = ticket.stats()
                if counts[0] != sum(counts[1:]):
                    faults.append(f"feed {feed.number}, client {ticket.client}: {counts} do not reconcile")
                known = clients.setdefault(ticket.client, {}).setdefault(feed.number, [0] * 5)
                clients[ticket.client][feed.number] = [a + b for a, b in zip(known, counts, strict=True)]
                doubts = slack.setdefault(ticket.client, {})
                doubts[feed.number] = doubts.get(feed.number, 0) + ticket.slack()
                if not ticket.exact:
                    loose.setdefault(ticket.client, []).append(feed.number)
                if ticket.active():
                    active.setdefault(ticket.client, []).append(feed.number)
                    for source, start in ticket.starts.items():
                        end = counts[0] if isinstance(feed, OwnFeed) else ends[source]
                        ranges.setdefault(ticket.client, {})[source] = start, end
        return {
            "clients": clients,
            "ranges": ranges,
            "active": active,
            "loose": loose,
            "slack": slack,
            "faults": faults[:50],
            "made": [feed.made for feed in self.feeds],
            "interrupts": self.interrupts.count,
            "tickets": sum(len(feed.tickets) for feed in self.feeds),
        }

    async def close(self) -> None:
        """Close everything."""
        for feed in self.feeds:
            feed.close()
        await self.stack.aclose()
        deadline = time.monotonic() + 15
        while active := [ticket for feed in self.feeds for ticket in feed.tickets if feed.is_active(ticket)]:
            if time.monotonic() > deadline:
                self.faults.append(f"{len(active)} subscriptions have not ended, as that of client {active[0].client}")
                break
            await asyncio.sleep(0.05)
        current = asyncio.current_task()
        while left := [task for task in asyncio.all_tasks() if task is not current]:
            if time.monotonic() > deadline:
                self.faults.append(f"{len(left)} tasks are left, as {left[0]!r}")
                break
            await asyncio.sleep(0.01)
        # Transports of aiofastnet keep their event loop, which is not to keep all this.
        asyncio.get_running_loop().set_exception_handler(None)


async def play(lines: Lines, plan: dict[str, Any], brokers: dict[str, str]) -> list[str]:
    """Play a round; return what went wrong at its end."""
    one = Round(plan, brokers)
    lines.answer(await one.open())
    while True:
        command, _ = await lines.next()
        match command:
            case "settle":
                await one.settle()
                lines.answer(None)
            case "report":
                lines.answer(one.report())
            case "close":
                await one.close()
                return one.faults
            case _:
                raise ValueError(command)


def resident() -> int:
    """Return the bytes of memory that this process has, after the allocator has given back what it can."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def descriptors_open() -> list[str]:
    """Return what the open descriptors stand for."""
    names = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            names.append(os.readlink(f"/proc/self/fd/{name}"))
    return sorted(names)


def left() -> dict[str, int]:
    """Return how many objects of a round there are."""
    for _ in range(3):
        gc.collect()
    names = (
        type(one).__name__ for one in gc.get_objects() if str(type(one).__module__).startswith(("wsfast", "websockets"))
    )
    return dict(collections.Counter(name for name in names if name in KEPT))


def main() -> None:
    """Play one round after the other."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    lines = Lines()
    factories: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
        "asyncio": asyncio.SelectorEventLoop,
        "uvloop": uvloop.new_event_loop,
    }
    for factory in factories.values():  # which open some descriptors of the process's, once
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(asyncio.sleep(0))
    descriptors = len(descriptors_open())
    while True:
        _, arguments = lines.wait()
        plan = arguments["plan"]
        core.set_threads(plan["senders"], detach=plan["detach"], size=1, chunk=plan["chunk"])
        with asyncio.Runner(loop_factory=factories[plan["loop"]]) as runner:
            faults = runner.run(play(lines, plan, arguments["brokers"]))
        del runner
        objects = left()
        if objects:
            faults.append(f"objects are left: {objects}")
        now = descriptors_open()
        if len(now) > descriptors:
            faults.append(f"{len(now)} descriptors are open, {descriptors} before: {now}")
        lines.answer({"faults": faults[-20:], "resident": resident()})


if __name__ == "__main__":
    main()
