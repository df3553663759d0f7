"""Streams of a hub: the messages of a topic or a pattern, for code in this process."""

from __future__ import annotations

from wsfast._publisher import STREAM_BOUND, Stream, Streams
from wsfast._reentrancy import exclusive

from .departures import Departures
from .registry import Group, HubStream
from .topics import check_topic_or_pattern

__all__ = ["Streaming"]


class Streaming(Departures):
    """The part of a `Hub` that opens streams. See `Hub` for the arguments."""

    def stream(self, topic: str, *, max_messages: int = STREAM_BOUND) -> Stream:
        """Return an iterator over the messages published from now on to a topic, or to the topics that match a pattern.

        It gets all of them, whatever their tags.

        Args:
            topic: Topic or pattern.
            max_messages: Number of messages that may wait when the iteration does not keep up. The oldest are dropped
                first.

        Raises:
            TypeError: If `topic` is not a string, or `max_messages` is not an integer.
            ValueError: If `topic` is neither a valid topic nor a valid pattern, or `max_messages` is not positive.
            RuntimeError: If it is called outside the hub's event loop.
        """
        name = check_topic_or_pattern(topic)
        stream = HubStream(self, max_messages, self._bind().loop)
        self._open_stream(stream, name)
        return stream

    @exclusive
    def _open_stream(self, stream: HubStream, topic: str) -> None:
        if stream.closed:
            return
        try:
            stream.group = self._registry.topics.get(topic) or self._add_topic(topic)
            if stream.group.streams is None:
                stream.group.streams = Streams()
            stream.group.streams.add(stream)
        except BaseException:
            group = self._registry.topics.get(topic)
            if group is not None and group.empty:
                self._registry.discard(group)
            raise

    @exclusive
    def discard_if_empty(self, group: Group) -> None:
        """Remove a group that has neither connections nor streams."""
        if group.empty and self._registry.topics.get(group.name) is group:
            self._registry.discard(group)
