"""What is compressed by itself, what stands for an encoder, and how that is negotiated."""

from __future__ import annotations

import itertools
import random
import sys
import types
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from websockets.exceptions import NegotiationError
from websockets.extensions import permessage_deflate
from websockets.extensions.permessage_deflate import PerMessageDeflate

import wsfast
from helpers.inflate import Inflater, tick
from helpers.peers import parse_frames
from wsfast import PreparedMessage
from wsfast._encoding.deflate import (
    LOOKAHEAD,
    Encoder,
    LazyEncoder,
    Parameters,
    PerMessageEncoder,
    Window,
    compress_by,
)
from wsfast._encoding.message import frame_for, join, prepare, self_contained

WINDOW_BITS = range(9, 16)
SETTINGS: list[dict[str, int]] = [
    *({"memLevel": level} for level in range(1, 10)),
    {},
    *({"level": level} for level in range(10)),
    *({"strategy": strategy} for strategy in range(5)),
]


def parameters_of(window_bits: int = 12, **settings: int) -> Parameters:
    parameters = Parameters.of(window_bits, settings or {"memLevel": 5})
    assert parameters is not None
    return parameters


def far(size: int) -> bytes:
    """Return a message whose end is as its beginning, with nothing alike in between."""
    chance = random.Random(size)
    ends = chance.randbytes(min(100, size // 2))
    return ends + chance.randbytes(size - 2 * len(ends)) + ends


class CountCalls:
    """Calls a function, and counts how often."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return self.function(*args, **kwargs)


@pytest.fixture
def encoders(monkeypatch: pytest.MonkeyPatch) -> CountCalls:
    """Count the encoders that are made."""
    parameters_of()  # which makes one, unless another test has done so, to see whether zlib accepts the settings
    count = CountCalls(zlib.compressobj)
    monkeypatch.setattr(zlib, "compressobj", count)
    return count


# ---- Parameters


def test_parameters_are_one_object() -> None:
    """Parameters that are equal are identical, whatever the order of their settings."""
    parameters = Parameters.of(12, {"memLevel": 5, "level": 6})
    assert parameters is not None
    assert parameters is Parameters.of(12, {"level": 6, "memLevel": 5})
    assert parameters.window == 4096
    others = [Parameters.of(11, {"memLevel": 5, "level": 6}), Parameters.of(12, {"memLevel": 5}), Parameters.of(12, {})]
    assert len({parameters, *others}) == 4
    assert parameters.per_message is parameters.per_message
    assert parameters.per_message.state.parameters is parameters
    assert parameters.unknown is parameters.unknown
    assert parameters.unknown.parameters is parameters
    assert repr(parameters) == "<Parameters window_bits=12, level=6, memLevel=5>"


@pytest.mark.parametrize(
    "settings",
    [
        {"zdict": b"x"},
        {"wbits": 12},
        {"level": "6"},
        {"level": None},
        {"memLevel": 5, "unknown": 1},
        {"level": 77},
        {"memLevel": 1 << 80},
    ],
    ids=str,
)
def test_parameters_of_unknown_settings(settings: dict[str, Any]) -> None:
    """There are no parameters of what receivers may have to know, nor of what zlib does not."""
    assert Parameters.of(12, settings) is None


@pytest.mark.parametrize("window_bits", [-15, 0, 8, 16])
def test_parameters_of_other_windows(window_bits: int) -> None:
    """There are no windows but those of 9 to 15 bits."""
    with pytest.raises(ValueError, match=f"^window_bits must be between 9 and 15, not {window_bits}$"):
        Parameters.of(window_bits, {})


@pytest.mark.parametrize("window_bits", WINDOW_BITS)
def test_fit(window_bits: int) -> None:
    """Fit returns the smallest window that all of a message can be referred to in, or that of the connection."""
    parameters = parameters_of(window_bits)
    for size in (1, 64, *(limit + d for bits in range(9, 17) for limit in (1 << bits,) for d in (-263, -262, -261, 0))):
        fitting = parameters.fit(size)
        assert fitting.settings == parameters.settings
        assert fitting.window_bits <= window_bits
        assert fitting.fit(size) is fitting
        if fitting is not parameters:
            assert size + LOOKAHEAD <= fitting.window
        if fitting.window_bits > 9:
            assert size + LOOKAHEAD > fitting.window // 2
        message = far(size)
        assert len(fitting.compress(message)) == len(parameters.compress(message))


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("window_bits", WINDOW_BITS)
def test_compress_by_itself(window_bits: int, settings: dict[str, int]) -> None:
    """What is compressed by itself is decompressed with the negotiated window, whatever that holds."""
    parameters = Parameters.of(window_bits, settings)
    assert parameters is not None
    window = parameters.window
    used = Inflater(window_bits)
    chance = random.Random(window_bits)
    edges = [limit + d for limit in (window - LOOKAHEAD, window, 2 * window) for d in (-1, 0, 1)]
    for size in (1, 64, 260, *edges):
        for message in (far(size), tick(size, size).encode()):
            compressed = self_contained(PreparedMessage(message))._compressed_for(parameters).payload
            assert Inflater(window_bits).inflate(compressed) == message
            assert Inflater(parameters.fit(size).window_bits).inflate(compressed) == message
            assert used.inflate(compressed) == message
            other = chance.randbytes(chance.randint(1, 600))
            assert used.inflate(compress_by(zlib.compressobj(wbits=-window_bits), other)) == other


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("window_bits", WINDOW_BITS)
def test_primed_encoder(window_bits: int, settings: dict[str, int]) -> None:
    """An encoder that is primed with the end of the receiver's window refers to that, and to no more."""
    parameters = Parameters.of(window_bits, settings)
    assert parameters is not None
    for size in (1, 100, parameters.window - LOOKAHEAD, parameters.window, parameters.window + 1, 40_000):
        first = far(size)
        client = Inflater(window_bits)
        assert client.inflate(parameters.compress(first)) == first
        encoder = parameters.encoder(first)
        for message in (first[-200:], tick(1).encode(), first):
            assert client.inflate(compress_by(encoder, message)) == message


def test_compression_must_end_with_a_flush() -> None:
    """An encoder that does not flush is none of zlib's."""
    encoder: Any = types.SimpleNamespace(compress=lambda data: data, flush=lambda mode: b"")
    with pytest.raises(AssertionError, match=r"^zlib did not flush$"):
        compress_by(encoder, b"data")


# ---- Messages


@pytest.mark.parametrize("compress", [True, 0, 1, "yes", b""])
def test_compress_is_none_or_false(compress: Any) -> None:
    """compress=True, or anything else, raises ValueError."""
    with pytest.raises(ValueError, match=r"^compress must be None \(decide by size\) or False \(never\), not "):
        PreparedMessage("hello", compress=compress)
    with pytest.raises(ValueError, match="compress must be None"):
        wsfast.broadcast([], "hello", compress=compress)


def test_compress_cannot_be_chosen_again() -> None:
    """Compress together with a PreparedMessage raises TypeError."""
    message = PreparedMessage("hello")
    with pytest.raises(TypeError, match=r"^compress cannot be given with a PreparedMessage"):
        prepare(message, None, False)
    with pytest.raises(TypeError, match="compress cannot be given with"):
        wsfast.broadcast([], message, compress=False)


@pytest.mark.parametrize("takeover", [True, False])
@pytest.mark.parametrize(
    ("data", "compress", "compressed"),
    [
        ("x" * 16, None, True),
        ("x" * 15, None, False),
        ("", None, False),
        (b"x" * 16, None, True),
        ("x" * 1000, False, False),
        (random.Random(1).randbytes(2049), None, False),
    ],
    ids=["16", "15", "empty", "binary", "never", "noise"],
)
def test_choose(takeover: bool, data: Any, compress: Any, compressed: bool) -> None:
    """A message is compressed from 16 bytes on, if it shrinks and may be; only then, windows hold something else."""
    message = PreparedMessage(data, compress=compress)
    assert message.compress is compress
    window = (LazyEncoder(parameters_of()) if takeover else parameters_of().per_message).state
    encodings = self_contained(message)
    encoding, after = encodings.choose(window)
    if compressed:
        assert encoding.first == encodings.plain.first | 0x40
        assert Inflater(12).inflate(encoding.payload) == message.data
    else:
        assert encoding is encodings.plain
        assert encoding.payload is message.data
        assert encoding.frame is message.frame
    if compressed and takeover:
        assert (after.parameters, after.tail) == (parameters_of(), message.data)
    else:
        assert after is window
    assert encodings.after(window, 1) is after
    assert encodings.after(window, 0) is window
    assert encoding.ends is None


def test_choose_has_no_effect() -> None:
    """To ask for encodings changes no encoder and no window: who sends the frame notes what the window holds."""
    own = zlib.compressobj()
    lazy = LazyEncoder(parameters_of(), own)
    window = lazy.state
    for number in range(3):
        self_contained(PreparedMessage(tick(number))).choose(lazy.state)
    assert (lazy.state, lazy.encoder) == (window, own)
    assert window.tail == b""


def test_choices_are_made_once() -> None:
    """All who hold the same are sent the same, and hold the same then: one object each."""
    encodings = self_contained(PreparedMessage(tick(1, 200)))
    one, other = (LazyEncoder(parameters_of()) for _ in range(2))
    assert one.state is other.state is parameters_of().unknown
    encoding, after = encodings.choose(one.state)
    for window in one.state, other.state, after, Window(parameters_of(), tail=b"else"):
        assert [encodings.choose(window)[0], encodings.choose(window)[1]] == [encoding, after]
    narrow = encodings.choose(parameters_of(9).unknown)
    assert narrow[0] is encoding  # it fits the smaller window as well
    assert narrow[1] is not after
    assert narrow[1].parameters is parameters_of(9)


def test_encodings_are_made_once(encoders: CountCalls) -> None:
    """Each encoding of a message is made once, and one serves all windows that are larger than the message needs."""
    message = self_contained(PreparedMessage(tick(1)))
    both: list[list[Encoder]] = [
        [LazyEncoder(parameters_of(bits)), parameters_of(bits).per_message] for bits in WINDOW_BITS
    ]
    different = LazyEncoder(parameters_of(12, memLevel=8))
    encoders.calls = 0  # of those that have found out whether zlib knows such parameters
    encodings = [message.choose(encoder.state)[0] for encoder in itertools.chain(*both, *both)]
    assert [encodings.index(encoding) for encoding in encodings] == 2 * [0, 0, *[2] * 12]
    assert encoders.calls == 2
    assert encodings[0].frame is encodings[0].frame
    other = message.choose(different.state)[0]
    assert other not in encodings
    assert encoders.calls == 3


@pytest.mark.parametrize("bits", [9, 12, 15])
@pytest.mark.parametrize("size", [200, 4096, 4097, 32768, 32769, 100_000])
def test_window_of_a_message(size: int, bits: int) -> None:
    """What is kept of a message is its end, no more than the receiver's window holds, and once for all of them."""
    message = PreparedMessage(tick(size, size))
    windows = [self_contained(message).after(LazyEncoder(parameters_of(bits)).state, 1) for _ in range(2)]
    assert windows[0].tail == message.data[-(1 << bits) :]
    assert windows[0] is windows[1]


# ---- Several messages


def test_join_of_one() -> None:
    """The encodings of a single message are its own."""
    encodings = self_contained(PreparedMessage("hello"))
    assert join([encodings]) is encodings


@pytest.mark.parametrize("takeover", [True, False])
def test_joined(takeover: bool) -> None:
    """Several messages stand one behind the other, each as it would by itself behind those ahead of it."""
    messages = [PreparedMessage(data) for data in (tick(1), "tiny", tick(2), random.Random(1).randbytes(100))]
    parts = [self_contained(message) for message in messages]
    joined = join(parts)
    window = (LazyEncoder(parameters_of()) if takeover else parameters_of().per_message).state
    encoding, after = joined.choose(window)
    frames, expected = [], window
    for count, part in enumerate(parts):
        assert joined.after(window, count) is expected
        chosen, expected = part.choose(expected)
        frames.append(chosen.frame)
    assert after is expected is joined.after(window, len(parts))
    assert encoding.frame == b"".join(frames)
    assert encoding.ends == tuple(itertools.accumulate(map(len, frames)))
    inflater = Inflater(12)
    inflater.feed(encoding.frame)
    assert [data for _, data in inflater.messages] == [message.data for message in messages]
    assert joined.choose(window)[0] is encoding
    assert joined.choose(window)[1] is after


def test_joined_without_compression() -> None:
    """Who does not compress is sent the plain frames; they are put together once, also for who gets the same."""
    parts = [self_contained(PreparedMessage(data)) for data in ("one", "two", "")]
    joined = join(parts)
    assert joined.plain.frame == b"\x81\x03one\x81\x03two\x81\x00"
    assert joined.plain.ends == (5, 10, 12)
    assert joined.plain is joined.plain
    for window in parameters_of().unknown, parameters_of(9).unknown, parameters_of().per_message.state:
        assert joined.choose(window)[0] is joined.plain  # since all of them are too small
        assert joined.choose(window)[1] is window


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("compresses", [False, True])
def test_frame_for_one_connection(masked: bool, compresses: bool) -> None:
    """A frame for one connection is made of what its window holds, masked with a fresh key if need be."""
    message = PreparedMessage(tick(1))
    lazy = LazyEncoder(parameters_of()) if compresses else None
    keys = set()
    for _ in range(5):
        frame, window = frame_for(lazy, self_contained(message), masked=masked)
        ((first, key, payload),), tail = parse_frames(frame)
        assert (tail, first, len(key)) == (b"", 0xC1 if compresses else 0x81, 4 if masked else 0)
        assert (Inflater(12).inflate(payload) if compresses else payload) == message.data
        assert window is (self_contained(message).after(lazy.state, 1) if lazy else None)
        keys.add(key)
    assert len(keys) == (5 if masked else 1)


# ---- Encoders


def send(encoder: LazyEncoder, data: bytes) -> bytes:
    """Compress a message as websockets does."""
    return compress_by(encoder, data)  # type: ignore[arg-type]


def test_lazy_encoder_is_made_once(encoders: CountCalls) -> None:
    """The encoder of a connection is made when it is first needed, and kept until its window holds something else."""
    alone = object()  # what nothing but a local variable refers to; how many references that is depends on Python
    lazy = LazyEncoder(parameters_of())
    assert lazy.parameters is parameters_of()
    assert encoders.calls == 0
    for number in range(3):
        send(lazy, tick(number).encode())
    assert encoders.calls == 1
    encoder = lazy.encoder
    lazy.move_to(Window(parameters_of(), tail=b"x" * 100))
    assert lazy.encoder is None
    assert lazy.parameters is parameters_of()
    assert sys.getrefcount(encoder) == sys.getrefcount(alone)
    lazy.flush(zlib.Z_SYNC_FLUSH)
    assert encoders.calls == 2
    encoder = lazy.encoder
    lazy.move_to(Window(parameters_of()))
    assert sys.getrefcount(encoder) == sys.getrefcount(alone)


def test_lazy_encoder_takes_the_one_there_is(encoders: CountCalls) -> None:
    """A connection's encoder stays in use as long as its window holds nothing else."""
    encoder = parameters_of().encoder()
    lazy = LazyEncoder(parameters_of(), encoder)
    client = Inflater(12)
    for number in range(3):
        assert client.inflate(send(lazy, tick(number).encode())) == tick(number).encode()
        lazy.move_to(lazy.state)
    assert lazy.encoder is encoder
    assert encoders.calls == 1


def test_what_was_sent_by_oneself_is_not_noted() -> None:
    """Nobody but its own encoder knows what a connection has sent for itself: its window counts as unknown."""
    lazy = LazyEncoder(parameters_of())
    lazy.move_to(Window(parameters_of(), tail=b"known"))
    send(lazy, b"own")
    assert lazy.state is parameters_of().own
    assert lazy.encoder is not None


def test_forget_drops_all() -> None:
    """A connection that may hold anything has no encoder, and its window counts as unknown."""
    lazy = LazyEncoder(parameters_of())
    lazy.move_to(Window(parameters_of(), tail=b"window"))
    lazy.forget()
    assert (lazy.state, lazy.encoder) == (parameters_of().unknown, None)
    send(lazy, b"own")
    lazy.forget()
    assert (lazy.state, lazy.encoder) == (parameters_of().unknown, None)
    assert lazy.parameters is parameters_of()


@pytest.mark.parametrize("window_bits", WINDOW_BITS)
@pytest.mark.parametrize("note", ["message", "forget"])
def test_lazy_encoder_is_primed(window_bits: int, note: str) -> None:
    """After a shared frame, the next message of one's own refers to that, unless it was forgotten."""
    parameters = parameters_of(window_bits)
    lazy = LazyEncoder(parameters)
    client = Inflater(window_bits)
    for number in range(10):
        shared = PreparedMessage(tick(number, 200))
        own = shared.data[50:]
        encoding, window = self_contained(shared).choose(lazy.state)
        assert client.inflate(encoding.payload) == shared.data
        lazy.move_to(window)
        if note == "forget":
            lazy.forget()
        compressed = send(lazy, own)
        assert client.inflate(compressed) == own
        by_itself = len(parameters.compress(own))
        assert (len(compressed) < by_itself / 2) == (note != "forget")


def test_per_message_encoder_takes_no_notes() -> None:
    """Connections without context takeover have one encoder for all, which remembers nothing."""
    encoder = parameters_of().per_message
    assert isinstance(encoder, PerMessageEncoder)
    window = encoder.state
    assert window is not parameters_of().unknown
    assert window.tail == b""
    encoder.move_to(Window(parameters_of(), tail=b"x"))
    encoder.forget()
    assert (encoder.state, encoder.encoder) == (window, None)


# ---- Negotiation

OFFERS: list[list[tuple[str, str | None]]] = [
    [*one, *two, *three, *four]
    for one in ([], [("server_no_context_takeover", None)])
    for two in ([], [("client_no_context_takeover", None)])
    for three in ([], *([("server_max_window_bits", bits)] for bits in ("9", "10", "12", "15")))
    for four in ([], *([("client_max_window_bits", bits)] for bits in (None, "8", "9", "12", "15")))
]
BAD_OFFERS: list[list[tuple[str, str | None]]] = [
    [("server_no_context_takeover", "1")],
    [("server_no_context_takeover", None)] * 2,
    [("client_no_context_takeover", None)] * 2,
    [("server_max_window_bits", "7")],
    [("server_max_window_bits", None)],
    [("client_max_window_bits", "16")],
    [("client_max_window_bits", "12")] * 2,
    [("unknown", None)],
]
ATTRIBUTES = (
    "remote_no_context_takeover",
    "local_no_context_takeover",
    "remote_max_window_bits",
    "local_max_window_bits",
    "compress_settings",
    "decode_cont_data",
)


def negotiate(factory: Any, offer: list[Any], accepted: Any = ()) -> Any:
    """Return all that an offer comes to."""
    try:
        response, extension = factory.process_request_params(offer, accepted)
    except NegotiationError as exc:
        return type(exc), str(exc)
    attributes = [getattr(extension, name) for name in ATTRIBUTES]
    has = [hasattr(extension, name) for name in ("encoder", "decoder")]
    return response, type(extension), attributes, has, repr(extension), extension.name


@pytest.mark.parametrize("server_bits", [None, 9, 12, 15])
@pytest.mark.parametrize("client_bits", [None, 8, 12])
@pytest.mark.parametrize("no_takeover", [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("settings", [{"memLevel": 5}, {}, {"zdict": b"x"}], ids=str)
def test_factory_negotiates_as_upstream(
    server_bits: int | None, client_bits: int | None, no_takeover: tuple[bool, bool], settings: dict[str, Any]
) -> None:
    """The factory answers each offer as that of websockets, and makes an extension with the same attributes."""
    for required in (False, client_bits is not None):
        arguments: Any = (*no_takeover, server_bits, client_bits, settings, required)
        ours = wsfast.ServerPerMessageDeflateFactory(*arguments)
        theirs = permessage_deflate.ServerPerMessageDeflateFactory(*arguments)
        for offer in (*OFFERS, *BAD_OFFERS):
            assert negotiate(ours, offer) == negotiate(theirs, offer)
            if not no_takeover[0]:
                assert not ours.server_no_context_takeover


def test_factory_defaults_are_those_of_serve() -> None:
    """The factory without arguments is what `serve(compression="deflate")` makes."""
    (theirs,) = permessage_deflate.enable_server_permessage_deflate(None)
    assert vars(wsfast.ServerPerMessageDeflateFactory()) == vars(theirs)


def test_factory_refuses_duplicates() -> None:
    """The factory raises NegotiationError if there is such an extension already."""
    accepted = [PerMessageDeflate(False, False, 15, 15)]
    result = negotiate(wsfast.ServerPerMessageDeflateFactory(), [], accepted)
    assert result == negotiate(permessage_deflate.ServerPerMessageDeflateFactory(), [], accepted)
    assert result[0] is NegotiationError


def test_factory_refuses_the_smallest_window() -> None:
    """The factory raises NegotiationError for a window of 8 bits, which zlib cannot compress for."""
    with pytest.raises(NegotiationError, match="unsupported server_max_window_bits = 8, use 9"):
        wsfast.ServerPerMessageDeflateFactory().process_request_params([("server_max_window_bits", "8")], [])


@pytest.mark.parametrize(
    "arguments",
    [
        {"server_max_window_bits": 16},
        {"client_max_window_bits": 7},
        {"compress_settings": {"wbits": 12}},
        {"client_max_window_bits": None, "require_client_max_window_bits": True},
    ],
    ids=str,
)
def test_factory_checks_its_arguments(arguments: dict[str, Any]) -> None:
    """The factory raises ValueError for arguments that websockets refuses."""
    with pytest.raises(ValueError, match=r"must|require") as ours:
        wsfast.ServerPerMessageDeflateFactory(**arguments)
    with pytest.raises(ValueError, match=r"must|require") as theirs:
        permessage_deflate.ServerPerMessageDeflateFactory(**arguments)
    assert str(ours.value) == str(theirs.value)


def test_factory_is_not_made_for_the_smallest_window() -> None:
    """The factory raises ValueError for a window of 8 bits, which websockets before 17 takes."""
    with pytest.raises(ValueError, match="server_max_window_bits must be between 9 and 15"):
        wsfast.ServerPerMessageDeflateFactory(server_max_window_bits=8)


@pytest.mark.parametrize("offer", OFFERS, ids=str)
def test_factory_makes_no_encoder(monkeypatch: pytest.MonkeyPatch, offer: list[Any]) -> None:
    """The factory leaves the encoder for later, when it is that which websockets would have made."""
    made = CountCalls(zlib.compressobj)
    names = {**vars(zlib), "compressobj": made}
    monkeypatch.setattr(permessage_deflate, "zlib", types.SimpleNamespace(**names))
    extension: Any = wsfast.ServerPerMessageDeflateFactory().process_request_params(offer, [])[1]
    assert made.calls == 0
    if not extension.local_no_context_takeover:
        message = tick(1).encode()
        assert extension.encoder.encoder is None
        theirs = zlib.compressobj(wbits=-extension.local_max_window_bits, **extension.compress_settings)
        assert send(extension.encoder, message) == compress_by(theirs, message)


def test_factory_leaves_unknown_settings_alone() -> None:
    """With settings that receivers may have to know, the factory makes the encoder of websockets."""
    factory = wsfast.ServerPerMessageDeflateFactory(compress_settings={"zdict": b"hello"})
    extension: Any = factory.process_request_params([], [])[1]
    assert type(extension.encoder) is type(zlib.compressobj())
