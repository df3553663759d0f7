"""Who shares the encoder of a group, and what windows hold then."""

from __future__ import annotations

import random
from typing import Any

import pytest

from helpers.inflate import Inflater, tick
from wsfast import PreparedMessage
from wsfast._encoding.deflate import LazyEncoder, Parameters, Window, compress_by
from wsfast._encoding.message import encodings_of
from wsfast._encoding.shared import SMALLEST_SHARED, Publication, SharedEncoders, encodings_for


def parameters_of(window_bits: int = 12) -> Parameters:
    parameters = Parameters.of(window_bits, {"memLevel": 5})
    assert parameters is not None
    return parameters


class Receiver:
    """One that shares the encoders of a group, and what it decompresses with."""

    def __init__(self, bits: int = 12, *, takeover: bool = True) -> None:
        parameters = parameters_of(bits)
        self.encoder: Any = LazyEncoder(parameters) if takeover else parameters.per_message
        self.inflater = Inflater(bits, takeover=takeover)

    def receive(self, message: Any, data: bytes) -> Any:
        """Be sent a message; return the encoding of it."""
        encoding, window = message.choose(self.encoder.state)
        self.inflater.feed(encoding.frame)
        assert self.inflater.messages.pop()[1] == data
        self.encoder.move_to(window)
        return encoding

    def say(self, data: bytes) -> None:
        """Be sent a message of its own."""
        assert self.inflater.inflate(compress_by(self.encoder, data)) == data


def publish(encoders: SharedEncoders, data: Any, *receivers: Receiver) -> tuple[Any, list[Any]]:
    message = PreparedMessage(data)
    publication = Publication(encoders, message)
    encodings = [receiver.receive(publication, message.data) for receiver in receivers]
    publication.end()
    return publication, encodings


@pytest.mark.parametrize("compress", [None, False])
@pytest.mark.parametrize("size", [0, SMALLEST_SHARED - 1, SMALLEST_SHARED])
def test_which_messages_are_shared(size: int, compress: Any) -> None:
    """Messages that are tiny, or may not be compressed, are no part of the stream."""
    encoders = SharedEncoders()
    message = PreparedMessage("x" * size, compress=compress)
    encodings = encodings_for(encoders, message)
    assert isinstance(encodings, Publication) is (size == SMALLEST_SHARED and compress is None)
    assert encodings.plain is encodings_of(message).plain
    assert len(encoders) == 0


def test_those_who_hold_the_same_share() -> None:
    """Who has got all messages so far is sent one frame, which refers to them, and has one window with the others."""
    encoders = SharedEncoders()
    receivers = [Receiver() for _ in range(3)]
    sizes = []
    for number in range(20):
        publication, encodings = publish(encoders, tick(number), *receivers)
        assert publication.shared is True
        assert len(set(encodings)) == 1
        assert len({receiver.encoder.state for receiver in receivers}) == 1
        sizes.append(len(encodings[0].payload))
    assert len(encoders) == 1
    assert sizes[-1] < len(encodings_of(PreparedMessage(tick(19))).compressed(parameters_of()).payload) / 1.5
    receivers[0].say(tick(19).encode())
    _, encodings = publish(encoders, tick(20), *receivers)
    assert encodings[0] is not encodings[1] is encodings[2]


def test_choose_is_pure_and_made_once() -> None:
    """To ask again, or in another order, makes no difference."""
    encoders = SharedEncoders()
    old, new = Receiver(), Receiver()
    publish(encoders, tick(0), old)
    publication = Publication(encoders, PreparedMessage(tick(1)))
    assert publication.shared is None
    windows = [old.encoder.state, new.encoder.state, Window(parameters_of(), octets=b"else")]
    choices = [publication.choose(window) for window in windows]
    for window, (encoding, after) in zip(windows[::-1], choices[::-1], strict=True):
        assert publication.choose(window)[0] is encoding
        assert publication.choose(window)[1] is after
        assert publication.after(window, 1) is after
        assert publication.after(window, 0) is window
    assert [old.encoder.state, new.encoder.state] == windows[:2]
    assert choices[1] == choices[2]
    assert encoders.of(parameters_of()).stream.stop == 2 * len(tick(0))


