"""Send messages to many WebSocket connections, as fast as the kernel allows.

Call `wsfast.broadcast(connections, message)` in place of `websockets.broadcast(connections, message)`.
"""

import importlib
from typing import TYPE_CHECKING, Any

from . import relay
from ._broadcast import Delivery, broadcast
from ._delivery import set_threads, threads
from ._encoding.message import PreparedMessage
from ._publisher import Stream
from ._serve import Server, ServerConnection, serve
from ._shutdown import Drained, DrainingError
from ._subscription import ChannelStats, Lag, Subscription, SubscriptionStats
from .channel import Channel
from .connections.foreign import Ended
from .connections.shape import attach
from .connections.sink import Sink
from .connections.websockets import ServerPerMessageDeflateFactory
from .hub import History, Hub, HubChannel, HubStats, HubSubscription, Position, Registration, TopicStats
from .policies import Conflate, Disconnect, DropNewest, DropOldest, Policy

if TYPE_CHECKING:
    from . import client as client
    from . import django as django
    from . import gunicorn as gunicorn
    from . import hypercorn as hypercorn
    from . import litestar as litestar
    from . import prometheus as prometheus
    from . import session as session
    from . import socketio as socketio
    from . import sse as sse
    from . import trio as trio
    from . import uvicorn as uvicorn

__all__ = [
    "Channel",
    "ChannelStats",
    "Conflate",
    "Delivery",
    "Disconnect",
    "Drained",
    "DrainingError",
    "DropNewest",
    "DropOldest",
    "Ended",
    "History",
    "Hub",
    "HubChannel",
    "HubStats",
    "HubSubscription",
    "Lag",
    "Policy",
    "Position",
    "PreparedMessage",
    "Registration",
    "Server",
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
    "set_threads",
    "threads",
]

__version__ = "0.1.0"

_LAZY = (
    "client",
    "django",
    "gunicorn",
    "hypercorn",
    "litestar",
    "prometheus",
    "session",
    "socketio",
    "sse",
    "trio",
    "uvicorn",
)


def __getattr__(name: str) -> Any:
    """Import modules that need another package, or that few programs need, when they are first used."""
    if name in _LAZY:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
