"""The messages: the same one each time, or market ticks that are all different."""

from __future__ import annotations

import itertools
import random
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from websockets.frames import Frame, Opcode

from .cases import Case

__all__ = ["MEM_LEVEL", "WINDOW_BITS", "Burst", "Parcel", "bursts", "deflated", "frame", "parcels", "sealed", "ticks"]

WINDOW_BITS = 12
MEM_LEVEL = 5
"""The default parameters that `serve()` of websockets gives to zlib."""

FRESH = 3
"""Of so many levels of the order book, one is new in each tick."""


class Parcel(NamedTuple):
    """A message, ready for every method."""

    message: str | bytes
    frame: bytes
    """The message in a frame that needs nothing else to be decoded: compressed by itself, if at all."""


class Burst(NamedTuple):
    """The messages of one call, ready for every method."""

    messages: tuple[str | bytes, ...]
    frames: bytes
    """The frames of all of them, one behind the other."""


def bursts(case: Case, seed: str) -> Iterator[Burst]:
    """Iterate over what the calls of a case send, the same for the same seed."""
    source = parcels(case, seed)

    def take() -> Burst:
        taken = list(itertools.islice(source, case.burst))
        return Burst(tuple(parcel.message for parcel in taken), b"".join(parcel.frame for parcel in taken))

    if case.compression == "none":
        yield from itertools.repeat(take())
    while True:
        yield take()


def parcels(case: Case, seed: str) -> Iterator[Parcel]:
    """Iterate over the messages of a case, the same ones for the same seed.

    Without compression, it is always the same message. With it, messages that repeat themselves would be compressed to
    a few bytes, so each is another.
    """
    opcode = Opcode.TEXT if case.type == "text" else Opcode.BINARY
    if case.compression == "deflate":
        for tick in ticks(case.size, seed):
            payload = tick.encode()
            octets = frame(opcode, deflated(payload), compressed=True)
            yield Parcel(tick if case.type == "text" else payload, octets)
    else:
        tick = '{"symbol":"BTC-USD","price":64250.0,"size":100,"seq":12345},'
        text = (tick * (case.size // len(tick) + 1))[: case.size]
        octets = frame(opcode, text.encode())
        if case.tls:
            octets = sealed(octets)
        yield from itertools.repeat(Parcel(text if case.type == "text" else text.encode(), octets))


def ticks(size: int, seed: str) -> Iterator[str]:
    """Iterate over ticks of a market: JSON in exactly `size` ASCII characters; less than 64 do not hold all of it.

    Price, number and time change from tick to tick; longer ticks have an order book, a part of which changes.
    """
    chance = random.Random(seed)
    price, time, book = 64250.0, 34_567_890, list[str]()
    for seq in itertools.count(1_000_001):
        price += chance.gauss(0, 2.5)
        time += chance.randrange(1, 250)
        head = f'{{"sym":"BTC-USD","price":{price:.2f},"seq":{seq},"time":{time}'
        room = size - len(head) - len(',"book":[]}')
        if room >= len("[64250.00,0.000]"):
            levels = (room + 1) // len("[64250.00,0.000],")
            fresh = range(levels) if not book else chance.sample(range(levels), max(levels // FRESH, 1))
            book += [""] * (levels - len(book))
            for level in fresh:
                book[level] = f"[{price + (level - levels / 2) / 10:.2f},{chance.uniform(0.001, 9.999):.3f}]"
            head += f',"book":[{",".join(book)}]'
        yield (head + "}").ljust(size)[:size]


def frame(opcode: Opcode, payload: bytes, *, compressed: bool = False) -> bytes:
    """Return a server's frame; RSV1 tells of a compressed one (RFC 7692, section 6)."""
    octets = Frame(opcode, payload).serialize(mask=False)
    return bytes([octets[0] | 0x40]) + octets[1:] if compressed else octets


def sealed(octets: bytes) -> bytes:
    """Return a record of TLS 1.3 as large as if it held these octets (RFC 8446, section 5.2), which nobody can decrypt.

    The type of the content and the tag of the cipher are 17 octets.
    """
    size = len(octets) + 17
    return bytes([23, 3, 3]) + size.to_bytes(2) + random.Random("record").randbytes(size)


def deflated(payload: bytes) -> bytes:
    """Compress a payload by itself, as zlib does with the settings of a stock server (RFC 7692, section 7.2.1)."""
    encoder = zlib.compressobj(wbits=-WINDOW_BITS, memLevel=MEM_LEVEL)
    return (encoder.compress(payload) + encoder.flush(zlib.Z_SYNC_FLUSH))[:-4]
