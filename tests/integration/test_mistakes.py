"""Mistakes: each is told where it is made, with what to write instead, and nothing passes silently."""

from __future__ import annotations

import asyncio
import copy
import functools
import gc
import importlib
import logging
import multiprocessing
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import wsfast
from helpers import processes
from helpers.brokers import Nowhere
from helpers.peers import TIMEOUT
from wsfast.prometheus import Collector
from wsfast.relay.relay import Relay

lib: Any = wsfast  # as those see it who do not check types
metrics: Any = wsfast.prometheus


class Sink:
    """A connection that takes everything."""

    def __init__(self) -> None:
        self.got: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.got.append(data)

    def writable(self) -> bool:
        return True

    def close(self, code: int, reason: str) -> None:
        pass


class AsyncSink(Sink):
    async def write(self, data: bytes) -> None:  # type: ignore[override]
        raise AssertionError(data)


async def coroutine_function(*_: Any) -> None:
    raise AssertionError("nobody is to call it")


class AsyncCallable:
    async def __call__(self, *_: Any) -> None:
        raise AssertionError("nobody is to call it")


def relay_of(hub: Any, **options: Any) -> Relay:
    return Relay(hub, Nowhere(), **{"slow": wsfast.DropOldest(), "on_gap": None, "timeout": 1.0, **options})


# ---- Arguments

NUMBERS: list[tuple[str, Callable[[Any], object], bool]] = [
    ("max_messages", lambda value: lib.Disconnect(max_messages=value), True),
    ("max_bytes", lambda value: lib.DropOldest(max_bytes=value), True),
    ("max_age", lambda value: lib.Conflate(max_age=value), False),
    ("code", lambda value: lib.Disconnect(code=value), True),
    ("history", lambda value: lib.Channel(history=value), True),
    ("notsent_lowat", lambda value: lib.Channel(notsent_lowat=value), True),
    ("history", lambda value: lib.Hub(history=value), True),
    ("last_values", lambda value: lib.Hub(last_values=value), True),
    ("notsent_lowat", lambda value: lib.Hub(notsent_lowat=value), True),
    ("max_messages", lambda value: lib.Channel().stream(max_messages=value), True),
    ("max_messages", lambda value: lib.Hub().stream("a", max_messages=value), True),
    ("max_messages", lambda value: lib.Hub().channel("a").stream(max_messages=value), True),
    ("timeout", lambda value: relay_of(lib.Hub(), timeout=value), False),
    ("timeout", lambda value: metrics.Collector([], timeout=value), False),
    (
        "server_max_window_bits",
        lambda value: lib.ServerPerMessageDeflateFactory(server_max_window_bits=value),
        True,
    ),
]


@pytest.mark.parametrize(("name", "call", "whole"), NUMBERS, ids=[name for name, *_ in NUMBERS])
def test_numbers(name: str, call: Callable[[Any], object], whole: bool) -> None:
    """Every number is checked, and the error names it."""

    async def main() -> None:
        for value in ("100", b"1", [1], True, 1.5 if whole else 1j, object()):
            with pytest.raises(TypeError, match=rf"^{name} must be "):
                call(value)
        for wrong in (-1, float("nan"), -0.5):
            with pytest.raises(ValueError, match=rf"^{name} must "):
                call(wrong)
        if not whole:
            with pytest.raises(ValueError, match=rf"^{name} must be finite"):
                call(float("inf"))

    asyncio.run(main())


CALLBACKS: list[tuple[str, Callable[..., object]]] = [
    *[(name, wsfast.Channel) for name in ("on_drop", "on_disconnect", "on_recover")],
    *[(name, wsfast.Hub) for name in ("on_join", "on_leave", "on_drop", "on_disconnect", "on_recover")],
    ("on_gap", functools.partial(relay_of, wsfast.Hub())),
]


@pytest.mark.parametrize(("name", "make"), CALLBACKS, ids=[f"{name}" for name, _ in CALLBACKS])
def test_callbacks(name: str, make: Callable[..., object]) -> None:
    """A callback that is a coroutine function in any guise is told, as well as what cannot be called."""
    callable_object = AsyncCallable()
    for wrong in (
        coroutine_function,
        functools.partial(functools.partial(coroutine_function, 1), 2),
        callable_object,
        callable_object.__call__,
        functools.partial(callable_object),
    ):
        with pytest.raises(TypeError, match=rf"^{name} must be a plain function, .*create_task"):
            make(**{name: wrong})
    for other in ("print", 5, [print]):
        with pytest.raises(TypeError, match=rf"^{name} must be a function, not "):
            make(**{name: other})
    rights: list[Any] = [print, None, lambda *_: None, functools.partial(print), [].append]
    for right in rights:
        make(**{name: right})


