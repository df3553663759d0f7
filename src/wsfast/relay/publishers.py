"""Publishing from programs without a hub: a blocking publisher for threads, and one for event loops.

The blocking one has an event loop in a thread of its own, because one connection in one place keeps messages in the
order of their numbers, whatever the number of threads that publish. Both connect when they are first used, in each
process anew.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import selectors
import threading
from collections.abc import Callable, Hashable, Iterable, Sequence
from types import TracebackType
from typing import Any
from weakref import WeakSet

from wsfast._arguments import Local, check_seconds
from wsfast._encoding.message import Message, publishable
from wsfast.hub.filters import NO_TAGS, check_tags
from wsfast.hub.publishing import topics_of, users_of

from .broker import Broker
from .confirming import Confirming, Publication
from .wire import Keyring, check_key, check_user

__all__ = ["AsyncPublisher", "Publisher"]


def _publication(
    topic: str | Iterable[str],
    message: Message,
    key: Hashable = None,
    exclude_users: Iterable[Hashable] = (),
    tags: Iterable[str] | None = None,
) -> Publication:
    """Return a message to topics. See `Hub.publish()` for the exceptions."""
    names, users = topics_of(topic), users_of(exclude_users)
    prepared = publishable(message)
    hash(key)
    check_key(key)
    for user in users:
        check_user(user)
    return Publication("topic", names, prepared, key, users, NO_TAGS if tags is None else check_tags(tags))


def _publications(items: Iterable[tuple[Any, ...]]) -> list[Publication]:
    """Return several messages to topics. See `Hub.publish_many()` for the exceptions."""
    result = []
    for item in items:
        if isinstance(item, (str, bytes)) or not 2 <= len(item) <= 3:
            raise ValueError(f"an item must be (topic, message) or (topic, message, key), not {item!r}")
        result.append(_publication(*item))
    return result


def _private(user: Hashable, message: Message, key: Hashable = None) -> Publication:
    """Return a message to a user. See `Hub.send()` for the exceptions."""
    prepared = publishable(message)
    hash(key)
    check_key(key)
    check_user(user)
    return Publication("user", (user,), prepared, key)


class _Base(Local):
    """The arguments, and the life in one process, of both kinds of publishers."""

    _instead = "create one in each process, or at the top of a module: it connects when it is first used"

    def __init__(self, broker: Broker, timeout: float, keyring: Keyring | None) -> None:
        check_seconds("timeout", timeout)
        self._broker = broker
        self._timeout = timeout
        self._keyring = keyring
        self._closed = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} by {self._broker.name}>"

    def _confirming(self) -> Confirming:
        return Confirming(self._broker, self._timeout, self._keyring)

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError(f"{self!r} is closed; create a new one")


class AsyncPublisher(_Base):
    """Publishes to the hubs of all processes from an event loop, without a hub. See `wsfast.relay.async_publisher()`.

    It is an asynchronous context manager, which closes it at the end. It may be used in one event loop after the other,
    for example in several calls of `asyncio.run()`, but not in two at the same time.
    """

    def __init__(self, broker: Broker, timeout: float, keyring: Keyring | None = None) -> None:
        super().__init__(broker, timeout, keyring)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = 0
        self._current: Confirming | None = None

    async def publish(
        self,
        topic: str | Iterable[str],
        message: Message,
        *,
        key: Hashable = None,
        exclude_users: Iterable[Hashable] = (),
        tags: Iterable[str] | None = None,
    ) -> None:
        """Send a message to all subscribers of a topic, in all processes with a relay.

        Returns when the broker has confirmed the message. While other calls wait, their messages travel together.

        Args:
            topic: The topic, or several topics. A subscriber of more than one of them gets the message once.
            message: See `Hub.publish()`.
            key: Identifies the subject of the message, for `Conflate` and `last_values`: None, a str, a number, a bool
                or a tuple of these.
            exclude_users: Users who do not get the message.
            tags: See `Hub.publish()`.

        Raises:
            PublishError: If the broker does not confirm the message within the timeout, or refuses it, or too many
                messages wait for the broker.
            TypeError: If `message` has an unsupported type, a topic is not a string, `tags` is not an iterable of
                strings, or a relay cannot carry the type of `key` or of a user.
            ValueError: If there is no topic, a topic is not valid or is a pattern, `tags` is empty or has one that is
                not valid, or topics, users, key and tags take more than 1 MiB.
            RuntimeError: If the publisher is closed, or is in use in another event loop.
        """
        await self._publish([_publication(topic, message, key, exclude_users, tags)])

    async def publish_many(self, items: Iterable[tuple[Any, ...]]) -> None:
        """Publish several messages. If one of them is wrong, none is published.

        If this raises PublishError, any number of the messages may have been published.

        Args:
            items: Tuples of topic and message, or of topic, message and key. In place of a topic, there may be several
                topics.

        Raises:
            PublishError, TypeError, RuntimeError: See `publish()`.
            ValueError: See `publish()`; also if an item does not have two or three parts.
        """
        await self._publish(_publications(items))

    async def send(self, user: Hashable, message: Message, *, key: Hashable = None) -> None:
        """Send a message to all connections of a user, in all processes with a relay.

        Args:
            user: The user, a str or an int.
            message: See `Hub.publish()`.
            key: Conflation key, for `Conflate`.

        Raises:
            PublishError, RuntimeError: See `publish()`.
            TypeError: If `message` has an unsupported type, or a relay cannot carry the type of `user` or `key`.
            ValueError: If `user` or `key` is an int of more than 256 bits, or they take more than 1 MiB.
        """
        await self._publish([_private(user, message, key)])

    async def _publish(self, items: Sequence[Publication]) -> None:
        self._check_open()
        loop = asyncio.get_running_loop()
        if self._loop is not loop or self._pid != os.getpid():
            if self._loop is not None and self._loop.is_running() and self._pid == os.getpid():
                raise RuntimeError(f"{self!r} is in use in another event loop; create one for each")
            self._loop, self._pid = loop, os.getpid()
            self._current = self._confirming()
        assert self._current is not None
        await self._current.publish(items)

    async def close(self) -> None:
        """Wait for calls that have not ended, and disconnect. It is safe to call it several times."""
        self._closed = True
        current, self._current = self._current, None
        if current is not None and self._loop is asyncio.get_running_loop():
            await current.close()

    async def __aenter__(self) -> AsyncPublisher:
        self._check_open()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


class _Thread:
    """An event loop in a thread, with a connection to the broker."""

    def __init__(self, create: Callable[[], Confirming]) -> None:
        self._selector = selectors.DefaultSelector()
        self._loop = asyncio.SelectorEventLoop(self._selector)  # not uvloop, which does not survive a fork
        self._confirming = create()
        self._thread = threading.Thread(target=self._run, name="wsfast publisher", daemon=True)
        self._thread.start()
        _threads.add(self)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            asyncio.set_event_loop(None)
            self._loop.close()

    def runs(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether this is the thread of an event loop."""
        return loop is self._loop

    def publish(self, items: Sequence[Publication]) -> None:
        """Publish messages, and wait until the broker has confirmed them."""
        future = asyncio.run_coroutine_threadsafe(self._confirming.publish(items), self._loop)
        try:
            future.result()
        except BaseException:  # Ctrl-C
            future.cancel()
            raise

    def end(self) -> None:
        """Disconnect, and end the thread, soon."""
        future = asyncio.run_coroutine_threadsafe(self._confirming.close(), self._loop)
        future.add_done_callback(lambda _: self._loop.call_soon_threadsafe(self._loop.stop))

    def join(self) -> None:
        """Wait until the thread has ended."""
        self._thread.join()

    def abandon(self) -> None:
        """Leave everything to the parent process, in its child after a fork.

        The child shares the parent's epoll: whoever closes a transport here would unregister that of the parent.
        """
        self._selector.close()
        _abandoned.append(self)


