"""A client for servers that use `wsfast.session`: it reconnects, subscribes again, and gets what it has missed.

async with wsfast.client.connect("ws://localhost:8765") as client:
    async for message in client.subscribe("prices"):
        print(message.payload)
"""

from .client import Client, connect
from .subscription import Subscription
from .values import Backoff, Closed, Event, Gap, Heartbeat, Message, Refused, Subscribed

__all__ = [
    "Backoff",
    "Client",
    "Closed",
    "Event",
    "Gap",
    "Heartbeat",
    "Message",
    "Refused",
    "Subscribed",
    "Subscription",
    "connect",
]
