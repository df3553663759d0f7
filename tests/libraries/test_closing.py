"""Connections of every library that are about to be closed, or were."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import struct
from collections.abc import Callable
from typing import Any

import pytest

import wsfast
from helpers.fixtures import Run
from helpers.libraries import LIBRARIES


def reset(client: Any) -> None:
    """Drop the connection of a client with a TCP reset."""
    sock = client.transport.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.transport.abort()


def broadcast_to(connections: list[Any]) -> Callable[[str], object]:
    return lambda message: wsfast.broadcast(connections, message)


def channel_of(connections: list[Any]) -> Callable[[str], object]:
    channel = wsfast.Channel()
    for connection in connections:
        channel.subscribe(connection)

    def publish(message: str) -> None:
        channel.publish(message)
        channel.flush()

    return publish


def hub_of(connections: list[Any]) -> Callable[[str], object]:
    hub = wsfast.Hub()
    for connection in connections:
        hub.subscribe(connection, "topic")

    def publish(message: str) -> None:
        hub.publish("topic", message)
        hub.flush()

    return publish


@pytest.mark.parametrize("secure", [False, True], ids=["tcp", "tls"])
@pytest.mark.parametrize("level", [logging.INFO, logging.DEBUG], ids=["fast", "own-methods"])
@pytest.mark.parametrize("name", sorted(set(LIBRARIES) - {"sink"}))  # the user of a sink writes to the transport
def test_closing_transports_are_not_written_to(
    run: Run,
    core: Any,
    tls: tuple[ssl.SSLContext, ssl.SSLContext],
    caplog: pytest.LogCaptureFixture,
    name: str,
    level: int,
    secure: bool,
) -> None:
    """Clients that have reset their connections cause no warnings of asyncio, whether the event loop runs or not."""

    async def main() -> None:
        async with LIBRARIES[name].open(compress=False, small=False, tls=tls if secure else None) as connect:
            pairs = [await connect() for _ in range(3)]
            connections = [connection for connection, _ in pairs]
            fan_outs = [make(connections) for make in (broadcast_to, channel_of, hub_of)]
            for fan_out in fan_outs:
                fan_out("all are there")
            for _, client in pairs:
                reset(client)
            await asyncio.sleep(0)  # abort() closes sockets in the next iteration
            for number in range(40):
                for fan_out in fan_outs:
                    fan_out(f"nobody is there {number}")
                if number >= 20:
                    await asyncio.sleep(0)

    caplog.set_level(level, "websockets")
    caplog.set_level(logging.INFO, "asyncio")
    run(main)
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []
