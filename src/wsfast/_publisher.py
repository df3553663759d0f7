"""The parts that channels and hubs share: publishers, their counts, and streams of their messages."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any
from weakref import WeakValueDictionary

from ._arguments import Local, check_callback, check_integer, check_str
from ._core import core
from ._dispatcher import Dispatcher
from ._encoding.message import PreparedMessage
from ._reentrancy import Calls
from ._shutdown import Closing, Drained, ShutdownPlan, new_connections
from .connections import adapt
from .connections.shape import PEER
from .policies import Disconnect, Policy

__all__ = ["NOTSENT_LOWAT", "STREAM_BOUND", "Publisher", "Stream", "Streams"]

NOTSENT_LOWAT = 16384
"""Bytes of unsent data that the kernel buffers for a subscriber; beyond that, it takes no more."""

STREAM_BOUND = 1024
"""Maximum number of messages that wait in a stream."""


class Publisher(Local):
    """Publishes messages to subscribed connections: the common base of `Channel` and `Hub`."""

    def __init__(
        self,
        name: str,
        *,
        slow: Policy | None,
        history: int,
        notsent_lowat: int | None,
        on_drop: Callable[..., object] | None,
        on_disconnect: Callable[..., object] | None,
        on_recover: Callable[..., object] | None,
    ) -> None:
        if slow is None:
            slow = Disconnect()
        if not isinstance(slow, Policy) or type(slow) is Policy:
            raise TypeError(f"slow must be Disconnect(), DropNewest(), DropOldest() or Conflate(), not {slow!r}")
        check_str("name", name)
        check_integer("history", history, least=0)
        check_integer("notsent_lowat", notsent_lowat, most=(1 << 31) - 1, optional=True)
        check_callback("on_drop", on_drop)
        check_callback("on_disconnect", on_disconnect)
        check_callback("on_recover", on_recover)
        self.name = name
        self.slow = slow
        self.messages: int = 0
        self.bytes: int = 0
        self.disconnected = 0
        self.on_drop = on_drop
        self.on_disconnect = on_disconnect
        self.on_recover = on_recover
        self._notsent_lowat = notsent_lowat
        self._subscriptions: dict[int, Any] = {}  # by slot
        self._dispatcher: Dispatcher | None = None
        self._closing: Closing | None = None  # the last run of drain()
        self._draining = False
        self._left = 0, 0, 0, 0  # counts of former subscribers: published, sent, dropped, conflated

    def __repr__(self) -> str:
        return f"<{type(self).__name__}{f' {self.name!r}' if self.name else ''}>"

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop that it belongs to; None before the first use."""
        return None if self._dispatcher is None else self._dispatcher.loop

    def __len__(self) -> int:
        """Number of subscribed connections."""
        return len(self._subscriptions)

    @property
    def _calls(self) -> Calls | None:
        """The calls of its event loop; None before the first use."""
        return None if self._dispatcher is None else self._dispatcher.calls

    def _bind(self) -> Dispatcher:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            loop = None
        if self._dispatcher is None or (loop is not self._dispatcher.loop and self._is_free()):
            if loop is None:
                raise RuntimeError(
                    f"a {type(self).__name__} must be used in a running event loop; call it in a coroutine, for "
                    "example one that asyncio.run() runs"
                )
            self._dispatcher = Dispatcher.of(loop)
            self._draining = False
        elif loop is not self._dispatcher.loop or self._dispatcher.calls.forked:
            self._check_process(self._dispatcher)
            raise RuntimeError(
                f"a {type(self).__name__} must always be used in the same event loop; from other threads, use "
                "publish_threadsafe()"
            )
        return self._dispatcher

    def _is_free(self) -> bool:
        """Whether it may move to another event loop: its own is closed, and nothing is subscribed any more."""
        dispatcher = self._dispatcher
        return dispatcher is None or (
            dispatcher.loop.is_closed() and not self._subscriptions and not dispatcher.calls.forked
        )

    def _check_process(self, dispatcher: Dispatcher) -> None:
        if dispatcher.calls.forked:
            raise RuntimeError(
                f"the {type(self).__name__} was used before os.fork(), so its connections belong to the parent "
                f"process; {self._instead}"
            )

    def _loop_of_thread(self) -> asyncio.AbstractEventLoop:
        """Return the event loop that another thread may call."""
        if self._dispatcher is None:
            raise RuntimeError(
                f"the {type(self).__name__} has no event loop yet; subscribe or publish once in its event loop first"
            )
        self._check_process(self._dispatcher)
        return self._dispatcher.loop

    def _prepare_socket(self, connection: Any) -> None:
        """Keep the kernel from buffering megabytes for a client that reads nothing."""
        if self._notsent_lowat is not None and hasattr(socket, "TCP_NOTSENT_LOWAT"):
            sock = connection.transport.get_extra_info("socket")
            if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, self._notsent_lowat)

    def _admit(self, connection: Any) -> Any:
        """Return the subscription of a connection: a new one if it has none."""
        dispatcher = self._bind()
        connection = adapt(connection)
        if self._draining:
            known: core.Peer | None = getattr(connection, PEER, None)
            if known is None or known.dispatcher is not dispatcher or known.slot not in self._subscriptions:
                raise new_connections(self)
        with core.collector_paused:  # finalizers may subscribe the connection as well
            peer = dispatcher.admit(connection)
            try:
                subscription = self._subscriptions.get(peer.slot)
                if subscription is not None:
                    subscription.again()
                else:
                    subscription = self._subscriptions[peer.slot] = self._new_subscription(peer)
                    self._begin(subscription, peer)
                    self._prepare_socket(connection)
                    peer.check(connection)
            except BaseException:
                self._withdraw(peer)
                raise
        return subscription

    def _set_counts(self, messages: int, size: int) -> None:
        self.messages = messages
        self.bytes = size

    def _count(self, messages: int, size: int) -> None:
        """Set the counts, even if a signal handler interrupts this."""
        try:
            self._set_counts(messages, size)
        except BaseException:
            self._set_counts(messages, size)
            raise

    def _new_subscription(self, peer: core.Peer) -> Any:
        raise NotImplementedError

    def _begin(self, subscription: Any, peer: core.Peer) -> None:
        """Start publishing to a new subscription."""

    def _withdraw(self, peer: core.Peer) -> None:
        """End the subscription of a connection, even if it was created only in part."""
        dispatcher = self._bind()
        dispatcher.flush_for(peer)  # the history may have been sent, and cannot be taken back
        for subscription in peer.subscriptions:
            if subscription.publisher is self:
                subscription.end_alone()
        if not peer.subscriptions:
            dispatcher.release(peer)

    def exclude(self, slot: int) -> None:
        """Publish no more messages to a slot."""
        raise NotImplementedError

    def _slots_of(self, connections: Iterable[object]) -> set[int]:
        """Return the slots of connections, without those that are not subscribed."""
        slots: set[int] = set()
        for connection in list(connections):  # may run the caller's code
            peer: core.Peer | None = getattr(adapt(connection), PEER, None)
            if peer is not None and peer.dispatcher is self._dispatcher and peer.slot in self._subscriptions:
                slots.add(peer.slot)
        return slots

    # ---- For subscriptions and the dispatcher

    def subscription_of(self, peer: core.Peer) -> Any:
        """Return the subscription of a connection; None if it has none."""
        return self._subscriptions.get(peer.slot)

    def remove(self, subscription: Any, peer: core.Peer) -> None:
        """Forget a subscription that has ended, and keep its counts."""
        if peer.slot not in self._subscriptions or self._subscriptions[peer.slot] is not subscription:
            return
        stats = subscription.stats()
        published, sent, dropped, conflated = self._left
        left = (
            published + stats.published,
            sent + stats.sent,
            dropped + stats.dropped,
            conflated + stats.conflated,
        )
        slot, subscriptions = peer.slot, self._subscriptions
        # From here on, nothing is called.
        if slot in subscriptions:
            del subscriptions[slot]
            self._left = left

    def report(self, callback: Callable[..., object] | None, *arguments: Any) -> None:
        """Schedule a callback, so that it does not run in the middle of sending."""
        if callback is not None and self._dispatcher is not None:
            self._dispatcher.loop.call_soon(callback, *arguments)

    # ---- Public methods

    def flush(self) -> None:
        """Send now everything published in this iteration of the event loop, by all of its channels and hubs."""
        self._bind().flush()

    @property
    def draining(self) -> bool:
        """Whether `drain()` was called, so that no new connections are taken."""
        return self._draining

    async def drain(self, seconds: float, code: int = 1012, reason: str = "", jitter: bool = True) -> Drained:
        """Close all subscribed connections, spread over some seconds, for example before the process ends.

        From now on, subscribing a connection that is not subscribed yet raises `DrainingError`. A connection whose turn
        has come first gets all messages that wait for it, as far as its client reads them, and then the close frame.
        Until then, it gets everything that is published. Event streams end, so that their clients connect again.

        The last 2 s are for the answers of clients, or the last quarter if `seconds` is less than 8. The close frames
        are spread evenly over the time before. Connections that are still there at the end are aborted.

        A second call waits for the first one; its arguments have no effect. When all tasks that wait are cancelled,
        no further connections are closed, and new ones are still refused; those that got a close frame end within the
        timeouts of their libraries. Another call then continues with the connections that are left.

        Args:
            seconds: Seconds after which the call returns at the latest. It returns earlier if all have left.
            code: Status code of the close frames. The default means "service restart".
            reason: Reason in the close frames, at most 123 bytes.
            jitter: Whether connections are closed in random order and at random moments. If not, they are closed in the
                order of subscribing, at equal intervals. No second gets more than its share either way.

        Returns:
            The numbers of connections that were closed and aborted.

        Raises:
            TypeError: If an argument has another type.
            ValueError: If `seconds` is not positive, `code` may not be sent, or `reason` is too long (RFC 6455,
                section 7.4).
            RuntimeError: If it is called outside its event loop.
        """
        plan = ShutdownPlan(seconds, code, reason, jitter)
        plan.check()
        self._bind()
        self._draining = True
        if self._closing is None or self._closing.done:
            self._closing = Closing(self._connections, plan)
        return await self._closing.wait()

    def _connections(self) -> list[Any]:
        """Return the connections that are subscribed now."""
        peers = [subscription._peer for subscription in tuple(self._subscriptions.values())]
        return [peer.connection for peer in peers if peer is not None]

    def _counts(self) -> tuple[int, int, int, int, int, int, int, int, int, int]:
        """Return the counts of the messages so far, in the order of `ChannelStats`."""
        with core.collector_paused:  # finalizers may unsubscribe
            published, sent, dropped, conflated = self._left
            queued = lagging = 0
            for subscription in tuple(self._subscriptions.values()):
                stats = subscription.stats()
                published += stats.published
                sent += stats.sent
                dropped += stats.dropped
                conflated += stats.conflated
                queued += stats.queued
                lagging += subscription.queued > 0
            return (
                self.messages,
                self.bytes,
                len(self._subscriptions),
                published,
                sent,
                dropped,
                conflated,
                queued,
                lagging,
                self.disconnected,
            )


