"""Hubs: topics that come and go, patterns of topics, and users, with one bounded queue per connection."""

from wsfast._subscription import HubStats, TopicStats

from .hub import Hub, HubChannel
from .positions import History, Position
from .registry import Command, Kind, PresenceCallback, Relay, Watcher
from .subscriptions import HubSubscription, Registration

__all__ = [
    "Command",
    "History",
    "Hub",
    "HubChannel",
    "HubStats",
    "HubSubscription",
    "Kind",
    "Position",
    "PresenceCallback",
    "Registration",
    "Relay",
    "TopicStats",
    "Watcher",
]