class Scene:
    """What the calls below are made with."""

    def __init__(self) -> None:
        self.connection: Any = wsfast.attach(Sink())
        self.hub: Any = wsfast.Hub()
        self.channel: Any = wsfast.Channel()
        self.channel.subscribe(self.connection)
        self.hub.subscribe(self.connection, "a")


Call = Callable[[Scene], Any]
JSON = r"^message must be str or bytes, not (dict|list|tuple); pass json\.dumps\(message\)$"
CALLS: list[tuple[str, Call, type[Exception], str]] = [
    # Messages
    ("dict", lambda s: s.channel.publish({"x": 1}), TypeError, JSON),
    ("list", lambda s: s.channel.publish_threadsafe([1]), TypeError, JSON),
    ("tuple", lambda s: s.hub.publish("a", (1,)), TypeError, JSON),
    ("many", lambda s: s.hub.publish_many([("a", {})]), TypeError, JSON),
    ("send", lambda s: s.hub.send("ann", {}), TypeError, JSON),
    ("threadsafe", lambda s: s.hub.publish_threadsafe("a", {}), TypeError, JSON),
    ("topic channel", lambda s: s.hub.channel("a").publish({}), TypeError, JSON),
    ("None", lambda s: s.channel.publish(None), TypeError, "^message must be str or bytes, not NoneType$"),
    ("int", lambda s: s.hub.publish("a", 5), TypeError, "^message must be str or bytes, not int$"),
    ("broadcast", lambda s: lib.broadcast([], {}), TypeError, "^data must be str or bytes$"),
    ("swapped", lambda s: lib.broadcast("x", [s.connection]), TypeError, "^data must be str or bytes$"),
    ("text", lambda s: lib.broadcast([], b"x", text="yes"), TypeError, "^text must be True, False or None"),
    ("compress", lambda s: lib.broadcast([], b"x", compress=True), ValueError, "^compress must be None"),
    # Connections
    ("one connection", lambda s: lib.broadcast(s.connection, "x"), TypeError, "not iterable"),
    ("names", lambda s: lib.broadcast({"ann": s.connection}, "x"), TypeError, "cannot broadcast to str"),
    ("several", lambda s: s.channel.subscribe([s.connection]), TypeError, "cannot subscribe list"),
    (
        "exclude one",
        lambda s: s.channel.publish("x", exclude=s.connection),
        TypeError,
        "^exclude must be an iterable of conn",
    ),
    (
        "exclude str",
        lambda s: s.hub.publish("a", "x", exclude="ann"),
        TypeError,
        "^exclude must be an iterable of conn",
    ),
    (
        "exclude users",
        lambda s: s.hub.publish("a", "x", exclude=["ann"]),
        TypeError,
        "^exclude must contain only connections",
    ),
    (
        "exclude number",
        lambda s: s.channel.publish("x", exclude=[1]),
        TypeError,
        "^exclude must contain only connections",
    ),
    (
        "users one",
        lambda s: s.hub.publish("a", "x", exclude_users=7),
        TypeError,
        "^exclude_users must be an iterable of users",
    ),
    # Topics
    ("topics in a list", lambda s: s.hub.subscribe(s.connection, ["a"]), TypeError, "^topic must be a str, not list"),
    ("turned round", lambda s: s.hub.subscribe("a", s.connection), TypeError, "^topic must be a str"),
    ("publish round", lambda s: s.hub.publish("a message", "a"), ValueError, "has white space"),
    ("pattern", lambda s: s.hub.publish("a.*", "x"), ValueError, "is a pattern"),
    ("register round", lambda s: s.hub.register("ann", s.connection), TypeError, "^cannot subscribe str"),
    ("items", lambda s: s.hub.publish_many(["ab"]), ValueError, "^an item must be"),
    ("item", lambda s: s.hub.publish_many(("ab", "x")), ValueError, "^an item must be"),
    # Policies and names
    ("policy class", lambda s: lib.Channel(slow=lib.Conflate), TypeError, r"^slow must be Disconnect\(\)"),
    ("policy as name", lambda s: lib.Channel(lib.Conflate()), TypeError, "^name must be a str"),
    ("hub name", lambda s: lib.Hub(name=5), TypeError, "^name must be a str"),
    ("reason", lambda s: lib.Disconnect(reason=b"slow"), TypeError, "^reason must be a str"),
    ("too much", lambda s: lib.Hub(notsent_lowat=1 << 40), ValueError, "^notsent_lowat must not be more than"),
    # Sinks
    ("queue", lambda s: lib.attach(asyncio.Queue()), TypeError, r"it has no write\(\)"),
    ("sink class", lambda s: lib.attach(Sink), TypeError, "Sink is a class: wsfast.attach"),
    ("async sink", lambda s: lib.attach(AsyncSink()), TypeError, r"^write\(\) of .*must be a plain function"),
    ("transport", lambda s: lib.attach(asyncio.Transport()), TypeError, "^connection is missing: use wsfast.attach"),
    # Relays and metrics
    ("relay round", lambda s: lib.relay.redis("redis://localhost", s.hub), TypeError, "url must be a str"),
    ("relay of", lambda s: lib.relay.redis(s.channel), TypeError, "^hub must be a wsfast.Hub"),
    ("no scheme", lambda s: lib.relay.redis(s.hub, "localhost:6379"), ValueError, "as in redis://localhost:6379"),
    ("http", lambda s: lib.relay.nats(s.hub, "http://localhost"), ValueError, "^url must begin with nats://"),
    ("no slashes", lambda s: lib.relay.nats(s.hub, "nats:localhost"), ValueError, "^url must begin with nats://"),
    ("port", lambda s: lib.relay.redis(s.hub, "redis://localhost:http"), ValueError, "^url is not valid"),
    ("bytes", lambda s: lib.relay.nats(s.hub, [b"nats://localhost"]), TypeError, "^url must be a str"),
    ("one source", lambda s: metrics.Collector(s.channel), TypeError, r"write \[...\] around"),
    (
        "other source",
        lambda s: metrics.Collector([s.hub.channel("a")]),
        TypeError,
        "^cannot collect metrics of <Hub",
    ),
    (
        "async sources",
        lambda s: metrics.Collector(coroutine_function),
        TypeError,
        "^sources must be a plain function",
    ),
    ("handler", lambda s: lib.serve("localhost", 8765), TypeError, "^handler must be a coroutine function"),
]


