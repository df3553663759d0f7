"""Fan-out over WebSocket connections as fast as the kernel allows.

Say `wsfast.broadcast(connections, message)` instead of `websockets.broadcast(connections, message)`.
"""

from . import relay
from ._broadcast import Audience, Delivery, broadcast
from ._encoding.message import PreparedMessage
from ._publisher import Subscription
from ._serve import ServerConnection, serve
from .channel import Channel
from .connections.shape import attach
from .connections.sink import Sink
from .connections.websockets import ServerPerMessageDeflateFactory
from .hub import Hub, HubChannel, HubStats, HubSubscription, Registration, TopicStats
from .policies import Conflate, Disconnect, DropNewest, DropOldest, Policy
from .stats import ChannelStats, Lag, SubscriptionStats
from .stream import Stream

__all__ = [
    "Audience",
    "Channel",
    "ChannelStats",
    "Conflate",
    "Delivery",
    "Disconnect",
    "DropNewest",
    "DropOldest",
    "Hub",
    "HubChannel",
    "HubStats",
    "HubSubscription",
    "Lag",
    "Policy",
    "PreparedMessage",
    "Registration",
    "ServerConnection",
    "ServerPerMessageDeflateFactory",
    "Sink",
    "Stream",
    "Subscription",
    "SubscriptionStats",
    "TopicStats",
    "attach",
    "broadcast",
    "relay",
    "serve",
]

__version__ = "0.1.0"
