"""Types of the fixtures in tests/conftest.py that are functions."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from helpers.stage import Outcome, Scenario

__all__ = ["RUN_TIMEOUT", "Agree", "Ours", "Run"]

RUN_TIMEOUT = 100.0  # seconds; less than pytest's limit, whose signal uvloop does not hear while it waits for events


class Run(Protocol):
    """Runs a coroutine in an event loop of its own."""

    def __call__(self, main: Callable[[], Coroutine[Any, Any, Any]], timeout: float = RUN_TIMEOUT) -> Any: ...


class Agree(Protocol):
    """Asserts that a scenario comes to the same with upstream's broadcast() and with ours."""

    def __call__(self, scenario: Scenario, *, level: int = logging.INFO) -> Outcome: ...


class Ours(Protocol):
    """Plays a scenario with our broadcast() alone."""

    def __call__(self, scenario: Scenario, *, level: int = logging.INFO) -> Outcome: ...
