"""The numbers of hubs and topics."""

from __future__ import annotations

from dataclasses import dataclass

from wsfast.stats import ChannelStats

__all__ = ["HubStats", "TopicStats"]


@dataclass(frozen=True, slots=True)
class HubStats(ChannelStats):
    """What became of the messages of a hub, over all connections, those that have left included."""

    topics: int
    """Topics that have a subscriber by their names."""
    patterns: int
    """Patterns that have a subscriber."""
    users: int
    """Users who are connected."""


@dataclass(frozen=True, slots=True)
class TopicStats:
    """What was published to a topic since it has had a subscriber by its name."""

    messages: int
    bytes: int
    """Bytes of their payloads."""
    subscribers: int
    """Connections that get its messages now, those by patterns included."""
