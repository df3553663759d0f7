"""Slow consumers of one event loop: what waits for too long, and when it is time to tell about them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from ._backlog import Queue, Subscriber
from ._core import core

__all__ = ["SlowConsumers"]

AGE_INTERVAL = 0.1
"""Seconds between two looks at how long messages have waited."""

EPISODE_GAP = 1.0
"""Seconds for which a connection must keep up before it counts as recovered."""


class Episode:
    """A time during which policies have had to do something about a connection."""

    __slots__ = ("last", "subscriptions")

    def __init__(self) -> None:
        self.last = 0.0
        self.subscriptions: set[Subscriber] = set()


class SlowConsumers:
    """Looks from time to time at those for whom something waits, though nothing may be published any more.

    Args:
        loop: The event loop.
        log: Function that logs, with a level, a message and its arguments.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, log: Callable[..., None]) -> None:
        self._loop = loop
        self._log = log
        self._peers: set[core.Peer] = set()
        self._episodes: dict[core.Peer, Episode] = {}
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, peer: core.Peer) -> None:
        """Look at a peer as long as something waits for it."""
        self._peers.add(peer)
        # A signal handler may have interrupted the last look before it began.
        if self._timer is None or self._loop.time() - self._timer.when() > AGE_INTERVAL:
            self._timer = self._loop.call_later(AGE_INTERVAL, self._look)

    def forget(self, peer: core.Peer) -> None:
        """Do not look at a peer any more."""
        self._peers.discard(peer)
        self._episodes.pop(peer, None)

    def begin_episode(self, peer: core.Peer, subscription: Subscriber) -> bool:
        """Note that a policy has done something; return whether an episode begins with that."""
        episode = self._episodes.get(peer)
        begins = episode is None
        if episode is None:
            episode = self._episodes[peer] = Episode()
        episode.last = time.monotonic()
        episode.subscriptions.add(subscription)
        return begins

    def _expire(self, queue: Queue, now: float) -> None:
        try:
            queue.subscription.publisher.slow.expire(queue, now)
        except Exception as exc:  # the others are looked at all the same
            self._loop.call_exception_handler({"message": "a policy has failed", "exception": exc})

    def _look(self) -> None:
        self._timer = None
        try:
            now = time.monotonic()
            for peer in tuple(self._peers):
                if peer.backlog is None:
                    self._peers.discard(peer)
                    continue
                for queue in list(peer.backlog.queues.values()):
                    if queue.subscription.active:
                        self._expire(queue, now)
            for peer, episode in tuple(self._episodes.items()):
                if peer.backlog is not None:
                    episode.last = now
                elif now - episode.last > EPISODE_GAP:
                    del self._episodes[peer]
                    self._log(logging.INFO, "%s has recovered", peer.connection.id)
                    for subscription in episode.subscriptions:
                        subscription.recover()
        finally:
            if (self._peers or self._episodes) and self._timer is None:
                self._timer = self._loop.call_later(AGE_INTERVAL, self._look)
