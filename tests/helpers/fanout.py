"""The ways to send one message to many connections, as functions of the message that send it at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import wsfast

__all__ = ["broadcast_to", "channel_of", "hub_of"]


def broadcast_to(connections: list[Any]) -> Callable[[str], Any]:
    return lambda message: wsfast.broadcast(connections, message)


def channel_of(connections: list[Any]) -> Callable[[str], Any]:
    channel = wsfast.Channel()
    for connection in connections:
        channel.subscribe(connection)

    def publish(message: str) -> None:
        channel.publish(message)
        channel.flush()

    return publish


def hub_of(connections: list[Any]) -> Callable[[str], Any]:
    hub = wsfast.Hub()
    for connection in connections:
        hub.subscribe(connection, "prices.lse")

    def publish(message: str) -> None:
        hub.publish("prices.lse", message)
        hub.flush()

    return publish
