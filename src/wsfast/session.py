"""The server side of the session protocol: what clients of `wsfast.client` and wsfast.js ask for.

`Session` subscribes one connection to topics as its client asks, in any framework:

    async def handler(connection):
        await wsfast.session.Session(hub, connection).run()
"""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from typing import Any, TypeAlias

from websockets.exceptions import ConnectionClosed

from wsfast._arguments import check_integer
from wsfast._shutdown import DrainingError
from wsfast.connections.shape import NotOpenError
from wsfast.hub import Hub, HubSubscription, Position
from wsfast.hub.filters import Tags, check_tags
from wsfast.hub.topics import check_topic

__all__ = ["Authorize", "Session"]

logger: logging.Logger = logging.getLogger("wsfast.session")

Authorize: TypeAlias = Callable[[Any, str], bool | Awaitable[bool]]
"""Whether a connection may subscribe to a topic."""

MOST = 2**53 - 1
"""Largest integer that JavaScript keeps exactly (RFC 8259, section 6)."""

REQUESTS = ("subscribe", "unsubscribe", "ping")


class _RefusedError(Exception):
    """A request is wrong; the text tells the client why."""


class Session:
    """Subscribes one connection to topics of a hub as its client asks.

    The client gets an answer to each request, after what was published before. A request that is wrong gets an error
    with the reason. Nothing that a client sends makes a method raise. A client that does not keep up is dealt with by
    the hub's policy.

    Args:
        hub: The hub. It must have envelopes: `Hub(envelope=True)`. With `history`, clients that come back get what they
            have missed.
        connection: A connection that `Hub.subscribe()` accepts, after its handshake.
        authorize: Called with the connection and a topic; returns whether it may subscribe, or an awaitable of that.
            If it raises, the exception is logged and the topic is refused. None allows all topics.
        max_topics: Maximum number of topics of the connection.
        max_size: Maximum size of a request in characters.
        tags: Of all topics, the client gets only messages with one of these tags, and those without any: see
            `Hub.subscribe()`. It is told so, and then takes no offset that it does not get for a missing message. None
            for all messages.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If the hub has no envelopes, a number is not positive, or `tags` is empty or has one that is not
            valid.
    """

    def __init__(
        self,
        hub: Hub,
        connection: Any,
        authorize: Authorize | None = None,
        *,
        max_topics: int = 100,
        max_size: int = 65536,
        tags: Iterable[str] | None = None,
    ) -> None:
        if not isinstance(hub, Hub):
            raise TypeError(f"hub must be a Hub, not {type(hub).__name__}")
        if not hub.has_envelopes:
            raise ValueError("a session needs a hub with envelopes: Hub(envelope=True, history=100)")
        if authorize is not None and not callable(authorize):
            raise TypeError(f"authorize must be callable, not {authorize!r:.80}")
        check_integer("max_topics", max_topics)
        check_integer("max_size", max_size)
        self.hub = hub
        self.connection = connection
        self._authorize = authorize
        self._max_topics = max_topics
        self._max_size = max_size
        self._tags: Tags | None = None if tags is None else check_tags(tags)
        self._subscriptions: dict[str, HubSubscription] = {}

    @property
    def topics(self) -> tuple[str, ...]:
        """The topics that the client is subscribed to."""
        return tuple(self._subscriptions)

    async def run(self) -> None:
        """Receive requests until the connection is closed; then end the subscriptions.

        Exceptions of the connection's own methods pass, except that it was closed.
        """
        try:
            async for message in _messages(self.connection):
                await self.receive(message)
        finally:
            self.end()

    def end(self) -> None:
        """End the session's subscriptions. Calling it again does nothing."""
        for subscription in dict.fromkeys(self._subscriptions.values()):
            subscription.unsubscribe()
        self._subscriptions.clear()

    async def receive(self, message: str | bytes) -> None:
        """Answer one request. Calls for one session must not overlap.

        Args:
            message: The message. Only Text messages are requests; others get an error.
        """
        number: int | None = None
        try:
            request = self._parse(message)
            number = _number(request.get("id"))
            if "subscribe" in request:
                await self._subscribe(request["subscribe"], number)
            elif "unsubscribe" in request:
                await self._unsubscribe(request["unsubscribe"], number)
            else:
                await self._answer({"pong": _integer("ping", request["ping"])}, None)
        except _RefusedError as exc:
            await self._answer({"error": str(exc)}, number)

    def _parse(self, message: str | bytes) -> dict[str, Any]:
        if not isinstance(message, str):
            raise _RefusedError("requests are Text messages in JSON, not Binary messages")
        if len(message) > self._max_size:
            raise _RefusedError(f"a request has at most {self._max_size} characters, not {len(message)}")
        try:
            request = json.loads(message)
        except (ValueError, RecursionError):
            raise _RefusedError("a request is a JSON object, and this is no JSON") from None
        if not isinstance(request, dict) or sum(name in request for name in REQUESTS) != 1:
            raise _RefusedError("a request is a JSON object with one of subscribe, unsubscribe and ping")
        return request

    # ---- Requests

    async def _subscribe(self, wanted: Any, number: int | None) -> None:
        if not isinstance(wanted, dict) or not wanted:
            raise _RefusedError('subscribe maps topics to null or a position: {"subscribe": {"news": null}}')
        since: dict[str, Position] = {}
        allowed: list[str] = []
        refused: dict[str, list[str]] = {}
        room = self._max_topics - len(self._subscriptions)
        for name, position in wanted.items():
            try:
                new = name not in self._subscriptions
                topic = await self._checked(name, has_room=room > 0 or not new)
                if position is not None:
                    since[topic] = _position(position)
                allowed.append(topic)
                room -= new
            except _RefusedError as exc:
                refused.setdefault(str(exc), []).append(name)
        try:
            if allowed and not await self._begin(allowed, since, number):
                return
        except _RefusedError as exc:
            refused.setdefault(str(exc), []).extend(allowed)
        for reason, topics in refused.items():
            await self._answer({"error": reason, "topics": topics}, number)

    async def _checked(self, name: str, *, has_room: bool) -> str:
        """Return a topic that the client may subscribe to."""
        try:
            topic = check_topic(name)
            topic.encode()
        except ValueError:
            raise _RefusedError("this is not a valid name of a topic") from None
        if not has_room:
            raise _RefusedError(f"a connection has at most {self._max_topics} topics")
        if self._authorize is not None:
            try:
                answer = self._authorize(self.connection, topic)
                allowed = await answer if inspect.isawaitable(answer) else answer
            except Exception:
                logger.exception("authorize() failed for topic %r", topic)
                allowed = False
            if not allowed:
                raise _RefusedError("not allowed")
        return topic

    async def _begin(self, topics: list[str], since: Mapping[str, Position], number: int | None) -> bool:
        """Subscribe, and send the positions; return False if the connection is not open any more."""
        try:
            subscription = await self.hub.recover(self.connection, *topics, since=since, tags=self._tags)
        except DrainingError:  # nobody else closes a connection that is not in the hub
            await self.connection.close(code=1012)
            return False
        except NotOpenError:
            return False
        except ValueError as exc:  # too many tags are in use
            logger.error("cannot subscribe to %s: %s", ", ".join(topics), exc)
            raise _RefusedError("the server has too many kinds of subscribers") from None
        self._subscriptions.update(dict.fromkeys(topics, subscription))
        filtered = {} if self._tags is None else {"filtered": True}
        answer = {
            topic: {"epoch": epoch, "offset": offset, "recovered": topic in subscription.recovered_topics, **filtered}
            for topic, (epoch, offset) in subscription.positions.items()
        }
        subscription.send(_text({"subscribed": answer}, number))
        return True

    async def _unsubscribe(self, topics: Any, number: int | None) -> None:
        if not isinstance(topics, list) or not all(isinstance(topic, str) for topic in topics):
            raise _RefusedError('unsubscribe is a list of topics: {"unsubscribe": ["news"]}')
        known = [topic for topic in dict.fromkeys(topics) if topic in self._subscriptions]
        if known:
            self.hub.unsubscribe(self.connection, *known)
        for topic in known:
            del self._subscriptions[topic]
        await self._answer({"unsubscribed": list(dict.fromkeys(topics))}, number)

    async def _answer(self, answer: dict[str, Any], number: int | None) -> None:
        """Send an answer behind what waits in the hub's queue; if nothing can wait there, as the connection does."""
        text = _text(answer, number)
        for subscription in self._subscriptions.values():
            if subscription.active:
                subscription.send(text)
                return
        await _send(self.connection, text)


