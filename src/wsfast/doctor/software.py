"""The installed software: the core, Python, the event loop, libraries."""

from __future__ import annotations

import asyncio
import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import inspect
import os
import platform
import re
import selectors
import socket
import subprocess
import sys
import sysconfig
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import wsfast
from wsfast._core import _pure, core

from .limits import Finding

__all__ = ["examine_software"]

REBUILD = "WSFAST_REQUIRE_EXT=1 pip install --force-reinstall --no-cache-dir --no-deps ."
"""For a clone. With this variable, an error of the build stops the installation."""

LIBRARIES = {
    "aiohttp": "aiohttp",
    "fastapi": "asgi",
    "hypercorn": "hypercorn",
    "litestar": "asgi",
    "picows": "picows",
    "quart": "asgi",
    "starlette": "asgi",
    "uvicorn": "uvicorn",
    "wsproto": "wsproto",
}
"""Libraries whose connections wsfast can send to, each with the adapter that knows its private names."""

QUEUED = ("daphne", "granian")
"""ASGI servers under which messages go through a queue for each connection, since they offer no transport."""

RELATED = ("redis", "nats-py", "prometheus-client")
"""Packages that wsfast's extras install."""


def examine_software() -> Iterator[Finding]:
    """Check everything that is installed."""
    yield from _core()
    yield from _sendfile()
    yield from _python()
    yield from _free_threading()
    yield from _websockets()
    yield from _loop()
    yield from _debug()
    yield from _compression()
    yield from _libraries()


# ---- The core


@dataclass(frozen=True, slots=True)
class Extension:
    """The compiled extension that was found."""

    file: str | None = None
    """The file that this Python would import."""
    error: str | None = None
    """Why it does not load."""
    strangers: tuple[str, ...] = ()
    """Files that look like the extension, but are for another Python."""


def _core() -> Iterator[Finding]:
    chosen = os.environ.get("WSFAST_PURE", "0") not in ("", "0")
    if core is not _pure:
        file = core.__file__
        yield Finding(
            key="core",
            level="ok",
            text=f"C extension: {file}",
            value={"in_use": "extension", "why": "built", "file": file},
        )
        return
    extension = _look_for_extension()
    value = {"in_use": "twin", "file": extension.file, "error": extension.error, "strangers": extension.strangers}
    broken = _describe_broken(extension)
    if chosen:
        yield Finding(
            key="core",
            level="note" if broken is None else "problem",
            text="pure-Python core, which is slower, because WSFAST_PURE is set"
            + (f"; also, {broken}" if broken else ""),
            cure="unset WSFAST_PURE" if broken is None else REBUILD,
            value={**value, "why": "WSFAST_PURE"},
        )
    elif broken is not None:
        yield Finding(
            key="core",
            level="problem",
            text=f"pure-Python core, which is slower, because {broken}",
            cure=REBUILD,
            value={**value, "why": "broken" if extension.error else "another Python"},
        )
    elif sys.platform == "win32":
        text = "pure-Python core, which is slower: there is no C extension for Windows"
        yield Finding(key="core", level="note", text=text, value={**value, "why": "Windows"})
    else:
        directory = Path(_pure.__file__).parent
        yield Finding(
            key="core",
            level="note",
            text=f"pure-Python core, which is slower, because no C extension was built: {directory} has none",
            cure=f"{REBUILD}   (in a clone, with a C compiler)",
            value={**value, "why": "not built"},
        )


def _describe_broken(extension: Extension) -> str | None:
    if extension.error is not None:
        return f"the C extension does not load: {extension.error} ({extension.file})"
    if extension.file is None and extension.strangers:
        suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
        files = ", ".join(extension.strangers)
        return f"the C extension was built for another Python: {files}; this one needs _core{suffix}"
    return None


def _look_for_extension() -> Extension:
    spec = importlib.util.find_spec("wsfast._core._core")
    if spec is not None and spec.origin is not None:
        return Extension(file=spec.origin, error=_try_to_load(spec.origin))
    strangers = sorted(
        str(path)
        for directory in wsfast._core.__path__
        for path in Path(directory).glob("_core.*")
        if path.suffix in (".so", ".pyd")
    )
    return Extension(strangers=tuple(strangers))


