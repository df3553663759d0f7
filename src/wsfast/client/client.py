"""The client, and its subscriptions."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as dial
from websockets.exceptions import ConnectionClosed, InvalidStatus, InvalidURI, WebSocketException

from wsfast._arguments import check_integer
from wsfast.hub.positions import Position

from .values import Backoff, Closed, Event, Gap, Heartbeat, Message, Refused, Subscribed, reconnects

__all__ = ["Client", "Subscription", "connect"]

logger: logging.Logger = logging.getLogger("wsfast.client")

ABANDONED = 4000
"""Code of a connection that the client gave up, because the other end did not answer."""
LOST = 1006
"""Code of a connection that ended without a close frame, or was not made (RFC 6455, section 7.1.5)."""


# ---- Subscriptions


@dataclass(eq=False, slots=True)
class _Topic:
    """The client's state of one topic."""

    name: str
    position: Position | None = None
    request: int = 0  # number of the request that was not answered yet, or 0
    held: list[Message] = field(default_factory=list)  # messages before the answer: their epoch is not known yet
    subscriptions: list[Subscription] = field(default_factory=list)

    def forget_request(self) -> None:
        """Forget what belongs to a connection that has ended, or to a subscription before."""
        self.request = 0
        self.held.clear()


class Subscription:
    """One use of a topic: an asynchronous iterator of its messages. Ends by `unsubscribe()`, or with the client.

    At most `queue` messages wait in it. When it is full, the client reads nothing more from its connection, for none of
    its topics, until a message is taken. So nothing is dropped here, and the server's policy for slow clients decides.
    """

    def __init__(self, client: Client, topic: str, queue: int) -> None:
        self.topic = topic
        self._client = client
        self._bound = queue
        self._messages: deque[Message] = deque()
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self.active = True

    def __repr__(self) -> str:
        return f"<Subscription to {self.topic}{'' if self.active else ', ended'}>"

    def __aiter__(self) -> AsyncIterator[Message]:
        return self

    async def __anext__(self) -> Message:
        while not self._messages:
            if not self.active:
                raise self._client._error or StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        message = self._messages.popleft()
        self._room.set()
        return message

    @property
    def queued(self) -> int:
        """Messages that wait."""
        return len(self._messages)

    def unsubscribe(self) -> None:
        """End the subscription. The iteration ends after the messages that wait. Calling it again does nothing."""
        self._client._leave(self)

    def _end(self) -> None:
        self.active = False
        self._changed.set()
        self._room.set()

    async def _put(self, message: Message) -> None:
        while self.active and len(self._messages) >= self._bound:
            self._room.clear()
            await self._room.wait()
        if self.active:
            self._messages.append(message)
            self._changed.set()


# ---- The client


