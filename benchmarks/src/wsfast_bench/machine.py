"""The machine under the commands: its processors, its descriptors, what is installed on it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import sys
from collections.abc import Iterable
from pathlib import Path

from wsfast.cli import UnfitError

__all__ = [
    "UnfitError",
    "bind_server",
    "cache_size",
    "describe",
    "fitting_threads",
    "installed",
    "reserve_descriptors",
    "shares_core",
    "two_processors",
    "usable_processors",
    "versions",
]

CACHES = Path("/sys/devices/system/cpu")
"""Where Linux describes them."""

UNKNOWN_CACHE = 64 << 20
"""Bytes of the last-level cache where that is not known."""


def two_processors() -> tuple[int, int] | None:
    """Return two processors, one for the server and one for its clients; None if they cannot be had.

    They are of different cores if possible. The first processor of all, to which the kernel likes to give interrupts,
    goes to the clients.
    """
    if not hasattr(os, "sched_getaffinity"):
        return None
    processors = sorted(os.sched_getaffinity(0))
    if len(processors) < 2:
        return None
    clients = processors[0]
    for server in processors[1:]:
        if not shares_core(server, clients):
            return server, clients
    return processors[1], clients


def usable_processors() -> list[int]:
    """Return the processors that this process may use."""
    if not hasattr(os, "sched_getaffinity"):
        return list(range(os.cpu_count() or 1))
    return sorted(os.sched_getaffinity(0))


def bind_server(processors: tuple[int, int] | None, threads: int = 1) -> bool:
    """Bind this process to as many processors as it has threads.

    Args:
        processors: One for this process, one for that of its clients; None to bind neither.
        threads: How many threads send. They get processors of different cores if possible.

    Returns:
        Whether the clients have their processor for themselves.
    """
    if processors is None:
        return False
    server, clients = processors
    chosen = [server]
    others = [one for one in usable_processors() if one not in processors]
    while others and len(chosen) < threads:
        best = next((one for one in others if not any(shares_core(one, taken) for taken in chosen)), others[0])
        others.remove(best)
        chosen.append(best)
    if len(chosen) < threads:
        chosen.append(clients)
    os.sched_setaffinity(0, chosen)
    return clients not in chosen


def fitting_threads(wanted: Iterable[int]) -> tuple[int, ...]:
    """Return those numbers of threads for which there are processors; print a notice for each other one.

    Raises:
        UnfitError: If there is none.
    """
    there = len(usable_processors())
    wanted = tuple(wanted)
    for count in wanted:
        if count > there:
            print(f"Skipping {count} threads: this process may use {there} processors")
    fitting = tuple(count for count in wanted if count <= there)
    if not fitting:
        raise UnfitError("no number of threads is left to measure")
    return fitting


def cache_size(processor: int = 0) -> int:
    """Return the bytes of the last-level cache of a processor, or a guess where that is not known."""
    found = {0: UNKNOWN_CACHE}
    for cache in (CACHES / f"cpu{processor}" / "cache").glob("index*"):
        try:
            level, size = (int((cache / "level").read_text()), (cache / "size").read_text().strip())
            found[level] = int(size[:-1]) << {"K": 10, "M": 20, "G": 30}[size[-1]]
        except (OSError, ValueError, KeyError, IndexError):
            continue
    return found[max(found)]


def shares_core(first: int, second: int) -> bool:
    """Tell whether two processors are threads of one core and thus slow each other down, as far as is known."""
    try:
        siblings = Path(f"/sys/devices/system/cpu/cpu{first}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return False
    for part in siblings.split(","):
        low, _, high = part.partition("-")
        if int(low) <= second <= int(high or low):
            return True
    return False


def reserve_descriptors(needed: int, what: str) -> None:
    """Raise this process's limit of descriptors as far as it goes; processes started later inherit it.

    Args:
        needed: How many descriptors one process will have open.
        what: The name in the error of the caller that needs them.

    Raises:
        UnfitError: If the limit stays below `needed`.
    """
    try:
        import resource
    except ImportError:  # pragma: no cover - Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != soft:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (ValueError, OSError):
            # macOS says that there is no limit and then accepts none above its OPEN_MAX.
            soft = max(soft, min(needed, 10240))
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft != resource.RLIM_INFINITY and soft < needed:
        raise UnfitError(
            f"{what} need {needed} file descriptors, and this process may have {soft} open; "
            f"raise the limit (ulimit -Hn) or take fewer clients"
        )


def installed(module: str) -> bool:
    """Tell whether a module could be imported, without importing it; packages that it is in are imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def versions() -> dict[str, str]:
    """Return the versions of what a measurement depends on, as far as it is installed."""
    found = {"python": platform.python_version()}
    for name in ("wsfast", "websockets", "picows", "uvloop"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def describe() -> dict[str, str | int]:
    """Return what must be known about a machine to read numbers that were measured on it."""
    return {
        "system": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "processor": _processor_name(),
        "processors": os.cpu_count() or 1,
        "implementation": sys.implementation.name,
    }


def _processor_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    except OSError:
        pass
    return platform.processor() or "unknown"