LOAD = """\
import importlib.util, sys
spec = importlib.util.spec_from_file_location("wsfast._core._core", sys.argv[1])
spec.loader.exec_module(importlib.util.module_from_spec(spec))
"""
"""Loads exactly that file, whatever else is installed; the extension imports nothing of wsfast."""


def _try_to_load(file: str) -> str | None:
    """Load the extension in a separate process, since it may crash; return why it does not load."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", LOAD, file],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    if done.returncode == 0:
        return None
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines and done.returncode == 1 else f"Python ended with status {done.returncode}"


def _sendfile() -> Iterator[Finding]:
    if sys.platform != "linux":
        return
    why, cure = None, None
    if core is _pure:
        why = "the pure-Python core leaves all writing to the transports"
    elif os.environ.get("WSFAST_SENDFILE") == "0":
        why, cure = "WSFAST_SENDFILE is 0", "unset WSFAST_SENDFILE"
    else:
        try:
            _try_sendfile()
        except OSError as exc:
            why = f"sendfile() from memory to a socket fails here: {exc.strerror}"
    text = "large frames to many connections are sent by sendfile(), from memory that all sockets share"
    if why is not None:
        text = f"large frames are copied for each connection, because {why}"
    yield Finding(
        key="sendfile",
        level="ok" if why is None or core is _pure else "note",  # the pure-Python core has a note of its own
        text=text,
        cure=cure,
        value={"in_use": why is None, "why": why},
    )


def _try_sendfile() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, open(os.memfd_create("wsfast"), "r+b", buffering=0) as file:
        file.write(b"octets")
        ours.setblocking(False)
        os.sendfile(ours.fileno(), file.fileno(), 0, 6)


# ---- Python and websockets


def _python() -> Iterator[Finding]:
    version, name = platform.python_version(), platform.python_implementation()
    value: dict[str, object] = {"version": version, "implementation": name, "tested": None}
    try:
        lines: list[str] = importlib.metadata.metadata("wsfast").get_all("Classifier") or []
        matches = (re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", line) for line in lines)
        tested = [match[1] for match in matches if match is not None]
    except importlib.metadata.PackageNotFoundError:
        text = f"{name} {version}; unknown whether wsfast is tested with it (wsfast is not installed)"
        yield Finding(key="python", level="note", text=text, value=value)
        return
    value["tested"] = tested
    span = f"CPython {tested[0]} to {tested[-1]}" if tested else "CPython"
    known = name == "CPython" and ".".join(platform.python_version_tuple()[:2]) in tested
    text = f"{name} {version}" + ("" if known else f"; wsfast is tested with {span}")
    yield Finding(key="python", level="ok" if known else "note", text=text, value=value)


def _free_threading() -> Iterator[Finding]:
    free = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
    enabled: bool = getattr(sys, "_is_gil_enabled", lambda: True)()
    if not free:
        text = "no: this Python has a GIL"
    elif enabled:
        text = "a free-threaded build, but the GIL is on: another module or PYTHON_GIL has enabled it, not wsfast"
    else:
        text = "a free-threaded build without the GIL: several threads can each run an event loop"
    value = {"build": free, "gil": enabled}
    yield Finding(key="free-threading", level="note" if free else "ok", text=text, value=value)


def _websockets() -> Iterator[Finding]:
    import websockets.version

    version = websockets.version.version
    wanted = None
    try:
        for line in importlib.metadata.requires("wsfast") or ():
            if match := re.fullmatch(r"websockets\s*\(?([<>=!~,.\d\s]+)\)?", line.partition(";")[0].strip()):
                wanted = match[1].replace(" ", "")
    except importlib.metadata.PackageNotFoundError:
        pass
    value = {"version": version, "supported": wanted}
    if wanted is None:
        yield Finding(
            key="websockets", level="note", text=f"{version}; unknown whether wsfast supports it", value=value
        )
        return
    least, below = (re.search(rf"{sign}(\d+)", wanted) for sign in (">=", "<"))
    major = int(version.partition(".")[0])
    right = (least is None or major >= int(least[1])) and (below is None or major < int(below[1]))
    yield Finding(
        key="websockets",
        level="ok" if right else "problem",
        text=version if right else f"{version} is not supported; wsfast needs {wanted}",
        cure=None if right else f'pip install "websockets{wanted}"',
        value=value,
    )


# ---- Event loops


def _loop() -> Iterator[Finding]:
    loop = asyncio.new_event_loop()
    loop.close()
    name = f"{type(loop).__module__}.{type(loop).__qualname__}"
    value = {"default": name, "uvloop": _version("uvloop")}
    if isinstance(loop, getattr(asyncio, "ProactorEventLoop", ())):
        yield Finding(
            key="loop",
            level="note",
            text=f"{name}, asyncio's default here: wsfast sends through websockets' own method, and is no faster",
            value=value,
        )
        return
    text = f"{name}, asyncio's default here"
    if isinstance(loop, asyncio.SelectorEventLoop):
        text += f" ({selectors.DefaultSelector.__name__})"
    if value["uvloop"] is not None:
        text += f"; uvloop {value['uvloop']} is installed: use it with uvloop.run()"
    elif sys.platform != "win32":
        text += "; uvloop is not installed (optional)"
    yield Finding(key="loop", level="ok", text=text, value=value)


def _debug() -> Iterator[Finding]:
    variable = not sys.flags.ignore_environment and bool(os.environ.get("PYTHONASYNCIODEBUG"))
    on = bool(sys.flags.dev_mode) or variable
    why = "PYTHONASYNCIODEBUG is set" if variable else "Python runs in development mode (-X dev or PYTHONDEVMODE)"
    yield Finding(
        key="asyncio-debug",
        level="note" if on else "ok",
        text=f"on, because {why}: event loops make more checks and are slower" if on else "off",
        cure=None
        if not on
        else "unset PYTHONASYNCIODEBUG"
        if variable
        else "unset PYTHONDEVMODE   (or run without -X dev)",
        value={"on": on},
    )


# ---- Libraries


def _compression() -> Iterator[Finding]:
    import websockets.asyncio.server

    parameter = inspect.signature(websockets.asyncio.server.serve).parameters.get("compression")
    default = None if parameter is None else parameter.default
    value = {"default": default, "zlib": zlib.ZLIB_RUNTIME_VERSION}
    if default == "deflate":
        text = (
            "serve() negotiates permessage-deflate by default: broadcast() compresses a message once for all clients, "
            f"with zlib {zlib.ZLIB_RUNTIME_VERSION}; serve(..., compression=None) turns it off"
        )
    else:
        text = f"serve() does not compress by default; zlib {zlib.ZLIB_RUNTIME_VERSION}"
    yield Finding(key="compression", level="ok", text=text, value=value)


def _libraries() -> Iterator[Finding]:
    versions = {name: version for name in (*LIBRARIES, *RELATED, *QUEUED) if (version := _version(name)) is not None}
    refused = {}
    for name, adapter in LIBRARIES.items():
        if name in versions:
            try:
                importlib.import_module(f"wsfast.connections.{adapter}")
            except Exception as exc:
                refused[name] = f"{type(exc).__name__}: {exc}"
    text = (
        ", ".join(f"{name} {version}" for name, version in versions.items())
        or "none of the libraries that wsfast supports"
    )
    queued = [name for name in QUEUED if name in versions]
    if queued:
        text += f"; under {', '.join(queued)}, messages go through a queue for each connection, which is slower"
    for name, reason in refused.items():
        text += f"; wsfast cannot send to connections of {name}: {reason}"
    yield Finding(
        key="libraries",
        level="note" if refused else "ok",
        text=text,
        cure=f"pip install --upgrade {' '.join(refused)}" if refused else None,
        value={"versions": versions, "refused": refused, "queued": queued},
    )


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
