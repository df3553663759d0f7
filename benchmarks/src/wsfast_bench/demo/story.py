"""Puts the numbers of the lanes into words: a sentence for each moment, and a summary at the end."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

__all__ = ["CODE", "LANES", "Phase", "Sentence", "describe_bytes", "describe_seconds", "judge", "say", "summarize"]

LANES = {"loop": "await send() in a loop", "broadcast": "websockets.broadcast()", "channel": "wsfast.Channel"}
"""Names of the lanes, for people."""

CODE = {
    "loop": "for c in connections: await c.send(message)",
    "broadcast": "websockets.broadcast(connections, message)",
    "channel": "channel.publish(message)",
}
"""Code that each lane runs at a tick."""

PROMISES = {"missed": "messages missed", "disordered": "messages out of order", "lost": "clients disconnected"}
"""Faults that a client which reads must not see, by the number that counts them."""

CAUGHT_UP = 1 << 17
"""Bytes kept for a client that is not behind, at most."""


class Sentence(NamedTuple):
    """A sentence about a lane."""

    text: str
    """With `{}` in place of a number that changes all the time."""
    value: str
    """That number."""
    tone: str
    """`good`, `warn`, `bad`, or empty."""


def say(lane: str, numbers: dict[str, Any], *, stalled: bool, expected: int) -> Sentence:
    """Return a sentence about a lane.

    Args:
        lane: Its name.
        numbers: The reports of its server and its clients.
        stalled: Whether its phone is in the tunnel.
        expected: Messages per second for all healthy clients.
    """
    kept = describe_bytes(numbers["kept"])
    if numbers["lag"] is None:
        return Sentence("The clients are there. The first message follows.", "", "good")
    if not stalled:
        if numbers["kept"] > CAUGHT_UP:
            return Sentence("The client is back and reads the {} that waited for it.", kept, "good")
        if numbers["delivered"] < 0.9 * expected:
            return Sentence(f"{{}} of {expected:,} messages per second arrive.", f"{numbers['delivered']:,}", "")
        cpu = f"{numbers['cpu']:.0%}"
        return Sentence("Every client gets every message. The server uses {} of a core.", cpu, "good")
    if numbers["gone"] == "keepalive":
        return Sentence("The keepalive closed the stalled client. The others go on.", "", "warn")
    if lane == "loop" and not numbers["delivered"]:
        return Sentence("The loop waits for one client: nobody gets anything.", "", "bad")
    if lane == "loop" or (lane == "broadcast" and numbers["kept"] < CAUGHT_UP):
        return Sentence("One client stopped reading. Its buffers are filling.", "", "warn")
    if lane == "broadcast":
        return Sentence("websockets keeps {} for the stalled client, and more every second.", kept, "warn")
    missed = numbers["missed_since"]
    others, tone = (f"The others missed {missed:,}.", "warn") if missed else ("The others notice nothing.", "good")
    if numbers["gone"] == "policy":
        return Sentence(f"The Channel disconnected the stalled client. {others}", "", tone)
    for name, verb in (("dropped", "dropped {} messages"), ("conflated", "replaced {} old messages")):
        if numbers[name]:
            return Sentence(f"The Channel {verb} of the stalled client. {others}", f"{numbers[name]:,}", tone)
    return Sentence(f"The Channel keeps a few messages for the stalled client. {others}", "", tone)


class Phase(NamedTuple):
    """The numbers of a lane over some samples."""

    delivered: float
    """Messages per second, the median."""
    lag: float | None
    """Seconds, the median."""
    memory: int | None
    """Bytes at the end."""
    kept: int
    """Bytes kept for the phone at the end."""
    lost: int
    """Messages of the phone that were dropped or replaced."""

    @classmethod
    def of(cls, samples: Sequence[dict[str, Any]], lane: str) -> Phase:
        """Summarize the samples of a phase."""
        numbers = [sample["lanes"][lane] for sample in samples]
        lags = [each["lag"] for each in numbers if each["lag"] is not None]
        last = numbers[-1]
        return cls(
            statistics.median(each["delivered"] for each in numbers),
            statistics.median(lags) if lags else None,
            last["memory"],
            last["kept"],
            last["dropped"] + last["conflated"],
        )


def summarize(samples: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Return the lines of a summary: a table, and a sentence about each lane.

    The first third of each part is left out: numbers are taken over a second, and buffers fill.
    """
    parts = [[sample for sample in samples if (sample["stalled"] is not None) is stalled] for stalled in (False, True)]
    if not all(parts):
        yield "There is no summary: somebody used the page meanwhile."
        return
    seconds = parts[1][-1]["stalled"]
    healthy, stalled = (part[len(part) // 3 :] for part in parts)
    before = {lane: Phase.of(healthy, lane) for lane in LANES}
    during = {lane: Phase.of(stalled, lane) for lane in LANES}
    yield f"{'':<24}{'all clients read':^36}  {f'one client in a tunnel for {seconds:.0f} s':^46}"
    columns = ("per second", "lag", "memory")
    yield f"{'':<24}{_row(columns)}  {_row((*columns, 'kept'))}"
    for lane, name in LANES.items():
        yield f"{name:<24}{_row(_cells(before[lane])[:3])}  {_row(_cells(during[lane]))}"
    yield "per second: messages that all healthy clients got. lag: from the server to a client. Both are medians of the"
    yield "live numbers. memory: of the server process. kept: for the client that does not read. Both are the last."
    yield ""
    loop, broadcast, channel = (during[lane] for lane in LANES)
    if loop.delivered < before["loop"].delivered / 2:
        yield f"The loop of await send() delivered {loop.delivered:,.0f} per second: it waits for one client."
    else:
        yield f"The loop of await send() delivered {loop.delivered:,.0f} per second."
    yield (
        f"websockets.broadcast() delivered {broadcast.delivered:,.0f} per second and kept "
        f"{describe_bytes(broadcast.kept)} for that client, and more every second."
    )
    yield (
        f"wsfast.Channel delivered {channel.delivered:,.0f} per second, kept {describe_bytes(channel.kept)} for that "
        f"client, and left out {channel.lost:,} of its messages."
    )


def judge(sample: dict[str, Any]) -> int:
    """Print whether all healthy clients got every message once and in order; return the exit status.

    A message that the policy of the Channel left out, for a client that was too slow, is no fault.
    """
    wrong = {
        f"{name}: {numbers[key]:,} {what}"
        for lane, name in LANES.items()
        for numbers in [sample["lanes"][lane]]
        for key, what in PROMISES.items()
        if numbers[key] > (numbers["left_out"] if key == "missed" else 0)
    }
    if wrong:
        print(f"wsfast demo: error: {'; '.join(sorted(wrong))}", file=sys.stderr)
        return 1
    missed = sample["lanes"]["channel"]["missed"]
    but = f", except {missed:,} that the Channel left out: they were too slow" if missed else ""
    print(f"All other clients got every message sent to them once and in order{but}.", flush=True)
    return 0


def _cells(phase: Phase) -> tuple[str, ...]:
    return (
        f"{phase.delivered:,.0f}",
        describe_seconds(phase.lag),
        describe_bytes(phase.memory),
        describe_bytes(phase.kept),
    )


def _row(cells: Iterable[str]) -> str:
    return "".join(f"{cell:>12}" for cell in cells)


def describe_bytes(size: int | None) -> str:
    """Return a size for people."""
    if size is None:
        return "unknown"
    if size < 1 << 20:
        return f"{size / 1024:.0f} KiB"
    return f"{size / (1 << 20):.1f} MiB"


def describe_seconds(seconds: float | None) -> str:
    """Return a duration for people."""
    if seconds is None:
        return "none yet"
    if seconds < 1:
        return f"{seconds * 1e3:.1f} ms"
    return f"{seconds:.1f} s"
