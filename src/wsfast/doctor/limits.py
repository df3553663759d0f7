"""Limits of the system that matter with thousands of connections. Limits that a system does not have are left out."""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from wsfast._core._process import control_groups, default_threads, processor_quota, usable_processors

__all__ = ["Finding", "Level", "examine_limits"]

Level: TypeAlias = Literal["ok", "note", "problem"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The result of one check."""

    key: str
    """Name of the check. It is the same in all releases."""
    level: Level
    """`problem`: it does not work, or not for that many clients; `note`: it works, but is worth knowing."""
    text: str
    cure: str | None = None
    """A command that fixes it."""
    enough_for: int | None = None
    """Number of clients that it is enough for, where that is known."""
    value: Mapping[str, Any] = field(default_factory=dict)
    """The values that were read, for programs."""


ROOT = Path("/")
"""The directory that contains `proc` and `sys`."""

SPARE = 64
"""Descriptors that a server needs besides those of its clients: event loop, listeners, log files, interpreter."""

CLIENT_MEMORY = 64 << 10
"""Bytes of memory assumed per client. `wsfast bench --memory` found 55 KiB for a stock connection with
permessage-deflate; the kernel's share for the socket comes on top.
"""

UNLIMITED = 1 << 60
"""Values from here on mean "no limit": version 1 of control groups has a huge number of pages for that."""

CHANNEL_ROOM = 64 << 10
"""Maximum size of the send buffer in bytes below which a socket holds less than other systems give by default."""


def examine_limits(clients: int) -> Iterator[Finding]:
    """Check the limits of this system for a server with that many clients."""
    yield from _open_files(clients)
    yield from _open_files_of_all(clients)
    yield from _epoll(clients)
    yield from _backlog(clients)
    yield from _send_buffers()
    yield from _receive_buffers()
    yield from _tcp_memory(clients)
    yield from _notsent_lowat()
    yield from _ports(clients)
    yield from _memory(clients)
    yield from _processors()
    yield from _threads()


def _numbers(path: str) -> list[int] | None:
    """Return the integers in a file; None if the file does not exist or contains anything else."""
    try:
        return [int(word) for word in (ROOT / path).read_text().split()] or None
    except (OSError, ValueError):
        return None


def _number(path: str) -> int | None:
    numbers = _numbers(path)
    return None if numbers is None else numbers[0]


def _sysctl(name: str, value: object) -> str:
    return f"sudo sysctl -w {name}={value}"


def _power(number: int) -> int:
    """Return the smallest power of two that is not less than a number."""
    return 1 << max(number - 1, 0).bit_length()


def _size(octets: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if octets < 1024:
            return f"{octets:.4g} {unit}"
        octets /= 1024
    return f"{octets:.4g} GiB" if octets < 1000 else f"{octets:.0f} GiB"


# ---- Descriptors


def _open_files(clients: int) -> Iterator[Finding]:
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    needed = clients + SPARE
    value = {"soft": None if soft == unlimited else soft, "hard": None if hard == unlimited else hard}
    told = f"open files per process: soft limit {_limit(value['soft'])}, hard limit {_limit(value['hard'])}"
    if value["soft"] is None:
        yield Finding(key="open-files", level="ok", text=f"{told}: enough", value=value)
        return
    enough = max(soft - SPARE, 0)
    text = f"{told}: enough for {enough} clients"
    if soft >= needed:
        yield Finding(key="open-files", level="ok", text=text, enough_for=enough, value=value)
        return
    cure: str | None = f"ulimit -n {needed}"
    if hard != unlimited and hard < needed:
        # Only root can raise the hard limit: by prlimit, for the shell in which the server is started next.
        cure = f"sudo prlimit --pid $$ --nofile={needed}:{needed}" if sys.platform == "linux" else None
        largest = _number("proc/sys/fs/nr_open")
        if cure is not None and largest is not None and largest < needed:
            cure = f"{_sysctl('fs.nr_open', _power(needed))} && {cure}"
    if cure is not None and sys.platform == "linux":
        cure += f"   (or LimitNOFILE={needed} in a unit of systemd)"
    yield Finding(key="open-files", level="problem", text=text, cure=cure, enough_for=enough, value=value)


def _limit(value: int | None) -> str:
    return "none" if value is None else str(value)


def _open_files_of_all(clients: int) -> Iterator[Finding]:
    numbers = _numbers("proc/sys/fs/file-nr")
    if numbers is None or len(numbers) != 3:
        return
    used, _, most = numbers
    enough = max(most - used, 0)
    yield Finding(
        key="file-max",
        level="ok" if enough >= clients else "problem",
        text=f"open files of all processes: {used} of at most {most}; enough for {enough} clients",
        cure=None if enough >= clients else _sysctl("fs.file-max", _power(used + clients + SPARE)),
        enough_for=enough,
        value={"max": most, "allocated": used},
    )


def _epoll(clients: int) -> Iterator[Finding]:
    most = _number("proc/sys/fs/epoll/max_user_watches")
    if most is None:
        return
    # The event loop watches each connection. A channel watches those with full buffers a second time.
    enough = most // 2
    level: Level = "ok" if enough >= clients else "note" if most >= clients + SPARE else "problem"
    yield Finding(
        key="epoll",
        level=level,
        text=f"epoll can watch {most} sockets: enough for {enough} clients, even if all are slow (two watches each)",
        cure=None if level == "ok" else _sysctl("fs.epoll.max_user_watches", _power(2 * (clients + SPARE))),
        enough_for=enough,
        value={"max_user_watches": most},
    )


# ---- TCP


def _backlog(clients: int) -> Iterator[Finding]:
    most = _number("proc/sys/net/core/somaxconn")
    if most is None:
        return
    text = (
        f"up to {most} connections can wait to be accepted, with serve(..., backlog={most}); asyncio's default is 100"
    )
    if most < clients:
        text += f"; if all {clients} clients reconnect at once, the rest retry after a second or more"
    yield Finding(
        key="somaxconn",
        level="ok" if most >= clients else "note",
        text=text,
        cure=None if most >= clients else _sysctl("net.core.somaxconn", _power(clients)),
        enough_for=most,
        value={"somaxconn": most},
    )


def _send_buffers() -> Iterator[Finding]:
    numbers = _numbers("proc/sys/net/ipv4/tcp_wmem")
    if numbers is None or len(numbers) != 3:
        return
    least, first, most = numbers
    small = most < CHANNEL_ROOM
    yield Finding(
        key="tcp_wmem",
        level="note" if small else "ok",
        text=f"send buffers: {_size(first)}, growing to {_size(most)}"
        + ("; a larger message always needs several system calls" if small else ""),
        cure=_sysctl("net.ipv4.tcp_wmem", f'"{least} {max(first, 16384)} 4194304"') if small else None,
        value={"min": least, "default": first, "max": most},
    )


def _receive_buffers() -> Iterator[Finding]:
    numbers = _numbers("proc/sys/net/ipv4/tcp_rmem")
    if numbers is None or len(numbers) != 3:
        return
    least, first, most = numbers
    yield Finding(
        key="tcp_rmem",
        level="ok",
        text=f"receive buffers: {_size(first)}, growing to {_size(most)}; the kernel keeps that much unread data per "
        "socket",
        value={"min": least, "default": first, "max": most},
    )


def _tcp_memory(clients: int) -> Iterator[Finding]:
    numbers = _numbers("proc/sys/net/ipv4/tcp_mem")
    buffers = _numbers("proc/sys/net/ipv4/tcp_wmem")
    if numbers is None or len(numbers) != 3 or buffers is None or len(buffers) != 3 or buffers[1] < 1:
        return
    page = os.sysconf("SC_PAGE_SIZE")
    pressure = numbers[1] * page
    enough = pressure // buffers[1]
    pages = -(-clients * buffers[1] // page)
    yield Finding(
        key="tcp_mem",
        level="ok" if enough >= clients else "note",
        text=f"buffers of all sockets together: {_size(pressure)} before the kernel shrinks them; enough for {enough} "
        f"clients with {_size(buffers[1])} each in flight",
        cure=None
        if enough >= clients
        else _sysctl("net.ipv4.tcp_mem", f'"{pages * 3 // 4} {pages} {max(pages * 3 // 2, numbers[2])}"'),
        enough_for=enough,
        value={"low": numbers[0] * page, "pressure": pressure, "high": numbers[2] * page},
    )


def _notsent_lowat() -> Iterator[Finding]:
    if sys.platform == "win32":
        return
    option = getattr(socket, "TCP_NOTSENT_LOWAT", None)
    works = False
    if option is not None:
        try:
            with socket.socket() as sock:
                sock.setsockopt(socket.IPPROTO_TCP, option, 16384)
                works = sock.getsockopt(socket.IPPROTO_TCP, option) == 16384
        except OSError:
            pass
    if works:
        text = "TCP_NOTSENT_LOWAT is available: a channel notices a slow client at 16 KiB of unsent data, not megabytes"
    else:
        text = "TCP_NOTSENT_LOWAT is missing: a channel notices a slow client only when the kernel's buffer is full"
    yield Finding(key="notsent_lowat", level="ok" if works else "note", text=text, value={"available": works})


def _ports(clients: int) -> Iterator[Finding]:
    numbers = _numbers("proc/sys/net/ipv4/ip_local_port_range")
    if numbers is None or len(numbers) != 2:
        return
    low, high = numbers
    enough = max(high - low + 1, 0) - _reserved(low, high)
    level: Level = "ok" if enough >= clients else "note"
    # Ports below 1024 need privileges.
    helps = level == "note" and clients <= 65535 - 1024 + 1
    text = (
        f"local ports {low} to {high}: enough for {enough} clients that run on this machine, as in wsfast bench; "
        "clients elsewhere need none"
    )
    if level == "note" and not helps:
        text += "; connect more from other addresses (127.0.0.2) or machines"
    yield Finding(
        key="ports",
        level=level,
        text=text,
        cure=_sysctl("net.ipv4.ip_local_port_range", '"1024 65535"') if helps else None,
        enough_for=enough,
        value={"low": low, "high": high},
    )


def _reserved(low: int, high: int) -> int:
    """Return the number of ports in a range that are reserved, and so not given to clients."""
    try:
        text = (ROOT / "proc/sys/net/ipv4/ip_local_reserved_ports").read_text()
    except OSError:
        return 0
    count = 0
    for first, last in re.findall(r"(\d+)(?:-(\d+))?", text):
        count += max(min(int(last or first), high) - max(int(first), low) + 1, 0)
    return count


# ---- Memory and processors


def _memory(clients: int) -> Iterator[Finding]:
    limit = _cgroup_limit("memory", "memory.max", "memory.limit_in_bytes")
    source = "control group"
    total = _total_memory()
    if limit is None or (total is not None and total <= limit):
        limit, source = total, "machine"
    if limit is None:
        return
    enough = limit // CLIENT_MEMORY
    owner = "this container or control group" if source == "control group" else "this machine"
    yield Finding(
        key="memory",
        level="ok" if enough >= clients else "note",
        text=f"{owner} has {_size(limit)}: enough for {enough} clients of {_size(CLIENT_MEMORY)} each (stock "
        "connections with compression), if nothing else needs memory",
        cure=None
        if enough >= clients
        else "wsfast bench --memory only --compression none,deflate   (measures the memory per client)",
        enough_for=enough,
        value={"bytes": limit, "of": source},
    )


def _total_memory() -> int | None:
    try:
        match = re.search(r"^MemTotal:\s+(\d+) kB$", (ROOT / "proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        return None
    return None if match is None else int(match[1]) << 10


def _processors() -> Iterator[Finding]:
    count, share = usable_processors(), processor_quota(ROOT)
    value = {"processors": count, "quota": share}
    if share is not None and share < 1:
        yield Finding(
            key="processors",
            level="note",
            text=f"the CPU quota of this control group is {share:.2g} processors: once it is used up, the whole server "
            "stops until the next period",
            cure="docker update --cpus 1 CONTAINER   (or another way to raise cpu.max of the control group)",
            value=value,
        )
        return
    told = f"{count} processor{'s' * (count > 1)} for this process"
    told += "" if share is None else f"; its control group has a CPU quota of {share:.3g} processors"
    if count < 2:
        text = f"{told}; in wsfast bench, server and clients share it and slow each other down"
        yield Finding(key="processors", level="note", text=text, value=value)
    else:
        yield Finding(key="processors", level="ok", text=told, value=value)


def _threads() -> Iterator[Finding]:
    default = default_threads(ROOT)
    threads = f"{default.number} thread{'s' * (default.number != 1)}"
    told = f"{threads} for sending to 256 connections or more: {default.reason}"
    yield Finding(key="threads", level="ok", text=told, value=default._asdict())


def _cgroup_limit(controller: str, second: str, first: str) -> int | None:
    """Return the lowest limit of all control groups that this process is in."""
    limits = []
    for version, group in control_groups(controller, ROOT):
        try:
            limit = int((group / (second if version == 2 else first)).read_text())
        except (OSError, ValueError):  # "max", or no such file
            continue
        if 0 <= limit < UNLIMITED:
            limits.append(limit)
    return min(limits, default=None)
