"""Metrics of channels."""

from __future__ import annotations

import asyncio
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from websockets.asyncio.client import connect

import wsfast
from helpers.peers import until
from wsfast.prometheus import ChannelCollector


def test_collector(core: Any) -> None:
    """The metrics are the statistics of the channels, asked from any thread."""

    async def main() -> None:
        channel, idle = wsfast.Channel("prices"), wsfast.Channel("idle")
        registry = CollectorRegistry()
        registry.register(ChannelCollector(lambda: [channel, idle]))

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
