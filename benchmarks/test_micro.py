"""The small parts, one at a time: `pytest benchmarks --benchmark-only`."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from websockets.frames import Frame, Opcode

import wsfast._core._pure
from wsfast import PreparedMessage
from wsfast._encoding.message import self_contained

CORES: dict[str, ModuleType] = {"py": wsfast._core._pure}
try:
    import wsfast._core._core
except ModuleNotFoundError:
    pass
else:
    CORES["c"] = wsfast._core._core

SIZES = [16 * 4**power for power in range(9)]  # 16 B to 1 MiB
KEY = b"\x8f\x01\x5a\xc3"


def upstream_mask() -> Callable[[bytes, bytes], bytes]:
    speedups: Any = pytest.importorskip("websockets.speedups")
    apply_mask: Callable[[bytes, bytes], bytes] = speedups.apply_mask
    return apply_mask


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("by", ["c", "py", "websockets"])
def test_apply_mask(benchmark: BenchmarkFixture, by: str, size: int) -> None:
    if by != "websockets" and by not in CORES:
        pytest.skip("the extension is absent")
    apply_mask = upstream_mask() if by == "websockets" else CORES[by].apply_mask
    benchmark.group = f"apply_mask, {size} B"
    data = os.urandom(size)
    assert benchmark(apply_mask, data, KEY) == CORES["py"].apply_mask(data, KEY)


@pytest.mark.parametrize("size", [64, 16384])
@pytest.mark.parametrize("by", ["c", "py", "websockets"])
def test_encode_frame(benchmark: BenchmarkFixture, by: str, size: int) -> None:
    if by != "websockets" and by not in CORES:
        pytest.skip("the extension is absent")
    benchmark.group = f"encode_frame, {size} B"
    payload = os.urandom(size)
    expected = CORES["py"].encode_frame(0x82, payload)
    if by == "websockets":
        assert benchmark(lambda: Frame(Opcode.BINARY, payload).serialize(mask=False, extensions=[])) == expected
    else:
        assert benchmark(CORES[by].encode_frame, 0x82, payload) == expected


@pytest.mark.parametrize("core", CORES)
def test_fan_out_skips(benchmark: BenchmarkFixture, core: str) -> None:
    """fan_out() looks at 1000 connections that are not open: what gather costs before it reaches a transport."""
    from websockets.protocol import CLOSED
    from websockets.server import ServerProtocol

    from wsfast.connections import ConnectionLayout

    layout = ConnectionLayout(
        protocol="protocol",
        protocol_type=ServerProtocol,
        transport="transport",
        loop="loop",
        send_in_progress="send_in_progress",
        state="state",
        open_state=object(),
        debug="debug",
        extensions="extensions",
        encoder=lambda extensions: None,
        expect_continuation="expect_continuation_frame",
        writes="writes",
        methods={},
        protocol_methods={},
        masked=False,
    )

    def closed() -> SimpleNamespace:
        protocol = ServerProtocol()
        assert protocol.state is not CLOSED
        return SimpleNamespace(protocol=protocol, transport=None, loop=None, send_in_progress=None)

    connections = [closed() for _ in range(1000)]
    message = self_contained(PreparedMessage("tick"))
    benchmark.group = "fan_out, 1000 connections that are not open"
    result = benchmark(CORES[core].fan_out, connections, 0, message, lambda kind: layout, lambda kind: None, None, [])
    assert result == (1000, 0, 1000, [], [], [])


@pytest.mark.parametrize("again", [False, True], ids=["made anew", "made before"])
def test_prepared_message(benchmark: BenchmarkFixture, again: bool) -> None:
    """A frame is made once: what is saved by preparing a message of 16 KiB for several broadcasts."""
    benchmark.group = "frame of a PreparedMessage, 16 KiB"
    data = os.urandom(16384)
    prepared = itertools.repeat(PreparedMessage(data)) if again else (PreparedMessage(data) for _ in itertools.count())
    assert len(benchmark(lambda: next(prepared).frame)) == 16388
