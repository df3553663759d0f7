"""Retained messages: the messages that new subscribers of a topic get first, and those who come back to it."""

from __future__ import annotations

import os
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Container, Hashable
from itertools import islice
from operator import attrgetter
from typing import TypeAlias
from weakref import WeakSet

from wsfast._backlog import Entry
from wsfast._encoding.message import PreparedMessage

from .filters import Tags, lets
from .positions import History, Position, new_epoch
from .registry import Group
from .subscriptions import Member
from .topics import is_pattern, matches

__all__ = ["Missed", "Retained", "RetainedMessages", "RetainedTopic", "Target"]

IDLE = 300.0
"""Seconds after which a topic without messages and subscribers is forgotten, if messages have no maximum age."""

EXPIRED = 8
"""Most topics that are looked at, in one call, to forget those that are idle."""


class Retained:
    """A message that new subscribers get.

    Args:
        number: Count of the hub's messages, this one included.
        entry: The message as it is sent.
        message: The message as it was published.
        topics: Its topics, including those that another process delivers separately.
        key: Its key.
        excluded: Users who do not get it.
        publication: Identifies a message to several topics that is retained once for each.
        tags: Its tags.
    """

    __slots__ = ("entry", "excluded", "key", "message", "number", "publication", "replayed", "tags", "topics")

    def __init__(
        self,
        number: int,
        entry: Entry,
        message: PreparedMessage,
        topics: tuple[str, ...],
        key: Hashable,
        excluded: tuple[Hashable, ...],
        publication: Hashable,
        tags: Tags,
    ) -> None:
        self.number: int = number
        self.entry: Entry = entry
        self.message: PreparedMessage = message
        self.topics: tuple[str, ...] = topics
        self.key: Hashable = key
        self.excluded: tuple[Hashable, ...] = excluded
        self.publication: Hashable = publication
        self.tags: Tags = tags
        self.replayed: WeakSet[object] | None = None  # for a message to several topics: the new subscribers that got it


class RetainedTopic:
    """The numbering of one topic, and the messages that its subscribers get first.

    The last messages in `history` are those of the current epoch; those before, if there are any, have no position.
    """

    __slots__ = ("epoch", "gone", "history", "offset", "seen", "total", "values")

    def __init__(self, now: float, gone: int) -> None:
        self.epoch: str = new_epoch()
        self.offset: int = 0
        self.history: deque[tuple[int, Retained]] = deque()  # with the size of all messages before
        self.total: int = 0  # size of all messages so far
        self.gone: int = gone  # number of the last message that is not in the history any more
        self.seen: float = now  # when it was last published to, or found to have a subscriber
        self.values: dict[Hashable, Retained] = {}

    @property
    def bytes(self) -> int:
        """Size of the payloads in the history."""
        return self.total - self.history[0][0] if self.history else 0

    @property
    def position(self) -> Position:
        """The position after the last message."""
        return Position(self.epoch, self.offset)

    def drop(self) -> None:
        """Forget the oldest message of the history."""
        self.gone = max(self.gone, self.history[0][1].number)
        self.history.popleft()

    def last(self, count: int) -> list[Retained]:
        """Return the last messages."""
        return [message for _, message in islice(reversed(self.history), count)][::-1]

    def after(self, number: int) -> list[Retained]:
        """Return the messages with a higher number."""
        count = 0
        for _, message in reversed(self.history):
            if message.number <= number:
                break
            count += 1
        return self.last(count)


Target: TypeAlias = tuple[str, RetainedTopic, int, int]
"""A topic that gets a message: its name, its offset after that, and the size of its messages before that."""


class Missed:
    """Collects what a subscriber gets first.

    Args:
        member: The subscriber.
        wanted: The tags that it asks for; None for all messages.
        route: Returns the groups that get the messages of a topic.
    """

    def __init__(self, member: Member, wanted: Tags | None, route: Callable[[str], tuple[Group, ...]]) -> None:
        self._member = member
        self._wanted = wanted
        self._user: Hashable = None if member.user is None else member.user.name
        self._route = route
        self._found: dict[Hashable, Retained] = {}

    def gets(self, topic: str) -> bool:
        """Whether the subscriber gets the messages of a topic already."""
        return any(group in self._member.groups for group in self._route(topic))

    def lacks(self, topic: str, messages: list[Retained]) -> bool:
        """Whether the subscriber did not get some of a topic's messages because of the filters that it had.

        A message that was added here counts as one that it got.
        """
        return self._member.filtered and not all(
            any(self._member.got(group, message.number, message.tags) for group in self._route(topic))
            or (message.number if message.publication is None else message.publication) in self._found
            or (len(message.topics) > 1 and self._has_got(message))
            for message in messages
            if lets(self._wanted, message.tags) and (self._user is None or self._user not in message.excluded)
        )

    def add(self, messages: list[Retained]) -> None:
        """Add messages, except those that the subscriber has got already and those that are not for it."""
        wanted, user = self._wanted, self._user
        for message in messages:  # no call for each
            if message.excluded and user is not None and user in message.excluded:
                continue
            if wanted is not None and not lets(wanted, message.tags):
                continue
            if len(message.topics) > 1:
                if self._has_got(message):
                    continue
                if message.replayed is None:
                    message.replayed = WeakSet()
                message.replayed.add(self._member)
            self._found.setdefault(message.number if message.publication is None else message.publication, message)

    def _has_got(self, message: Retained) -> bool:
        """Whether the subscriber got a message to several topics by one that it is still subscribed to."""
        member = self._member
        replayed = message.replayed is not None and member in message.replayed
        return any(
            (replayed and group in member.groups) or member.got(group, message.number, message.tags)
            for topic in message.topics
            for group in self._route(topic)
        )

    def entries(self) -> tuple[Entry, ...]:
        """Return the entries to send, in the order of publishing."""
        return tuple(map(attrgetter("entry"), sorted(self._found.values(), key=attrgetter("number"))))


