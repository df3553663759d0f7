"""Who gets the same compressed frame, and what windows hold then."""

from __future__ import annotations

import itertools
import random
import sys
import threading
from typing import Any

import pytest

from helpers.inflate import Inflater, tick
from wsfast import PreparedMessage
from wsfast._encoding.deflate import LazyEncoder, Parameters, Window, compress_by
from wsfast._encoding.message import SMALLEST_COMPRESSED, join, self_contained
from wsfast._encoding.shared import Shared, closed, encodings_of


def parameters_of(window_bits: int = 12) -> Parameters:
    parameters = Parameters.of(window_bits, {"memLevel": 5})
    assert parameters is not None
    return parameters


class Receiver:
    """One that is sent messages, and what it decompresses with."""

    def __init__(self, bits: int = 12, *, takeover: bool = True) -> None:
        parameters = parameters_of(bits)
        self.encoder: Any = LazyEncoder(parameters) if takeover else parameters.per_message
        self.inflater = Inflater(bits, takeover=takeover)

    def receive(self, message: Any, *expected: bytes) -> Any:
        """Be sent messages; return the encoding of them."""
        encoding = self.take(message)
        self.decode(encoding, *expected)
        return encoding

    def take(self, message: Any) -> Any:
        """Be sent messages that are not decoded yet; return the encoding of them."""
        encoding, window = message.choose(self.encoder.state)
        self.encoder.move_to(window)
        return encoding

    def decode(self, encoding: Any, *expected: bytes) -> None:
        self.inflater.feed(encoding.frame)
        assert [self.inflater.messages.popleft()[1] for _ in expected] == list(expected)

    def say(self, data: bytes) -> None:
        """Be sent a message of its own."""
        assert self.inflater.inflate(compress_by(self.encoder, data)) == data


def publish(data: Any, *receivers: Receiver) -> list[Any]:
    message = PreparedMessage(data)
    encodings = encodings_of(message, len(receivers))
    return [receiver.receive(encodings, message.data) for receiver in receivers]


@pytest.mark.parametrize("compress", [None, False])
@pytest.mark.parametrize("size", [0, SMALLEST_COMPRESSED - 1, SMALLEST_COMPRESSED])
def test_which_messages_are_shared(size: int, compress: Any) -> None:
    """Messages that are tiny, or may not be compressed, refer to nothing, and nothing refers to them."""
    message = PreparedMessage("x" * size, compress=compress)
    encodings = encodings_of(message, 1)
    assert isinstance(encodings, Shared) is (size == SMALLEST_COMPRESSED and compress is None)
    assert encodings.plain is self_contained(message).plain
    window = Window(parameters_of(), tail=b"x" * 99)
    assert (encodings.choose(window) == (encodings.plain, window)) is not isinstance(encodings, Shared)


def test_those_who_hold_the_same_share() -> None:
    """Who has got all messages so far is sent one frame, which refers to them, and has one window with the others."""
    receivers = [Receiver() for _ in range(3)]
    sizes = []
    for number in range(20):
        encodings = publish(tick(number), *receivers)
        assert len(set(encodings)) == 1
        assert len({receiver.encoder.state for receiver in receivers}) == 1
        assert receivers[0].encoder.state.count == 3
        sizes.append(len(encodings[0].payload))
    assert sizes[-1] < sizes[0] / 1.5
    receivers[0].say(tick(19).encode())
    encodings = publish(tick(20), *receivers)
    assert encodings[0] is not encodings[1] is encodings[2]


def test_what_was_chosen_stays() -> None:
    """To ask again, or in another order, or when a window was forgotten meanwhile, makes no difference."""
    old, new = Receiver(), Receiver()
    publish(tick(0), old)
    message = Shared(PreparedMessage(tick(1)), 3)
    windows = [old.encoder.state, new.encoder.state, Window(parameters_of(), b"else")]
    choices = [message.choose(window) for window in windows]
    for window in windows:
        window.forget()
    for window, (encoding, after) in zip(windows[::-1], choices[::-1], strict=True):
        assert message.choose(window)[0] is encoding
        assert message.choose(window)[1] is after
        assert message.after(window, 1) is after
        assert message.after(window, 0) is window
    assert [old.encoder.state, new.encoder.state] == windows[:2]


@pytest.mark.parametrize("data", [tick(1).encode(), random.Random(1).randbytes(300)], ids=["tick", "noise"])
def test_what_is_kept_for_those_who_lag(data: bytes) -> None:
    """Once a message was sent, those for whom it was compressed get the same; all others get it by itself, always."""
    receivers = [Receiver() for _ in range(2)]
    publish(tick(0), *receivers)
    window = receivers[0].encoder.state
    message = encodings_of(PreparedMessage(data), 2)
    others = [Window(parameters_of(), b"%d" % i) for i in range(100)]
    first = [message.choose(one) for one in (window, *others)]
    late = closed(message)
    assert message.choose(window) is late.choose(window) is first[0]
    assert len(message._chosen) == 101
    later = [Window(parameters_of(), b"%d" % i) for i in range(100)]
    chosen = [late.choose(one) for one in later]
    for one in later:
        one.forget()
    assert [late.choose(one)[0] for one in later] == [encoding for encoding, _ in chosen]
    held = [after.tail for _, after in chosen]
    assert [late.after(one, 1).tail for one in later] == held
    assert len(late._chosen) <= 2
    assert closed(self_contained(PreparedMessage(data))) is not None


