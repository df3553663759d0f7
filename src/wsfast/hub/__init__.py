"""Hubs: topics that come and go, patterns of them, and users, over connections that each have one bounded queue."""

from .hub import Hub, HubChannel
from .kinds import Kind, Relay
from .stats import HubStats, TopicStats
from .subscriptions import HubSubscription, Registration

__all__ = ["Hub", "HubChannel", "HubStats", "HubSubscription", "Kind", "Registration", "Relay", "TopicStats"]
