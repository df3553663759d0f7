"""What is special about relays that recover through NATS JetStream. test_relay_recovery.py has what holds for all."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

import wsfast
from helpers.brokers import Broker, Nats, started, why_not
from helpers.kept import kept_by
from helpers.peers import TIMEOUT, until
from helpers.recovering import End, ends, keeping, take
from helpers.sinks import Client
from wsfast import Position, relay
from wsfast.hub.topics import check_topic
from wsfast.relay import PublishError, broker, outbound

pytestmark = pytest.mark.skipif(why_not("nats") is not None, reason=str(why_not("nats")))

PREFIX = "wsfast"


def go(main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Run a coroutine function in an event loop."""
    return asyncio.run(asyncio.wait_for(main(), 3 * TIMEOUT))


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Nats]:
    """A server that the test may kill."""
    with keeping("nats", tmp_path) as server:
        assert isinstance(server, Nats)
        yield server


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have relays look for the server often."""
    monkeypatch.setattr(broker, "LAST_BACKOFF", 0.1)
    monkeypatch.setattr(outbound, "POSITION_INTERVAL", 0.1)


def ask(server: Broker, what: str, body: bytes = b"") -> bytes:
    """Return the answer of JetStream to a request."""
    import nats

    async def main() -> bytes:
        client = await nats.connect(server.url)
        try:
            return bytes((await client.request(what, body)).data)
        finally:
            await client.close()

    return asyncio.run(main())


async def told(caplog: pytest.LogCaptureFixture, text: str) -> None:
    """Wait for a log record with a text."""
    await until(lambda: text in caplog.text)


# ---- Arguments and settings


def test_arguments() -> None:
    """What makes no sense is told."""
    hub = wsfast.Hub(history=5)
    with pytest.raises(ValueError, match=r"recover=True needs a hub with history: Hub\(history=100\)"):
        relay.nats(wsfast.Hub(), recover=True)
    with pytest.raises(TypeError, match="recover must be a bool"):
        relay.nats(hub, recover=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="storage must be 'file' or 'memory', not 'disk'"):
        relay.nats(hub, recover=True, storage=cast(Any, "disk"))
    with pytest.raises(ValueError, match="max_bytes"):
        relay.nats(hub, recover=True, max_bytes=0)
    with pytest.raises(TypeError, match="replicas"):
        relay.nats(hub, recover=True, replicas=cast(Any, 1.5))
    for options in ({"storage": "file"}, {"replicas": 1}, {"max_bytes": 5}):
        with pytest.raises(ValueError, match="storage, replicas and max_bytes need recover=True"):
            relay.nats(hub, **cast(Any, options))
    with pytest.raises(ValueError, match="history must have messages"):
        relay.publisher("nats://localhost", history=0)


def test_not_enabled(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """If the server has no JetStream, relays and publishers say how to start it."""
    text = "JetStream is not enabled at the server"

    async def main() -> None:
        async with End(server.url, PREFIX, timeout=0.3) as end:
            await told(caplog, text)
            assert not end.relay.connected
        async with relay.async_publisher(server.url, history=5, timeout=0.3) as publisher:
            with pytest.raises(PublishError, match=f"{text}.*nats-server -js"):
                await publisher.publish("t", "1")

    with started("nats", tmp_path) as server:
        go(main)


def test_server_is_too_old(own: Nats, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that cannot return several packets at once is refused."""
    from wsfast.relay import jetstream

    monkeypatch.setattr(jetstream, "OLDEST_SERVER", (99, 1))

    async def main() -> None:
        async with End(own.url, PREFIX, timeout=0.3):
            await told(caplog, "recover=True needs NATS 99.1 or newer, and the server is")

    go(main)