_threads: WeakSet[_Thread] = WeakSet()
"""Threads that have not ended."""

_abandoned: list[_Thread] = []
"""Threads of the parent process, which must not be garbage collected in its child."""

_publishers: WeakSet[Publisher] = WeakSet()


class Publisher(_Base):
    """Publishes to the hubs of all processes from any thread, without a hub. See `wsfast.relay.publisher()`.

    It is thread-safe, and a context manager, which closes it at the end. It connects when it is first used, in each
    process anew, so it may be created before a fork.
    """

    def __init__(self, broker: Broker, timeout: float, keyring: Keyring | None = None) -> None:
        super().__init__(broker, timeout, keyring)
        self._changed = threading.Condition()
        self._calls = 0  # that have not ended
        self._thread: _Thread | None = None
        _publishers.add(self)

    def __del__(self) -> None:
        thread: _Thread | None = getattr(self, "_thread", None)  # None if __init__ has raised
        if thread is not None:
            thread.end()

    def publish(
        self,
        topic: str | Iterable[str],
        message: Message,
        *,
        key: Hashable = None,
        exclude_users: Iterable[Hashable] = (),
        tags: Iterable[str] | None = None,
    ) -> None:
        """Send a message to all subscribers of a topic, in all processes with a relay.

        Returns when the broker has confirmed the message. While other threads wait, their messages travel together.

        Args:
            topic: The topic, or several topics. A subscriber of more than one of them gets the message once.
            message: See `Hub.publish()`.
            key: Identifies the subject of the message, for `Conflate` and `last_values`: None, a str, a number, a bool
                or a tuple of these.
            exclude_users: Users who do not get the message.
            tags: See `Hub.publish()`.

        Raises:
            PublishError: If the broker does not confirm the message within the timeout, or refuses it, or too many
                messages wait for the broker.
            TypeError: If `message` has an unsupported type, a topic is not a string, `tags` is not an iterable of
                strings, or a relay cannot carry the type of `key` or of a user.
            ValueError: If there is no topic, a topic is not valid or is a pattern, `tags` is empty or has one that is
                not valid, or topics, users, key and tags take more than 1 MiB.
            RuntimeError: If the publisher is closed, or this thread runs an event loop, which would be blocked.
        """
        self._publish([_publication(topic, message, key, exclude_users, tags)])

    def publish_many(self, items: Iterable[tuple[Any, ...]]) -> None:
        """Publish several messages. If one of them is wrong, none is published.

        If this raises PublishError, any number of the messages may have been published.

        Args:
            items: Tuples of topic and message, or of topic, message and key. In place of a topic, there may be several
                topics.

        Raises:
            PublishError, TypeError, RuntimeError: See `publish()`.
            ValueError: See `publish()`; also if an item does not have two or three parts.
        """
        self._publish(_publications(items))

    def send(self, user: Hashable, message: Message, *, key: Hashable = None) -> None:
        """Send a message to all connections of a user, in all processes with a relay.

        Args:
            user: The user, a str or an int.
            message: See `Hub.publish()`.
            key: Conflation key, for `Conflate`.

        Raises:
            PublishError, RuntimeError: See `publish()`.
            TypeError: If `message` has an unsupported type, or a relay cannot carry the type of `user` or `key`.
            ValueError: If `user` or `key` is an int of more than 256 bits, or they take more than 1 MiB.
        """
        self._publish([_private(user, message, key)])

    def _publish(self, items: Sequence[Publication]) -> None:
        running = asyncio._get_running_loop()
        # With gevent, the publisher's thread is a greenlet of this thread. Waiting for its event loop blocks nothing.
        if running is not None and (self._thread is None or not self._thread.runs(running)):
            raise RuntimeError(
                "this call would block the event loop of this thread; use wsfast.relay.async_publisher() here (with "
                "gevent, one publisher() for the whole process)"
            )
        with self._changed:
            self._check_open()
            if self._thread is None:
                self._thread = _Thread(self._confirming)
            thread = self._thread
            self._calls += 1
        try:
            thread.publish(items)
        finally:
            with self._changed:
                self._calls -= 1
                self._changed.notify_all()

    def close(self) -> None:
        """Wait for calls that have not ended, and disconnect. It is safe to call it several times.

        At the end of the process, publishers are closed that have not been.
        """
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: not self._calls)
            thread, self._thread = self._thread, None
        if thread is not None:
            thread.end()
            thread.join()

    def _after_fork(self) -> None:
        self._changed = threading.Condition()  # another thread of the parent may have held its lock
        self._calls = 0
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.abandon()

    def __enter__(self) -> Publisher:
        self._check_open()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _after_fork() -> None:
    _threads.clear()
    for publisher in list(_publishers):
        publisher._after_fork()


@atexit.register
def _close_all() -> None:
    for publisher in list(_publishers):
        with contextlib.suppress(Exception):
            publisher.close()
    for thread in list(_threads):  # their publishers were garbage collected
        thread.join()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
