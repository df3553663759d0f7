"""Retained messages: the messages that new subscribers of a topic get first."""

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
        self.number: int = number  # count of the hub's messages, this one included
        self.entry: Entry = entry
        self.topics: tuple[str, ...] = topics
        self.key: Hashable = key
        self.replayed: WeakSet[object] | None = None  # for a message to several topics: the new subscribers that got it


class RetainedTopic:
    """The messages that new subscribers of one topic get."""

    __slots__ = ("history", "values")

    def __init__(self, history: int) -> None:
        self.history: deque[Retained] = deque(maxlen=history)
        self.values: dict[Hashable, Retained] = {}


class RetainedMessages:
    """The history and the last values of all topics of a hub.

    Args:
        history: Number of messages per topic.
        last_values: Number of keys per topic whose last message is kept; the least recently published is evicted first.
    """

    __slots__ = ("_history", "_last_values", "topics")

    def __init__(self, history: int, last_values: int) -> None:
        self._history = history
        self._last_values = last_values
        self.topics: dict[str, RetainedTopic] = {}

    def prepare(self, topics: tuple[str, ...], key: Hashable) -> list[RetainedTopic]:
        """Return where to add a message; empty if it is not retained. Raises any exception from comparing keys."""
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
        """Retain a message in the topics that `prepare()` has returned. Running it twice changes nothing."""
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
        """Add the retained messages of a topic or pattern that a new subscriber did not get by other topics.

        Args:
            subscriber: The subscriber.
            joined: The groups that it has joined, with the call that joined each.
            name: The topic or pattern.
            route: Returns the groups that get the messages of a topic.
            replayed: Messages by number; the messages found are added to it.
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
        """Forget everything about a topic, or only the last value of a key that is not None."""
        retained = self.topics.get(topic)
        if retained is None:
            return
        if key is not None:
            retained.values.pop(key, None)
        if key is None or not (retained.values or retained.history):
            del self.topics[topic]