class Client:
    """A connection that is opened again whenever it ends, with subscriptions that outlive it. See `connect()`."""

    def __init__(
        self,
        url: str,
        backoff: Backoff,
        heartbeat: Heartbeat,
        queue: int,
        on_event: Callable[[Event], object] | None,
        reconnects: Callable[[int], bool],
        random: Callable[[], float],
        options: dict[str, Any],
    ) -> None:
        self.url = url
        self.connected = False
        """Whether there is a connection now."""
        self.attempts = 0
        """Attempts to connect again since a connection was last good."""
        self.duplicates = 0
        """Messages that came twice and were dropped."""
        self._backoff = backoff
        self._heartbeat = heartbeat
        self._queue = queue
        self._on_event = on_event
        self._reconnects = reconnects
        self._random = random
        self._options = options
        self._topics: dict[str, _Topic] = {}
        self._number = 0  # of the last request or ping
        self._requests: deque[str] = deque()  # that wait for the connection
        self._wake = asyncio.Event()  # there are some
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self._error: Exception | None = None

    def __repr__(self) -> str:
        return f"<Client of {self.url}{'' if self.connected else ', not connected'}>"

    async def __aenter__(self) -> Client:
        if self._task is not None:
            raise RuntimeError("a client cannot be reused; create a new one")
        self._task = asyncio.create_task(self._run(), name=f"client of {self.url}")
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def closed(self) -> bool:
        """Whether the client has ended, by `close()` or because it may not connect again."""
        return self._closed

    @property
    def positions(self) -> dict[str, Position]:
        """The positions of the topics: all messages up to there are in the subscriptions or were taken from them."""
        return {name: topic.position for name, topic in self._topics.items() if topic.position is not None}

    def subscribe(self, topic: str) -> Subscription:
        """Subscribe to a topic. With several subscriptions to one topic, each gets the messages from then on.

        Raises:
            TypeError: If `topic` is not a string.
            RuntimeError: If the client is closed.
        """
        if not isinstance(topic, str):
            raise TypeError(f"topic must be a str, not {type(topic).__name__}")
        if self._closed:
            raise RuntimeError("the client is closed")
        subscription = Subscription(self, topic, self._queue)
        state = self._topics.get(topic)
        if state is None:
            state = self._topics[topic] = _Topic(topic)
            if self.connected:
                self._request([state])
        state.subscriptions.append(subscription)
        return subscription

    async def close(self) -> None:
        """Close the connection and end all subscriptions. Calling it again does nothing."""
        self._end()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))

    def _leave(self, subscription: Subscription) -> None:
        if not subscription.active:
            return
        subscription._end()
        state = self._topics[subscription.topic]
        state.subscriptions.remove(subscription)
        if not state.subscriptions:
            del self._topics[state.name]
            if self.connected:
                self._send({"unsubscribe": [state.name], "id": self._next()})

    def _end(self) -> None:
        self._closed = True
        for state in self._topics.values():
            for subscription in state.subscriptions:
                subscription._end()
        self._topics.clear()

    def _tell(self, event: Event) -> None:
        if self._on_event is not None:
            try:
                self._on_event(event)
            except Exception:
                logger.exception("on_event() failed")

    # ---- The connection

    async def _run(self) -> None:
        """Connect again and again."""
        try:
            while True:
                code, reason = await self._connect_once()
                if not self._reconnects(code):
                    self._tell(Closed(code, reason, None, 0.0))
                    self._error = ConnectionError(f"the server has closed the connection with code {code}: {reason}")
                    break
                bound = self._backoff.bound(self.attempts, code)
                self.attempts += 1
                wait = self._random() * bound
                self._tell(Closed(code, reason, wait, bound))
                await asyncio.sleep(wait)
        except Exception as exc:
            self._error = exc
        finally:
            self._end()

    async def _connect_once(self) -> tuple[int, str]:
        """Connect, and receive until the connection ends; return the close code and the reason."""
        try:
            async with asyncio.timeout(self._heartbeat.timeout):
                connection = await dial(self.url, **self._options)
        except InvalidURI:
            raise
        except InvalidStatus as exc:
            status = exc.response.status_code
            return (4000 + status if status in (401, 403) else LOST), str(exc)
        except (OSError, EOFError, WebSocketException) as exc:
            return LOST, str(exc) or type(exc).__name__
        loop = asyncio.get_running_loop()
        begin = loop.time()
        self.connected = True
        self._request(list(self._topics.values()))
        writing = asyncio.create_task(self._write(connection))
        try:
            return await self._read(connection)
        finally:
            self.connected = False
            self._requests.clear()
            for state in self._topics.values():
                state.forget_request()
            if loop.time() - begin >= self._backoff.stable:
                self.attempts = 0
            writing.cancel()
            await asyncio.wait((writing,))
            await connection.close()

    async def _write(self, connection: ClientConnection) -> None:
        """Send requests. When this fails, the reader notices that the connection is closed."""
        with contextlib.suppress(ConnectionClosed):
            while True:
                while self._requests:
                    await connection.send(self._requests.popleft())
                self._wake.clear()
                await self._wake.wait()

    async def _read(self, connection: ClientConnection) -> tuple[int, str]:
        """Receive until the connection ends, and ask whether the other end is there when nothing comes."""
        asked = False
        while True:
            try:
                async with asyncio.timeout(self._heartbeat.timeout if asked else self._heartbeat.interval):
                    data = await connection.recv()
            except TimeoutError:
                if asked:
                    connection.transport.abort()
                    return ABANDONED, "no answer to a ping"
                asked = True
                self._send({"ping": self._next()})
            except ConnectionClosed as exc:
                return (LOST, "") if exc.rcvd is None else (exc.rcvd.code, exc.rcvd.reason)
            else:
                asked = False
                await self._receive(data)

    # ---- The protocol

    def _next(self) -> int:
        self._number += 1
        return self._number

    def _send(self, request: dict[str, Any]) -> None:
        self._requests.append(json.dumps(request, separators=(",", ":")))
        self._wake.set()

    def _request(self, states: Sequence[_Topic]) -> None:
        """Subscribe to topics, from their positions on."""
        if states:
            number = self._next()
            for state in states:
                state.request = number
            self._send({"subscribe": {state.name: state.position for state in states}, "id": number})

    async def _receive(self, data: str | bytes) -> None:
        try:
            value = _decoded(data)
        except (ValueError, RecursionError):
            return  # not of the protocol
        match value:
            case [str(topic), int(offset), str() | bytes() as payload]:
                await self._message(Message(topic, offset, payload))
            case {"subscribed": dict(topics), "id": int(number)}:
                for name, answer in topics.items():
                    await self._subscribed(name, answer, number)
            case {"unsubscribed": list(topics)}:
                for name in topics:  # the messages until now were of the subscription before
                    if name in self._topics:
                        self._topics[name].held.clear()
            case {"error": str(error)}:
                self._refused(error, value.get("topics", ()), value.get("id"))

    async def _message(self, message: Message) -> None:
        state = self._topics.get(message.topic)
        if state is None:  # unsubscribed
            return
        if not state.request and state.position is not None and message.offset <= state.position.offset:
            self._request([state])  # a new numbering, or a duplicate: the answer tells which
        if state.request:
            state.held.append(message)
        else:
            await self._deliver(state, message)

    async def _deliver(self, state: _Topic, message: Message) -> None:
        assert state.position is not None
        self._advance(state, message.offset - 1)
        state.position = Position(state.position.epoch, message.offset)
        for subscription in tuple(state.subscriptions):
            await subscription._put(message)

    def _advance(self, state: _Topic, offset: int) -> None:
        """Report the messages up to an offset as missing."""
        assert state.position is not None
        if offset > state.position.offset:
            self._tell(Gap(state.name, state.position.offset + 1, offset))
            state.position = Position(state.position.epoch, offset)

    async def _subscribed(self, name: str, answer: dict[str, Any], number: int) -> None:
        state = self._topics.get(name)
        if state is None or state.request != number:  # the answer to an older request
            return
        now, recovered, old = Position(answer["epoch"], answer["offset"]), bool(answer["recovered"]), state.position
        held = tuple(state.held)
        state.forget_request()
        known = old.offset if old is not None and old.epoch == now.epoch else 0
        state.position = Position(now.epoch, known)
        self._tell(Subscribed(name, now, recovered, old is None))
        for message in held:
            if message.offset <= known and old is not None and old.epoch == now.epoch:
                self.duplicates += 1
                continue
            if not recovered:  # that messages are missing was told
                state.position = Position(now.epoch, message.offset - 1)
            await self._deliver(state, message)
        if recovered:
            self._advance(state, now.offset)
        elif now.offset > state.position.offset:
            state.position = now

    def _refused(self, error: str, topics: Sequence[str], number: int | None) -> None:
        for name in topics:
            state = self._topics.get(name)
            if state is not None and state.request == number:
                state.forget_request()
        self._tell(Refused(error, tuple(topics)))