@pytest.mark.parametrize(("call", "error", "match"), [case[1:] for case in CALLS], ids=[case[0] for case in CALLS])
def test_calls(call: Call, error: type[Exception], match: str) -> None:
    """A wrong call raises what says so, and nothing is sent."""

    async def main() -> None:
        scene = Scene()
        with pytest.raises(error, match=match):
            call(scene)
        await asyncio.sleep(0.001)
        assert scene.channel.stats().messages == scene.hub.stats().messages == 0

    asyncio.run(main())


def test_no_password_in_errors() -> None:
    """A URL without a scheme is not shown, since it may have a password."""
    with pytest.raises(ValueError, match=r"^url must begin with redis://") as info:
        wsfast.relay.redis(wsfast.Hub(), "user:secret@localhost:6379")
    assert "secret" not in str(info.value)


def test_sources_of_an_iterator() -> None:
    """What an iterator has yielded is collected at every scrape."""
    collector = Collector(iter([wsfast.Channel("prices")]))
    assert len(list(collector.collect())) == len(list(collector.collect())) > 0


def test_stream_in_another_loop() -> None:
    """A stream is told that it is iterated over in another event loop, where it would wait for ever."""

    async def main() -> None:
        for stream in (wsfast.Channel().stream(), wsfast.Hub().stream("a")):
            with pytest.raises(RuntimeError, match="event loop of its channel"):
                await asyncio.to_thread(asyncio.run, next_of(stream))

    async def next_of(stream: wsfast.Stream) -> Any:
        return await anext(stream)

    asyncio.run(main())


def test_in_another_thread() -> None:
    """Another thread that ends a subscription is told how to."""

    async def main() -> None:
        scene = Scene()
        ends = [
            scene.channel.subscribe(scene.connection).unsubscribe,
            scene.hub.subscribe(scene.connection, "a").unsubscribe,
            scene.hub.register(scene.connection, "ann").unregister,
        ]
        for end in ends:
            with pytest.raises(RuntimeError, match=r"call_soon_threadsafe\(\)"):
                await asyncio.to_thread(end)
        assert (len(scene.channel), scene.hub.count("a"), scene.hub.users()) == (1, 1, ["ann"])

    asyncio.run(main())


# ---- One connection, several `with`


