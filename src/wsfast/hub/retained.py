"""Retained messages: what new subscribers of a topic get first."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Mapping
from weakref import WeakSet

from wsfast._backlog import Entry

from .registry import Group
from .subscriptions import Joining
from .topics import is_pattern, matches

__all__ = ["RetainedMessages"]


class Retained:
    """A message that new subscribers get."""

    __slots__ = ("entry", "key", "number", "replayed", "topics")

    def __init__(self, number: int, entry: Entry, topics: tuple[str, ...], key: Hashable) -> None:
        self.number: int = number  # messages of the hub up to this one
        self.entry: Entry = entry
        self.topics: tuple[str, ...] = topics
        self.key: Hashable = key
        self.replayed: WeakSet[object] | None = None  # new subscribers that got it, with several topics


class RetainedTopic:
    """What new subscribers of one topic get."""

    __slots__ = ("history", "values")

    def __init__(self, history: int) -> None:
        self.history: deque[Retained] = deque(maxlen=history)
        self.values: dict[Hashable, Retained] = {}


class RetainedMessages:
    """The history and the last values of all topics of a hub.

    Args:
        history: Messages of each topic.
        last_values: Keys of each topic whose last message is kept; the least recently published is evicted first.
    """

    __slots__ = ("_history", "_last_values", "topics")

    def __init__(self, history: int, last_values: int) -> None:
        self._history = history
        self._last_values = last_values
        self.topics: dict[str, RetainedTopic] = {}

    def prepare(self, topics: tuple[str, ...], key: Hashable) -> list[RetainedTopic]:
        """Return where a message is to be added, if it is to be. Whatever a key's comparison raises comes from here."""
        if not self._history and (key is None or not self._last_values):
            return []
        retained = [self.topics.get(topic) or RetainedTopic(self._history) for topic in topics]
        if key is not None:
            for topic in retained:
                topic.values.get(key)
        return retained

    def add(
        self, retained: list[RetainedTopic], number: int, topics: tuple[str, ...], key: Hashable, entry: Entry
    ) -> None:
        """Retain a message, of which it is known by `prepare()` where. A second time changes nothing."""
        message = Retained(number, entry, topics, key)
        for name, topic in zip(topics, retained, strict=True):
            self.topics[name] = topic
            if not topic.history or topic.history[-1].number != number:
                topic.history.append(message)
            if self._last_values and key is not None:
                topic.values.pop(key, None)
                topic.values[key] = message
                if len(topic.values) > self._last_values:
                    del topic.values[next(iter(topic.values))]

    def replay(
        self,
        subscriber: object,
        joined: Mapping[Group, Joining],
        name: str,
        route: Callable[[str], tuple[Group, ...]],
        replayed: dict[int, Entry],
    ) -> None:
        """Add what a new subscriber of a topic or pattern is to get first, and has not got by other topics.

        Args:
            subscriber: The subscriber.
            joined: What it has of each of its groups.
            name: The topic or pattern.
            route: Returns which groups get what is published to a topic.
            replayed: Messages by their numbers, to which is added.
        """
        if is_pattern(name):
            topics = [topic for topic in self.topics if matches(name, topic)]
        else:
            topics = [name] if name in self.topics else []
        for topic in topics:
            if any(group in joined for group in route(topic)):
                continue
            retained = self.topics[topic]
            for message in (*retained.values.values(), *retained.history):
                if len(message.topics) > 1:
                    if self._has_got(subscriber, joined, message, route):
                        continue
                    if message.replayed is None:
                        message.replayed = WeakSet()
                    message.replayed.add(subscriber)
                replayed[message.number] = message.entry

    def _has_got(
        self,
        subscriber: object,
        joined: Mapping[Group, Joining],
        message: Retained,
        route: Callable[[str], tuple[Group, ...]],
    ) -> bool:
        """Whether a subscriber got a message to several topics by one that it is still subscribed to."""
        replayed = message.replayed is not None and subscriber in message.replayed
        return any(
            group in joined and (replayed or joined[group].since < message.number)
            for topic in message.topics
            for group in route(topic)
        )

    def last(self, topic: str) -> dict[Hashable, str | bytes]:
        """Return the last message of each key of a topic."""
        retained = self.topics.get(topic)
        messages = [] if retained is None else list(retained.values.values())
        return {
            message.key: data.message.data.decode() if (data := message.entry).message.text else data.message.data
            for message in messages
        }

    def forget(self, topic: str, key: Hashable) -> None:
        """Forget all of a topic, or with a key that is not None its last value."""
        retained = self.topics.get(topic)
        if retained is None:
            return
        if key is not None:
            retained.values.pop(key, None)
        if key is None or not (retained.values or retained.history):
            del self.topics[topic]