# ---- Requests and answers as text


def _text(answer: dict[str, Any], number: int | None) -> str:
    return json.dumps(answer if number is None else {**answer, "id": number}, separators=(",", ":"))


def _integer(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not -MOST <= value <= MOST:
        raise _RefusedError(f"{name} is an integer of at most 53 bits")
    return value


def _number(value: Any) -> int | None:
    return None if value is None else _integer("id", value)


def _position(value: Any) -> Position:
    if not isinstance(value, list) or len(value) != 2 or not isinstance(value[0], str):
        raise _RefusedError("a position is [epoch, offset]")
    offset = _integer("offset", value[1])
    if offset < 0:
        raise _RefusedError("an offset is not negative")
    return Position(value[0], offset)


# ---- Connections of any library


async def _messages(connection: Any) -> AsyncIterator[str | bytes]:
    """Yield the messages of a client until the connection is closed."""
    if hasattr(connection, "receive_text"):  # Starlette, FastAPI, Litestar
        while (event := await connection.receive())["type"] == "websocket.receive":
            text = event.get("text")
            yield event["bytes"] if text is None else text
        return
    try:
        async for message in connection:
            yield getattr(message, "data", message)  # that of aiohttp is an object
    except ConnectionClosed:
        return


async def _send(connection: Any, text: str) -> None:
    """Send a message by the connection's own method, which waits while the client does not read."""
    send = getattr(connection, "send_text", None) or getattr(connection, "send_str", None) or connection.send
    try:
        await send(text)
    except Exception as exc:  # each library has its own for a connection that is closed
        logger.debug("an answer was not sent: %r", exc)
