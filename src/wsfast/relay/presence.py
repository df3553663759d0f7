"""Presence: which users are connected to any process, and how many connections the topics have in all of them."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

from wsfast._arguments import Local, check_callback, check_integer, check_seconds
from wsfast._writable import LATE
from wsfast.hub import Hub, PresenceCallback
from wsfast.hub.topics import check_topic_or_pattern

from .announcing import Announcing, Stamped
from .broker import LAST_BACKOFF
from .notices import HELLO, LONGEST_USER
from .population import Key, Population
from .processes import Processes

__all__ = ["Presence"]

logger: logging.Logger = logging.getLogger("wsfast")

BATCH_SECONDS = 0.02
"""Seconds for which changes are collected before others are told."""

ANSWER_SECONDS = 0.1
"""Seconds between two answers to those who ask who is there."""

HEARING_SECONDS = 0.1
"""Seconds after the end of a grace for which notices are read before anybody leaves."""

EVERYTHING_SECONDS = 1.0
"""Seconds between two times when everything is told; more if that is much."""

EVERYTHING = 16384
"""Users and topics up to which that holds."""

TURNS = 2
"""Turns after which each process that is there has been heard, once this one can hear it."""


class Presence(Local):
    """The users of all processes of a relay, and the number of connections that each topic has in all of them.

    Give it to `wsfast.relay.redis()`, `nats()` or `local()`, in all processes with the same arguments; `presence=True`
    stands for one with the default arguments. Each process tells the others what changes, and that it is there.

    A process that is stopped leaves at once; one that dies leaves after `misses` to `misses + 1` intervals. While this
    process cannot reach the broker, it keeps what it knew: nobody leaves because the broker is away.

    Args:
        interval: Seconds between two signs of life of each process.
        misses: Number of signs of life that must be missing before a process counts as dead.
        grace: Seconds for which a user who has left may come back, to any process, without having left. 0 for none.
        on_join: Called with a user and None soon after the user's first connection in any process is registered, and
            with a user and a topic or pattern after the first of the user's connections has subscribed to it. A process
            that is started is told in this way who is there.
        on_leave: Called with the same arguments when the last of the user's connections in all processes has left, and
            the grace is over. It is called once for each call of `on_join`.
        max_entries: Number of users and topics of other processes to know at most. Further ones are ignored.

    Raises:
        TypeError: If a number has the wrong type, or a callback is not callable or is a coroutine function.
        ValueError: If `interval` is not positive, `grace` is negative, or `misses` or `max_entries` is less than 1.
    """

    def __init__(
        self,
        *,
        interval: float = 3.0,
        misses: int = 3,
        grace: float = 2.0,
        on_join: PresenceCallback | None = None,
        on_leave: PresenceCallback | None = None,
        max_entries: int = 1_000_000,
    ) -> None:
        check_seconds("interval", interval)
        check_integer("misses", misses)
        if grace != 0:
            check_seconds("grace", grace)
        check_callback("on_join", on_join)
        check_callback("on_leave", on_leave)
        check_integer("max_entries", max_entries)
        self.on_join = on_join
        self.on_leave = on_leave
        self.due: bool = False
        """Whether there are notices to send."""
        self._interval = interval
        self._misses = misses
        self._grace = grace
        self._max_entries = max_entries
        self._taken = False  # whether a relay has it
        self._hub: Hub | None = None  # while the relay is running
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timers: dict[Callable[[], None], asyncio.TimerHandle] = {}
        self._changed: dict[Key, None] = {}
        self._publisher = 0
        self._wake: Callable[[], None] = lambda: None
        self._echoes = False
        self._echoed = False
        self._turns = 0  # in succession in which the others could be heard
        self._turn_due = 0.0
        self._leaving_since = 0.0
        self._last_everything = -math.inf
        self._warned = False
        self._begin(0)

    def _begin(self, start: int) -> None:
        self._population = Population(self._grace, self._joined, self._left)
        self._announcing = Announcing(start)
        self._processes = Processes(self._population, self._misses, self._max_entries, self._ask)

    def __repr__(self) -> str:
        return f"<Presence of {self._hub!r}>" if self._hub is not None else "<Presence of no running relay>"

    # ---- Queries

    def users(self, topic: str | None = None) -> list[Any]:
        """Return the users who are connected to any process, or those of them who get the messages of a topic.

        These are the users for whom `on_join` was called, or will be soon, and `on_leave` was not. For a pattern,
        return the users who are subscribed to that pattern. Without a running relay, nobody is known.

        Raises:
            TypeError, ValueError: If `topic` is neither a valid topic nor a valid pattern.
        """
        return self._population.users(_checked(topic))

    def has(self, user: Any, topic: str | None = None) -> bool:
        """Whether a user is connected to any process, or gets the messages of a topic: see `users()`.

        Raises:
            TypeError, ValueError: If `topic` is neither a valid topic nor a valid pattern.
        """
        return self._population.has(user, _checked(topic))

    def count(self, topic: str) -> int:
        """Return the number of connections in all processes that get the messages of a topic, with or without a user.

        A connection that is subscribed by the name and by patterns counts once for each of them. For a pattern, return
        the number of connections that are subscribed to that pattern.

        Raises:
            TypeError, ValueError: If `topic` is neither a valid topic nor a valid pattern.
        """
        return self._population.count(check_topic_or_pattern(topic))

    @property
    def processes(self) -> int:
        """Number of processes that are known to be there, with this one. 0 without a running relay."""
        return 0 if self._hub is None else 1 + len(self._processes)

    @property
    def complete(self) -> bool:
        """Whether this process knows everything about each process that it has heard of, and has heard of all."""
        return self._turns >= TURNS and self._processes.complete

    @property
    def leads(self) -> bool:
        """Whether this is the process that has been running for longest.

        While all processes reach the broker and none starts or ends, it is true in exactly one of them. It is false in
        the first two to three intervals of a process, and after this process could not reach the broker.
        """
        if self._turns < TURNS or self._is_late():
            return False
        oldest = self._processes.oldest()
        return oldest is None or (self._announcing.start, self._publisher) < oldest

    @property
    def ignored(self) -> int:
        """Number of users, topics and processes that were ignored because there were too many."""
        return self._processes.ignored

    # ---- For the relay

    @classmethod
    def of(cls, presence: Presence | bool) -> Presence | None:
        """Return the `Presence` that an argument of a relay stands for.

        Raises:
            TypeError: If it is neither a Presence nor a bool.
            RuntimeError: If another relay has it.
        """
        if isinstance(presence, bool):
            return cls() if presence else None
        if not isinstance(presence, Presence):
            raise TypeError(f"presence must be True, False or a wsfast.relay.Presence, not {presence!r}")
        if presence._taken:
            raise RuntimeError("a Presence belongs to one relay; create another one for another relay")
        presence._taken = True
        return presence

    def start(self, hub: Hub, publisher: int, wake: Callable[[], None], *, echoes: bool) -> None:
        """Begin to tell others what changes in a hub.

        Args:
            hub: The hub.
            publisher: The number of the relay.
            wake: Called when `due` becomes true, so that the relay takes the notices.
            echoes: Whether the broker sends a process its own notices as well.
        """
        self._hub, self._publisher, self._wake, self._echoes = hub, publisher, wake, echoes
        self._loop = asyncio.get_running_loop()
        self._begin(time.time_ns())
        hub.watch(self)
        for key in hub.presences():
            self.user_changed(*key)
        for name in hub.topics():
            self.count_changed(name)
        self._announcing.hello_due = True
        self._send()
        self._next_turn()

    def stop(self) -> None:
        """Tell nothing more, to others and to callbacks, and forget everything."""
        if self._hub is None:
            return
        self._hub.watch(None)
        self._hub = None
        self.due = False
        self._turns = 0
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._changed.clear()
        self._begin(0)

    def take(self, largest: int) -> Sequence[Stamped]:
        """Return the next notices. See `Announcing.take()`."""
        notices = self._announcing.take(largest)
        self.due = bool(notices)  # there may be more
        return notices

    def lost(self, reason: object = None) -> None:
        """Note that the last notices may not have been sent, with the reason if the broker has refused them."""
        if self._hub is None:
            return
        self._announcing.lost()
        if reason is None:
            self._send()
        elif not self._warned:
            self._warned = True
            logger.warning("%r: the broker has refused a notice: %s", self, reason)

    def receive(self, publisher: int, serial: int, number: int, data: bytes) -> None:
        """Take a notice of another process.

        Raises:
            ValueError, TypeError, RecursionError: If no relay of this version can have sent it.
        """
        if self._loop is None or self._hub is None:
            return
        ignored = self._processes.ignored
        flags, publishers = self._processes.receive(publisher, serial, number, data, self._loop.time())
        self._await_grace()
        if self._is_late():
            self._after(0.0, self._turn)  # its timer may be lost
        if flags & HELLO:
            self._after(ANSWER_SECONDS * random.random(), self._answer)
        if self._publisher in publishers:
            least = EVERYTHING_SECONDS * max(1.0, len(self._announcing.own) / EVERYTHING)
            self._after(max(0.0, self._last_everything + least - self._loop.time()), self._tell_everything)
        if self._processes.ignored > ignored == 0:
            logger.warning("%r ignores further users and topics of other processes: there are too many", self)

    def goodbye(self, publisher: int) -> None:
        """Note that another process has ended."""
        if self._loop is not None and self._hub is not None:
            self._processes.goodbye(publisher, self._loop.time())
            self._await_grace()

    def echo(self) -> None:
        """Note that a notice of this process has come back from the broker."""
        self._echoed = True

    # ---- For the hub: see `Watcher`

    def user_changed(self, user: Any, name: str | None) -> None:
        """Note that a user may have come to a topic or a pattern, or left it."""
        self._note((user, name))

    def count_changed(self, name: str) -> None:
        """Note that the number of the connections of a topic or a pattern may have changed."""
        self._note((None, name))

    def _note(self, key: Key) -> None:
        if not self._changed and self._loop is not None:
            self._loop.call_soon(self._look)
        self._changed[key] = None

    def _look(self) -> None:
        """Find out what has changed in the hub."""
        hub = self._hub
        if hub is None or self._loop is None:
            return
        changed, self._changed = self._changed, {}
        try:
            for key in changed:
                self._look_at(hub, key, self._loop.time())
        except BaseException:  # an interrupt: the next turn looks again
            self._changed = {**changed, **self._changed}
            raise
        self._await_grace()
        if self._announcing.changed:
            self._after(BATCH_SECONDS, self._send)

    def _look_at(self, hub: Hub, key: Key, now: float) -> None:
        user, name = key
        if user is None:
            assert name is not None
            value = hub.subscribed(name)
        else:
            value = int(_is_short(user) and hub.holds(user, name))
        before = self._announcing.change(key, value)
        if value != before:
            self._population.change(key, before, value, now)

    # ---- Timers

    def _after(self, delay: float, callback: Callable[[], None]) -> None:
        """Call a method after some seconds, unless it will be called anyway."""
        if self._loop is not None and not self._will_call(callback):
            self._timers[callback] = self._loop.call_later(delay, self._run, callback)

    def _will_call(self, callback: Callable[[], None]) -> bool:
        """Whether there is a timer. A late one does not count: an interrupt may have come before it began."""
        timer = self._timers.get(callback)
        return timer is not None and self._loop is not None and self._loop.time() <= timer.when() + LATE

    def _run(self, callback: Callable[[], None]) -> None:
        timer = self._timers.pop(callback, None)
        if timer is not None:  # else one that was late has called it
            timer.cancel()
            callback()

    def _send(self) -> None:
        self.due = True
        self._wake()

    def _ask(self, publisher: int) -> None:
        self._announcing.asking[publisher] = None
        self._send()

    def _answer(self) -> None:
        self._announcing.alive_due = True
        self._send()

    def _tell_everything(self) -> None:
        assert self._loop is not None
        if self._announcing.telling_everything:  # those who ask now may have missed its first part
            self._after(EVERYTHING_SECONDS, self._tell_everything)
            return
        self._last_everything = self._loop.time()
        self._announcing.tell_everything()
        self._send()

    def _await_grace(self) -> None:
        deadline = self._population.deadline
        if deadline is not None and self._loop is not None and not self._will_call(self._end_grace):
            self._after(max(0.0, deadline - self._loop.time()), self._begin_leaving)

    def _begin_leaving(self) -> None:
        """Hear first who has come back: after a suspension, notices may wait to be read."""
        assert self._loop is not None
        self._leaving_since = self._loop.time()
        self._after(HEARING_SECONDS, self._end_grace)

    def _end_grace(self) -> None:
        assert self._loop is not None
        if self._loop.time() > self._leaving_since + 2 * HEARING_SECONDS:  # it was suspended again
            self._begin_leaving()
        else:
            self._population.expire(self._leaving_since)
            self._await_grace()

    def _next_turn(self) -> None:
        assert self._loop is not None
        delay = self._interval * random.uniform(0.9, 1.0)
        self._turn_due = self._loop.time() + delay
        self._after(delay, self._turn)

    def _is_late(self) -> bool:
        """Whether this process was suspended, or too busy to hear the others."""
        return self._loop is not None and self._loop.time() > self._turn_due + self._interval

    def _turn(self) -> None:
        """Say that this process is there, and find out who is not there any more.

        Silence counts only while this process could have heard something: it has heard itself, and was not suspended.
        Afterwards, others get the time that they need to connect to the broker again.
        """
        assert self._loop is not None
        now, late = self._loop.time(), self._is_late()
        self._next_turn()  # first: the rest may be interrupted
        if self._changed:
            self._look()
        if (self._echoed or not self._echoes) and not late:
            self._turns += 1
            self._processes.turn(now)
            self._await_grace()
        else:
            self._turns = 0
            self._processes.excuse(math.ceil(2 * LAST_BACKOFF / self._interval))
        self._echoed = False
        self._answer()

    # ---- Callbacks

    def _joined(self, user: Any, name: str | None) -> None:
        if self.on_join is not None and self._loop is not None:
            self._loop.call_soon(self._tell, self.on_join, user, name)

    def _left(self, user: Any, name: str | None) -> None:
        if self.on_leave is not None and self._loop is not None:
            self._loop.call_soon(self._tell, self.on_leave, user, name)

    def _tell(self, callback: PresenceCallback, user: Any, name: str | None) -> None:
        """Call a callback, unless the relay was stopped meanwhile."""
        if self._hub is not None:
            callback(user, name)


def _checked(topic: str | None) -> str | None:
    return None if topic is None else check_topic_or_pattern(topic)


def _is_short(user: Any) -> bool:
    """Whether others can be told about a user."""
    return not isinstance(user, str) or 12 * len(user) < LONGEST_USER or len(json.dumps(user)) <= LONGEST_USER
