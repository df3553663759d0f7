"""Prometheus metrics of channels, hubs and relays. Needs the extra `prometheus`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import Any, TypeAlias

from ._arguments import check_callback, check_seconds, needs
from .channel import Channel
from .hub import Hub
from .relay import Relay

with needs("wsfast[prometheus]", "prometheus_client"):
    import prometheus_client.registry
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

__all__ = ["Collector"]

Source: TypeAlias = Channel | Hub | Relay

COUNTERS = {
    "published": "Messages published, counted once per subscriber.",
    "sent": "Messages taken by the kernel or a transport, counted once per subscriber.",
    "dropped": "Messages dropped, counted once per subscriber.",
    "conflated": "Messages replaced by a newer one with the same key, counted once per subscriber.",
    "disconnected": "Connections closed because they did not keep up.",
}
GAUGES = {
    "subscribers": "Subscribed connections.",
    "lagging": "Subscribers for which messages wait.",
    "queued": "Messages that wait, counted once per subscriber.",
}
HUB_GAUGES = {
    "topics": "Topics with at least one subscriber, patterns not counted.",
    "patterns": "Patterns with at least one subscriber.",
    "users": "Connected users.",
}
RELAY_COUNTERS = {
    "published": "Messages published for other processes.",
    "sent": "Messages confirmed by the broker.",
    "dropped": "Messages for other processes that were dropped.",
    "received": "Messages received from other processes.",
    "duplicates": "Messages received a second time and not delivered again.",
    "malformed": "Messages that no relay of this version has sent.",
    "rejected": "Messages with a missing or wrong signature, or from another channel.",
    "gaps": "Gaps in the messages from other processes.",
    "lost": "Messages from other processes that are missing.",
    "reconnects": "Reconnections to the broker.",
}
RELAY_GAUGES = {
    "queued": "Messages that wait, or that the broker has not confirmed yet.",
    "subscriptions": "Topics, patterns and users subscribed to at the broker.",
    "connected": "1 while connected to the broker, else 0.",
}
METRICS: list[tuple[type[Source], str, str, dict[str, str], dict[str, str]]] = [
    (Channel, "channel", "channel", COUNTERS, GAUGES),
    (Hub, "hub", "hub", COUNTERS, GAUGES | HUB_GAUGES),
    (Relay, "relay", "hub", RELAY_COUNTERS, RELAY_GAUGES),
]
"""For each type of source: the prefix of its metrics after `wsfast_`, its label, its counters and its gauges."""


class Collector(prometheus_client.registry.Collector):
    """Exports the statistics of channels, hubs and relays to Prometheus.

    Register it with a `prometheus_client.CollectorRegistry`. Metrics are named `wsfast_channel_...`, with the name of
    the channel as label `channel`; `wsfast_hub_...`, with the name of the hub as label `hub`; and `wsfast_relay_...`,
    with the name of the relay's hub as label `hub`. `collect()` may be called from any thread; it reads the statistics
    of each source in the event loop of that source.

    Args:
        sources: The channels, hubs and relays, or a function that returns them.
        timeout: Seconds to wait for an event loop that is busy.

    Raises:
        TypeError: If one of the sources is something else, or `timeout` is not a number.
        ValueError: If `timeout` is not positive.
    """

    def __init__(self, sources: Iterable[Source] | Callable[[], Iterable[Source]], *, timeout: float = 5.0) -> None:
        check_seconds("timeout", timeout)
        if callable(sources):
            check_callback("sources", sources)
            self._sources: Callable[[], Iterable[Source]] = sources
        else:
            # An iterator yields its items only once; other collections may change later.
            collection = tuple(sources) if isinstance(sources, Iterator) else sources
            self._sources = lambda: collection
            _checked(collection)
        self._timeout = timeout

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """Yield the metrics.

        Raises:
            TimeoutError: If an event loop does not answer.
        """
        sources = _checked(self._sources())
        for kind, prefix, label, counters, gauges in METRICS:
            stats = [(_hub_or_channel(one).name, self._ask(one)) for one in sources if isinstance(one, kind)]
            if not stats:
                continue
            for family, names in ((CounterMetricFamily, counters), (GaugeMetricFamily, gauges)):
                for name, description in names.items():
                    metric = family(f"wsfast_{prefix}_{name}", description, labels=[label])
                    for value, values in stats:
                        metric.add_metric([value], getattr(values, name))
                    yield metric

    def _ask(self, source: Source) -> Any:
        loop = _hub_or_channel(source).loop
        try:
            here = asyncio.get_running_loop()
        except RuntimeError:
            here = None
        if loop is None or loop is here or not loop.is_running():
            return source.stats()
        answer: Future[Any] = Future()
        loop.call_soon_threadsafe(lambda: answer.set_result(source.stats()))
        return answer.result(self._timeout)


def _checked(sources: Iterable[Source]) -> list[Source]:
    """Return the sources as a list."""
    if not isinstance(sources, Iterable):
        raise TypeError(f"sources must be an iterable of channels, hubs and relays; write [...] around {sources!r}")
    sources = list(sources)
    for source in sources:
        if not isinstance(source, (Channel, Hub, Relay)):
            raise TypeError(f"cannot collect metrics of {source!r}: sources must be channels, hubs and relays")
    return sources


def _hub_or_channel(source: Source) -> Channel | Hub:
    return source.hub if isinstance(source, Relay) else source
