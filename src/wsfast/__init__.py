"""Fan-out over WebSocket connections as fast as the kernel allows.

Say `wsfast.broadcast(connections, message)` instead of `websockets.broadcast(connections, message)`.
"""

from . import relay
from ._broadcast import Delivery, broadcast
from ._encoding.message import PreparedMessage
from ._serve import ServerConnection, serve
from .audience import Audience
from .channel import Channel
from .connections.attach import Sink, attach
from .connections.websockets import ServerPerMessageDeflateFactory
from .hub import Hub, HubChannel, HubStats, HubSubscription, Registration
from .policies import Conflate, Disconnect, DropNewest, DropOldest
from .subscription import Subscription

__all__ = [
    "Audience",
    "Channel",
    "Conflate",
    "Delivery",
    "Disconnect",
    "DropNewest",
    "DropOldest",
    "Hub",
    "HubChannel",
    "HubStats",
    "HubSubscription",
    "PreparedMessage",
    "Registration",
    "ServerConnection",
    "ServerPerMessageDeflateFactory",
    "Sink",
    "Subscription",
    "attach",
    "broadcast",
    "relay",
    "serve",
]

__version__ = "0.1.0"
