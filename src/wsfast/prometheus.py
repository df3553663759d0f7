"""Metrics of channels for Prometheus; needs the extra `prometheus`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from .channel import Channel
from .subscription import ChannelStats

__all__ = ["ChannelCollector"]

COUNTERS = {
    "published": "Messages times the subscribers that they were for.",
    "sent": "Messages that a kernel, or a transport, has taken.",
    "dropped": "Messages that a subscriber never gets.",
    "conflated": "Messages that were replaced by newer ones of the same key.",
    "disconnected": "Connections that were closed since they did not keep up.",
}
GAUGES = {
    "subscribers": "Connections that are subscribed.",
    "lagging": "Subscribers for which something waits.",
    "queued": "Messages that wait.",
}


class ChannelCollector(Collector):
    """Collects the statistics of channels; register it with a `prometheus_client.CollectorRegistry`.

    Metrics are called `wsfast_channel_...`, with the name of the channel as label `channel`. It may be asked from any
    thread; the channels are asked in their event loop.

    Args:
        channels: The channels, or a function that returns them.
        timeout: Seconds to wait for an event loop that is busy.
    """

    def __init__(self, channels: Iterable[Channel] | Callable[[], Iterable[Channel]], *, timeout: float = 5.0) -> None:
        self._channels = channels if callable(channels) else lambda: channels
        self._timeout = timeout

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """Yield the metrics.

        Raises:
            TimeoutError: If an event loop does not answer.
        """
        stats = [(channel.name, self._ask(channel)) for channel in self._channels()]
        for name, description in COUNTERS.items():
            counter = CounterMetricFamily(f"wsfast_channel_{name}", description, labels=["channel"])
            for channel, values in stats:
                counter.add_metric([channel], getattr(values, name))
            yield counter
        for name, description in GAUGES.items():
            gauge = GaugeMetricFamily(f"wsfast_channel_{name}", description, labels=["channel"])
            for channel, values in stats:
                gauge.add_metric([channel], getattr(values, name))
            yield gauge

    def _ask(self, channel: Channel) -> ChannelStats:
        loop = channel.loop
        try:
            here = asyncio.get_running_loop()
        except RuntimeError:
            here = None
        if loop is None or loop is here or not loop.is_running():
            return channel.stats()
        answer: Future[ChannelStats] = Future()
        loop.call_soon_threadsafe(lambda: answer.set_result(channel.stats()))
        return answer.result(self._timeout)