def test_joined_messages_are_not_asked_again() -> None:
    """What windows hold after some of the messages is what was chosen, whatever was forgotten since."""
    receiver = Receiver()
    publish(tick(0), receiver)
    window = receiver.encoder.state
    parts = [encodings_of(PreparedMessage(tick(number)), 1) for number in range(1, 4)]
    joined = join([closed(part) for part in parts])
    _, last = joined.choose(window)
    windows = [joined.after(window, count) for count in range(4)]
    assert (windows[0], windows[-1]) == (window, last)
    for one in windows:
        one.forget()
    assert [joined.after(window, count) for count in range(4)] == windows


def test_newcomers_join_once_they_hold_a_window() -> None:
    """Whoever has got as much as a window in common with others holds the same, and shares each frame with them."""
    old, new = [Receiver(9) for _ in range(3)], Receiver(9)
    for number in range(10):
        publish(tick(number, 100), *old)
    same = []
    for number in range(10, 20):
        publish(tick(number, 100), *old, new)
        same.append(old[0].encoder.state is new.encoder.state)
    assert same == [False] * 5 + [True] * 5


def test_a_message_as_large_as_a_window_has_all_hold_the_same() -> None:
    """After a message that fills the window, all that got it share, however it was compressed."""
    receivers = [Receiver(9) for _ in range(3)]
    for number, receiver in enumerate(receivers):
        publish(tick(number), receiver)
    publish(tick(3, 600), *receivers)
    (window,) = {receiver.encoder.state for receiver in receivers}
    assert window.tail == tick(3, 600).encode()[-512:]
    assert len(set(publish(tick(4), *receivers))) == 1


def test_how_many_compressions_there_are() -> None:
    """Two groups that hold the same get frames of their own, one of which may be small; the rest, one more."""
    groups = [[Receiver() for _ in range(size)] for size in (1, 2, 3, 40, 40, 14)]
    everybody = [receiver for group in groups for receiver in group]
    for number, group in enumerate(groups):
        publish(tick(number), *group)
    encodings = publish(tick(10), *everybody)
    by_group = [encodings[sum(map(len, groups[:i]))] for i in range(len(groups))]
    # The first takes the place of a small one, and the first of 40 the last place.
    assert len({*by_group}) == 3
    assert by_group[1] is by_group[2] is by_group[4] is by_group[5]
    assert [len(encoding.payload) < 100 for encoding in by_group] == [True, False, False, True, False, False]
    assert len({receiver.encoder.state for receiver in everybody}) == 3


def test_several_at_once_share_as_one_after_the_other() -> None:
    """The messages of a tick refer to each other, for all who hold the same, and for those who know nothing yet."""
    receivers = [Receiver() for _ in range(3)]
    for first in range(0, 40, 10):
        messages = [PreparedMessage(tick(first + i)) for i in range(10)]
        joined = join([encodings_of(message, 3) for message in messages])
        encodings = {receiver.receive(joined, *[message.data for message in messages]) for receiver in receivers}
        (encoding,) = encodings
        assert len(encoding.frame) < 10 * (110 if first else 125)
        assert receivers[0].encoder.state.count == 3


def test_receivers_without_takeover_and_with_other_windows() -> None:
    """Each set of parameters has frames of its own; those without takeover get the message by itself."""
    wide, narrow, each = Receiver(12), Receiver(9), Receiver(12, takeover=False)
    for number in range(5):
        assert len(set(publish(tick(number), wide, narrow, each))) == (3 if number else 2)
    assert each.encoder.state is parameters_of().per_message.state


