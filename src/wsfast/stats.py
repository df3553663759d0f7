"""Counts: what became of messages. They reconcile: published = sent + dropped + conflated + queued."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["ChannelStats", "HubStats", "Lag", "SubscriptionStats", "TopicStats"]


class Lag(NamedTuple):
    """What waits for a subscriber."""

    messages: int
    """Messages that were published and not taken by the kernel, nor by the transport."""
    bytes: int
    """Bytes of their payloads."""
    seconds: float
    """Seconds since the oldest of them was published."""


@dataclass(frozen=True, slots=True)
class SubscriptionStats:
    """What became of the messages for one subscriber: published = sent + dropped + conflated + queued."""

    published: int
    """Messages that were for it."""
    sent: int
    """Messages that the kernel, or the transport, has taken."""
    dropped: int
    """Messages dropped by the policy, or since the connection was closed."""
    conflated: int
    """Messages that were replaced by newer ones of the same key."""
    queued: int
    """Messages that wait for it, those of this tick included."""


@dataclass(frozen=True, slots=True)
class ChannelStats:
    """What became of the messages of a channel, over all of its subscribers, those that have left included."""

    messages: int
    """Messages that were published, each counted once."""
    bytes: int
    """Bytes of their payloads."""
    subscribers: int
    """Connections that are subscribed now."""
    published: int
    """Messages times the subscribers that they were for: published = sent + dropped + conflated + queued."""
    sent: int
    dropped: int
    conflated: int
    queued: int
    lagging: int
    """Subscribers for which something waits."""
    disconnected: int
    """Connections that were closed since they did not keep up."""


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
