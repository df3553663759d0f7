"""Hubs: topics that come and go, patterns of them, and users, over connections that each have one bounded queue."""

from wsfast._subscription import HubStats, TopicStats

from .hub import Hub, HubChannel
from .registry import Kind, Relay
from .subscriptions import HubSubscription, Registration

__all__ = ["Hub", "HubChannel", "HubStats", "HubSubscription", "Kind", "Registration", "Relay", "TopicStats"]
