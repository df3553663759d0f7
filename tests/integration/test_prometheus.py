"""Metrics of channels, hubs and relays."""

from __future__ import annotations

import asyncio
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from websockets.asyncio.client import connect

import wsfast
from helpers.brokers import Nowhere
from helpers.peers import until
from wsfast.prometheus import Collector
from wsfast.relay import Relay


def test_collector(core: Any) -> None:
    """The metrics are the statistics of the channels, asked from any thread."""

    async def main() -> None:
        channel, idle = wsfast.Channel("prices"), wsfast.Channel("idle")
        registry = CollectorRegistry()
        registry.register(Collector(lambda: [channel, idle]))

        async def subscribe(connection: Any) -> None:
            channel.subscribe(connection)
            await connection.wait_closed()

        async with wsfast.serve(subscribe, "127.0.0.1", 0) as server:
            port = next(iter(server.sockets)).getsockname()[1]
            async with connect(f"ws://127.0.0.1:{port}") as client:
                await until(lambda: len(channel) == 1, "the subscription")
                for i in range(3):
                    channel.publish(f"tick {i}")
                channel.flush()
                assert [await client.recv() for _ in range(3)] == ["tick 0", "tick 1", "tick 2"]
                here = generate_latest(registry)
                assert here == await asyncio.to_thread(generate_latest, registry)
        lines = here.decode().splitlines()
        for line in (
            'wsfast_channel_published_total{channel="prices"} 3.0',
            'wsfast_channel_sent_total{channel="prices"} 3.0',
            'wsfast_channel_dropped_total{channel="prices"} 0.0',
            'wsfast_channel_subscribers{channel="prices"} 1.0',
            'wsfast_channel_queued{channel="prices"} 0.0',
            'wsfast_channel_published_total{channel="idle"} 0.0',
        ):
            assert line in lines

    asyncio.run(main())


def test_hubs_and_relays(core: Any) -> None:
    """Hubs and relays have metrics of their own, beside those of channels, asked from any thread."""

    async def main() -> list[str]:
        channel, hub = wsfast.Channel("prices"), wsfast.Hub(name="chat")
        relay = Relay(hub, Nowhere(), slow=wsfast.DropOldest(max_messages=1), on_gap=None, timeout=0.01)
        registry = CollectorRegistry()
        registry.register(Collector([channel, hub, relay]))

        async def subscribe(connection: Any) -> None:
            with hub.register(connection, "ann"), hub.subscribe(connection, "a", "b.*"):
                await connection.wait_closed()

        async with relay, wsfast.serve(subscribe, "127.0.0.1", 0) as server:
            port = next(iter(server.sockets)).getsockname()[1]
            async with connect(f"ws://127.0.0.1:{port}") as client:
                await until(lambda: hub.count("a") == 1, "the subscription")
                for _ in range(3):
                    hub.publish("a", "x")
                assert [await client.recv() for _ in range(3)] == ["x"] * 3
                here = generate_latest(registry)
                assert here == await asyncio.to_thread(generate_latest, registry)
        return here.decode().splitlines()

    lines = asyncio.run(main())
    for line in (
        'wsfast_channel_published_total{channel="prices"} 0.0',
        'wsfast_hub_published_total{hub="chat"} 3.0',
        'wsfast_hub_sent_total{hub="chat"} 3.0',
        'wsfast_hub_subscribers{hub="chat"} 1.0',
        'wsfast_hub_topics{hub="chat"} 1.0',
        'wsfast_hub_patterns{hub="chat"} 1.0',
        'wsfast_hub_users{hub="chat"} 1.0',
        'wsfast_relay_published_total{hub="chat"} 3.0',
        'wsfast_relay_dropped_total{hub="chat"} 2.0',
        'wsfast_relay_queued{hub="chat"} 1.0',
        'wsfast_relay_connected{hub="chat"} 0.0',
    ):
        assert line in lines
    assert not [line for line in lines if "_relay_topics" in line or "_channel_users" in line]