class Streams(WeakValueDictionary[int, "Stream"]):
    """The streams of a channel or a topic. They are not kept alive by it."""

    def add(self, stream: Stream) -> None:
        """Add a stream, which gets the messages published from now on."""
        if not stream.closed:
            stream.streams = self
            self[id(stream)] = stream

    def put(self, message: PreparedMessage) -> None:
        """Add a message to each stream."""
        for reference in self.valuerefs():  # a copy: streams may be added and removed meanwhile
            stream = reference()
            if stream is not None:
                stream.put(message)


class Stream(Local, AsyncIterator[str | bytes]):
    """The messages of a channel or a topic, as they are published.

    The stream ends when `close()` is called: the iteration then stops after the messages that wait. It also ends when
    it is no longer referenced.
    """

    def __init__(self, max_messages: int, loop: asyncio.AbstractEventLoop) -> None:
        check_integer("max_messages", max_messages)
        self.dropped: int = 0
        """Messages dropped because too many waited."""
        self.closed: bool = False
        """Whether the stream was closed."""
        self.streams: Streams | None = None
        self._messages: deque[PreparedMessage] = deque()
        self._max_messages = max_messages
        self._loop = loop
        self._waiter: asyncio.Future[None] | None = None

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the stream."""
        self.closed = True
        if self.streams is not None:
            self.streams.pop(id(self), None)
        self._wake()

    def put(self, message: PreparedMessage) -> None:
        """Add a message."""
        if len(self._messages) == self._max_messages:
            self._messages.popleft()
            self.dropped += 1
        self._messages.append(message)
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def __anext__(self) -> str | bytes:
        while not self._messages:
            if self.closed:
                raise StopAsyncIteration
            if asyncio.get_running_loop() is not self._loop:
                raise RuntimeError("a Stream must be iterated over in the event loop of its channel")
            if self._waiter is None or self._waiter.done():
                self._waiter = self._loop.create_future()
            await asyncio.shield(self._waiter)
        message = self._messages.popleft()
        return message.data.decode() if message.text else message.data