def test_other_settings(own: Nats, caplog: pytest.LogCaptureFixture) -> None:
    """A stream with other settings is not touched: the relay says which, and connects once they are changed."""

    async def main() -> None:
        async with End(own.url, PREFIX, history=50, max_bytes=10**6):
            pass
        async with End(own.url, PREFIX, history=60, timeout=0.3) as end:
            await told(caplog, "the stream 'wsfast' has other settings: max_msgs_per_subject is 50, not 60. Give")
            assert not end.relay.connected
            with caplog.at_level(logging.CRITICAL):
                await asyncio.to_thread(ask, own, "$JS.API.STREAM.DELETE.wsfast")
                await end.relay.connected(TIMEOUT)
        async with End(own.url, PREFIX, history=60, max_bytes=10**7, storage="file", timeout=0.3):
            await told(caplog, "storage is 'memory', not 'file'; max_bytes is -1, not 10000000. Give")
        async with End(own.url, f"{PREFIX}.s.x", timeout=0.3):
            await told(caplog, "the subjects 'wsfast.s.x.s.>' must belong to no other stream")

    go(main)


def test_names(own: Nats) -> None:
    """A prefix that no stream may have as its name is the beginning of subjects nevertheless."""

    async def main() -> None:
        async with ends(own.url, "a.b") as (one, two), ends(own.url, "a-b") as (other, _):
            streams = [end.stream("t." + 200 * "x") for end in (two, other)]
            await two.loaded("t." + 200 * "x")
            await other.loaded("t." + 200 * "x")
            one.hub.publish("t." + 200 * "x", "1")
            other.hub.publish("t." + 200 * "x", "2")
            assert [await take(stream, 1) for stream in streams] == [["1"], ["2"]]

    go(main)


def test_name_like_a_digest(own: Nats) -> None:
    """Who subscribes to a topic with the digest of another one as its name does not get the messages of that one."""
    from wsfast.relay.nats_broker import tokens_of

    async def main() -> None:
        async with ends(own.url, PREFIX, 2) as (one, two):
            long = f"private.{100 * 'x'}"
            alias = tokens_of(long)
            assert alias != long
            check_topic(alias)
            for topic in (alias, tokens_of(alias), alias[:-1], alias + "0"):
                assert tokens_of(topic) != alias
            one.hub.publish(long, "secret")
            one.hub.publish(alias, "public")
            await until(lambda: not one.relay.stats().queued)
            client = Client()
            await two.recover(client, alias)
            two.hub.flush()
            assert client.received == ["public"]

    go(main)


# ---- Faults


def test_restart_with_files(own: Nats) -> None:
    """A server with files is killed and started again: nothing is missing, nothing comes twice, numbering goes on."""

    async def main() -> None:
        async with ends(own.url, PREFIX, 2, storage="file") as (one, two):
            stream, client = two.stream("t"), Client()
            await two.recover(client, "t", "quiet")
            for number in range(300):
                one.hub.publish("t", str(number))
                two.hub.publish("t", f"other {number}")
                if number % 10 == 0:
                    await asyncio.sleep(0.002)
                if number in (100, 200):
                    own.kill()
                    own.start()
            got = await take(stream, 600)
            assert [text for text in got if str(text).isdigit()] == [str(number) for number in range(300)]
            assert [text for text in got if not str(text).isdigit()] == [f"other {number}" for number in range(300)]
            await until(lambda: len(client.received) == 600)
            position = two.hub.position("t")
            assert position.offset == 600
            assert not one.gaps
            assert not two.gaps
            back = Client()
            since = {"t": Position(position.epoch, 5), "quiet": two.hub.position("quiet")}
            subscription = await one.recover(back, "t", "quiet", **since)
            assert subscription.recovered_topics == {"t", "quiet"}
            one.hub.flush()
            assert back.received == got[5:]

    go(main)


def test_last_message_is_gone(own: Nats) -> None:
    """If nothing is left of a topic, a new epoch begins: nobody is said to be recovered, and the stream goes on."""

    async def main() -> None:
        async with ends(own.url, PREFIX, 2) as (one, two):
            stream = two.stream("t")
            await two.loaded("t")
            one.hub.publish("t", "1")
            assert await take(stream, 1) == ["1"]
            position = two.hub.position("t")
            await asyncio.to_thread(ask, own, "$JS.API.STREAM.PURGE.wsfast")
            one.hub.publish("t", "2")
            assert await take(stream, 1) == ["2"]
            assert two.hub.position("t").epoch != position.epoch
            assert two.hub.position("t").offset == 1
            assert [gap.messages for gap in two.gaps] == [0]  # nobody knows how many
            assert not (await two.recover(Client(), "t", t=position)).recovered

    go(main)


