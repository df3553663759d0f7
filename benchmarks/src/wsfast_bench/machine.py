"""The machine under the commands: its processors, its descriptors, what is installed on it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import sys
from pathlib import Path

from wsfast.cli import UnfitError

__all__ = ["UnfitError", "describe", "installed", "reserve_descriptors", "shares_core", "two_processors", "versions"]


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
        what: What needs them, for the error.

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
    """Tell whether a module could be imported, without importing it."""
    return importlib.util.find_spec(module) is not None


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