def test_what_does_not_shrink_is_in_no_window() -> None:
    """Noise is sent as it is, and windows hold what they held; but what is the first for a window is compressed."""
    receiver, other = Receiver(9), Receiver(9)
    noise = random.Random(1).randbytes(200)
    (encoding,) = publish(noise, other)
    assert other.encoder.state.tail == noise
    for number in range(10):
        publish(tick(number, 100), receiver)
    window = receiver.encoder.state
    (encoding,) = publish(random.Random(1).randbytes(200), receiver)
    assert encoding.first == 0x82
    assert receiver.encoder.state is window
    publish(tick(11, 100), receiver)


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more windows than there may be, those that nobody has are forgotten first, then the oldest."""
    monkeypatch.setattr(sys.modules["wsfast._encoding.deflate"], "MOST_KEPT", 30 << 9)
    parameters = parameters_of(9)
    parameters._new.clear()
    parameters._old.clear()
    receivers = [Receiver(9) for _ in range(20)]
    for number, receiver in enumerate(receivers):
        publish(tick(number, 100), receiver)
    messages = [PreparedMessage(tick(number, 100)) for number in range(500)]
    # As those of a history that somebody was about to get: nobody holds what comes after them.
    windows = [self_contained(message).choose(parameters.unknown)[1] for message in messages]
    Parameters.make_room()
    assert all(receiver.encoder.state.tail for receiver in receivers)
    assert sum(bool(window.tail) for window in windows) == 7
    crowd = [Receiver(9) for _ in range(100)]
    for number, receiver in enumerate(crowd):
        publish(tick(number, 100), receiver)
    Parameters.make_room()
    assert sum(bool(receiver.encoder.state.tail) for receiver in (*receivers, *crowd)) == 30
    assert len(parameters._new) + len(parameters._old) == 30
    for number in range(3):
        publish(tick(number), *receivers, *crowd)


def test_many_messages_at_once_are_kept_until_they_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a tick makes more windows than there may be, what receivers hold in the end is known."""
    monkeypatch.setattr(sys.modules["wsfast._encoding.deflate"], "MOST_KEPT", 8 << 9)
    groups = [[Receiver(9) for _ in range(3)] for _ in range(2)]
    for number, group in enumerate(groups):
        publish(tick(number, 100), *group)
    everybody = [receiver for group in groups for receiver in group]
    for first in range(0, 90, 30):
        messages = [PreparedMessage(tick(first + i, 100)) for i in range(30)]
        joined = join([encodings_of(message, 6) for message in messages])
        choices = [joined.choose(receiver.encoder.state) for receiver in everybody]
        for receiver, (_, after) in zip(everybody, choices, strict=True):
            receiver.encoder.move_to(after)
        assert all(receiver.encoder.state.tail for receiver in everybody)


def test_what_is_not_held_is_not_kept() -> None:
    """What no window holds any more takes no room."""
    parameters = parameters_of(10)
    parameters._new.clear()
    parameters._old.clear()
    receivers = [Receiver(10) for _ in range(3)]
    for number in range(300):
        publish(tick(number, 100), *receivers)
    assert sum(reference() is not None for reference in (*parameters._new, *parameters._old)) < 3


def test_an_interrupted_encoder_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever ends the compression of a message, what windows hold is as if it had not begun."""
    receiver, other = Receiver(), Receiver()
    for number in range(3):
        publish(tick(number), receiver, other)

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    for name in "keep", "keep_encoder":
        with monkeypatch.context() as patch:
            patch.setattr(Parameters, name, interrupted)
            with pytest.raises(KeyboardInterrupt):
                Shared(PreparedMessage(tick(3)), 1).choose(receiver.encoder.state)
    for number in range(4, 8):
        publish(tick(number), receiver, other)


def test_a_window_is_forgotten_while_a_message_is_compressed_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is taken for one who holds what the encoder refers to, whenever another thread has windows forgotten."""
    old, new = [Receiver() for _ in range(2)], Receiver()
    publish(tick(0), *old)
    window = old[0].encoder.state

    def compress(encoder: Any, data: bytes) -> bytes:
        window.forget()
        return compress_by(encoder, data)

    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["wsfast._encoding.shared"], "compress_by", compress)
        publish(tick(1), *old, new)
    assert window.tail == b""
    for number in range(3):
        publish(tick(number), *old, new)


def test_event_loops_in_several_threads_share_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one thread forgets, or makes, changes nothing that another one sends."""
    monkeypatch.setattr(sys.modules["wsfast._encoding.deflate"], "MOST_KEPT", 4 << 15)
    parameters = parameters_of(15)
    ended = False

    def others() -> None:
        encoders = [LazyEncoder(parameters) for _ in range(100)]
        for number in itertools.count():
            if ended:
                return
            encoder = encoders[number % 100]
            encoder.move_to(encodings_of(PreparedMessage(tick(number)), 1).choose(encoder.state)[1])

    sent: list[tuple[Receiver, Any, bytes]] = []
    thread = threading.Thread(target=others)
    thread.start()
    try:
        for number in range(150):
            old, new = [Receiver(15) for _ in range(2)], Receiver(15)
            for data, receivers in (
                (tick(number, 3000), old),
                (tick(-number, 28_000), [*old, new]),
                (tick(number, 1500), [*old, new]),
            ):
                message = PreparedMessage(data)
                encodings = encodings_of(message, len(receivers))
                sent.extend((receiver, receiver.take(encodings), message.data) for receiver in receivers)
    finally:
        ended = True
        thread.join()
    # Decompression in small slices, each of which gives the other thread its turn, would take a minute in between.
    for receiver, encoding, expected in sent:
        receiver.decode(encoding, expected)
