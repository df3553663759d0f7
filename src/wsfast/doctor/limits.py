"""Limits of the system that thousands of connections run into, as far as they exist here."""

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
    """One thing that was looked at."""

    key: str
    """Its name, which stays the same from release to release."""
    level: Level
    """`problem`: it will not work, or not for that many clients; `note`: it works, and one should know."""
    text: str
    cure: str | None = None
    """A command that changes it."""
    enough_for: int | None = None
    """How many clients it is enough for, where that can be told."""
    value: Mapping[str, Any] = field(default_factory=dict)
    """What was read, for machines."""


ROOT = Path("/")
"""Where `proc` and `sys` are."""

SPARE = 64
"""Descriptors of a server besides those of its clients: the event loop's, listeners, log files, the interpreter's."""

CLIENT_MEMORY = 64 << 10
"""Bytes that a client is taken to need: `wsfast bench --memory` found 55 KiB for a stock connection with
permessage-deflate, and the kernel has its part for the socket."""

UNLIMITED = 1 << 60
"""What is not below this is no limit: version 1 of control groups has a number of pages for that."""

CHANNEL_ROOM = 64 << 10
"""Largest send buffer, in bytes, below which a socket cannot even hold what other systems hold by default."""


def examine_limits(clients: int) -> Iterator[Finding]:
    """Judge the limits of this system for a server with that many clients."""
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
    """Return the integers in a file; None if there is no such file, or something else in it."""
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
    """Return the smallest power of two that is not below a number."""
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
    told = f"soft limit {_limit(value['soft'])}, hard limit {_limit(value['hard'])}"
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
        # The hard limit is root's to raise, by prlimit for the shell in which the server is started next.
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
        text=f"all processes together may have {most} files open, and have {used}: enough for {enough} clients",
        cure=None if enough >= clients else _sysctl("fs.file-max", _power(used + clients + SPARE)),
        enough_for=enough,
        value={"max": most, "allocated": used},
    )


def _epoll(clients: int) -> Iterator[Finding]:
    most = _number("proc/sys/fs/epoll/max_user_watches")
    if most is None:
        return
    # The event loop watches each connection, and a channel those once more whose buffers are full.
    enough = most // 2
    level: Level = "ok" if enough >= clients else "note" if most >= clients + SPARE else "problem"
    yield Finding(
        key="epoll",
        level=level,
        text=f"{most} sockets may be watched: enough for {enough} clients, all of them slow",
        cure=None if level == "ok" else _sysctl("fs.epoll.max_user_watches", _power(2 * (clients + SPARE))),
        enough_for=enough,
        value={"max_user_watches": most},
    )


# ---- TCP


def _backlog(clients: int) -> Iterator[Finding]:
    most = _number("proc/sys/net/core/somaxconn")
    if most is None:
        return
    text = f"{most} connections may wait to be accepted, if serve(..., backlog={most}) asks for them (asyncio: 100)"
    if most < clients:
        text += f"; of {clients} clients that come back at once, the others try again after a second or more"
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
        text=f"a send buffer begins with {_size(first)} and grows to {_size(most)}"
        + (": a longer message never leaves in one system call" if small else ""),
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
        text=f"a receive buffer begins with {_size(first)} and grows to {_size(most)}: what the kernel keeps of "
        "messages that nobody reads",
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
        text=f"all sockets together may hold {_size(pressure)} before the kernel cuts their buffers: enough for "
        f"{enough} clients with {_size(buffers[1])} each on its way",
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
        text = "there is TCP_NOTSENT_LOWAT: a channel notices a slow client when 16 KiB have not left, not megabytes"
    else:
        text = "there is no TCP_NOTSENT_LOWAT: a channel notices a slow client only when the kernel's buffer is full"
    yield Finding(key="notsent_lowat", level="ok" if works else "note", text=text, value={"available": works})


def _ports(clients: int) -> Iterator[Finding]:
    numbers = _numbers("proc/sys/net/ipv4/ip_local_port_range")
    if numbers is None or len(numbers) != 2:
        return
    low, high = numbers
    enough = max(high - low + 1, 0) - _reserved(low, high)
    level: Level = "ok" if enough >= clients else "note"
    # The ports below 1024 are not for everybody.
    helps = level == "note" and clients <= 65535 - 1024 + 1
    text = f"ports {low} to {high}: enough for {enough} clients on this machine of one server, as in wsfast bench"
    if level == "note" and not helps:
        text += "; let more come from other addresses (127.0.0.2) or machines"
    yield Finding(
        key="ports",
        level=level,
        text=text,
        cure=_sysctl("net.ipv4.ip_local_port_range", '"1024 65535"') if helps else None,
        enough_for=enough,
        value={"low": low, "high": high},
    )


def _reserved(low: int, high: int) -> int:
    """Return how many ports of a range are not given to clients."""
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
        "connections with compression), and for nothing else",
        cure=None
        if enough >= clients
        else "wsfast bench --memory only --compression none,deflate   (tells what they need)",
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
            text=f"this control group has {share:.2g} of a processor: after that part of each period, all of the "
            "server stands still",
            cure="docker update --cpus 1 CONTAINER   (or whatever sets cpu.max of the control group)",
            value=value,
        )
        return
    told = f"{count} processor{'s' * (count > 1)} for this process"
    told += "" if share is None else f", {share:.3g} of a processor's time for its control group"
    if count < 2:
        text = f"{told}; in wsfast bench, server and clients are in each other's way"
        yield Finding(key="processors", level="note", text=text, value=value)
    else:
        yield Finding(key="processors", level="ok", text=told, value=value)


def _threads() -> Iterator[Finding]:
    default = default_threads(ROOT)
    threads = "1 thread sends" if default.number == 1 else f"{default.number} threads send"
    told = f"{threads} to 256 connections or more: {default.reason}"
    yield Finding(key="threads", level="ok", text=told, value=default._asdict())


def _cgroup_limit(controller: str, second: str, first: str) -> int | None:
    """Return the least of the limits of all groups that this process is in."""
    limits = []
    for version, group in control_groups(controller, ROOT):
        try:
            limit = int((group / (second if version == 2 else first)).read_text())
        except (OSError, ValueError):  # "max", or there is none here
            continue
        if 0 <= limit < UNLIMITED:
            limits.append(limit)
    return min(limits, default=None)
