"""The directory in which processes of one machine and one user find each other: one Unix socket for each process.

A socket appears under its name only once it listens. So a process that is refused at a socket knows that the socket's
process has ended, and may remove it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import socket
import stat
import struct
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import quote

__all__ = ["RuntimeDirectory", "check_peer"]

SUPPORTED: bool = os.name == "posix" and hasattr(socket, "AF_UNIX")
"""Whether the system has Unix sockets that asyncio supports."""

_FAMILY: int = getattr(socket, "AF_UNIX", 0)

BACKLOG = 512
"""Connections that may wait for a busy process."""

LONGEST_PATH: int = 107 if sys.platform == "linux" else 103
"""Bytes of the path of a Unix socket."""

LONGEST_PREFIX = 24
"""Bytes of the longest prefix that is put into a name as it is."""

BINDING_TAKES = 60.0
"""Seconds after which a socket under its first name is left over from a process that has ended."""


def _own_user() -> int:
    """Return the user as whom this process runs; 0 on Windows, where nothing of this is used."""
    if sys.platform == "win32":
        return 0
    return os.geteuid()


def _default() -> Path:
    """Return the directory for all programs of this user."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(runtime):
        with contextlib.suppress(OSError):
            if os.stat(runtime).st_uid == _own_user():
                return Path(runtime, "wsfast")
    return Path(tempfile.gettempdir(), f"wsfast-{_own_user()}")


class RuntimeDirectory:
    """A directory of sockets, which only its owner may enter. It is created if it does not exist.

    Args:
        directory: Its path; None for `wsfast` in `$XDG_RUNTIME_DIR`, or `wsfast-<uid>` in the directory for temporary
            files.
        prefix: Beginning of the names of sockets.

    Raises:
        RuntimeError: If the system has no Unix sockets that asyncio supports.
        TypeError: If `directory` is not a path.
        ValueError: If the path is too long.
        OSError: If the directory cannot be created, is not a directory, belongs to another user (PermissionError), or
            other users may enter it (PermissionError).
    """

    def __init__(self, directory: str | os.PathLike[str] | None, prefix: str) -> None:
        if not SUPPORTED:
            raise RuntimeError(
                "wsfast.relay.local() needs Unix sockets, which asyncio does not have on this system; use "
                "wsfast.relay.redis() or nats()"
            )
        if directory is not None and not isinstance(directory, (str, os.PathLike)):
            raise TypeError(f"directory must be a path or None, not {type(directory).__name__}")
        self.path: Path = _default() if directory is None else Path(os.path.abspath(directory))
        name = quote(prefix, safe="")
        if len(name) > LONGEST_PREFIX:
            name = "=" + hashlib.sha256(prefix.encode()).hexdigest()[:16]  # quote() leaves no = in others
        self._prefix = name
        self._names = re.compile(re.escape(name) + r"-[0-9]+-[0-9a-f]{16}\.sock")
        longest = len(os.fsencode(self.of(f".{name}-{1 << 22}-{'0' * 16}.sock")))
        if longest > LONGEST_PATH:
            raise ValueError(
                f"directory {str(self.path)!r} is too long: paths of its sockets would have {longest} bytes, and a "
                f"Unix socket may have {LONGEST_PATH}; choose a shorter directory"
            )
        self.check()

    def __str__(self) -> str:
        return str(self.path)

    def of(self, name: str) -> str:
        """Return the path of a socket."""
        return str(self.path / name)

    def check(self) -> None:
        """Create the directory if needed, and check that it is ours alone.

        Raises:
            OSError: If it is not.
        """
        with contextlib.suppress(FileExistsError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.mkdir(mode=0o700)
        found = os.lstat(self.path)  # a link may be somebody else's
        if not stat.S_ISDIR(found.st_mode):
            raise NotADirectoryError(f"{str(self.path)!r} is not a directory; remove it, or choose another directory")
        if found.st_uid != _own_user():
            raise PermissionError(
                f"{str(self.path)!r} belongs to user {found.st_uid}, not to user {_own_user()}, as whom this process "
                "runs; choose another directory"
            )
        if found.st_mode & 0o077:
            raise PermissionError(
                f"other users may enter {str(self.path)!r} (its mode is {stat.S_IMODE(found.st_mode):o}); run chmod "
                "700 on it, or choose another directory"
            )

    def new_name(self) -> str:
        """Return a name for a socket of this process."""
        return f"{self._prefix}-{os.getpid()}-{secrets.token_hex(8)}.sock"

    def listen(self, name: str) -> socket.socket:
        """Return a socket that listens under a name.

        Raises:
            OSError: If that is not possible.
        """
        self.check()
        self._remove_leftovers()
        hidden = self.of(f".{name}")
        listening = socket.socket(_FAMILY, socket.SOCK_STREAM)
        try:
            listening.setblocking(False)
            listening.bind(hidden)
            try:
                os.chmod(hidden, 0o600)
                listening.listen(BACKLOG)
                os.rename(hidden, self.of(name))
            except BaseException:
                os.unlink(hidden)
                raise
        except BaseException:
            listening.close()
            raise
        return listening

    def names(self) -> list[str]:
        """Return the names of all sockets; none if the directory is gone."""
        try:
            return [name for name in os.listdir(self.path) if self._names.fullmatch(name)]
        except OSError:
            return []

    def connect(self, name: str) -> socket.socket | None:
        """Return a connection to a socket. None if its process has ended; then the socket is removed.

        Raises:
            OSError: If that is not possible now: many connections wait already.
        """
        connection = socket.socket(_FAMILY, socket.SOCK_STREAM)
        try:
            connection.setblocking(False)
            connection.connect(self.of(name))
            check_peer(connection)
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
            self.remove(name)
            return None
        except BaseException:
            connection.close()
            raise
        return connection

    def is_name(self, name: object) -> bool:
        """Whether this may be the name of a socket of this prefix."""
        return isinstance(name, str) and self._names.fullmatch(name) is not None

    def has(self, name: str) -> bool:
        """Whether there is a socket of that name."""
        return os.path.lexists(self.of(name))

    def remove(self, name: str) -> None:
        """Remove a socket if it is there."""
        with contextlib.suppress(OSError):
            os.unlink(self.of(name))

    def _remove_leftovers(self) -> None:
        """Remove sockets of processes that were killed between bind and rename."""
        for name in os.listdir(self.path):
            if name.startswith(".") and self._names.fullmatch(name[1:]):
                with contextlib.suppress(OSError):
                    if os.lstat(self.of(name)).st_mtime < time.time() - BINDING_TAKES:
                        os.unlink(self.of(name))


def check_peer(connection: socket.socket) -> None:
    """Check that the process at the other end runs as the same user, where the system tells.

    Raises:
        PermissionError: If it does not.
    """
    if not hasattr(socket, "SO_PEERCRED"):
        return
    _, user, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if user != _own_user():
        raise PermissionError(f"the process at the other end runs as user {user}, not as user {_own_user()}")
