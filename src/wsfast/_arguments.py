"""Checks of the arguments of public classes and functions, so that a mistake raises an error where it is made."""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
from collections.abc import Iterable, Iterator
from numbers import Integral, Real
from typing import Any, NoReturn, SupportsIndex

__all__ = [
    "Local",
    "check_callback",
    "check_close",
    "check_integer",
    "check_seconds",
    "check_str",
    "connections_in",
    "needs",
    "several",
]


def _described(value: object) -> str:
    kind = type(value).__name__
    return "None" if value is None else f"{value!r:.80}, which is a {kind}"


def check_integer(name: str, value: Any, *, least: int = 1, most: int | None = None, optional: bool = False) -> None:
    """Check an integer argument.

    Raises:
        TypeError: If it is not an integer, nor None if that is allowed.
        ValueError: If it is less than `least`, which is 0 or 1, or more than `most`.
    """
    if value is None and optional:
        return
    or_none = " or None" if optional else ""
    if isinstance(value, Real) and not isinstance(value, bool) and not float(value) >= least:
        if least:
            raise ValueError(f"{name} must be positive{or_none}, not {value!r}")
        raise ValueError(f"{name} must not be negative, but is {value!r}")
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer{or_none}, not {_described(value)}")
    if most is not None and int(value) > most:
        raise ValueError(f"{name} must not be more than {most}, but is {value!r}")


def check_seconds(name: str, value: Any, *, optional: bool = False) -> None:
    """Check a duration.

    Raises:
        TypeError: If it is not a number, nor None if that is allowed.
        ValueError: If it is not positive (NaN included), or infinite.
    """
    if value is None and optional:
        return
    or_none = " or None" if optional else ""
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number of seconds{or_none}, not {_described(value)}")
    if not float(value) > 0:
        raise ValueError(f"{name} must be positive{or_none}, not {value!r}")
    if math.isinf(value):
        raise ValueError(f"{name} must be finite{or_none}, not {value!r}")


def check_str(name: str, value: object) -> None:
    """Check a string argument.

    Raises:
        TypeError: If it is not a string.
    """
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, not {_described(value)}")


def check_close(code: Any, reason: Any) -> None:
    """Check the status code and the reason of a close frame (RFC 6455, section 7.4).

    Raises:
        TypeError: If the code is not an integer, or the reason is not a string.
        ValueError: If the code may not be sent, or the reason is too long.
    """
    check_integer("code", code)
    check_str("reason", reason)
    if not (code in (1000, 1001, 1002, 1003, *range(1007, 1015)) or 3000 <= code < 5000):
        raise ValueError(
            f"code must be a close code that may be sent (1000 to 1003, 1007 to 1014 or 3000 to 4999), not {code}"
        )
    if len(reason.encode()) > 123:
        raise ValueError(f"reason must not be longer than 123 bytes in UTF-8, but has {len(reason.encode())}")


def _is_coroutine_function(function: Any) -> bool:
    while isinstance(function, functools.partial):
        function = function.func
    return any(
        inspect.iscoroutinefunction(one) or inspect.isasyncgenfunction(one)
        for one in (function, getattr(type(function), "__call__", None))  # noqa: B004
    )


def check_callback(name: str, callback: object, *, optional: bool = True) -> None:
    """Check a callback.

    Raises:
        TypeError: If it is not callable, or is a coroutine function, whose result would never be awaited.
    """
    if callback is None and optional:
        return
    if not callable(callback):
        raise TypeError(f"{name} must be a function, not {_described(callback)}")
    if _is_coroutine_function(callback):
        raise TypeError(
            f"{name} must be a plain function, not a coroutine function, whose result would never be awaited; "
            "give a function that calls asyncio.create_task()"
        )


def several(name: str, what: str, values: Iterable[Any]) -> list[Any]:
    """Return several values as a list.

    Raises:
        TypeError: If it is a single value.
    """
    if type(values) is not tuple and (isinstance(values, (str, bytes)) or not isinstance(values, Iterable)):
        raise TypeError(
            f"{name} must be an iterable of {what}, not {type(values).__name__}; write [...] around a single one"
        )
    return list(values)


def connections_in(name: str, values: Iterable[Any]) -> list[Any]:
    """Return several connections as a list. Some of them may never have been subscribed.

    Raises:
        TypeError: If it is a single connection, or one of the values is the name of a user or a number.
    """
    connections = several(name, "connections", values)
    for connection in connections:
        if isinstance(connection, (str, bytes, int)):
            raise TypeError(f"{name} must contain only connections, not {_described(connection)}")
    return connections


@contextlib.contextmanager
def needs(install: str, *modules: str) -> Iterator[None]:
    """Wrap the import of an optional package: if it is missing, the error says how to install it.

    Raises:
        ModuleNotFoundError: If one of the modules is missing.
    """
    try:
        yield
    except ModuleNotFoundError as exc:
        missing = (exc.name or "").partition(".")[0]
        if missing not in modules:
            raise
        raise ModuleNotFoundError(
            f'{missing} is not installed, or is too old; install it with: pip install "{install}"', name=exc.name
        ) from None


class Local:
    """Base class of objects that belong to one process, and can be neither pickled nor copied."""

    __slots__ = ()

    _instead = "create one in each process, and connect the hubs by a relay, for example wsfast.relay.redis(hub, url)"
    """The recommendation in the error message."""

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        name = type(self).__name__
        raise TypeError(
            f"cannot pickle or copy a {name}: its connections belong to this process, and a copy could not send to "
            f"them; {self._instead}"
        )
