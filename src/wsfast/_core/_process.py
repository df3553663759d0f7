"""State of the whole process: the pause of the garbage collector, and the number of threads that send.

By default, half as many threads send as there are processors for this process, and 8 at most. More threads would be
faster still, but the kernel's share of each send and the clients need processors as well.
"""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = [
    "MOST_THREADS",
    "CollectorPause",
    "Threads",
    "check_threads",
    "collector_paused",
    "control_groups",
    "default_threads",
    "detaches",
    "processor_quota",
    "set_threads",
    "threads",
    "usable_processors",
]

MOST_THREADS = 64
"""Same as WSF_MAX_THREADS of the C library."""

MOST_BY_DEFAULT = 8

VARIABLE = "WSFAST_THREADS"

ROOT = Path("/")
"""Directory that contains `proc` and `sys`."""


class CollectorPause:
    """A context manager that pauses the garbage collector, which calls finalizers.

    The collector has one switch for the whole process, and several event loops may run in several threads. So the last
    one that leaves the context turns it on again. In the extension, entering and leaving are atomic. Here, a signal
    handler that raises an exception at that moment leaves the collector off.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._pauses = 0
        self._collects = False

    def __enter__(self) -> None:
        with self._lock:
            if self._pauses == 0:
                self._collects = gc.isenabled()
            self._pauses += 1
            try:
                gc.disable()
            except BaseException:  # raised by a signal handler
                self.__exit__()
                raise

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._pauses -= self._pauses > 0  # after a fork it may have ended already
            if self._pauses == 0 and self._collects:
                gc.enable()

    def end(self) -> None:
        """End all pauses. A forked child needs this, because the threads that would end them do not exist there."""
        self._lock = threading.RLock()
        if self._pauses:
            self._pauses = 0
            if self._collects:
                gc.enable()


collector_paused = CollectorPause()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=collector_paused.end)


def set_threads(threads: int, *, detach: bool = True, size: int = 256, chunk: int = 16) -> None:
    """Set how many threads send. Without the extension, it has no effect: transports write in the event loop's thread.

    Args:
        threads: Number of threads, including the caller's.
        detach: Whether they may send while the event loop continues.
        size: Smallest number of connections for several threads. To fewer connections, the caller sends alone.
        chunk: Number of connections that a thread takes at a time.
    """


def threads() -> int:
    """Return how many threads send; without the extension, always 1."""
    return 1


def detaches(count: int) -> bool:
    """Whether threads send to `count` connections while the event loop continues; without the extension, never."""
    return False


class Threads(NamedTuple):
    """A number of threads, and the reason for it."""

    number: int
    reason: str


def check_threads(count: object) -> int:
    """Return `count` if it is a valid number of threads.

    Raises:
        TypeError: If it is not an integer.
        ValueError: If it is out of range.
    """
    if not isinstance(count, int) or isinstance(count, bool):
        raise TypeError(f"threads must be an integer or None, not {count!r}")
    if not 1 <= count <= MOST_THREADS:
        raise ValueError(f"threads must be between 1 and {MOST_THREADS}, not {count}")
    return count


def _given_threads() -> int | None:
    given = os.environ.get(VARIABLE, "")
    if not given:
        return None
    try:
        return check_threads(int(given))
    except ValueError:
        raise ValueError(f"{VARIABLE} must be a number between 1 and {MOST_THREADS}, not {given!r}") from None


GIVEN_THREADS = _given_threads()
"""Value of WSFAST_THREADS; None if it is not set. An invalid value makes the import of wsfast fail."""


def default_threads(root: Path = ROOT) -> Threads:
    """Return the value of WSFAST_THREADS, or else a number that suits the processors."""
    if GIVEN_THREADS is not None:
        return Threads(GIVEN_THREADS, VARIABLE)
    usable, quota = float(usable_processors()), processor_quota(root)
    reason = f"half of {usable:g} usable processors"
    if quota is not None and quota < usable:
        usable, reason = quota, f"half of {quota:.3g} processors, the quota of the control group"
    return Threads(max(1, min(MOST_BY_DEFAULT, int(usable / 2))), f"{reason}, at least 1 and at most {MOST_BY_DEFAULT}")


def usable_processors() -> int:
    """Return how many processors this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor_quota(root: Path = ROOT) -> float | None:
    """Return how many processors the CPU quota of this process's control group is worth; None if there is no quota."""
    quotas = []
    for version, group in control_groups("cpu", root):
        try:
            if version == 2:
                quota, period = map(int, (group / "cpu.max").read_text().split())
            else:
                quota = int((group / "cpu.cfs_quota_us").read_text())
                period = int((group / "cpu.cfs_period_us").read_text())
        except (OSError, ValueError):
            continue
        if quota > 0 and period > 0:
            quotas.append(quota / period)
    return min(quotas, default=None)


def control_groups(controller: str, root: Path = ROOT) -> Iterator[tuple[int, Path]]:
    """Iterate over the directories of this process's control group and its parents, each with its cgroup version."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            version, tops = 2, ["sys/fs/cgroup", "sys/fs/cgroup/unified"]
        elif controller in controllers.split(","):
            version, tops = 1, [f"sys/fs/cgroup/{controllers}", f"sys/fs/cgroup/{controller}"]
        else:
            continue
        # In a container, a part of the tree may be mounted as if it were the whole. Then the path as seen from outside
        # may not exist, and the root of the mount is the group itself.
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for top in dict.fromkeys(tops):
            for depth in range(len(parts), -1, -1):
                yield version, root.joinpath(top, *parts[:depth])
