"""Fan-out over WebSocket connections as fast as the kernel allows.

Say `wsfast.broadcast(connections, message)` instead of `websockets.broadcast(connections, message)`.
"""

from . import relay
from .adapters.websockets import ServerPerMessageDeflateFactory
from .attach import Sink, attach
from .audience import Audience
from .broadcast import Delivery, broadcast
from .channel import Channel
from .hub import Hub, HubChannel, HubStats, HubSubscription, Registration
from .message import PreparedMessage
from .policies import Conflate, Disconnect, DropNewest, DropOldest
from .publisher import Subscription
from .server import ServerConnection, serve

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