def test_stream_is_deleted(own: Nats) -> None:
    """The relays create the stream again, and what waits is published."""

    async def main() -> None:
        async with ends(own.url, PREFIX, 2) as (one, two):
            stream = two.stream("t")
            await two.loaded("t")
            one.hub.publish("t", "1")
            assert await take(stream, 1) == ["1"]
            await asyncio.to_thread(ask, own, "$JS.API.STREAM.DELETE.wsfast")
            one.hub.publish("t", "2")
            assert await take(stream, 1) == ["2"]
            assert two.hub.position("t").offset == 1

    go(main)


def test_another_stream_with_the_same_numbers(own: Nats, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has not heard of a new stream does not go on where the old one was, even if the numbers are the same."""
    from wsfast.relay import jetstream

    monkeypatch.setattr(jetstream, "VERIFIED_EVERY", 0.0)

    async def main() -> None:
        async with ends(own.url, PREFIX, 2) as (one, two):
            one.hub.publish("t", "before")
            await until(lambda: not one.relay.stats().queued)
            before = kept_by(own, PREFIX).position("t")
            await asyncio.to_thread(ask, own, "$JS.API.STREAM.DELETE.wsfast")
            two.hub.publish("t", "1")
            await until(lambda: not two.relay.stats().queued)
            one.hub.publish("t", "2")
            await until(lambda: not one.relay.stats().queued)
            assert kept_by(own, PREFIX).position("t").offset == 2
            client = Client()
            assert not (await two.recover(client, "t", t=before)).recovered
            two.hub.flush()
            assert client.received == ["1", "2"]

    go(main)


def test_stream_is_edited(own: Nats, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """If somebody changes the stream while relays run, they say so and publish nothing until it is changed back."""
    from wsfast.relay import jetstream

    monkeypatch.setattr(jetstream, "VERIFIED_EVERY", 0.0)

    async def main() -> None:
        async with ends(own.url, PREFIX, 1) as (one,):
            settings = json.loads(await asyncio.to_thread(ask, own, "$JS.API.STREAM.INFO.wsfast"))["config"]
            changed = {name: value for name, value in settings.items() if name != "republish"}
            await asyncio.to_thread(ask, own, "$JS.API.STREAM.UPDATE.wsfast", json.dumps(changed).encode())
            stream = one.stream("t")
            one.hub.publish("t", "1")
            await told(caplog, "the stream 'wsfast' has other settings: republish is None")
            await asyncio.to_thread(ask, own, "$JS.API.STREAM.UPDATE.wsfast", json.dumps(settings).encode())
            assert await take(stream, 1) == ["1"]

    go(main)


def test_nobody_knows_the_position(own: Nats) -> None:
    """Who has got more than the stream has, which has lost data, has it begin a new epoch."""

    async def main() -> None:
        async with ends(own.url, PREFIX, 2) as (one, two):
            stream = two.stream("t")
            await two.loaded("t")
            for number in range(5):
                one.hub.publish("t", str(number))
                await take(stream, 1)
            position = two.hub.position("t")
            await asyncio.to_thread(ask, own, "$JS.API.STREAM.MSG.DELETE.wsfast", b'{"seq": 6}')
            inbound: Any = two.relay._inbound
            inbound.fetch_all()
            await until(lambda: two.hub.position("t").epoch != position.epoch)
            assert kept_by(own, PREFIX).position("t") == two.hub.position("t")
            one.hub.publish("t", "5")
            assert await take(stream, 1) == ["5"]
            assert two.hub.position("t").offset == 1

    go(main)


def test_what_no_relay_has_published(own: Nats) -> None:
    """Something else in the stream ends the epoch of its topic, and no more."""

    async def main() -> None:
        async with ends(own.url, PREFIX, 2) as (one, two):
            stream = two.stream("t")
            await two.loaded("t")
            for data in (b"", b"garbage", b"\xf6" + 16 * b"a" + 16 * b"9"):
                one.hub.publish("t", "before")
                assert await take(stream, 1) == ["before"]
                epoch = two.hub.position("t").epoch
                await asyncio.to_thread(ask, own, "wsfast.s.t", data)
                one.hub.publish("t", "after")
                assert await take(stream, 1) == ["after"]
                assert two.hub.position("t").epoch != epoch
                assert two.hub.position("t").offset == 1
                async with End(own.url, PREFIX) as late:
                    client = Client()
                    assert not (await late.recover(client, "t", t=Position(epoch, 0))).recovered
                    late.hub.flush()
                    assert client.received == ["after"]
            assert two.relay.stats().malformed == 2

    go(main)


def test_too_large(own: Nats) -> None:
    """A message that the server does not take is dropped and told; those around it are published."""

    async def main() -> None:
        async with ends(own.url, PREFIX, 2) as (one, two):
            stream = two.stream("t")
            await two.loaded("t")
            one.hub.publish("t", "1")
            one.hub.publish("t", 2 * (1 << 20) * "x")
            one.hub.publish("t", ((1 << 20) - 500) * "y")
            one.hub.publish("t", "2")
            messages = await take(stream, 3)
            assert [len(message) for message in messages] == [1, (1 << 20) - 500, 1]
            await until(lambda: one.relay.stats().dropped == 1)
            assert [gap.messages for gap in two.gaps] == [1]
            async with relay.async_publisher(own.url, history=10_000) as publisher:
                with pytest.raises(PublishError, match="has refused the message"):
                    await publisher.publish("t", 2 * (1 << 20) * "x")

    go(main)


# ---- What is fetched


def test_fetching_among_many_topics(own: Nats) -> None:
    """From wherever a client comes back, it gets what it missed, though the stream numbers all topics as one."""

    async def main() -> None:
        async with ends(own.url, PREFIX, 1, history=100) as (one,):
            stream = one.stream("t.5")
            await one.loaded("t.5")
            for number in range(60):
                for topic in range(10):
                    if number % (topic + 1) == 0:
                        one.hub.publish(f"t.{topic}", str(number))
                await until(lambda: not one.relay.stats().queued)
            assert await take(stream, 10) == [str(number) for number in range(0, 60, 6)]
            epoch = one.hub.position("t.5").epoch
        for offset in range(11):
            async with End(own.url, PREFIX, history=100) as end:
                client = Client()
                subscription = await end.recover(client, "t.5", **cast(Any, {"t.5": Position(epoch, offset)}))
                assert subscription.recovered
                end.hub.flush()
                assert client.received == [str(number) for number in range(0, 60, 6)][offset:]

    go(main)


def test_no_more_than_the_history_is_fetched(own: Nats, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packets have many messages; who loads the history of a topic fetches no more of them than it asks for."""
    from wsfast.relay import nats_streams

    fetched: list[int] = []
    real = nats_streams._Fetching._read

    async def read(self: Any, *arguments: Any) -> Any:
        kept = await real(self, *arguments)
        assert kept is not None
        fetched.append(len(kept.packets))
        return kept

    async def main() -> None:
        async with ends(own.url, PREFIX, 1, history=20) as (one,):
            for number in range(20):
                one.hub.publish_many([("t", f"{number}|{index}") for index in range(100)])
                await until(lambda: not one.relay.stats().queued)
        assert len(kept_by(own, PREFIX).packets("t")) == 20
        monkeypatch.setattr(nats_streams._Fetching, "_read", read)
        async with End(own.url, PREFIX, history=20) as end:
            client = Client()
            await end.recover(client, "t")
            end.hub.flush()
            assert client.received == [f"19|{index}" for index in range(80, 100)]
            assert fetched == [1]

    go(main)
