"""Notices from other processes, and the users and connections that they have told about.

A process leaves by its goodbye, or when it was silent for too long. Each notice of a process has a higher serial number
than those before it. So a notice that comes late or a second time is ignored, also after the process has left.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from .notices import ASK, FIRST, LAST, PART, asked, changes, opened
from .population import Key, Population

__all__ = ["Processes"]

MOST = 1024
"""Processes that are known at a time."""

LEFT = 4096
"""Processes that have left and whose last serial number is kept."""

NEVER = 1 << 64
"""The last serial number of a process that will not come back."""


class _Process:
    """Another process, as far as it is known."""

    __slots__ = ("asked", "complete", "known", "number", "progress", "serial", "silent", "start", "unconfirmed")

    def __init__(self, start: int) -> None:
        self.start: int = start
        self.serial: int = 0  # of its last notice
        self.number: int = 0  # of its last notice with changes or a part of everything
        self.known: dict[Key, int] = {}  # its users; and for None the number of connections
        self.complete: bool = True  # whether no notice has been missed since it has told everything
        self.unconfirmed: set[Key] | None = None  # while it tells everything: what it has not mentioned
        self.asked: bool = False  # whether it was asked for everything
        self.progress: bool = False  # whether it has told a part since the last turn
        self.silent: int = 0  # for how many turns it has not been heard


class Processes:
    """Takes the notices of other processes.

    Args:
        population: Their users and connections are added to it.
        misses: Turns of silence after which a process has left at the next one.
        max_entries: Users and topics that are known at most, in all.
        ask: Called with a process that must be asked for everything.
    """

    def __init__(self, population: Population, misses: int, max_entries: int, ask: Callable[[int], None]) -> None:
        self.ignored: int = 0
        """Processes, users and topics that were ignored because there were too many."""
        self._population = population
        self._misses = misses
        self._max_entries = max_entries
        self._ask = ask
        self._entries = 0
        self._processes: dict[int, _Process] = {}
        self._left: OrderedDict[int, int] = OrderedDict()  # by publisher: the last serial number

    def __len__(self) -> int:
        """Number of other processes."""
        return len(self._processes)

    @property
    def complete(self) -> bool:
        """Whether everything is known about all of them."""
        return all(process.complete for process in self._processes.values())

    def oldest(self) -> tuple[int, int] | None:
        """Return when the oldest process was started, and its publisher."""
        return min(((one.start, publisher) for publisher, one in self._processes.items()), default=None)

    # ---- Notices

    def receive(self, publisher: int, serial: int, number: int, data: bytes, now: float) -> tuple[int, list[Any]]:
        """Take a notice; return its flags and the processes that it asks.

        Raises:
            ValueError, TypeError, RecursionError: If no relay of this version can have sent it.
        """
        flags, start, rest = opened(data)
        process = self._processes.get(publisher)
        if serial <= (self._left.get(publisher, 0) if process is None else process.serial):
            return 0, []
        if process is None:
            if len(self._processes) >= MOST:
                self.ignored += 1
                return 0, []
            process = _Process(start)
        publishers = asked(rest) if flags & ASK else []
        has_number = not flags & ASK and bool(flags & PART or rest)
        misses = number != process.number + has_number
        skip = flags & ASK or (flags & PART and process.complete and not misses)
        some = [] if skip else changes(rest)
        self._processes[publisher] = process  # from here on, nothing raises
        process.serial = serial
        process.number = number
        process.silent = 0
        if misses:
            process.complete = False
            process.unconfirmed = None
        if flags & FIRST and not process.complete:
            process.unconfirmed = set(process.known)
        process.progress |= bool(flags & PART)
        self._apply(process, some, now)
        if flags & LAST and process.unconfirmed is not None:
            self._apply(process, [(key, 0) for key in process.unconfirmed], now)
            process.unconfirmed = None
            process.complete = True
            process.asked = False
        if not process.complete and process.unconfirmed is None and not process.asked:
            process.asked = True
            self._ask(publisher)
        return flags, publishers

    def _apply(self, process: _Process, some: list[tuple[Key, int]], now: float) -> None:
        """Apply what a process has told."""
        known, population = process.known, self._population
        for key, value in some:
            if process.unconfirmed is not None:
                process.unconfirmed.discard(key)
            before = known.get(key, 0)
            if value == before:
                continue
            if not before:
                if self._entries >= self._max_entries:
                    self.ignored += 1
                    continue
                self._entries += 1
            if value:
                known[key] = value
            else:
                del known[key]
                self._entries -= 1
            population.change(key, before, value, now)

    # ---- Leaving

    def goodbye(self, publisher: int, now: float) -> None:
        """Remove a process that has ended."""
        self._remove(publisher, NEVER, now)

    def turn(self, now: float) -> None:
        """Remove the processes that have been silent for too long, and have those be asked that have not answered."""
        for publisher, process in list(self._processes.items()):
            process.silent += 1
            if process.silent > self._misses:
                self._remove(publisher, process.serial, now)
            elif not process.complete:
                if not process.progress:
                    process.asked = True
                    self._ask(publisher)
                process.progress = False

    def excuse(self, turns: int) -> None:
        """Count no silence so far, nor in some more turns: this process could not have heard the others."""
        for process in self._processes.values():
            process.silent = min(process.silent, -turns)

    def _remove(self, publisher: int, serial: int, now: float) -> None:
        self._left[publisher] = serial
        self._left.move_to_end(publisher)
        if len(self._left) > LEFT:
            self._left.popitem(last=False)
        process = self._processes.pop(publisher, None)
        if process is not None:
            process.unconfirmed = None
            self._apply(process, [(key, 0) for key in process.known], now)