class RetainedMessages:
    """The history and the last values of all topics of a hub, and their numbering.

    Topics are in the order in which they were last published to. With each call, some that are idle are forgotten.

    Args:
        history: Bounds of the history.
        last_values: Number of keys per topic whose last message is kept; the least recently published is evicted first.
        envelopes: Whether messages are sent in envelopes with their offsets. Without history, they are numbered too.
        subscribed: The topics and patterns that have a subscriber.
    """

    __slots__ = (
        "_envelopes",
        "_epoch",
        "_idle",
        "_last_values",
        "_subscribed",
        "bounds",
        "forgotten",
        "numbers",
        "topics",
    )

    def __init__(self, history: History, last_values: int, envelopes: bool, subscribed: Container[str]) -> None:
        self.bounds: History = history
        self._idle = IDLE if history.seconds is None else history.seconds
        self._last_values = last_values
        self._subscribed = subscribed
        self.numbers: bool = envelopes or history.messages > 0
        self._envelopes = envelopes
        self._epoch = os.getpid(), new_epoch()
        self.forgotten: int = 0
        """Number of the last message of any topic that was forgotten."""
        self.topics: OrderedDict[str, RetainedTopic] = OrderedDict()

    @property
    def epoch(self) -> str:
        """Epoch of the count of all messages: another one in each process, also of those that were forked."""
        process, epoch = self._epoch
        if process != os.getpid():
            epoch = new_epoch()
            self._epoch = os.getpid(), epoch
        return epoch

    # ---- Publishing

    def prepare(self, topics: tuple[str, ...], key: Hashable) -> list[Target]:
        """Return where to add a message; empty if it is not retained. Raises any exception from comparing keys."""
        if not self.numbers and (key is None or not self._last_values):
            return []
        now = time.monotonic()
        targets = []
        for name in topics:
            topic = self._touched(name, now) or RetainedTopic(now, self.forgotten)
            targets.append((name, topic, topic.offset + 1, topic.total))
            if key is not None:
                topic.values.get(key)
        self.expire(now)
        return targets

    def add(self, targets: list[Target], message: Retained) -> None:
        """Retain a message in the topics that `prepare()` has returned. Running it twice changes nothing."""
        number, key, now = message.number, message.key, message.entry.time
        most, size = self.bounds.messages, message.entry.message.size
        for name, topic, offset, before in targets:
            self.topics[name] = topic
            self.topics.move_to_end(name)
            history = topic.history
            if most and (not history or history[-1][1].number != number):
                history.append((before, message))
            if not most:
                topic.gone = number
            topic.offset, topic.total, topic.seen = offset, before + size, now
            self._trim(topic, now)
            if self._last_values and key is not None:
                topic.values.pop(key, None)
                topic.values[key] = message
                if len(topic.values) > self._last_values:
                    del topic.values[next(iter(topic.values))]

    def _trim(self, topic: RetainedTopic, now: float) -> None:
        """Forget what is beyond the bounds of the history."""
        history, bounds = topic.history, self.bounds
        while len(history) > bounds.messages:
            topic.drop()
        if bounds.bytes is not None:
            while topic.bytes > bounds.bytes and len(history) > 1:
                topic.drop()
        if bounds.seconds is not None:
            while history and history[0][1].entry.time + bounds.seconds < now:
                topic.drop()

    def expire(self, now: float) -> None:
        """Forget some of the topics that are idle: those that have neither messages nor a subscriber any more."""
        for _ in range(EXPIRED):
            name = next(iter(self.topics), None)
            if name is None or self.topics[name].seen + self._idle >= now:
                return
            topic = self.topics[name]
            self._trim(topic, now)
            if topic.history or topic.values or name in self._subscribed:
                topic.seen = now
                self.topics.move_to_end(name)
            else:
                self._forget(name, topic)

    def _forget(self, name: str, topic: RetainedTopic) -> None:
        self.forgotten = max(self.forgotten, topic.gone)
        self.topics.pop(name, None)

    # ---- Positions

    def numbered(self, name: str) -> RetainedTopic:
        """Return a topic, whose numbering begins now if it is not known."""
        now = time.monotonic()
        topic = self._touched(name, now)
        if topic is None:
            topic = self.topics[name] = RetainedTopic(now, self.forgotten)
        self.expire(now)
        return topic

    def _touched(self, name: str, now: float) -> RetainedTopic | None:
        """Return a topic, if it is known, and keep it for a while."""
        topic = self.topics.get(name)
        if topic is not None:
            topic.seen = now
            self.topics.move_to_end(name)
        return topic

    def restart(self, name: str, number: int) -> None:
        """Begin a new numbering of a topic, because messages are missing.

        Args:
            name: The topic.
            number: Count of the hub's messages so far.
        """
        topic = self.topics.get(name)
        if topic is None:
            self.forgotten = max(self.forgotten, number + 1)
            return
        epoch, gone = new_epoch(), max(topic.gone, number + 1)
        topic.epoch, topic.offset, topic.gone = epoch, 0, gone
        while self._envelopes and topic.history:  # their envelopes have offsets of the old epoch
            topic.drop()

    def locate(self, name: str, position: Position, number: int, *, clear: bool) -> None:
        """Have the numbering of a topic continue after a position that a broker has given.

        The history is kept only if it ends at this position.

        Args:
            name: The topic.
            position: The position.
            number: Count of the hub's messages so far.
            clear: Whether to forget the history in any case.
        """
        topic = self.topics.get(name)
        if topic is None:
            topic = self.topics[name] = RetainedTopic(time.monotonic(), self.forgotten)
        elif topic.position == position and not clear:
            return
        topic.history.clear()
        topic.epoch, topic.offset, topic.gone = position.epoch, position.offset, max(topic.gone, number + 1)

    def restart_all(self, number: int) -> None:
        """Begin a new numbering of all topics."""
        self.forgotten = max(self.forgotten, number + 1)
        for name in list(self.topics):
            self.restart(name, number)

    def matching(self, name: str) -> list[str]:
        """Return the topics that match a topic or a pattern."""
        if is_pattern(name):
            return [topic for topic in self.topics if matches(name, topic)]
        return [name] if name in self.topics else []

    def since(self, name: str, position: Position) -> list[Retained] | None:
        """Return the messages of a topic after a position; None if some of them are missing, or it is not known."""
        topic = self.topics.get(name)
        if topic is None or topic.epoch != position.epoch:
            return None
        self._trim(topic, time.monotonic())
        missed = topic.offset - position.offset
        return topic.last(missed) if 0 <= missed <= len(topic.history) else None

    def since_number(self, name: str, number: int) -> dict[str, list[Retained]] | None:
        """Return the messages of a topic, or of the topics that match a pattern, after one of the hub's messages.

        None if some of them are missing.
        """
        topics = self.matching(name)
        now = time.monotonic()
        for topic in topics:
            self._trim(self.topics[topic], now)
            if self.topics[topic].gone > number:
                return None
        if self.forgotten > number and (is_pattern(name) or not topics):
            return None
        return {topic: self.topics[topic].after(number) for topic in topics}

    # ---- New subscribers

    def replay(self, name: str, missed: Missed) -> list[str]:
        """Add the retained messages of a topic or pattern that a new subscriber did not get by other topics.

        Returns:
            The topics that it did not get before.
        """
        now = time.monotonic()
        topics = [topic for topic in self.matching(name) if not missed.gets(topic)]
        for topic in topics:
            retained = self.topics[topic]
            self._trim(retained, now)
            missed.add([*retained.values.values(), *(message for _, message in retained.history)])
        return topics

    def last(self, topic: str) -> dict[Hashable, str | bytes]:
        """Return the last message of each key of a topic."""
        retained = self.topics.get(topic)
        messages = [] if retained is None else list(retained.values.values())
        return {one.key: one.message.data.decode() if one.message.text else one.message.data for one in messages}

    def forget(self, name: str, key: Hashable) -> None:
        """Forget the messages of a topic, or only the last value of a key that is not None."""
        topic = self.topics.get(name)
        if topic is None:
            return
        if key is not None:
            topic.values.pop(key, None)
        else:
            topic.values.clear()
            while topic.history:
                topic.drop()
        wanted = self.numbers and (key is not None or name in self._subscribed)
        if not (topic.values or topic.history or wanted):
            self._forget(name, topic)