@pytest.mark.parametrize("kind", ["Channel", "Hub", "user"])
def test_nested_with(kind: str) -> None:
    """A subscription ends with the last `with`; one that was there before, without `with`, goes on."""
    told: list[tuple[Any, Any]] = []

    async def main() -> None:
        connection = wsfast.attach(Sink())
        channel = wsfast.Channel()
        hub = wsfast.Hub(
            on_join=lambda user, topic: told.append((user, topic)),
            on_leave=lambda user, topic: told.append((user, topic)),
        )

        def ask() -> Any:
            if kind == "Channel":
                return channel.subscribe(connection)
            return hub.subscribe(connection, "a", "a") if kind == "Hub" else hub.register(connection, "ann")

        def there() -> bool:
            return bool(len(channel) if kind == "Channel" else hub.count("a") if kind == "Hub" else hub.users())

        with ask() as outer:
            with ask(), ask() as inner:
                assert there()
            assert there()
            with outer, inner:
                pass
            assert there()
        assert not there()

        first, second = ask(), ask()  # which overlap, as in two tasks
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert there()
        second.__exit__(None, None, None)
        assert not there()

        plain = ask()
        with ask():
            pass
        assert there()
        with ask() as inner:
            (plain.unregister if kind == "user" else plain.unsubscribe)()
            assert not there()
            again = ask()
        assert there(), "another one has begun since"
        (again.unregister if kind == "user" else again.unsubscribe)()
        assert not there()
        await asyncio.sleep(0.001)

    asyncio.run(main())
    if kind == "user":
        assert told == [("ann", None)] * len(told)
        assert len(told) == 8


# ---- Other processes


def things() -> Iterator[Any]:
    """Yield all that belongs to one process."""
    connection = wsfast.attach(Sink())
    hub, channel = wsfast.Hub(), wsfast.Channel()
    yield from (wsfast.Hub(), wsfast.Channel(), hub, channel, relay_of(wsfast.Hub()))
    yield from (channel.subscribe(connection), hub.subscribe(connection, "a"), hub.register(connection, "ann"))
    yield from (channel.stream(), hub.stream("a"))


def test_pickle_and_copy() -> None:
    """What belongs to one process is neither pickled nor copied, and the error says what to do."""

    async def main() -> None:
        for thing in things():
            for act in (pickle.dumps, copy.copy, copy.deepcopy, lambda one: pickle.dumps({"in": [one]}, 2)):
                with pytest.raises(TypeError, match=rf"^cannot pickle or copy a {type(thing).__name__}: .*relay"):
                    act(thing)
        with pytest.raises(TypeError, match=r"^cannot pickle or copy a Hub: "):
            pickle.dumps(wsfast.Hub().channel("a"))

    asyncio.run(main())
    message = wsfast.PreparedMessage("x", compress=False)
    assert pickle.loads(pickle.dumps(message)) == copy.deepcopy(message) == message


def target(_: object) -> None:
    raise AssertionError("it has no hub to work with")


def test_spawned_process() -> None:
    """A hub that is given to a spawned process is an error at once."""
    process = multiprocessing.get_context("spawn").Process(target=target, args=(wsfast.Hub(),))
    with pytest.raises(TypeError, match=r"wsfast\.relay\.redis"):
        process.start()


FORKED = """
import asyncio, os, sys
import wsfast

class Sink:
    got = 0
    def write(self, data): self.got += 1
    def writable(self): return True
    def close(self, code, reason): pass

hub, channel, unused = wsfast.Hub(), wsfast.Channel(), wsfast.Hub()
sink = Sink()

def told(call):
    try:
        call()
    except RuntimeError as exc:
        assert "os.fork()" in str(exc) and "relay" in str(exc), exc
    else:
        raise AssertionError("it has passed silently")

async def in_child():
    told(lambda: hub.publish("a", "x"))
    told(lambda: channel.publish("x"))
    unused.publish("a", "works")

async def main():
    connection = wsfast.attach(sink)
    subscription, handle = channel.subscribe(connection), hub.subscribe(connection, "a")
    channel.publish("before")
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            told(lambda: hub.publish("a", "x"))
            told(lambda: channel.publish_threadsafe("x"))
            told(lambda: hub.publish_threadsafe("a", "x"))
            subscription.unsubscribe()
            handle.unsubscribe()
            channel._dispatcher.flush()
            assert sink.got == 0, "what the parent sends"
            import threading
            thread = threading.Thread(target=asyncio.run, args=(in_child(),))
            thread.start()
            thread.join()
            assert unused.stats().messages == 1
            status = 0
        finally:
            sys.stdout.flush()
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    assert status == 0, status
    await asyncio.sleep(0)
    assert sink.got == 1
    hub.publish("a", "after")
    hub.flush()
    assert sink.got == 2
    print("good")

asyncio.run(main())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork() on this platform")
def test_fork() -> None:
    """After a fork, what was used before is told to be the parent's, and sends nothing; what was not can be used."""
    result = processes.run(sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKED)
    assert (result.stdout, result.stderr) == ("good\n", "")


