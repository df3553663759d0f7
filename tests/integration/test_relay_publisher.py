"""Publishers: what programs without a hub publish by real brokers arrives once and in order, or an error says why not.

Receivers are hubs with relays. They must miss nothing that they are not told of, and report no gap where none is.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import pickle
import random
import socket
import ssl
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import wsfast
from helpers.brokers import KINDS, Broker, encrypted, proxy_to, relay_of, started, tls_options, why_not
from helpers.peers import TIMEOUT, until
from helpers.ports import free_port
from helpers.processes import run as run_process
from wsfast._publisher import Stream
from wsfast.relay import AsyncPublisher, Gap, Publisher, PublishError, Relay, async_publisher, confirming, publisher

MANY = 10**6

WAY = ["blocking", "async"]


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Name of a kind of brokers."""
    if (reason := why_not(request.param)) is not None:
        pytest.skip(reason)
    return str(request.param)


@pytest.fixture(scope="module")
def shared(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A broker for all tests that leave it alone."""
    with started(kind, tmp_path_factory.mktemp(kind)) as broker:
        yield broker


@pytest.fixture
def own(kind: str, tmp_path: Path) -> Iterator[Broker]:
    """A broker that the test may kill."""
    with started(kind, tmp_path) as broker:
        yield broker


@pytest.fixture
def prefix() -> str:
    """What no other test's channels begin with."""
    return f"p{random.getrandbits(48):x}"


def go(main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Run a coroutine function."""
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop, debug=False) as runner:
        return runner.run(asyncio.wait_for(main(), 3 * TIMEOUT))


class Receiver:
    """A hub with a relay, and what is missing there."""

    def __init__(self, broker: Broker, prefix: str, url: str | None = None, **options: Any) -> None:
        self.hub = wsfast.Hub()
        self.gaps: list[Gap] = []
        self.relay: Relay = relay_of(
            broker.kind, self.hub, url or broker.url, prefix=prefix, timeout=TIMEOUT, on_gap=self.gaps.append, **options
        )

    async def stream(self, topic: str) -> Stream:
        """Subscribe to a topic, and wait until the broker has confirmed it."""
        stream = self.hub.stream(topic, max_messages=MANY)
        await self.relay.subscribed(TIMEOUT)
        return stream


@contextlib.asynccontextmanager
async def receiving(broker: Broker, prefix: str, **options: Any) -> AsyncIterator[Receiver]:
    """Run a receiver."""
    receiver = Receiver(broker, prefix, **options)
    async with receiver.relay:
        yield receiver


async def take(stream: Stream, count: int) -> list[str | bytes]:
    """Wait for so many messages."""
    async with asyncio.timeout(TIMEOUT):
        return [await anext(stream) for _ in range(count)]


class Either:
    """A publisher of either kind, with the methods of the asynchronous one."""

    def __init__(self, way: str, url: Any, **options: Any) -> None:
        self.publisher: Any = (publisher if way == "blocking" else async_publisher)(url, **options)
        self._way = way

    async def __call__(self, method: str, *arguments: Any, **options: Any) -> None:
        call = partial(getattr(self.publisher, method), *arguments, **options)
        await (asyncio.to_thread(call) if self._way == "blocking" else call())

    async def __aenter__(self) -> Either:
        return self

    async def __aexit__(self, *exc: Any) -> None:
        await self("close")


class Frames:
    """A sink that notes the payloads of short frames."""

    def __init__(self, user: Any, got: list[Any]) -> None:
        self._user = user
        self._got = got

    def write(self, data: bytes) -> None:
        self._got.append((self._user, data[2:]))

    def writable(self) -> bool:
        return True

    def close(self, code: int, reason: str) -> None:
        pass


@pytest.fixture(params=WAY)
def way(request: pytest.FixtureRequest) -> str:
    """Kind of publisher."""
    return str(request.param)


# ---- What arrives


def test_everything_arrives_as_from_a_hub(shared: Broker, prefix: str, way: str) -> None:
    """Text, binary, several topics, keys, users and excluded users arrive as if a hub had published them."""

    async def main() -> None:
        async with receiving(shared, prefix) as receiver, Either(way, shared.url, prefix=prefix) as publish:
            first, second = await receiver.stream("a.b"), await receiver.stream("a.*")
            values = await receiver.stream("values")
            got: list[Any] = []
            connections = {user: wsfast.attach(Frames(user, got)) for user in ("ann", 7)}
            for user, connection in connections.items():
                receiver.hub.register(connection, user)
                receiver.hub.subscribe(connection, "for-users")
            await receiver.relay.subscribed(TIMEOUT)
            await publish("publish", "a.b", "text")
            await publish("publish", ["a.b", "other"], b"\x00binary", key=("k", 1))
            await publish("publish_many", [("a.b", "one"), (["a.b", "x"], wsfast.PreparedMessage("two"), "key")])
            assert await take(first, 4) == ["text", b"\x00binary", "one", "two"]
            assert await take(second, 4) == ["text", b"\x00binary", "one", "two"]
            await publish("send", "ann", "to ann")
            await publish("send", 7, "to 7", key="k")
            await publish("publish", "for-users", "not to ann", exclude_users=["ann"])
            receiver.hub.subscribe(connections["ann"], "for-users", tags={"x"})
            await publish("publish", "for-users", "tag", tags={"y"})
            await publish("publish", "values", "1", key="k")
            assert await take(values, 1) == ["1"]
            await until(lambda: len(got) == 4)
            assert got == [("ann", b"to ann"), (7, b"to 7"), (7, b"not to ann"), (7, b"tag")]
            assert receiver.gaps == []
            assert receiver.relay.stats().malformed == receiver.relay.stats().rejected == 0

    go(main)


def test_many_threads(shared: Broker, prefix: str) -> None:
    """Eight threads with 1000 messages each: all arrive once, each thread's in its order, with no gap."""

    async def main() -> None:
        with publisher(shared.url, prefix=prefix, timeout=TIMEOUT) as publish:
            async with receiving(shared, prefix) as receiver:
                stream = await receiver.stream("t")

                def work(thread: int) -> None:
                    for number in range(1000):
                        publish.publish("t", f"{thread} {number}")

                with ThreadPoolExecutor(8) as pool:
                    loop = asyncio.get_running_loop()
                    await asyncio.gather(*(loop.run_in_executor(pool, work, thread) for thread in range(8)))
                got = [str(message).split() for message in await take(stream, 8000)]
                for thread in range(8):
                    assert [int(number) for who, number in got if who == str(thread)] == list(range(1000))
                stats = receiver.relay.stats()
                assert (stats.received, stats.duplicates, stats.gaps) == (8000, 0, 0)

    go(main)


def test_many_tasks(shared: Broker, prefix: str) -> None:
    """Tasks that publish at the same time, and one call with many messages: all arrive, in the order of the calls."""

    async def main() -> None:
        async with receiving(shared, prefix) as receiver, async_publisher(shared.url, prefix=prefix) as publish:
            stream = await receiver.stream("t")
            await asyncio.gather(*(publish.publish("t", str(number)) for number in range(2000)))
            await publish.publish_many(("t", str(number)) for number in range(2000, 4000))
            assert await take(stream, 4000) == [str(number) for number in range(4000)]
            assert receiver.relay.stats().gaps == 0

    go(main)


def test_secret(shared: Broker, prefix: str, way: str) -> None:
    """With the relay's secret, messages arrive; without it, they are rejected."""

    async def main() -> None:
        secret = b"sixteen bytes or more"
        async with (
            receiving(shared, prefix, secret=secret) as receiver,
            Either(way, shared.url, prefix=prefix, secret=[secret, b"another one of 16"]) as good,
            Either(way, shared.url, prefix=prefix) as bad,
        ):
            stream = await receiver.stream("t")
            await bad("publish", "t", "forged")
            await good("publish", "t", "signed")
            assert await take(stream, 1) == ["signed"]
            assert receiver.relay.stats().rejected == 1

    go(main)


def test_tls(
    kind: str, way: str, tmp_path: Path, prefix: str, certificate: Path, tls: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    """Messages arrive over TLS; who does not trust the certificate publishes nothing, and is told why."""

    async def main(broker: Broker) -> None:
        async with (
            encrypted(broker, tls[0]) as url,
            receiving(broker, prefix, url=url, ssl=tls[1]) as receiver,
            Either(way, url, prefix=prefix, timeout=TIMEOUT, ssl=tls[1]) as good,
            Either(way, url, prefix=prefix, timeout=2) as bad,
            Either(way, url.replace("localhost", "127.1"), prefix=prefix, timeout=2, ssl=tls[1]) as other,
        ):
            stream = await receiver.stream("t")
            calls = [wrong("publish", "t", "to whom?") for wrong in (bad, other)]
            for error in await asyncio.gather(*calls, return_exceptions=True):
                assert isinstance(error, PublishError)
                assert "CERTIFICATE_VERIFY_FAILED" in str(error)
                assert not error.uncertain
            await good("publish_many", [("t", f"{number}") for number in range(2000)])
            assert await take(stream, 2000) == [f"{number}" for number in range(2000)]

    with started(kind, tmp_path, tls_options(kind, certificate)) as broker:
        go(lambda: main(broker))


# ---- Brokers that fail


def test_broker_down(kind: str, way: str) -> None:
    """If there is no broker, the call raises within the timeout, and says why; the message was not sent."""

    async def main() -> None:
        async with Either(way, f"{kind}://127.0.0.1:{free_port()}", timeout=0.3) as publish:
            for _ in range(2):
                began = time.monotonic()
                with pytest.raises(PublishError, match=r"has not confirmed the message within 0.3 s: .*Conn") as caught:
                    await publish("publish", "t", "x")
                assert 0.25 < time.monotonic() - began < TIMEOUT
                assert not caught.value.uncertain
                assert isinstance(caught.value.__cause__, OSError) or "onnect" in repr(caught.value.__cause__)

    go(main)


def test_no_answer(shared: Broker, way: str) -> None:
    """If what listens there never answers, the call raises within the timeout."""

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            url = f"{shared.kind}://127.0.0.1:{server.getsockname()[1]}"
            async with Either(way, url, timeout=0.3) as publish:
                with pytest.raises(PublishError, match="the broker does not answer"):
                    await publish("publish", "t", "x")

    go(main)


def test_broker_freezes(own: Broker, prefix: str, way: str) -> None:
    """If the broker stops answering, the outcome is uncertain. Once it answers again, nothing is missing."""

    async def main() -> None:
        async with receiving(own, prefix) as receiver, Either(way, own.url, prefix=prefix, timeout=0.5) as publish:
            stream = await receiver.stream("t")
            await publish("publish", "t", "before")
            own.freeze()
            try:
                with pytest.raises(PublishError) as caught:
                    await publish("publish", "t", "uncertain")
            finally:
                own.thaw()
            assert caught.value.uncertain
            assert pickle.loads(pickle.dumps(caught.value)).uncertain  # Celery pickles exceptions

            async def after() -> None:
                await publish("publish", "t", "after")

            await until_published(after)
            got: list[Any] = []
            async with asyncio.timeout(TIMEOUT):
                while "after" not in got:
                    got.append(await anext(stream))
            assert got[0] == "before"
            assert Counter(got)["uncertain"] <= 1
            assert Counter(got)["after"] >= 1
            assert receiver.relay.stats().gaps == 0

    go(main)


async def until_published(call: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Publish until it succeeds."""
    async with asyncio.timeout(TIMEOUT):
        while True:
            with contextlib.suppress(PublishError):
                return await call()


def test_broker_comes_back(own: Broker, prefix: str, way: str) -> None:
    """A call that waits while the broker restarts succeeds, also if the connection was idle and nobody noticed."""

    async def main() -> None:
        async with Either(way, own.url, prefix=prefix, timeout=TIMEOUT) as publish:
            await publish("publish", "t", "before")
            own.kill()
            waiting = asyncio.create_task(publish("publish", "t", "meanwhile"))
            await asyncio.sleep(0)
            await asyncio.to_thread(own.start)
            await waiting
            own.kill()
            await asyncio.to_thread(own.start)
            await publish("publish", "t", "after")

    go(main)


def test_cut_connections(shared: Broker, prefix: str) -> None:
    """If connections are cut again and again, messages sent twice arrive once, and no gap is reported."""

    async def main() -> None:
        async with receiving(shared, prefix) as receiver, proxy_to(shared) as proxy:
            stream = await receiver.stream("t")
            async with async_publisher(proxy.url, prefix=prefix, timeout=TIMEOUT) as publish:
                confirmed = asyncio.Event()

                async def cut() -> None:
                    while True:
                        confirmed.clear()
                        await confirmed.wait()  # a cut in a handshake would only cost time
                        await asyncio.sleep(random.uniform(0, 0.01))
                        for pipe in list(proxy.pipes):
                            pipe.cut()

                cutting = asyncio.create_task(cut())
                try:
                    for start in range(0, 2000, 20):
                        await asyncio.gather(*(publish.publish("t", str(start + number)) for number in range(20)))
                        confirmed.set()
                finally:
                    cutting.cancel()
                assert await take(stream, 2000) == [str(number) for number in range(2000)]
                stats = receiver.relay.stats()
                assert (stats.received, stats.gaps) == (2000, 0)

    go(main)


@pytest.mark.parametrize("secret", [None, b"sixteen bytes or more"])
def test_failures_cause_no_gaps(shared: Broker, prefix: str, secret: bytes | None) -> None:
    """After failures of all kinds, receivers get everything that was confirmed, in order, and report no gap."""

    async def main() -> None:
        async with receiving(shared, prefix, secret=secret) as receiver, proxy_to(shared) as proxy:
            stream = await receiver.stream("t")
            confirmed: list[str] = []
            failed = 0
            async with async_publisher(proxy.url, prefix=prefix, timeout=0.05, secret=secret) as publish:
                for number in range(60):
                    proxy.refuse = number % 6 == 1
                    for pipe in list(proxy.pipes):
                        if number % 6 == 1:
                            pipe.cut()
                        pipe.frozen = number % 6 == 3
                    try:
                        await publish.publish("t", str(number))
                    except PublishError:
                        failed += 1
                    else:
                        confirmed.append(str(number))
                proxy.refuse = False
                for pipe in list(proxy.pipes):
                    pipe.frozen = False

                async def end() -> None:
                    await publish.publish("t", "end")

                await until_published(end)
            got: list[str] = []
            async with asyncio.timeout(TIMEOUT):
                while "end" not in got:
                    got.append(str(await anext(stream)))
            assert failed
            assert [one for one in got if one in confirmed] == confirmed
            assert receiver.relay.stats().gaps == 0

    go(main)


def test_refused(kind: str, tmp_path: Path, prefix: str, way: str) -> None:
    """If the broker refuses a message, the call raises at once and says so; others succeed."""
    config: Any = (
        "max_payload: 2000\n"
        if kind == "nats"
        else ["--user", *f"default on nopass +@all ~* resetchannels &{prefix}.t.good &{prefix}.all".split()]
    )

    async def main() -> None:
        with started(kind, tmp_path, config) as broker:
            async with Either(way, broker.url, prefix=prefix, timeout=TIMEOUT) as publish:
                for _ in range(2):
                    await publish("publish", "good", "x")
                    with pytest.raises(PublishError, match="has refused the message") as caught:
                        await publish("publish", "bad", "x" * 3000)
                    assert caught.value.__cause__ is not None
                    assert not caught.value.uncertain

    go(main)


def test_too_many_wait(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Messages that wait for the broker are bounded: a call beyond that raises at once."""
    monkeypatch.setattr(confirming, "WAITING", 10)

    async def main() -> None:
        async with async_publisher(f"{kind}://127.0.0.1:{free_port()}", timeout=0.5) as publish:
            calls = [publish.publish("t", str(number)) for number in range(12)]
            results = await asyncio.gather(*calls, return_exceptions=True)
            texts = [str(result) for result in results]
            assert sum("wait for the broker" in text for text in texts) == 2
            assert sum("not confirmed" in text for text in texts) == 10
            assert all(isinstance(result, PublishError) for result in results)

    go(main)


# ---- Processes and event loops


def test_fork(shared: Broker, prefix: str) -> None:
    """A publisher that was used before a fork works in the parent and in children, while other threads use it."""

    async def main() -> None:
        async with receiving(shared, prefix) as receiver:
            stream = await receiver.stream("t")
            command = [sys.executable, "-c", FORKING, shared.url, prefix]
            result = await asyncio.to_thread(run_process, *command)
            assert result.returncode == 0, result.stderr
            assert not [line for line in result.stderr.splitlines() if "fork() may lead" not in line], result.stderr
            got = Counter(str(message).split()[0] for message in await take(stream, 502))
            assert got == {**{f"child{number}": 100 for number in range(4)}, "parent": 102}
            stats = receiver.relay.stats()
            assert (stats.gaps, stats.duplicates) == (0, 0)

    go(main)


FORKING = """
import os, sys, threading
from wsfast.relay import publisher

publish = publisher(sys.argv[1], prefix=sys.argv[2], timeout=20)
publish.publish("t", "parent first")

def work():
    for number in range(100):
        publish.publish("t", f"parent {number}")

thread = threading.Thread(target=work)
thread.start()
children = []
for number in range(4):
    pid = os.fork()
    if not pid:
        for count in range(100):
            publish.publish("t", f"child{number} {count}")
        sys.exit()
    children.append(pid)
codes = [os.waitpid(pid, 0)[1] for pid in children]
thread.join()
publish.publish("t", "parent last")
sys.exit(any(codes))
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(shared: Broker, prefix: str, method: str, tmp_path: Path) -> None:
    """Workers of multiprocessing publish with a publisher at the top of their module, however they are started."""
    script = MULTIPROCESSING.replace("METHOD", method)

    async def main() -> None:
        async with receiving(shared, prefix) as receiver:
            stream = await receiver.stream("t")
            (tmp_path / "worker.py").write_text(script)
            result = await asyncio.to_thread(run_process, sys.executable, tmp_path / "worker.py", shared.url, prefix)
            assert result.returncode == 0, result.stderr
            got = await take(stream, 21)
            assert Counter(got) == Counter(["parent", *(str(number) for number in range(20))])
            assert receiver.relay.stats().gaps == 0

    go(main)


MULTIPROCESSING = """
import multiprocessing, sys
from wsfast.relay import publisher

publish = publisher(sys.argv[1], prefix=sys.argv[2], timeout=20)

def work(number):
    publish.publish("t", str(number))

if __name__ == "__main__":
    publish.publish("t", "parent")
    with multiprocessing.get_context("METHOD").Pool(3) as pool:
        pool.map(work, range(20))
"""


def test_one_event_loop_after_the_other(shared: Broker, prefix: str) -> None:
    """An asynchronous publisher works in several calls of asyncio.run(), but not in two event loops at a time."""
    publish = async_publisher(shared.url, prefix=prefix)
    for number in range(3):
        go(lambda number=number: publish.publish("t", str(number)))  # type: ignore[misc]

    async def main() -> None:
        await publish.publish("t", "x")
        with pytest.raises(RuntimeError, match="in use in another event loop"):
            await asyncio.to_thread(asyncio.run, publish.publish("t", "y"))
        await publish.close()

    go(main)


def test_close(shared: Broker, prefix: str, way: str) -> None:
    """Closing waits for calls, and makes receivers forget the publisher; then the publisher refuses all calls."""

    async def main() -> None:
        async with receiving(shared, prefix) as receiver:
            stream = await receiver.stream("t")
            publish = Either(way, shared.url, prefix=prefix)
            calls = [asyncio.create_task(publish("publish", "t", str(number))) for number in range(5)]
            assert len(await take(stream, 1)) == 1
            await asyncio.gather(publish("close"), *calls)
            await take(stream, 4)
            await until(lambda: receiver.relay._inbound._positions == 0)
            await publish("close")
            with pytest.raises(RuntimeError, match=r"Publisher by .* is closed"):
                await publish("publish", "t", "late")
            with pytest.raises(RuntimeError, match="is closed"):
                publish.publisher.__enter__() if way == "blocking" else await publish.publisher.__aenter__()

    go(main)


def test_closed_at_exit(shared: Broker, prefix: str) -> None:
    """A program that closes nothing ends silently, at once, and says goodbye."""

    async def main() -> None:
        async with receiving(shared, prefix) as receiver:
            stream = await receiver.stream("t")
            script = "import sys; from wsfast.relay import publisher; "
            script += "publisher(sys.argv[1], prefix=sys.argv[2]).publish('t', 'x')"  # collected before the end
            kept = script.replace("publisher(sys", "p = publisher(sys").replace(").publish", "); p.publish")
            for number, code in enumerate((script, kept)):
                result = await asyncio.to_thread(
                    run_process, sys.executable, "-W", "error", "-c", code, shared.url, prefix
                )
                assert (result.returncode, result.stderr) == (0, ""), number
                assert await take(stream, 1) == ["x"]
            await until(lambda: receiver.relay._inbound._positions == 0)

    go(main)


def test_no_thread_is_left(shared: Broker, prefix: str) -> None:
    """A publisher that is closed or garbage collected leaves no thread."""

    def threads() -> int:
        return sum(thread.name == "wsfast publisher" for thread in threading.enumerate())

    before = threads()
    publish = publisher(shared.url, prefix=prefix)
    publish.publish("t", "x")
    assert threads() == before + 1
    publish.close()
    assert threads() == before
    publish = publisher(shared.url, prefix=prefix)
    publish.publish("t", "x")
    del publish
    gc.collect()
    deadline = time.monotonic() + TIMEOUT
    while threads() > before and time.monotonic() < deadline:
        time.sleep(0.001)
    assert threads() == before


# ---- Mistakes


def test_wrong_arguments(kind: str, way: str) -> None:
    """Mistakes raise the same errors as in a hub with a relay, before anything is sent."""
    url = f"{kind}://127.0.0.1:{free_port()}"

    async def main() -> None:
        hub = wsfast.Hub()
        async with Either(way, url) as publish:
            relay = relay_of(kind, hub, url, timeout=0.01)
            async with relay:
                for method, arguments, options in (
                    ("publish", ("t", 1), {}),
                    ("publish", ("", "x"), {}),
                    ("publish", ("a.*", "x"), {}),
                    ("publish", (5, "x"), {}),
                    ("publish", ([], "x"), {}),
                    ("publish", ("t", "x"), {"key": []}),
                    ("publish", ("t", "x"), {"key": b"k"}),
                    ("publish", ("t", "x"), {"exclude_users": "ann"}),
                    ("publish", ("t", "x"), {"exclude_users": [b"x"]}),
                    ("publish_many", ([("t", "x"), ("t",)],), {}),
                    ("publish_many", (["tx"],), {}),
                    ("publish_many", ([("t", "x"), ("t", 1)],), {}),
                    ("send", (None, "x"), {}),
                    ("send", ("ann", 1), {}),
                    ("send", (1 << 256, "x"), {}),
                ):
                    with pytest.raises((TypeError, ValueError)) as expected:
                        getattr(hub, method)(*arguments, **options)
                    with pytest.raises(type(expected.value)) as caught:
                        await publish(method, *arguments, **options)
                    assert str(caught.value) == str(expected.value)

    go(main)


def test_too_large_a_head(shared: Broker, prefix: str, way: str) -> None:
    """Topics, users and a key that take too much are refused, and no number is used up."""

    async def main() -> None:
        async with receiving(shared, prefix) as receiver, Either(way, shared.url, prefix=prefix) as publish:
            stream = await receiver.stream("t")
            await publish("publish", "t", "1")
            with pytest.raises(ValueError, match="more than 1048576"):
                await publish("publish_many", [("t", "x"), ("t", "x", "k" * (1 << 20))])
            await publish("publish", "t", "2")
            assert await take(stream, 2) == ["1", "2"]
            assert receiver.relay.stats().gaps == 0

    go(main)


def test_wrong_urls() -> None:
    """A URL with another scheme, or whose password makes its end ambiguous, is refused where it is given."""
    for function in publisher, async_publisher:
        for url in ("", "localhost", "http://localhost", "redis:localhost", "amqp://localhost"):
            with pytest.raises(ValueError, match="url must begin with"):
                function(url)
        with pytest.raises(ValueError, match="url is not valid"):
            function("redis://:pass/word@localhost")
        with pytest.raises(TypeError, match="url must be"):
            function(5)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="timeout must be positive"):
            function("redis://localhost", timeout=0)
        with pytest.raises(ValueError, match="prefix"):
            function("redis://localhost", prefix="a b")
        with pytest.raises(ValueError, match="at least 16 bytes"):
            function("redis://localhost", secret=b"short")


def test_in_an_event_loop() -> None:
    """The blocking publisher refuses to block an event loop."""

    async def main() -> None:
        with publisher("redis://localhost") as publish, pytest.raises(RuntimeError, match="would block the event loop"):
            publish.publish("t", "x")

    go(main)


def test_threads_that_are_greenlets(shared: Broker, prefix: str) -> None:
    """Where gevent makes greenlets of threads, asyncio takes the publisher's event loop for that of every thread."""

    async def main() -> None:
        async with receiving(shared, prefix) as receiver:
            stream = await receiver.stream("t")

            def work() -> None:
                with publisher(shared.url, prefix=prefix) as one, publisher(shared.url, prefix=prefix) as other:
                    one.publish("t", "1")
                    thread: Any = one._thread
                    asyncio._set_running_loop(thread._loop)
                    try:
                        one.publish("t", "2")
                        with pytest.raises(RuntimeError, match=r"with gevent, one publisher\(\) for the whole process"):
                            other.publish("t", "3")
                    finally:
                        asyncio._set_running_loop(None)

            await asyncio.to_thread(work)
            assert await take(stream, 2) == ["1", "2"]

    go(main)


@pytest.mark.parametrize("function", [publisher, async_publisher])
def test_repr_and_pickle(function: Callable[..., Publisher | AsyncPublisher]) -> None:
    """The repr shows where the broker is, without a password; publishers cannot be pickled."""
    publish = function("redis://app:open-sesame@localhost:1234")
    assert repr(publish) == f"<{type(publish).__name__} by redis://localhost:1234>"
    with pytest.raises(TypeError, match=r"cannot pickle or copy a .*Publisher.*connects when it is first used"):
        pickle.dumps(publish)
