"""The two cores, and the one place that knows which modules of the package hold a reference to the core."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import pytest

from wsfast._core import _pure

__all__ = ["CORES", "PURE_ONLY", "load_core", "use_core"]

# Where the extension must be there, its absence is a failure. A build that has none on purpose says so.
PURE_ONLY = os.environ.get("WSFAST_TEST_PURE_ONLY", "0") not in ("", "0")
CORES = ["py"] if PURE_ONLY else ["c", "py"]

USERS = ["_broadcast", "channel", "hub", "_encoding.message", "_dispatcher"]
"""Modules that use the core."""


def load_core(name: str) -> Any:
    """Return one of the cores."""
    return importlib.import_module("wsfast._core._core") if name == "c" else _pure


def use_core(core: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the whole package use a core."""
    for name in USERS:  # by name, since the package has a function of the same name as its module broadcast
        monkeypatch.setattr(sys.modules[f"wsfast.{name}"], "core", core)
