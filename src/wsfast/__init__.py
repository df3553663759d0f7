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
from ._serve import ServerConnection, serve
from ._subscription import ChannelStats, Lag, Subscription, SubscriptionStats
from .channel import Channel
from .connections.foreign import Ended
from .connections.shape import attach
from .connections.sink import Sink
from .connections.websockets import ServerPerMessageDeflateFactory
from .hub import History, Hub, HubChannel, HubStats, HubSubscription, Position, Registration, TopicStats
from .policies import Conflate, Disconnect, DropNewest, DropOldest, Policy

if TYPE_CHECKING:
    from . import django as django
    from . import gunicorn as gunicorn
    from . import hypercorn as hypercorn
    from . import litestar as litestar
    from . import prometheus as prometheus
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


def __getattr__(name: str) -> Any:
    """Import modules that need another package when they are first used."""
    if name in ("django", "gunicorn", "hypercorn", "litestar", "prometheus", "socketio", "sse", "trio", "uvicorn"):
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
