from __future__ import annotations

import array
import copy
import pickle
import sys
from typing import Any

import pytest

import wsfast
from wsfast import PreparedMessage
from wsfast._encoding.message import prepare

pytestmark = pytest.mark.usefixtures("core")


@pytest.mark.parametrize(
    ("data", "text", "is_text", "payload"),
    [
        ("grüße", None, True, "grüße".encode()),
        ("grüße", True, True, "grüße".encode()),
        ("grüße", False, False, "grüße".encode()),
        ("", None, True, b""),
        (b"bytes", None, False, b"bytes"),
        (b"bytes", False, False, b"bytes"),
        (b"bytes", True, True, b"bytes"),
        (bytearray(b"bytearray"), None, False, b"bytearray"),
        (bytearray(b"bytearray"), True, True, b"bytearray"),
        (memoryview(b"memoryview"), None, False, b"memoryview"),
        (memoryview(b"memoryview"), True, True, b"memoryview"),
        (memoryview(b"memoryview")[::2], None, False, b"mmrve"),
        (memoryview(array.array("I", [1, 2])), None, False, array.array("I", [1, 2]).tobytes()),
        (memoryview(b"123456").cast("B", (2, 3)), None, False, b"123456"),
    ],
)
def test_prepares_any_message(data: Any, text: bool | None, is_text: bool, payload: bytes) -> None:
    """PreparedMessage takes str, bytes, bytearray and memoryview, and text overrides the type of frame."""
    message = PreparedMessage(data, text=text)
    assert message.text is is_text
    assert message.opcode == (1 if is_text else 2)
    assert type(message.data) is bytes
    assert message.data == payload
    assert message.size == len(payload)
    assert message.frame == bytes([0x81 if is_text else 0x82, len(payload)]) + payload


NO_MESSAGES = [None, 5, 1.5, ["x"], {"x": 1}, object(), array.array("B", b"x")]


@pytest.mark.parametrize("data", NO_MESSAGES, ids=lambda data: type(data).__name__)
@pytest.mark.parametrize("text", [None, True, False])
def test_rejects_other_types(data: Any, text: bool | None) -> None:
    """PreparedMessage raises the TypeError of upstream's broadcast for any other type."""
    with pytest.raises(TypeError, match=r"^data must be str or bytes$"):
        PreparedMessage(data, text=text)


@pytest.mark.parametrize("text", [None, True, False])
def test_rejects_lone_surrogates(text: bool | None) -> None:
    """PreparedMessage raises UnicodeEncodeError for a string that has no encoding."""
    with pytest.raises(UnicodeEncodeError):
        PreparedMessage("\udfff", text=text)


def test_takes_text_by_name_alone() -> None:
    """PreparedMessage takes text as a keyword only."""
    with pytest.raises(TypeError):
        PreparedMessage(b"x", True)  # type: ignore[call-arg]


@pytest.mark.parametrize("size", [0, 125, 126, 65535, 65536, 1 << 20])
def test_makes_its_frame_once(size: int) -> None:
    """PreparedMessage makes its frame when it is first asked for it, and never again."""
    message = PreparedMessage(b"x" * size)
    frame = message.frame
    assert frame.endswith(b"x" * size)
    assert message.frame is frame


def test_does_not_copy_bytes() -> None:
    """PreparedMessage keeps bytes as they are."""
    data = b"x" * 1000
    assert PreparedMessage(data).data is data


@pytest.mark.parametrize("wrap", [lambda data: data, memoryview], ids=["bytearray", "memoryview"])
def test_does_not_see_later_changes(wrap: Any) -> None:
    """PreparedMessage has a copy of what may change."""
    data = bytearray(b"before")
    message = PreparedMessage(wrap(data))
    data[:] = b"after!"
    assert message.data == b"before"
    assert message.frame == b"\x82\x06before"


@pytest.mark.parametrize("name", ["data", "text", "opcode", "size", "frame"])
def test_is_immutable(name: str) -> None:
    """PreparedMessage lets nobody set or delete its attributes."""
    message = PreparedMessage("hello")
    with pytest.raises(AttributeError):
        setattr(message, name, getattr(message, name))
    with pytest.raises(AttributeError):
        delattr(message, name)


def test_has_no_other_attributes() -> None:
    """PreparedMessage takes no attributes of others."""
    with pytest.raises(AttributeError):
        PreparedMessage("hello").note = "x"  # type: ignore[attr-defined]


def test_equality_and_hash() -> None:
    """PreparedMessages are equal, and hash alike, if they have the same payload and type of frame."""
    same = [
        PreparedMessage("hello"),
        PreparedMessage(b"hello", text=True),
        PreparedMessage(memoryview(b"hello"), text=True),
    ]
    same[0].frame  # noqa: B018 - whether the frame was made makes no difference
    for one in same:
        for two in same:
            assert one == two
            assert hash(one) == hash(two)
    others = [PreparedMessage("hullo"), PreparedMessage(b"hello"), PreparedMessage("")]
    for other in others:
        assert other != same[0]
    assert len({*same, *others}) == 4


@pytest.mark.parametrize("other", ["hello", b"hello", None, 1])
def test_is_not_equal_to_other_types(other: object) -> None:
    """A PreparedMessage is not equal to what it was prepared of."""
    assert PreparedMessage("hello") != other
    assert PreparedMessage(b"hello") != other


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        (PreparedMessage("hello"), "<PreparedMessage text 'hello' size=5>"),
        (PreparedMessage(b"\x00"), r"<PreparedMessage binary '\x00' size=1>"),
        (PreparedMessage(""), "<PreparedMessage text '' size=0>"),
        (PreparedMessage(b"a" * 24), f"<PreparedMessage binary '{'a' * 24}' size=24>"),
        (PreparedMessage("a" * 25), f"<PreparedMessage text '{'a' * 24}'... size=25>"),
    ],
)
def test_repr(message: PreparedMessage, shown: str) -> None:
    """The repr of a PreparedMessage shows its type, its beginning and its size."""
    assert repr(message) == shown


def test_repr_of_a_large_message_is_short() -> None:
    """The repr of a PreparedMessage does not grow with it."""
    assert len(repr(PreparedMessage(b"\xff" * (1 << 20)))) < 200


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("framed", [False, True])
def test_pickle(protocol: int, framed: bool) -> None:
    """A PreparedMessage can be pickled."""
    message = PreparedMessage("hello")
    if framed:
        assert message.frame
    twin = pickle.loads(pickle.dumps(message, protocol))
    assert twin == message
    assert twin.frame == message.frame


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_copy(copied: Any) -> None:
    """A PreparedMessage can be copied."""
    message = PreparedMessage(b"hello", text=True)
    assert copied(message) == message
    assert copied(message).frame == message.frame


def test_prepare_returns_prepared_messages_as_they_are() -> None:
    """Prepare makes a PreparedMessage of anything else."""
    message = PreparedMessage("hello")
    assert prepare(message, None) is message
    assert prepare("hello", None) == message
    assert prepare(b"hello", True) == message
    assert prepare("hello", False) == PreparedMessage(b"hello")


@pytest.mark.parametrize("text", [True, False])
def test_prepare_rejects_text_for_prepared_messages(text: bool) -> None:
    """Prepare raises TypeError if text is given for a message that has its opcode already."""
    with pytest.raises(TypeError, match="text cannot be given with a PreparedMessage"):
        prepare(PreparedMessage("hello"), text)


def test_public_name() -> None:
    """PreparedMessage is a public name of the package."""
    assert wsfast.PreparedMessage is sys.modules["wsfast._encoding.message"].PreparedMessage
