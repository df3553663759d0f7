"""Fan-out over WebSocket connections as fast as the kernel allows.

Say `wsfast.broadcast(connections, message)` instead of `websockets.broadcast(connections, message)`.
"""

from .adapters.websockets import ServerPerMessageDeflateFactory
from .audience import Audience
from .broadcast import Delivery, broadcast
from .message import PreparedMessage

__all__ = ["Audience", "Delivery", "PreparedMessage", "ServerPerMessageDeflateFactory", "broadcast"]

__version__ = "0.1.0"
