"""Fan-out over WebSocket connections as fast as the kernel allows.

Say `wsfast.broadcast(connections, message)` instead of `websockets.broadcast(connections, message)`.
"""

from .adapters.websockets import ServerPerMessageDeflateFactory
from .attach import Sink, attach
from .audience import Audience
from .broadcast import Delivery, broadcast
from .channel import Channel, Subscription
from .message import PreparedMessage
from .policies import Conflate, Disconnect, DropNewest, DropOldest
from .server import ServerConnection, serve

__all__ = [
    "Audience",
    "Channel",
    "Conflate",
    "Delivery",
    "Disconnect",
    "DropNewest",
    "DropOldest",
    "PreparedMessage",
    "ServerConnection",
    "ServerPerMessageDeflateFactory",
    "Sink",
    "Subscription",
    "attach",
    "broadcast",
    "serve",
]

__version__ = "0.1.0"