def test_newcomers_share_once_their_windows_are_full() -> None:
    """A newcomer is sent messages compressed by themselves until it holds all that the encoder may refer to."""
    encoders = SharedEncoders()
    old, new = Receiver(9), Receiver(9)
    for number in range(10):
        publish(encoders, tick(number, 100), old)
    shared = []
    for number in range(10, 20):
        _, (one, other) = publish(encoders, tick(number, 100), old, new)
        shared.append(one is other)
    assert shared == [False] * 6 + [True] * 4
    assert old.encoder.state is new.encoder.state


def test_the_stream_begins_anew_when_nobody_holds_it() -> None:
    """Where only newcomers are left, the encoder refers to nothing that they have not got."""
    encoders = SharedEncoders()
    old, new = Receiver(), Receiver()
    for number in range(3):
        publish(encoders, tick(number), old)
    publication, (alone,) = publish(encoders, tick(3), new)
    assert publication.shared is False
    publication, (shared,) = publish(encoders, tick(4), new)
    assert publication.shared is True
    assert len(shared.payload) < len(alone.payload)
    _, (one, other) = publish(encoders, tick(5), new, old)
    assert one is not other


def test_receivers_without_takeover_and_with_other_windows() -> None:
    """Each set of parameters has an encoder of its own; those without takeover get the message by itself."""
    encoders = SharedEncoders()
    wide, narrow, each = Receiver(12), Receiver(9), Receiver(12, takeover=False)
    for number in range(5):
        _, encodings = publish(encoders, tick(number), wide, narrow, each)
        assert len(set(encodings)) == 3
    assert len(encoders) == 2
    assert each.encoder.state is parameters_of().per_message.state


def test_what_does_not_shrink_is_no_part_of_the_stream() -> None:
    """Once the window is full, noise is sent as it is, and windows hold what they held."""
    encoders = SharedEncoders()
    receiver = Receiver(9)
    for number in range(10):
        publish(encoders, tick(number, 100), receiver)
    window, stop = receiver.encoder.state, encoders.of(parameters_of(9)).stream.stop
    publication, (encoding,) = publish(encoders, random.Random(1).randbytes(200), receiver)
    assert encoding is publication.plain
    assert receiver.encoder.state is window
    assert encoders.of(parameters_of(9)).stream.stop == stop
    publish(encoders, tick(11, 100), receiver)


def test_only_the_last_publication_starts_over() -> None:
    """Where another message has been compressed since, that a publication has ended forgets nothing."""
    encoders = SharedEncoders()
    old, new = Receiver(), Receiver()
    publish(encoders, tick(0), old)
    first = Publication(encoders, PreparedMessage(tick(1)))
    new.receive(first, tick(1).encode())
    second = Publication(encoders, PreparedMessage(tick(2)))
    new.receive(second, tick(2).encode())
    first.end()
    assert encoders.of(parameters_of()).start == 0
    second.end()
    assert encoders.of(parameters_of()).start == 2 * len(tick(0))
    publish(encoders, tick(3), new)


def test_an_interrupted_encoder_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever ends the compression of a message, the stream is as if it had not begun, or whole."""
    encoders = SharedEncoders()
    receiver = Receiver()
    for number in range(3):
        publish(encoders, tick(number), receiver)
    encoder = encoders.of(parameters_of())

    def interrupted(stream: Any, end: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(encoder.stream), "move_to", interrupted)
        with pytest.raises(KeyboardInterrupt):
            Publication(encoders, PreparedMessage(tick(3))).choose(receiver.encoder.state)
    for number in range(4, 8):
        publication, _ = publish(encoders, tick(number), receiver)
        assert publication.shared
