"""The message that all lanes send: JSON of a fixed size, which starts with its number and its time."""

from __future__ import annotations

__all__ = ["HEAD", "LARGEST", "SMALLEST", "make", "parse"]

HEAD = 48
"""Bytes at the start of a message that `parse` needs."""

SMALLEST, LARGEST = 128, 65536
"""Bytes of a message."""


def make(number: int, time: float, size: int) -> str:
    """Return a message of that many bytes."""
    start = f'{{"number": {number:10d}, "time": {time:15.6f}, "data": "'
    return f'{start}{"." * (size - len(start) - 2)}"}}'


def parse(head: bytes) -> tuple[int, float]:
    """Return number and time from the first HEAD bytes of a message."""
    return int(head[11:21]), float(head[31:46])