def _decoded(data: str | bytes) -> Any:
    """Return a message of the protocol. An envelope is a list of topic, offset and payload."""
    if isinstance(data, str):
        return json.loads(data)
    end = 2 + int.from_bytes(data[:2])
    return [*json.loads(data[2:end]), data[end:]]


def connect(
    url: str,
    *,
    backoff: Backoff | None = None,
    heartbeat: Heartbeat | None = None,
    queue: int = 1000,
    on_event: Callable[[Event], object] | None = None,
    reconnects: Callable[[int], bool] = reconnects,
    random: Callable[[], float] = random.random,
    **options: Any,
) -> Client:
    """Return a client, to be used in `async with`. It connects in the background, and again whenever that ends.

    If the server closes the connection with a code after which the client may not connect again, or refuses it with
    the HTTP status 401 or 403 (which count as 4401 and 4403), the iterations of its subscriptions raise
    `ConnectionError`.

    Args:
        url: Where to connect, `ws://` or `wss://`.
        backoff: How long to wait before connecting again. None for `Backoff()`.
        heartbeat: How to notice that the other end is gone. None for `Heartbeat()`.
        queue: Messages that may wait in a subscription.
        on_event: Called with each `Subscribed`, `Gap`, `Refused` and `Closed`, before the messages that follow it.
        reconnects: Whether to connect again after a close code. By default, not after 1008 and 4400 to 4499.
        random: Returns a number from 0 to 1.
        options: Arguments of `websockets.asyncio.client.connect()`, for example `additional_headers` and `ssl`.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If `queue` is not positive.
    """
    check_integer("queue", queue)
    options = {"ping_interval": None, **options}
    return Client(url, backoff or Backoff(), heartbeat or Heartbeat(), queue, on_event, reconnects, random, options)