# ---- Relays


def test_relay_that_has_not_begun(caplog: pytest.LogCaptureFixture) -> None:
    """A relay without `async with` is told of when something is published, and when nobody refers to it."""

    async def main() -> None:
        gc.collect()  # relays of other tests
        caplog.clear()
        hub = wsfast.Hub(name="chat")
        relay = relay_of(hub)
        with caplog.at_level(logging.WARNING, "wsfast"):
            for _ in range(2):
                hub.publish("a", "x", key=object())  # which no relay could carry
            hub.send("ann", "x")
        (record,) = caplog.records
        assert "was not started" in record.getMessage()
        assert "async with" in record.getMessage()
        caplog.clear()
        for wait in (relay.connected, relay.subscribed):
            with pytest.raises(RuntimeError, match="is not running; start it with `async with"):
                await wait(TIMEOUT)
        del wait, relay
        relay_of(hub)
        gc.collect()
        (record,) = caplog.records
        assert "was garbage collected without having been started; start it with `async with" in record.getMessage()
        caplog.clear()
        hub.publish("a", "x")
        assert not caplog.records

    asyncio.run(main())


def test_relay_is_connected_or_not() -> None:
    """`connected` and `subscribed` are true or false, and can be awaited."""

    async def main() -> None:
        hub = wsfast.Hub()
        relay = relay_of(hub, timeout=0.01)
        assert not relay.connected
        async with relay:
            assert not relay.connected
            assert not relay.subscribed
            with pytest.raises(TimeoutError):
                await relay.connected(0.01)
            with pytest.raises(TypeError, match="timeout must be a number of seconds or None"):
                await relay.subscribed("1")  # type: ignore[arg-type]
            relay._on_connected("publish", True)
            relay._on_connected("subscribe", True)
            assert relay.connected
            await relay.connected(TIMEOUT)
            with pytest.raises(RuntimeError, match="has a relay already"):
                await relay_of(hub).__aenter__()
        assert not relay.connected

    asyncio.run(main())


# ---- What is not installed

MISSING: list[tuple[str, Callable[[], object], str]] = [
    ("redis", lambda: wsfast.relay.redis(wsfast.Hub()), 'pip install "wsfast[redis]"'),
    ("nats", lambda: wsfast.relay.nats(wsfast.Hub()), 'pip install "wsfast[nats]"'),
    ("prometheus_client", lambda: importlib.import_module("wsfast.prometheus"), 'pip install "wsfast[prometheus]"'),
    ("trio", lambda: wsfast.trio, 'pip install "trio"'),
    ("uvicorn", lambda: importlib.import_module("wsfast.uvicorn"), 'pip install "uvicorn>=0.35"'),
]


@pytest.mark.parametrize(("module", "use", "cure"), MISSING, ids=[module for module, *_ in MISSING])
def test_not_installed(module: str, use: Any, cure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not installed is named, with the command that installs it."""
    ours = [f"wsfast.{name}" for name in ("prometheus", "trio", "uvicorn", "connections.uvicorn")]
    ours += ["wsfast.relay.redis_broker", "wsfast.relay.nats_broker"]
    for name in list(sys.modules):
        if name.partition(".")[0] == module or name in ours:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    for name in ("prometheus", "trio", "uvicorn"):
        if name in vars(wsfast):  # asked for an attribute that it lacks, wsfast would import it
            monkeypatch.delattr(wsfast, name)
    with pytest.raises(ModuleNotFoundError) as info:
        use()
    assert str(info.value) == f"{module} is not installed, or is too old; install it with: {cure}"
    assert (info.value.name or "").partition(".")[0] == module


def test_submodules_are_imported_when_asked_for() -> None:
    """`wsfast.trio.broadcast()` works as documented, with no other import than that of wsfast."""
    code = (
        "import wsfast, sys; assert 'wsfast.trio' not in sys.modules; "
        "names = wsfast.prometheus.Collector.__name__, wsfast.uvicorn.WSProtocol.__name__; "
        "print(wsfast.trio.broadcast.__module__, *names)"
    )
    pytest.importorskip("websockets.trio.connection", reason="websockets before 17 has no trio")
    result = processes.run(sys.executable, "-c", code)
    assert (result.stdout, result.stderr) == ("wsfast.trio Collector WSProtocol\n", "")
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = wsfast.nothing
