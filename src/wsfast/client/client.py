"""The client."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as dial
from websockets.exceptions import ConnectionClosed, InvalidStatus, InvalidURI, WebSocketException

from wsfast._arguments import check_integer
from wsfast.hub.positions import Position

from .subscription import Queue, Subscription
from .values import Backoff, Closed, Event, Gap, Heartbeat, Message, Refused, Subscribed, reconnects

__all__ = ["Client", "connect"]

logger: logging.Logger = logging.getLogger("wsfast.client")

ABANDONED = 4000
"""Code of a connection that the client gave up, because the other end did not answer."""
LOST = 1006
"""Code of a connection that ended without a close frame, or was not made (RFC 6455, section 7.1.5)."""

TOPICS = 50
"""Topics per request."""
HELD = 10_000
"""Messages of a topic that may wait for the answer to a subscription, or more if the queue takes more."""


@dataclass(eq=False, slots=True)
class _Topic:
    """The client's state of one topic."""

    name: str
    position: Position | None = None
    filtered: bool = False  # whether the server leaves out messages on purpose
    request: int = 0  # number of the request that was not answered yet, or 0
    held: list[Message] = field(default_factory=list)  # messages before the answer: their epoch is not known yet
    queues: list[Queue] = field(default_factory=list)

    def forget_request(self) -> None:
        """Forget what belongs to a connection that has ended, or to a subscription before."""
        self.request = 0
        self.held.clear()


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
        self.url: str = url
        self.connected: bool = False
        """Whether there is a connection now."""
        self.attempts: int = 0
        """Attempts to connect again since a connection was last good."""
        self.duplicates: int = 0
        """Messages that came twice and were dropped."""
        self._backoff = backoff
        self._heartbeat = heartbeat
        self._bound = queue
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
        """The positions of the topics: all messages up to there were handed to the subscriptions."""
        return {name: topic.position for name, topic in self._topics.items() if topic.position is not None}

    def subscribe(self, topic: str) -> Subscription:
        """Subscribe to a topic. With several subscriptions to one topic, each gets the messages from then on.

        Raises:
            TypeError: If `topic` is not a string.
            RuntimeError: If the client is closed, or no event loop is running.
        """
        if not isinstance(topic, str):
            raise TypeError(f"topic must be a str, not {type(topic).__name__}")
        if self._closed:
            raise RuntimeError("the client is closed")
        queue = Queue(topic, self._bound)
        subscription = Subscription(queue, self._leave, self._abandon)
        state = self._topics.get(topic)
        if state is None:
            state = self._topics[topic] = _Topic(topic)
            if self.connected:
                self._request([state])
        state.queues.append(queue)
        return subscription

    async def close(self) -> None:
        """Close the connection and end all subscriptions. Calling it again does nothing."""
        self._end()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))

    def _leave(self, queue: Queue) -> None:
        if not queue.active:
            return
        queue.end()
        state = self._topics[queue.topic]
        state.queues.remove(queue)
        if not state.queues:
            del self._topics[state.name]
            if self.connected:
                self._send({"unsubscribe": [state.name], "id": self._next()})

    def _abandon(self, queue: Queue, loop: asyncio.AbstractEventLoop) -> None:
        """Leave for a subscription that was freed, in any thread."""
        if queue.active and not loop.is_closed():
            loop.call_soon_threadsafe(self._leave, queue)

    def _end(self) -> None:
        self._closed = True
        for state in self._topics.values():
            for queue in state.queues:
                queue.end(self._error)
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
            logger.exception("the client has failed")
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
                try:
                    await self._receive(data)
                except (KeyError, TypeError, ValueError) as exc:
                    return ABANDONED, f"not the session protocol: {exc!r}"

    # ---- The protocol

    def _next(self) -> int:
        self._number += 1
        return self._number

    def _send(self, request: dict[str, Any]) -> None:
        self._requests.append(json.dumps(request, separators=(",", ":")))
        self._wake.set()

    def _request(self, states: Sequence[_Topic]) -> None:
        """Subscribe to topics, from their positions on, some at a time: servers limit the size of a request."""
        for start in range(0, len(states), TOPICS):
            some = states[start : start + TOPICS]
            number = self._next()
            for state in some:
                state.request = number
            self._send({"subscribe": {state.name: state.position for state in some}, "id": number})

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
        if state is None or (not state.request and state.position is None):  # unsubscribed, or refused
            return
        position = state.position
        if not state.request and position is not None and message.offset <= position.offset:
            self._request([state])  # a new numbering, or a duplicate: the answer tells which
        if state.request:
            if len(state.held) >= max(self._bound, HELD):  # a server that drops messages has dropped the answer
                raise ValueError(f"no answer to the subscription to {state.name}")
            state.held.append(message)
        else:
            await self._deliver(state, message)

    async def _deliver(self, state: _Topic, message: Message) -> None:
        assert state.position is not None
        self._advance(state, message.offset - 1)
        state.position = Position(state.position.epoch, message.offset)
        for queue in tuple(state.queues):
            await queue.put(message)

    def _advance(self, state: _Topic, offset: int) -> None:
        """Report the messages up to an offset as missing, unless they may have been left out on purpose."""
        assert state.position is not None
        if offset > state.position.offset:
            if not state.filtered:
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
        state.position, state.filtered = Position(now.epoch, known), bool(answer.get("filtered"))
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
        else:
            state.position = now  # all that was held had come before the answer

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
